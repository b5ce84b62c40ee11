"""Plan memory before anything is loaded."""
