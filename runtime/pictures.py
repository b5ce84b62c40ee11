"""What differs between the families of models that draw pictures; the loop over steps is the same for all.

Sources: diffusers 0.42.1's StableDiffusion3Pipeline, LongCatImagePipeline and StableDiffusionXLPipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..errors import BundleError
from . import resident, sampler, text
from .components import Cancel, Components, Feeds
from .manifest import Manifest
from .request import Prepared


@dataclass(frozen=True)
class PictureFamily:
    """One family.

    `tokenizers` are those that its text encoders need, by component. `encode` gives what the `denoiser` is told of a
    prompt, one array [1, ...] for each of its inputs; `beside` what it is told of a picture's (height, width), [1,
    ...]. The denoiser takes `hidden_states` and `timestep` as well, and gives `output`, d latents / d sigma. `guide`
    makes one prediction of that without and with the prompt.
    """

    tokenizers: Mapping[str, str]
    denoiser: str
    output: str
    encode: Callable[[Components, Manifest, str, Cancel | None], Feeds]
    beside: Callable[[int, int], Feeds]
    guide: Callable[[np.ndarray, np.ndarray, float, Manifest], np.ndarray]

    @property
    def components(self) -> tuple[str, ...]:
        """Return the components that a picture needs."""
        return (*self.tokenizers, self.denoiser, "vae_decoder")


def find(content: Manifest) -> PictureFamily:
    """Return the family of a bundle that draws pictures, which `family.check` has seen."""
    return FAMILIES[content.family]


def denoise(
    components: Components, content: Manifest, prepared: Prepared, index: int, known: Feeds,
    callback: Callable[[int, np.ndarray], None] | None, cancel: Cancel | None, together: bool = True,
) -> np.ndarray:  # fmt: skip
    """Return the latents of a request's picture of that number, float32 [1, channels, height, width].

    `known` is what the denoiser is told at each call, for a batch of two where the request is guided; that is one call,
    or two where it is not `together`. `callback` is that of `sampler.sample_euler`.
    """
    of, levels, noise = find(content), prepared.schedule, prepared.initial(index)
    batch = 2 if prepared.guided else 1
    if (together or not prepared.guided) and resident.can_stay(components, of.denoiser):
        times = [{"timestep": np.full(batch, timestep, np.float32)} for timestep in levels.timesteps]
        loop = resident.Loop(
            [of.denoiser] * levels.steps, resident.step_of(of.denoiser), "hidden_states", of.output, times, known,
            batch, prepared.guidance, cancel=cancel,
        )  # fmt: skip
        return resident.sample_euler(components, loop, noise, levels, callback)

    def call(latents: np.ndarray, timestep: np.float32, known: Feeds) -> np.ndarray:
        count = len(next(iter(known.values())))
        levels = np.full(count, timestep, np.float32)
        shown = np.repeat(latents, count, axis=0)
        return components.run(of.denoiser, cancel, hidden_states=shown, timestep=levels, **known)[of.output]

    def predict(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        parts = [known] if together else [{name: a[i : i + 1] for name, a in known.items()} for i in range(batch)]
        made = np.concatenate([call(latents, timestep, part) for part in parts])
        return of.guide(made[:1], made[1:], prepared.guidance, content) if prepared.guided else made

    return sampler.sample_euler(predict, noise, levels, callback)


def joint_width(content: Manifest) -> int:
    """Return the width of the denoiser's text input; raises BundleError where it has none."""
    name = FAMILIES[content.family].denoiser
    for spec in content.components[name].inputs:
        if spec.name == "encoder_hidden_states" and len(spec.shape) == 3 and isinstance(spec.shape[2], int):
            return spec.shape[2]
    raise BundleError(
        f"the {name} of the bundle {content.name!r} has no input encoder_hidden_states [batch, text, width] of fixed "
        "width. Export it again."
    )


def _clip(components: Components, prompt: str, cancel: Cancel | None) -> list[Feeds]:
    """Return what both of CLIP's encoders make of a prompt."""
    return [
        components.run(component, cancel, input_ids=components.tokens(name, prompt).ids)
        for component, name in CLIP.items()
    ]


def _sd3(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    encoded = _clip(components, prompt, cancel)
    clip, width = [e["hidden_states"] for e in encoded], joint_width(content)
    if T5 in content.components:
        ids = components.tokens("tokenizer_3", prompt).ids
        t5 = components.run(T5, cancel, input_ids=ids)["states"]
        states = np.concatenate([text.joined(clip, width, 0), t5], axis=1)
    else:
        states = text.joined(clip, width, content.t5_tokens)
    return {
        "encoder_hidden_states": states,
        "pooled_projections": np.concatenate([e["pooled"] for e in encoded], axis=-1),
    }


def _sdxl(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    first, second = _clip(components, prompt, cancel)
    states = text.joined([first["hidden_states"], second["hidden_states"]], joint_width(content), 0)
    return {"encoder_hidden_states": states, "text_embeds": second["pooled"]}


def _longcat(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    tokens = components.tokens("tokenizer", prompt)
    found = components.run("text_encoder", cancel, input_ids=tokens.ids, attention_mask=tokens.mask)
    return {"encoder_hidden_states": found["states"][:, tokens.inner]}


def _nothing(height: int, width: int) -> Feeds:
    return {}


def _time_ids(height: int, width: int) -> Feeds:
    """Return SDXL's micro-conditions: the picture's own size, not cropped (Podell et al. 2023, section 2.2)."""
    return {"time_ids": np.array([[height, width, 0, 0, height, width]], np.float32)}


def _guide(negative: np.ndarray, positive: np.ndarray, guidance: float, content: Manifest) -> np.ndarray:
    return sampler.guide(negative, positive, guidance)


def _guide_longcat(negative: np.ndarray, positive: np.ndarray, guidance: float, content: Manifest) -> np.ndarray:
    return sampler.guide_renormalised(negative, positive, guidance, content.latents.patch)


T5 = "text_encoder_3"  # of Stable Diffusion 3, which does without as well
CLIP = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
FAMILIES = {
    "sd3": PictureFamily(CLIP, "transformer", "velocity", _sd3, _nothing, _guide),
    "longcat-image": PictureFamily(
        {"text_encoder": "tokenizer"}, "transformer", "velocity", _longcat, _nothing, _guide_longcat
    ),
    "sdxl": PictureFamily(CLIP, "unet", "noise", _sdxl, _time_ids, _guide),
}
