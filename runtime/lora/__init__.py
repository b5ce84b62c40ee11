"""LoRA files at run time: their names, their content, and the inputs of a graph that take them."""
