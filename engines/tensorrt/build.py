"""Build an engine of an ONNX graph with TensorRT-RTX, which needs neither a GPU nor its driver, or with TensorRT.

Both have the same interface. Networks are strongly typed, so the graph decides the precision. The builder writes the
engine's bytes straight to a file. Segue never loads a plugin.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...errors import Cancelled, EngineError, UsageError
from .. import targets
from ..base import Profile

CAPABILITIES = (75, 80, 86, 89, 120, 121)  # of TensorRT-RTX 1.7: tenfold compute capabilities; none for 90 (Hopper)
PROBE = 64  # tokens of the attention layer that is tried
_SEVERITIES = ("internal error", "error", "warning", "info", "verbose")

Report = Callable[[str, int, int], None]  # phase, steps done and to do
Hear = Callable[[str], None]  # gets each line of the builder's log, from any thread


@dataclass(frozen=True)
class Settings:
    """Everything besides graph and weights that decides an engine's bytes.

    `capabilities` are tenfold compute capabilities, such as 89 for an RTX 4090. TensorRT takes none, because it builds
    for this machine's GPU. `workspace` bounds scratch memory in bytes (None: no bound). With `streaming` weights may
    stay in host memory at run time.
    """

    target: str
    capabilities: tuple[int, ...]
    profiles: tuple[Profile, ...]
    workspace: int | None = None
    streaming: bool = False

    def __post_init__(self) -> None:
        if self.target == "tensorrt-rtx":
            wrong = [c for c in self.capabilities if c not in CAPABILITIES]
            if wrong or not self.capabilities or len(set(self.capabilities)) < len(self.capabilities):
                raise UsageError(
                    f"TensorRT-RTX builds for the compute capabilities {', '.join(map(str, CAPABILITIES))}, each named "
                    f"once; got {list(self.capabilities)}. Write 89 for an RTX 4090, 120 for an RTX 5090."
                )
        elif self.capabilities:
            raise UsageError("TensorRT builds only for this machine's GPU. Leave the compute capability out.")
        if self.workspace is not None and self.workspace < 1:
            raise UsageError(f"workspace must be 1 byte or more, got {self.workspace}. Leave it out for no bound.")


@dataclass(frozen=True)
class Built:
    """The result of a build: seconds, layers, attention layers with and without a fused kernel, the builder's log.

    `peak` is the peak memory of the building process in bytes; 0 if the system does not report it.
    """

    seconds: float
    layers: int
    fused: int
    decomposed: int
    log: tuple[str, ...]
    peak: int = 0


def build(
    graph: Path,
    settings: Settings,
    out: BinaryIO,
    report: Report | None = None,
    cancel: Callable[[], bool] | None = None,
    hear: Hear = lambda line: None,
) -> Built:
    """Write the engine of the ONNX file `graph` to `out`. The graph's external data lies beside it.

    Raises EngineError, with the builder's log, if the builder rejects the graph; Cancelled once `cancel()` returns
    true; MissingDependencyError without the target's package; OSError if writing fails.
    """
    trt = targets.load(targets.find_target(settings.target))
    started = time.perf_counter()
    logger = make_logger(trt, hear)
    builder = trt.Builder(logger)
    network = builder.create_network(_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(os.fspath(graph)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        what = "; ".join(f"{e.node_operator() or 'graph'}: {e.desc()}" for e in errors[:3]) or logger.last()
        raise EngineError(
            f"{_named(trt)} does not accept the graph {graph}: {what}. Use the target ort-cuda for it, or report it.",
            log=logger.lines,
        )
    config = builder.create_builder_config()
    _configure(trt, config, builder, network, settings)
    attention = _attention(trt, network)
    fused = sum(has_fused_attention(settings.target, *kind, settings.capabilities) for kind in attention)
    watch = _watch(trt, report, cancel)
    config.progress_monitor = watch
    writer = _writer(trt, out)
    done = builder.build_serialized_network_to_stream(network, config, writer)
    if writer.error is not None:
        raise writer.error
    if watch.stopped:
        raise Cancelled("building the engine was cancelled. Start again at any time.")
    if not done:
        raise EngineError(
            f"{_named(trt)} could not build an engine of {graph} for {_capability_names(settings)}: {logger.last()} "
            "Free memory, or use the target ort-cuda, which needs no engine.",
            log=logger.lines,
        )
    seconds = time.perf_counter() - started
    return Built(seconds, network.num_layers, fused, len(attention) - fused, tuple(logger.lines))


@functools.cache
def has_fused_attention(target: str, dtype: str, head: int, capabilities: tuple[int, ...]) -> bool:
    """Return whether the target has one kernel for attention of this dtype and head size on these GPUs, without a mask.

    Builds only that layer, which takes a tenth of a second; this process remembers the result. Without a GPU the
    builder does not report whether it uses the kernel in a whole graph.
    """
    trt = targets.load(targets.find_target(target))
    logger = make_logger(trt)  # must outlive the builder
    builder = trt.Builder(logger)
    network = builder.create_network(_flags(trt))
    shape = (1, 2, PROBE, head)
    query, keys, values = (network.add_input(n, getattr(trt.DataType, dtype), shape) for n in "qkv")
    attention = network.add_attention(query, keys, values, trt.AttentionNormalizationOp.SOFTMAX, False)
    network.mark_output(attention.get_output(0))
    config = builder.create_builder_config()
    _capabilities(trt, config, capabilities)
    return builder.build_serialized_network(network, config) is not None


def _flags(trt: Any) -> int:
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def _configure(trt: Any, config: Any, builder: Any, network: Any, settings: Settings) -> None:
    _capabilities(trt, config, settings.capabilities)
    if settings.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace)
    if settings.streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    names = [network.get_input(i).name for i in range(network.num_inputs)]
    for shapes in settings.profiles:
        profile = builder.create_optimization_profile()
        if set(shapes) != set(names):
            raise UsageError(f"a profile names {sorted(shapes)}; the graph takes {sorted(names)}. Name exactly these.")
        for name, (smallest, usual, largest) in shapes.items():
            profile.set_shape(name, smallest, usual, largest)
        config.add_optimization_profile(profile)


def _capabilities(trt: Any, config: Any, capabilities: tuple[int, ...]) -> None:
    if capabilities:
        config.num_compute_capabilities = len(capabilities)
        for index, capability in enumerate(capabilities):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability}"), index)


def _attention(trt: Any, network: Any) -> list[tuple[str, int]]:
    """Let the builder decompose attention layers without a fused kernel; return dtype and head size of each layer."""
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # the bindings give the base class
            layer.attention.decomposable = True
            query = layer.attention.get_input(0)
            found.append((query.dtype.name, query.shape[-1]))
    return found


def _named(trt: Any) -> str:
    return f"{'TensorRT-RTX' if trt.__name__ == 'tensorrt_rtx' else 'TensorRT'} {trt.__version__}"


def _capability_names(settings: Settings) -> str:
    return ", ".join(f"SM {c // 10}.{c % 10}" for c in settings.capabilities) or "this machine's GPU"


def make_logger(trt: Any, hear: Hear = lambda line: None) -> Any:
    """Return a logger of the target that prints nothing: `lines` has the log, `last()` is the last error.

    It calls `hear(line)` with each line at once. `hear` must not raise, because an exception would cross the builder.
    """

    class Log(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps the builder's log; the builder may call it from its own threads."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[str] = []

        def log(self, severity: Any, text: str) -> None:
            level = int(severity)
            if level <= 2:
                self.lines.append(f"{_SEVERITIES[level]}: {text}")
                hear(self.lines[-1])

        def last(self) -> str:
            errors = [line for line in self.lines if "error: " in line[:16]]
            # without a driver the builder ends each failure with a complaint about the driver, which is not the cause
            errors = [line for line in errors if "driver version is insufficient" not in line] or errors
            return errors[-1].partition(": ")[2][:400] if errors else "the builder gives no reason."

    return Log()


def _watch(trt: Any, report: Report | None, cancel: Callable[[], bool] | None) -> Any:
    class Watch(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Reports the steps of the builder's outermost phase, and stops the builder."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.outer = ""
            self.stopped = False

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            self.steps[phase] = steps
            if not parent:
                self.outer = phase

        def step_complete(self, phase: str, step: int) -> bool:
            if report is not None and phase == self.outer:
                report(phase, step, self.steps.get(phase, step))
            self.stopped = self.stopped or (cancel is not None and cancel())
            return not self.stopped

        def phase_finish(self, phase: str) -> None:
            self.steps.pop(phase, None)

    return Watch()


def _writer(trt: Any, out: BinaryIO) -> Any:
    class Writer(trt.IStreamWriter):  # type: ignore[misc, name-defined]
        """Writes to `out`. It keeps an exception, because an exception must not cross the builder."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.error: Exception | None = None

        def write(self, data: bytes) -> int:
            try:
                return out.write(data)
            except Exception as error:
                self.error = self.error or error
                return 0

    return Writer()
