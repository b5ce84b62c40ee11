"""What the families of Wan share: graphs, and facts of their checkpoints."""
