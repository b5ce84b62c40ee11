"""Engines on disk: build, find, store, verify, evict."""
