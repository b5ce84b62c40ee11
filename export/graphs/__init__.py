"""Trace graphs, cut them into parts, count their operations."""
