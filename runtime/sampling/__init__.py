"""Noise, noise levels, segments, tiles: pure functions of arrays."""
