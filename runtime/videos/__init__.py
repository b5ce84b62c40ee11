"""Render videos."""
