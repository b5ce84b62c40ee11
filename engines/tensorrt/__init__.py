"""TensorRT and TensorRT-RTX: engines, their build in a child process, CUDA graphs."""
