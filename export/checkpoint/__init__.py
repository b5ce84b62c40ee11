"""Read a checkpoint: headers, LoRA files, tokenizers, the copy into a bundle."""
