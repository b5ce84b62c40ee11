"""Builders of tiny models, and other helpers of the tests; pytest finds them as `support` (pyproject.toml)."""
