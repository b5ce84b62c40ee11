"""Measure and check: bench, compare, doctor."""
