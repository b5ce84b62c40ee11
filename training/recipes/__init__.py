"""Recipes that ship with Segue (TOML)."""
