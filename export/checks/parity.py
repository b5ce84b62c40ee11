"""Compare each exported graph in ONNX Runtime with its model in PyTorch, in a child process.

The reference is the model that diffusers' or transformers' from_pretrained loads from the bundle's files, in float32.
It shares neither the trace nor the reading of weights with the export. Both get the same fresh random inputs at two
shapes that differ from the traced one. Relative L2 is |pytorch - ort| / |pytorch|, from polygraphy's signal-to-noise
ratio; the maximum is the largest absolute difference.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...errors import ParityError, UsageError
from ...runtime.bundle.limits import QUANTIZED
from ...runtime.bundle.manifest import Component, Parity
from ..families.step_inputs import inputs_of
from .child import run_check

GATES = {"fp32": 1e-4, "fp16": 5e-3, "bf16": 1e-4}  # bf16 is compared through an fp32 copy
TWIN = "checked through its fp32 twin: ONNX Runtime's CPU kernels do not run bf16"
NO_MEMORY = "not checked: memory"
KILLED = f"{NO_MEMORY} (the check was killed, as the kernel does if memory runs out)"
# ONNX Runtime loads the weights and packs most of them again; PyTorch's 4 bytes are free by then.
BYTES_PER_PARAMETER = {"fp32": 10, "fp16": 6, "bf16": 10}
BASE_BYTES = 2**29


def check(
    bundle: Path,
    components: Mapping[str, Component],
    report: Callable[[Parity], None] = lambda p: None,
    scratch: Path | None = None,
    single: str = "",
) -> tuple[Parity, ...]:
    """Return two comparisons of each of the `components` of the bundle directory `bundle`; `report` gets each.

    A component that needs more than the free memory is recorded as "not checked: memory". So are the remaining
    components if the child process is killed. The fp32 copies of bf16 components lie in `scratch` (default: the
    system's temporary directory) and are removed. `single` is the bundle's single file, if it has one.
    Raises ParityError for a comparison above its gate, and if the child process fails.
    """
    if any(component.precision in QUANTIZED for component in components.values()):
        raise UsageError(
            f"{bundle} was quantized and holds no weights for PyTorch. Compare the bundle that it was made from; "
            "bundle.json has this one's difference from it in fp32."
        )
    done: list[Parity] = []
    # The kernel may kill the child when memory runs out, so the parent removes the fp32 copies.
    with tempfile.TemporaryDirectory(prefix="segue-parity-", dir=scratch) as twins:
        request = {
            "bundle": str(bundle),
            "scratch": twins,
            "components": {name: [c.precision, c.parameters, c.graph] for name, c in components.items()},
            "single": single,
            "takes": sorted(inputs_of(components)),
        }

        def answer(entry: dict[str, Any]) -> None:
            entry["shapes"] = {k: tuple(v) for k, v in entry["shapes"].items()}
            done.append(Parity(**entry))
            report(done[-1])

        if not run_check("parity_child", request, answer):
            checked = {p.component for p in done}
            done += [Parity(n, {}, None, None, None, KILLED) for n in components if n not in checked]
    for result in done:
        if result.gate is not None and not (result.relative_l2 is not None and result.relative_l2 <= result.gate):
            raise ParityError(
                f"{result.component} in ONNX Runtime differs from PyTorch by {result.relative_l2:.3g} (relative L2, "
                f"maximum {result.maximum:.3g}) at {result.shapes}; the gate is {result.gate:g}. "
                "Export with --precision fp32. If that fails as well, report it."
            )
    return tuple(done)
