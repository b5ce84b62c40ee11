"""Merge LoRA files into a checkpoint's weights: names, layouts, forms, the patch file."""
