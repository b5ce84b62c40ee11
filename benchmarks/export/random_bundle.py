"""SD3-Medium in its published configuration as a bundle with random weights, for machines without the real ones.

    python benchmarks/export/random_bundle.py graphs DIR [--t5]    # graphs, tokenizers, manifest; torch, some minutes
    python benchmarks/export/random_bundle.py weights DIR          # fp16 weights and their hashes; no torch, 5 GB

The second step may run on another machine, because the graphs are small and easy to copy. The pictures are noise.
Sizes, times and memory are those of the real model. The tokenizers are those of the emoji bundle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from segue.runtime.bundle import bundle_json, manifest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

DEVIATION = 0.02
BLOCK = 2**24  # random numbers, repeated until the file is full


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("what", choices=("graphs", "weights"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--t5", action="store_true")
    options = parser.parse_args()
    if options.what == "graphs":
        graphs(options.directory, options.t5)
    else:
        weights(options.directory)


def graphs(directory: Path, t5: bool) -> None:
    """Write the graphs, their manifest and tokenizers below `directory`."""
    from benchmarks.export.full_size_plans import FLOW, SD3
    from segue.export.checkpoint.read import Settings
    from segue.export.planned import planned_at
    from segue.runtime.bundle.limits import PART_BYTES

    configs, index = json.loads(common.CONFIGS.read_text())["sd3"], dict(SD3)
    if not t5:
        del configs["text_encoder_3"]
        index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    settings = Settings(steps=4, guidance=1.0, source="random weights")
    made = planned_at(
        directory, "sd3-random", index, configs, FLOW | {"shift": 3.0}, settings, "fp16", PART_BYTES,
        lambda component: print("  ", component, flush=True),
    )  # fmt: skip
    for name in made.tokenizers:
        (directory / name).mkdir()
        source = "tokenizer_2" if name == "tokenizer_2" else "tokenizer"
        shutil.copy(common.ROOT / "bundles/emoji" / source / "tokenizer.json", directory / name)
    (directory / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))


def weights(directory: Path) -> None:
    """Write the weight files of the graphs in `directory`, and all hashes to the manifest."""
    path = directory / manifest.FILE_NAME
    content = bundle_json.parse(path.read_bytes(), str(path))
    drawn = DEVIATION * np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    for spec in content.components.values():
        block = drawn.astype(np.float32 if spec.precision == "fp32" else np.float16).tobytes()
        for file in spec.weights:
            left = content.files[file].bytes - 8
            with (directory / file).open("wb") as out:
                out.write(bytes(8))  # in place of the length of a header
                while left:
                    left -= out.write(block[:left])
    files = {}
    for name, old in content.files.items():
        with (directory / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[name] = dataclasses.replace(old, sha256=digest, bytes=(directory / name).stat().st_size)
    path.write_bytes(bundle_json.dump(dataclasses.replace(content, files=files)))


if __name__ == "__main__":
    main()
