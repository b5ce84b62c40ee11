"""Make bundles with 8-bit matrices."""
