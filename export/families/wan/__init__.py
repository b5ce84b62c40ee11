"""Wan and SwiftI2V."""
