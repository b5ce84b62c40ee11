"""One ONNX Runtime arena, shared by all engines of this process that run on the processor.

By default each session has its own arena, which grows by doubling and never shrinks. A model of several components then
holds the sum of their peaks. One shared arena that grows by the requested size holds only the largest peak.
"""

from __future__ import annotations

from collections.abc import Hashable
from functools import cache
from typing import Any

from .. import heap

_SAME_AS_REQUESTED = 1  # of arena_extend_strategy; the default doubles


def share(onnxruntime: Any, options: Any) -> None:
    """Let the session of `options` take its memory from the shared arena."""
    _register(onnxruntime)
    options.add_session_config_entry("session.use_env_allocators", "1")


def shrink(onnxruntime: Any) -> None:
    """Return the unused memory of the arena to the system; does nothing if no session shares it."""
    if _register.cache_info().currsize:
        import numpy as np

        run = onnxruntime.RunOptions()
        run.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        _smallest_session(onnxruntime).run(None, {"x": np.zeros(0, np.float32)}, run)


def take(onnxruntime: Any, user: Hashable) -> None:
    """Hand the arena to `user`, an engine at some shapes. If the user changes, the arena shrinks first.

    The arena never joins its regions, so small regions of earlier shapes would stay unused.
    """
    global _user
    if user != _user:
        _user = user
        shrink(onnxruntime)


_user: Hashable = None


@cache
def _register(onnxruntime: Any) -> None:
    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    heap.return_large()  # regions are large; free returns them to the system
    config = onnxruntime.OrtArenaCfg({"arena_extend_strategy": _SAME_AS_REQUESTED})
    onnxruntime.create_and_register_allocator(memory, config)


@cache
def _smallest_session(onnxruntime: Any) -> Any:
    """Return a session of one Identity: an arena shrinks only at the end of a call of a session that shares it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.use_env_allocators", "1")
    return onnxruntime.InferenceSession(_identity(), options, providers=["CPUExecutionProvider"])


def _identity() -> bytes:
    """Return an ONNX model, y = Identity(x), as protobuf (onnx.proto's field numbers)."""
    node = _field(1, b"x") + _field(2, b"y") + _field(4, b"Identity")
    # float32 [0]: an output with bytes would lie in a region of the arena and keep it alive
    tensor = b"\x08\x01" + _field(2, _field(1, b"\x08\x00"))
    x, y = (_field(1, name) + _field(2, _field(1, tensor)) for name in (b"x", b"y"))
    graph = _field(1, node) + _field(2, b"identity") + _field(11, x) + _field(12, y)
    return b"\x08\x08" + _field(7, graph) + _field(8, b"\x10\x0d")  # IR version 8, opset 13


def _field(number: int, content: bytes) -> bytes:
    """Return a protobuf field of bytes, shorter than 128."""
    assert len(content) < 128
    return bytes((number << 3 | 2, len(content))) + content
