"""Measure previews against the decoder, and give a bundle that was exported before there were any its linear map.

    python benchmarks/export/previews.py emoji emoji-teacher
    python benchmarks/export/previews.py bundles/emoji --write

`map` is the linear map of each finished picture, compared with the decoder's picture averaged over the same squares.
`steps` compares with that, after each step, the map of the noisy latents and the map of the estimate that
`Model.preview` shows. All figures are PSNR in dB over all pixels; the results go to benchmarks/results/previews.json.
With `--write` the map goes into the bundle's bundle.json, as export writes it, and no other file changes. The exit code
is 1 if a map is below its gate.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import segue
from segue.export.checks.preview import fitted
from segue.runtime.bundle import bundle_json, manifest
from segue.runtime.bundle.reader import Bundle, read, verify
from segue.runtime.diagnostics.difference import psnr
from segue.runtime.pictures.preview import mapped
from segue.runtime.pipeline import Model
from segue.runtime.sampling.latents import to_bytes
from segue.runtime.storage.files import write_whole

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

PROMPTS = (
    "red heart", "dog face", "pizza", "house with garden", "full moon", "deciduous tree", "ship", "alarm clock",
    "grinning face", "cat face", "rocket", "strawberry", "snowman", "guitar", "fire", "tulip",
)  # fmt: skip
GATE = 25.0  # dB, of the map


def main() -> int:
    parser = common.make_parser(__doc__, "previews")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--write", action="store_true", help="write the map into each BUNDLE, a directory")
    options = parser.parse_args()
    results: dict[str, Any] = common.header("segue", "onnxruntime", "numpy")
    gates = []
    for name in options.bundles:
        opened = read(name)
        found = fitted(opened.directory, opened.manifest, print)
        if found is None:
            parser.error(f"{name} has no encoder and decoder of pictures.")
        changed = dataclasses.replace(opened.manifest, preview=found)
        results[opened.manifest.name] = measured = measure(opened, changed)
        gates.append(common.Gate(f"the map of {opened.manifest.name} (dB)", measured["map"], GATE, at_least=True))
        if options.write:
            add(Path(name), found)
    common.report(options.out, results)
    return common.exit_code(*gates)


def add(bundle: Path, found: manifest.LinearMap) -> None:
    """Write the map into the bundle.json of a directory; its other lines stay as they are."""
    table = json.loads((bundle / manifest.FILE_NAME).read_bytes()) | {"preview": dataclasses.asdict(found)}
    data = (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode()
    bundle_json.parse(data, manifest.FILE_NAME)
    write_whole(bundle / manifest.FILE_NAME, data)
    verify(bundle)


def measure(opened: Bundle, content: manifest.Manifest) -> dict[str, Any]:
    """Return the figures of a bundle with the manifest `content`."""
    seen: list[list[np.ndarray]] = []

    def squares(image: np.ndarray) -> np.ndarray:
        height, width, factor = image.shape[0], image.shape[1], content.latents.factor
        return image.reshape(height // factor, factor, width // factor, factor, 3).mean((1, 3))

    with Model(dataclasses.replace(opened, manifest=content)) as model:
        pictures = []

        def on_step(done: int, total: int, latents: np.ndarray) -> None:
            shown = model.preview()
            assert shown is not None
            assert content.preview is not None
            seen.append([to_bytes(mapped(content.preview, latents))[0], shown[0]])

        for picture in model.pictures(segue.Request(list(PROMPTS)), on_step=on_step):
            pictures.append(squares(picture.image))
    wanted = np.stack(pictures)
    shown = np.array(seen).reshape(len(PROMPTS), content.sampler.steps, 2, *wanted.shape[1:])
    figures = [[round(psnr(each, wanted), 1) for each in step] for step in shown.transpose(1, 2, 0, 3, 4, 5)]
    return {
        "pictures": len(PROMPTS),
        "map": figures[-1][1],
        "steps": [{"step": i + 1, "noisy": pair[0], "estimate": pair[1]} for i, pair in enumerate(figures)],
    }


if __name__ == "__main__":
    sys.exit(main())
