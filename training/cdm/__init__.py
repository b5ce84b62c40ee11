"""Continuous-Time Distribution Matching (Liu et al. 2026, arXiv 2605.06376): few-step students of flow teachers."""
