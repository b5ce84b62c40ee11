"""Compare each exported graph in ONNX Runtime with its model in PyTorch, in a child process.

The reference is the model loaded by diffusers' or transformers' own from_pretrained from the bundle's files, in
float32: it shares with the export neither the trace nor the reading of weights. Both get the same fresh random inputs
at two shapes that differ from the traced one. Relative L2 is |pytorch - ort| / |pytorch|, from polygraphy's
signal-to-noise ratio; the maximum is of absolute differences.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...engines.json_child import ask
from ...errors import ParityError, UsageError
from ...runtime.bundle.limits import QUANTIZED
from ...runtime.bundle.manifest import Component, Parity

GATES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 1e-4}  # bf16 is compared through its fp32 twin
TWIN = "checked through its fp32 twin: ONNX Runtime's CPU kernels do not run bf16"
NO_MEMORY = "not checked: memory"
KILLED = f"{NO_MEMORY} (the check was killed, as the kernel does where memory runs out)"
# ONNX Runtime loads the weights and packs most of them once more; PyTorch, which is gone by then, takes 4.
BYTES_PER_PARAMETER = {"fp32": 10, "fp16": 6, "bf16": 10}
BASE_BYTES = 2**29


def check(
    bundle: Path,
    components: Mapping[str, Component],
    report: Callable[[Parity], None] = lambda p: None,
    scratch: Path | None = None,
) -> tuple[Parity, ...]:
    """Return the comparisons of `components` of the bundle directory at `bundle`, two for each; `report` gets each.

    A component that needs more than the free memory is recorded as "not checked: memory", and so is what a killed child
    process left. The fp32 twins of bf16 components are made in `scratch`, by default the system's temporary directory,
    and removed. Raises ParityError for a comparison above its gate, and where the child process fails.
    """
    if any(component.precision in QUANTIZED for component in components.values()):
        raise UsageError(
            f"{bundle} was quantized and holds no weights for PyTorch. Compare the bundle that it was made from; how "
            "near it is to that one in fp32 is in bundle.json."
        )
    done: list[Parity] = []
    # The child may leave through the kernel's out-of-memory killer: the twins are the parent's to remove.
    with tempfile.TemporaryDirectory(prefix="segue-parity-", dir=scratch) as twins:
        request = {
            "bundle": str(bundle),
            "scratch": twins,
            "components": {name: [c.precision, c.parameters] for name, c in components.items()},
        }

        def answer(entry: dict[str, Any]) -> None:
            entry["shapes"] = {k: tuple(v) for k, v in entry["shapes"].items()}
            done.append(Parity(**entry))
            report(done[-1])

        if not ask("parity_child", request, answer):
            checked = {p.component for p in done}
            done += [Parity(n, {}, None, None, None, KILLED) for n in components if n not in checked]
    for result in done:
        if result.gate is not None and not (result.relative_l2 is not None and result.relative_l2 <= result.gate):
            raise ParityError(
                f"{result.component} in ONNX Runtime differs from PyTorch by {result.relative_l2:.3g} (relative L2, "
                f"maximum {result.maximum:.3g}) at {result.shapes}; the gate is {result.gate:g}. "
                "Export with --precision fp32 to see whether fp16 is the cause, and report it otherwise."
            )
    return tuple(done)
