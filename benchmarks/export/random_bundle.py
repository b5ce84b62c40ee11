"""SD3-Medium in its published configuration as a bundle with random weights, to be played where there are no others.

    python benchmarks/random_bundle.py graphs DIR [--t5]     # graphs, tokenizers, manifest; with torch (some minutes)
    python benchmarks/random_bundle.py weights DIR           # weights in fp16 and their hashes; without torch (5 GB)

In two steps, for graphs are small and can be carried to where the weights are to lie. The pictures are noise; sizes,
times and memory are those of the real model. The tokenizers are the emoji bundle's.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from segue.runtime.bundle import bundle_json, manifest

HERE = Path(__file__).parent
DEVIATION = 0.02
BLOCK = 2**24  # numbers that are drawn, and then repeated


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
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
    from full_size_plans import FLOW, SD3

    from segue.export.checkpoint.read import Settings
    from segue.export.planned import planned_at
    from segue.runtime.bundle.limits import PART_BYTES

    configs, index = json.loads((HERE / "configs/full_size.json").read_text())["sd3"], dict(SD3)
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
        of = "tokenizer_2" if name == "tokenizer_2" else "tokenizer"
        shutil.copy(HERE.parent / "bundles/emoji" / of / "tokenizer.json", directory / name)
    (directory / manifest.FILE_NAME).write_bytes(bundle_json.dump(made))


def weights(directory: Path) -> None:
    """Write the weights that the graphs in `directory` point into, and all hashes into the manifest."""
    place = directory / manifest.FILE_NAME
    content = bundle_json.parse(place.read_bytes(), str(place))
    drawn = DEVIATION * np.random.default_rng(0).standard_normal(BLOCK, np.float32)
    for spec in content.components.values():
        block = drawn.astype(np.float32 if spec.precision == "fp32" else np.float16).tobytes()
        for file in spec.weights:
            left = content.files[file].bytes - 8
            with (directory / file).open("wb") as out:
                out.write(bytes(8))  # where a header would have its length
                while left:
                    left -= out.write(block[:left])
    files = {}
    for name, old in content.files.items():
        with (directory / name).open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        files[name] = dataclasses.replace(old, sha256=digest, bytes=(directory / name).stat().st_size)
    place.write_bytes(bundle_json.dump(dataclasses.replace(content, files=files)))


if __name__ == "__main__":
    main()
