"""Configurations of published transformers, for plans without weights."""
