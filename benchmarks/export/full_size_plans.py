"""Write the plans that ship with Segue: models in their published configurations, without weights.

    python benchmarks/export/full_size_plans.py [NAME …]

The script writes bundles/plans/NAME/bundle.json, which `segue plan NAME` reads. Without NAME it writes all of them.
The configurations are in benchmarks/configs/full_size.json. It prints parameters and parts of each component. The plan
in 8 bits and those of Wan's two models are made from the plan `swifti2v-wan22`, which must exist: their graphs are the
same, except TI2V's transformer.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from pathlib import Path
from typing import Any

from segue.export.checkpoint.read import Settings, VideoSettings
from segue.export.planned import planned
from segue.runtime.bundle import bundle_json, manifest
from segue.runtime.bundle.families import Kind, role_of
from segue.runtime.bundle.limits import PART_BYTES
from segue.runtime.bundle.reader import read_manifest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

OUT = common.ROOT / "bundles/plans"
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
SDXL = {
    "_class_name": "StableDiffusionXLPipeline",
    "force_zeros_for_empty_prompt": True,
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
}
BETAS = {
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "timestep_spacing": "leading",
    "prediction_type": "epsilon",
}  # fmt: skip
KLEIN = {
    "_class_name": "Flux2KleinPipeline",
    "is_distilled": True,
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "Flux2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLFlux2"],
    "text_encoder": ["transformers", "Qwen3ForCausalLM"],
    "tokenizer": ["transformers", "Qwen2TokenizerFast"],
}
ZIMAGE = {
    "_class_name": "ZImagePipeline",
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["diffusers", "ZImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "Qwen3Model"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
}
SHIFTED = FLOW | {"shift": 3.0}
# name: model in full_size.json, model_index.json, scheduler, precision, source
PICTURES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str, str]] = {
    "sd3-medium": ("sd3", SD3, SHIFTED, "fp16", "stabilityai/stable-diffusion-3-medium-diffusers"),
    "sd3.5-medium": ("sd3.5-medium", SD3, SHIFTED, "bf16", "stabilityai/stable-diffusion-3.5-medium"),
    "sd3.5-large": ("sd3.5-large", SD3, SHIFTED, "bf16", "stabilityai/stable-diffusion-3.5-large"),
    "sdxl": ("sdxl", SDXL, BETAS, "fp16", "stabilityai/stable-diffusion-xl-base-1.0"),
    "flux2-klein-4b": (
        "flux2-klein", KLEIN, SHIFTED | {"use_dynamic_shifting": True}, "bf16", "black-forest-labs/FLUX.2-klein-4B",
    ),
    "z-image-turbo": ("z-image", ZIMAGE, SHIFTED, "bf16", "Tongyi-MAI/Z-Image-Turbo"),
}  # fmt: skip
OF_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
EIGHT = "-w8a8"
I2V, TI2V = "wan-i2v-a14b", "wan-ti2v-5b"
WITHOUT_T5 = "sd3-medium-without-t5"
PLANS = (*PICTURES, WITHOUT_T5, "longcat-image", "swifti2v-wan22", f"swifti2v-wan22{EIGHT}", I2V, TI2V)


def main() -> None:
    parser = common.make_parser(__doc__)
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
        return with_eight_bits(read_manifest(name.removesuffix(EIGHT)), name)
    configs = json.loads(common.CONFIGS.read_text())
    if name in PICTURES or name == WITHOUT_T5:
        model, index, scheduler, precision, source = PICTURES["sd3-medium" if name == WITHOUT_T5 else name]
        found = common.full_size(model)[1]
        if name == WITHOUT_T5:
            del found["text_encoder_3"]
            index = index | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
        return planned(name, index, found, scheduler, Settings(source=source), precision, PART_BYTES, progress)
    if name == "longcat-image":
        shifting = FLOW | {"shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
        settings = Settings(steps=4, guidance=1.0, sigmas=STUDENT, source="meituan-longcat/LongCat-Image")
        return planned(name, LONGCAT, configs[name], shifting, settings, "bf16", PART_BYTES, progress)
    unipc = {"_class_name": "UniPCMultistepScheduler", "flow_shift": 5.0, "num_train_timesteps": 1000} | OF_FLOW
    found = dict(configs["swifti2v"])
    if name in (I2V, TI2V):
        known = parts_of_two_stages(name)
        return planned(name, *one_stage(name, found), unipc, few(name), "bf16", 2**29, progress, known)
    found["transformer_2"] = found["transformer"]
    settings = Settings(
        steps=4, guidance=1.0, sigmas=STUDENT, maximum_size=2560, source="Wan-AI/Wan2.2, two stages",
        video=VideoSettings(motion_sigmas=STUDENT),
    )  # fmt: skip
    return planned(name, WAN, found, unipc, settings, "bf16", 2**29, progress)


def one_stage(name: str, found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return model_index.json and the configs of one of Wan's models, from those of the two that SwiftI2V uses."""
    index = {key: entry for key, entry in WAN.items() if not key.startswith("detail_")}
    if name == I2V:
        kept = {key: found[key] for key in ("text_encoder", "transformer", "vae")}
        return index, kept | {"transformer_2": found["transformer"]}
    del index["transformer_2"], index["image_encoder"]
    transformer = found["detail_transformer"] | {"in_channels": found["detail_vae"]["z_dim"]}
    configs = {"text_encoder": found["text_encoder"], "transformer": transformer, "vae": found["detail_vae"]}
    return index | {"_class_name": "WanPipeline", "expand_timesteps": True, "boundary_ratio": None}, configs


