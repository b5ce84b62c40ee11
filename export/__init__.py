"""Checkpoint to bundle: weightless trace, precision, parity."""
