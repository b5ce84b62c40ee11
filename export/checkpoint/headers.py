"""The headers of a checkpoint's safetensors files. The runtime reads LoRA files with the same reader."""

from ...runtime.storage.safetensors import ITEM_BYTES, MAX_HEADER, Tensor, encode, read, reading

__all__ = ["ITEM_BYTES", "MAX_HEADER", "Tensor", "encode", "read", "reading"]
