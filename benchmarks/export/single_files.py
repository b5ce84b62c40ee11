"""Point the graphs of published models into single files: seconds, peak of memory, and bytes of the patch.

    python benchmarks/export/single_files.py [--only sd3.5-large …] [--directory DIR]

Each single file has the true header of its model (names, shapes and order by component) and zeros for weights: a sparse
file that takes no space. A child process stages the file, as `segue export` does, reads all components in it, writes
the patch, and traces the denoiser. It copies nothing and checks no parity. The seconds include start-up and imports.
The configurations are those of the published checkpoints (benchmarks/configs/full_size.json).
The exit code is 1 if a peak is above 1.2 GB. The results go to benchmarks/results/single_files.json.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

PEAK = 1.2e9
KIND = "fp16"
PACKAGES = ("torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript")
MODELS = {"sdxl": "sdxl", "sd3-medium": "sd3", "sd3.5-medium": "sd3.5-medium", "sd3.5-large": "sd3.5-large"}
PIPELINES = {"sdxl": "StableDiffusionXLPipeline", "sd3": "StableDiffusion3Pipeline"}
DENOISERS = {"sdxl": "unet", "sd3": "transformer"}
LAYERS = 2  # residual blocks in a level of SDXL's UNet


def main() -> int:
    parser = common.make_parser(__doc__, "single_files")
    parser.add_argument("--only", nargs="+", default=[], choices=MODELS)
    parser.add_argument("--directory", type=Path, help="for the sparse files (default: the temporary one)")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, step = options.child.split(",")
        print(json.dumps(build(name, options.directory) if step == "build" else measured(name, options.directory)))
        return 0
    results = common.load(options.out, {"models": {}}) if options.only else {"models": {}}
    for name in options.only or MODELS:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            built = common.child(__file__, "--child", f"{name},build", "--directory", directory)
            started = time.perf_counter()
            row = common.child(__file__, "--child", f"{name},measure", "--directory", directory)
        row = {"seconds": round(time.perf_counter() - started, 1), **built, **row}
        results["models"][name] = row
        print(f"{name}: {json.dumps(row)}", flush=True)
        common.write(options.out, results | common.header(*PACKAGES))
    worst = max(row["peak_bytes"] for row in results["models"].values())
    return common.exit_code(common.Gate("highest peak (GB)", worst / 1e9, PEAK / 1e9))


def build(name: str, directory: Path) -> dict[str, Any]:
    """Write the sparse single file, and a base that has configs but no weights."""
    import torch
    from diffusers import AutoencoderKL, SD3Transformer2DModel, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, T5Config, T5EncoderModel

    sys.path.append(str(common.ROOT / "tests"))
    from segue.export.checkpoint import headers
    from support import single_files

    family, configs = common.full_size(MODELS[name])
    with torch.device("meta"):
        made: dict[str, Any] = {"vae": AutoencoderKL.from_config(configs["vae"])}
        first = CLIPTextModel if family == "sdxl" else CLIPTextModelWithProjection
        made["text_encoder"] = first(CLIPTextConfig(**configs["text_encoder"]))
        made["text_encoder_2"] = CLIPTextModelWithProjection(CLIPTextConfig(**configs["text_encoder_2"]))
        if family == "sdxl":
            made["unet"] = UNet2DConditionModel.from_config(configs["unet"])
        else:
            made["text_encoder_3"] = T5EncoderModel(T5Config(**configs["text_encoder_3"]))
            made["transformer"] = SD3Transformer2DModel.from_config(configs["transformer"])
    state = single_files.published(family, {f: m.state_dict() for f, m in made.items()}, LAYERS)
    file = directory / f"{name}.safetensors"
    head = headers.encode([(n, "F16", tuple(t.shape), 2 * math.prod(t.shape)) for n, t in state.items()])
    size = sum(2 * math.prod(t.shape) for t in state.values())
    with file.open("wb") as out:
        out.write(head)
        out.truncate(len(head) + size)
    base = directory / "base"
    index: dict[str, Any] = {"_class_name": PIPELINES[family]}
    for folder, config in configs.items():
        (base / folder).mkdir(parents=True)
        (base / folder / "config.json").write_text(json.dumps(config))
        index[folder] = ["diffusers", "Any"]
    (base / "model_index.json").write_text(json.dumps(index))
    return {"file_bytes": file.stat().st_size, "tensors": len(state)}


def measured(name: str, directory: Path) -> dict[str, Any]:
    """Read the single file's components, write its patches, and trace its denoiser."""
    from segue.engines.process import peak_resident
    from segue.export.checkpoint.single.open import PATCH, read_staged, tensors_in
    from segue.export.checkpoint.single.stage import staged
    from segue.export.families.registry import named
    from segue.export.graphs import trace

    family = named(common.full_size(MODELS[name])[0])
    started = time.perf_counter()
    with staged(str(directory / f"{name}.safetensors"), str(directory / "base")) as source:
        found = read_staged(source.root, (*family.folders, *family.optional), source.single, source.title)
        tensors, patches = tensors_in(found, source.root, dict.fromkeys(found.parts, KIND))
        read = time.perf_counter() - started
        graphs = family.graphs({folder: part.config for folder, part in found.parts.items()})
        denoiser = DENOISERS[family.name]
        graph = next(graph for graph in graphs if graph.component == denoiser)
        path = source.root / f"{denoiser}.onnx"
        written = trace.write(graph, KIND, tensors[denoiser], path, at_root=True)
        by_folder = {
            folder: {
                "ranges": sum(t.file == source.single for t in table.values()),
                "computed": sum(t.file.endswith(PATCH) for t in table.values()),
                "patch_bytes": sum(t.length for t in table.values() if t.file.endswith(PATCH)),
            }
            for folder, table in tensors.items()
        }
        return {
            "seconds_reading": round(read, 1),
            "cpu_seconds": round(time.process_time(), 1),
            "peak_bytes": peak_resident(),
            "patch_bytes": sum((source.root / patch).stat().st_size for patch in patches),
            "graph_bytes": path.stat().st_size,
            "parameters": written.parameters,
            "components": by_folder,
        }


if __name__ == "__main__":
    sys.exit(main())