def parts_of_two_stages(name: str) -> manifest.Manifest:
    """Return the components of SwiftI2V's plan that one of Wan's models has as well; TI2V's are those of Stage II."""
    content = read_manifest("swifti2v-wan22")
    if name == I2V:
        kept = {key: spec for key, spec in content.components.items() if not key.startswith("detail_")}
        return dataclasses.replace(content, components=kept)
    stage, kept, files = "detail_", {"text_encoder": content.components["text_encoder"]}, dict(content.files)
    for key, spec in content.components.items():
        if not key.startswith(f"{stage}vae"):
            continue
        for file in (*spec.graphs, *spec.weights):
            files[file.replace(stage, "")] = content.files[file]
        kept[key.removeprefix(stage)] = dataclasses.replace(
            spec, graph=spec.graph.replace(stage, ""),
            weights=tuple(file.replace(stage, "") for file in spec.weights),
            parts=tuple(dataclasses.replace(part, graph=part.graph.replace(stage, "")) for part in spec.parts),
        )  # fmt: skip
    return dataclasses.replace(content, components=kept, files=files)


def few(name: str) -> Settings:
    """Return the settings of Wan's few-step students: four steps without guidance."""
    source = "Wan-AI/Wan2.2-I2V-A14B-Diffusers" if name == I2V else "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    return Settings(steps=4, guidance=1.0, sigmas=STUDENT, maximum_size=1280, source=source)


def with_eight_bits(content: manifest.Manifest, name: str) -> manifest.Manifest:
    """Return the plan `content`, of a model in 16 bits, as `name` with its transformers' weights in 8 (`w8a8`).

    The plan halves all their weights. Biases and norms keep 16 bits in a real model (a thousandth of the bytes), and
    the matrices have scales (less than that). Activations are counted as before.
    """
    components, files = dict(content.components), dict(content.files)
    for component, spec in content.components.items():
        if role_of(component).kind is not Kind.DENOISER or not spec.weights:
            continue
        parts = tuple(dataclasses.replace(part, bytes=part.bytes // 2) for part in spec.parts)
        components[component] = dataclasses.replace(spec, precision="w8a8", parts=parts)
        for file in spec.weights:
            files[file] = dataclasses.replace(files[file], bytes=files[file].bytes // 2)
    return dataclasses.replace(content, name=name, components=components, files=files)


if __name__ == "__main__":
    main()
