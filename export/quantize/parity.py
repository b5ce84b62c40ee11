"""Compare the components of a quantized bundle with the same weights in fp32, on the same inputs.

The inputs come from the first and the last call while pictures are drawn in fp32, because the error of 8-bit ranges
depends on the values. Components that a picture does not call, such as the encoder, get random inputs.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import ParityError
from ...runtime.bundle import reader as bundles
from ...runtime.bundle.manifest import Parity
from ...runtime.components import Feeds
from ...runtime.diagnostics.difference import difference
from ...runtime.pipeline import Model
from ...runtime.request import Request
from ..families.graph import Graph

# Relative L2: rounding to 8 bits costs some hundredths (docs/evidence/engines.md), a wrong scale most of the signal
GATES = {"int8": 0.25, "w8a8": 0.25, "fp8": 0.25}
DRAWN = "against its weights in fp32, inputs of a picture"
RANDOM = "against its weights in fp32, random inputs"


def check(
    full: Path, made: Path, chosen: Collection[str], graphs: Mapping[str, Graph], prompts: Sequence[str]
) -> tuple[Parity, ...]:
    """Return two comparisons of each component of `chosen` between the bundles `made`, quantized, and `full`, in fp32.

    `graphs` are the family's by component; pictures of `prompts` give the inputs. Raises ParityError above the gate of
    the component's precision.
    """
    calls: dict[str, list[tuple[Feeds, Feeds]]] = {}

    def keep(name: str, feeds: Feeds, outputs: Feeds) -> None:
        calls[name] = [*calls.get(name, [])[:1], (feeds, outputs)]

    with Model(bundles.read(full), on_call=keep) as model:
        for _ in model.pictures(Request(list(prompts))):
            pass
        notes = {name: DRAWN if name in calls else RANDOM for name in chosen}
        for name in chosen:
            if notes[name] == RANDOM:
                rng = np.random.default_rng(int.from_bytes(os.urandom(8), "little"))
                feeds = [graphs[name].feed(rng, sizes) for sizes in graphs[name].trials]
                calls[name] = [(feed, model.call(name, feed)) for feed in feeds]
    results = []
    opened = bundles.read(made)
    with Model(opened) as model:
        for name in chosen:
            precision = opened.manifest.components[name].precision
            gate = GATES[precision]
            for feed, expected in calls[name]:
                far = difference(expected, model.call(name, feed))
                shapes = {port: array.shape for port, array in feed.items()}
                results.append(Parity(name, shapes, far.relative_l2, far.maximum, gate, notes[name]))
                if not far.relative_l2 <= gate:
                    raise ParityError(
                        f"No bundle was made: {name} in {precision} differs from its weights in fp32 by "
                        f"{far.relative_l2:.3g} (relative L2) at {shapes}; the gate is {gate:g}. Use the bundle "
                        "unquantized, or choose another --kind."
                    )
    return tuple(results)
