"""Wan 2.2 TI2V-5B: video from text, or from text and an image, in one stage."""
