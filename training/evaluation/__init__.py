"""Evaluate a student beside its teacher: measures, seeds, one report."""
