"""Write the plans that ship with Segue: models in their published configurations, without their weights.

    python benchmarks/full_size_plans.py [NAME …]

Writes bundles/plans/NAME/bundle.json, which `segue plan NAME` reads, with the configurations of
benchmarks/configs/full_size.json; without a NAME all that ship. Prints what each component has: parameters and parts.
The one in 8 bits is made of the one in 16, which must be there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from segue.export.checkpoint.read import Settings, VideoSettings
from segue.export.planned import in_eight_bits, planned
from segue.runtime.bundle import bundle_json, manifest
from segue.runtime.bundle.limits import PART_BYTES
from segue.runtime.bundle.reader import read_manifest

HERE = Path(__file__).parent
OUT = HERE.parent / "bundles/plans"
STUDENT = (1.0, 0.75, 0.5, 0.25)  # levels of four calls
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
SD3: dict[str, Any] = {
    "_class_name": "StableDiffusion3Pipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
}
LONGCAT = {
    "_class_name": "LongCatImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "LongCatImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
}
WAN = {
    "_class_name": "WanImageToVideoPipeline",
    "boundary_ratio": 0.9,
    "image_encoder": [None, None],
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "transformer_2": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "detail_transformer": ["diffusers", "WanTransformer3DModel"],
    "detail_vae": ["diffusers", "AutoencoderKLWan"],
}
EIGHT = "-w8a8"
PLANS = ("sd3-medium", "sd3-medium-without-t5", "longcat-image", "swifti2v-wan22", f"swifti2v-wan22{EIGHT}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*PLANS, []])
    for name in parser.parse_args().names or PLANS:
        began = time.perf_counter()
        content = made(name, lambda component: print("  ", component, flush=True))
        folder = OUT / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / manifest.FILE_NAME).write_bytes(bundle_json.dump(content))
        size = (folder / manifest.FILE_NAME).stat().st_size
        print(f"{name}: {time.perf_counter() - began:.0f} s, {size / 1e3:.0f} kB")
        for component, spec in content.components.items():
            print(f"  {component}: {spec.parameters / 1e9:.3f} B, {len(spec.parts)} parts")


def made(name: str, progress: Any) -> manifest.Manifest:
    """Return the manifest of one of PLANS."""
    if name.endswith(EIGHT):
        return in_eight_bits(read_manifest(name.removesuffix(EIGHT)), name)
    configs = json.loads((HERE / "configs/full_size.json").read_text())
    if name.startswith("sd3-medium"):
        found, index = dict(configs["sd3"]), dict(SD3)
        if name.endswith("without-t5"):
            del found["text_encoder_3"]
            index |= {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
        settings = Settings(source="stabilityai/stable-diffusion-3-medium-diffusers")
        return planned(name, index, found, FLOW | {"shift": 3.0}, settings, "fp16", PART_BYTES, progress)
    if name == "longcat-image":
        shifting = FLOW | {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
        settings = Settings(steps=4, guidance=1.0, sigmas=STUDENT, source="meituan-longcat/LongCat-Image")
        return planned(name, LONGCAT, configs[name], shifting, settings, "bf16", PART_BYTES, progress)
    found = dict(configs["swifti2v"])
    found["transformer_2"] = found["transformer"]
    settings = Settings(
        steps=4, guidance=1.0, sigmas=STUDENT, maximum_size=2560, source="Wan-AI/Wan2.2, two stages",
        video=VideoSettings(motion_sigmas=STUDENT),
    )  # fmt: skip
    unipc = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "num_train_timesteps": 1000}
    return planned(name, WAN, found, unipc, settings, "bf16", 2**29, progress)


if __name__ == "__main__":
    main()
