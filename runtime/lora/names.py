"""The names in LoRA files: the module that a key changes, and the part of the change that it holds.

Programs name one module in several ways. Dots become underscores here, as kohya's scripts write them. One index then
serves the names of kohya, ComfyUI, diffusers, peft and musubi.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from ..bundle.families import DENOISER, T5, TEXT_ENCODER, UNET

SECOND = f"{TEXT_ENCODER}_2"
OWN = ""  # the folder of names that say nothing but "the denoiser"

_HALVES = {"down": ("lora_A", "lora_down", "lora.down"), "up": ("lora_B", "lora_up", "lora.up"), "mid": ("lora_mid",)}
SUFFIXES = {
    **{f".{n}{default}.weight": part for part, of in _HALVES.items() for n in of for default in ("", ".default")},
    **{f"{stem}.{n}.weight": n for stem in ("_lora", ".lora_linear_layer") for n in ("down", "up")},
    **{f".lora_B{default}.bias": "up_bias" for default in ("", ".default")},
    **{f"{stem}.alpha": "alpha" for stem in ("", ".lora", "_lora", ".lora_linear_layer")},
    **{f".lora_magnitude_vector{end}": "vector" for end in ("", ".weight", ".default", ".default.weight")},
    **{f".{n}": n for n in ("dora_scale", "diff", "diff_b")},
    **{f".hada_{n}": f"hada_{n}" for n in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{n}": f"lokr_{n}" for n in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    ".w_norm": "diff",  # LyCORIS
    ".b_norm": "diff_b",
    ".diff_m": "diff",  # lightx2v: of the modulation, which is no module
}
PREFIXES = (  # the first one that leads to a module wins, so a longer prefix stands before its own beginning
    ("lora_te1_", TEXT_ENCODER), ("lora_te2_", SECOND), ("lora_te3_", T5), ("lora_te_", TEXT_ENCODER),
    ("lora_unet_", OWN), ("lora_transformer_", OWN), ("lycoris_", OWN),
    ("text_encoders.clip_l.transformer.", TEXT_ENCODER), ("text_encoders.clip_l.", TEXT_ENCODER),
    ("text_encoders.clip_g.transformer.", SECOND), ("text_encoders.clip_g.", SECOND),
    ("text_encoders.t5xxl.transformer.", T5), ("text_encoders.umt5xxl.transformer.", TEXT_ENCODER),
    ("model.diffusion_model.", OWN), ("diffusion_model.", OWN), ("base_model.model.", OWN),
    (f"{DENOISER}.", OWN), (f"{UNET}.", OWN),
)  # fmt: skip


def split(key: str) -> tuple[str, str]:
    """Return a key's module and the part of the change that it holds; the part is empty if the name is unknown."""
    suffix = max((s for s in SUFFIXES if key.endswith(s)), key=len, default="")
    stem = key.removesuffix(suffix) if suffix else key
    return (f"{stem}.modulation" if suffix == ".diff_m" else stem), SUFFIXES.get(suffix, "")


def readings(stem: str, folders: Collection[str], target: str) -> Iterator[tuple[str, str]]:
    """Yield each (folder, module with underscores) that a file may mean by `stem`, the likeliest first.

    `folders` are those of the checkpoint, and `target` is the one that names of the denoiser mean.
    """
    own = [(f"{folder}.", folder) for folder in folders if folder not in (DENOISER, UNET)]
    for prefix, folder in (*own, *PREFIXES, ("", OWN)):
        if stem.startswith(prefix):
            name = stem.removeprefix(prefix).removeprefix("base_model.model.").replace(".", "_")
            yield folder or target, name.replace("_processor_to_", "_to_")
