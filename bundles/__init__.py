"""Bundles that ship with Segue."""
