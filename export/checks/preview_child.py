"""The child process of `preview`: encode and decode synthetic pictures, and fit the linear map."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...engines.json_child import answering
from ...engines.ort.engine import OrtEngine
from ...runtime.bundle.families import VAE_DECODER, VAE_ENCODER
from ...runtime.bundle.manifest import Latents
from ...runtime.sampling.latents import for_decoder, from_encoder
from .preview import DIGITS, PICTURES, SIDE, averaged, dead_leaves, least_squares


def fit(graphs: Mapping[str, Path], spec: Latents) -> list[list[float]]:
    """Return the rows of the map for an encoder and a decoder that ONNX Runtime runs on a processor."""
    rng = np.random.default_rng(0)
    pictures = [dead_leaves(rng, SIDE * spec.factor)[None] for _ in range(PICTURES)]
    with OrtEngine(graphs[VAE_ENCODER]) as encoder:
        latents = [from_encoder(encoder.run({"pixels": picture})["latents"], spec) for picture in pictures]
    with OrtEngine(graphs[VAE_DECODER]) as decoder:
        decoded = [decoder.run({"latents": for_decoder(one, spec)})["pixels"] for one in latents]
    shown = averaged(np.concatenate(decoded), spec.factor)
    rows = least_squares(np.concatenate(latents), shown).tolist()
    return [[float(f"{value:.{DIGITS}g}") for value in row] for row in rows]


def _twins(bundle: Path, components: Sequence[str], single: str, scratch: Path) -> dict[str, Path]:
    """Return copies in fp32 of components in bf16, which no processor runs."""
    from ..checkpoint import read
    from ..families.registry import find
    from .fp32_twin import write_twin

    family = find(read.read_index(bundle))
    folders = [f for f in (*family.folders, *family.optional) if (bundle / f).is_dir()]
    configs = {f: read.read_json(bundle / f / "config.json", bundle) for f in folders}
    made = {}
    for graph in family.graphs(configs):
        if graph.component in components:
            (own := scratch / graph.component).mkdir()
            made[graph.component] = write_twin(graph, bundle, own, single)
    return made


def main() -> None:
    """Answer the request on stdin with the map."""
    request, tell = answering()
    bundle = Path(request["bundle"])
    factor, scaling, shift = request["latents"]
    graphs = {name: bundle / file for name, (file, _) in request["graphs"].items()}
    narrow = [name for name, (_, kind) in request["graphs"].items() if kind == "bf16"]
    with tempfile.TemporaryDirectory(dir=bundle) as scratch:
        if narrow:
            graphs |= _twins(bundle, narrow, request["single"], Path(scratch))
        tell({"rows": fit(graphs, Latents(0, factor, 1, scaling, shift))})


if __name__ == "__main__":
    main()
