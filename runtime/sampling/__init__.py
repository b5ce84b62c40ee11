"""Noise, schedules, segments and tiles: pure functions of arrays."""
