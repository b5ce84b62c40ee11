"""Train the picture models."""
