"""A model in one safetensors file, as ComfyUI and the models' authors publish it: exported without rewriting it."""
