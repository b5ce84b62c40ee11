"""What a distillation reads: text embeddings, and pairs of noise and picture."""
