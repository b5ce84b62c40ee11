"""Backends that run one component: arrays in, arrays out."""
