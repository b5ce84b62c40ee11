"""Training in PyTorch: data, recipes, the shared loop."""
