"""Clips as training data: windows, latents, motion references."""
