"""The training loop that all recipes share."""
