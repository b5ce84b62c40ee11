"""Render pictures."""
