"""Wan 2.2 I2V-A14B: image to video in one stage, by two experts."""
