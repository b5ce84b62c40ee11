"""Training data from pinned packages."""
