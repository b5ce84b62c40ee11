"""The differences between the families of picture models; the loop over steps is the same for all.

Sources: diffusers 0.42.1's StableDiffusion3Pipeline, LongCatImagePipeline, Flux2KleinPipeline, ZImagePipeline and
StableDiffusionXLPipeline.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import BundleError
from .. import device_loop
from ..bundle.families import CLIP, T5, TEXT_ENCODER, family_of, joint_width, one_by_one, tokenizer_of
from ..bundle.manifest import Manifest, step_of
from ..components import Cancel, Components, Feeds
from ..request import Prepared
from ..sampling import recurrence, schedule
from .input import Beginning


@dataclass(frozen=True)
class Conditioning:
    """How one family feeds prompts and sizes to its denoiser.

    `encode` returns the denoiser's inputs for a prompt, [1, ...] each, and `beside` those for a picture's (height,
    width). `guide` combines the negative and the positive prediction into one. `refer`, of families that take reference
    pictures, makes inputs of their encoded latents, [1, channels, h, w] each, and of the latents' channels.
    """

    encode: Callable[[Components, Manifest, str, Cancel | None], Feeds]
    beside: Callable[[int, int], Feeds]
    guide: Callable[[np.ndarray, np.ndarray, float, Manifest], np.ndarray]
    refer: Callable[[Sequence[np.ndarray], int], Feeds] | None = None


def find(content: Manifest) -> Conditioning:
    """Return the row of a picture bundle that `bundle.families.check` has accepted."""
    return CONDITIONING[content.family]


def denoise(
    components: Components, prepared: Prepared, index: int, known: Sequence[Feeds], beginning: Beginning | None,
    callback: Callable[[int, np.ndarray, recurrence.Moment], None] | None, cancel: Cancel | None,
    together: bool = True,
) -> np.ndarray:  # fmt: skip
    """Return the latents of picture `index`, float32 [1, channels, height / factor, width / factor].

    `known` holds the denoiser's inputs for all steps, [1, ...]: with guidance those of the negative prompt, then those
    of the prompt. Each step makes one call if `together`, else two. Prompts with lengths of their own always take two.
    `beginning` is that of the request's picture. `callback` is that of `sampling.recurrence.watched`.
    """
    content = components.bundle.manifest
    of, row = family_of(content), find(content)
    levels, noise = prepared.schedule, prepared.initial(index)
    fed = [_stacked(known)] if together and not one_by_one(content) else list(known)
    put_back = None
    if beginning is not None and prepared.start is not None:
        begun = beginning.latents(levels, prepared.start, noise)
        levels = levels.after(prepared.start.step)
        put_back, noise = beginning.blender(levels, noise), begun

    def fresh(step: int) -> np.ndarray:
        return prepared.fresh(index, step)

    report = None if callback is None else recurrence.watched(callback, levels, noise, fresh)
    if len(fed) == 1 and put_back is None and device_loop.can_stay(components, levels, of.denoiser):
        times = [{"timestep": np.full(len(known), timestep, np.float32)} for timestep in levels.timesteps]
        loop = device_loop.DeviceLoop(
            [of.denoiser] * levels.steps, step_of(of.denoiser), "hidden_states", of.output, times, fed[0],
            len(known), prepared.guidance, cancel=cancel, fresh=fresh,
        )  # fmt: skip
        return device_loop.sample(components, loop, noise, levels, report)

    def call(latents: np.ndarray, timestep: np.float32, known: Feeds) -> np.ndarray:
        count = len(next(iter(known.values()), latents))
        levels = np.full(count, timestep, np.float32)
        shown = np.repeat(latents, count, axis=0)
        return components.run(of.denoiser, cancel, hidden_states=shown, timestep=levels, **known)[of.output]

    def predict(latents: np.ndarray, timestep: np.float32) -> np.ndarray:
        made = np.concatenate([call(latents, timestep, part) for part in fed])
        return row.guide(made[:1], made[1:], prepared.guidance, content) if prepared.guided else made

    return recurrence.sample(predict, noise, levels, report, fresh, put_back)


def _stacked(known: Sequence[Feeds]) -> Feeds:
    return {name: np.concatenate([feeds[name] for feeds in known]) for name in known[0]}


def _clip(components: Components, prompt: str, cancel: Cancel | None) -> list[Feeds]:
    """Return the outputs of both CLIP encoders for a prompt."""
    return [
        components.run(component, cancel, input_ids=components.tokens(name, prompt).ids)
        for component, name in CLIP.items()
    ]


def _sd3(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    encoded = _clip(components, prompt, cancel)
    clip, width = [e["hidden_states"] for e in encoded], joint_width(content)
    if T5 in content.components:
        ids = components.tokens(tokenizer_of(T5), prompt).ids
        t5 = components.run(T5, cancel, input_ids=ids)["states"]
        states = np.concatenate([join_states(clip, width, 0), t5], axis=1)
    else:
        states = join_states(clip, width, content.t5_tokens)
    return {
        "encoder_hidden_states": states,
        "pooled_projections": np.concatenate([e["pooled"] for e in encoded], axis=-1),
    }


def _sdxl(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    first, second = _clip(components, prompt, cancel)
    states = join_states([first["hidden_states"], second["hidden_states"]], joint_width(content), 0)
    return {"encoder_hidden_states": states, "text_embeds": second["pooled"]}


def _longcat(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    tokens = components.tokens(tokenizer_of(TEXT_ENCODER), prompt)
    found = components.run(TEXT_ENCODER, cancel, input_ids=tokens.ids, attention_mask=tokens.mask)
    return {"encoder_hidden_states": found["states"][:, tokens.inner]}


def _klein(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    tokens = components.tokens(tokenizer_of(TEXT_ENCODER), prompt)
    found = components.run(TEXT_ENCODER, cancel, input_ids=tokens.ids, attention_mask=tokens.mask)
    return {"encoder_hidden_states": found["states"]}


def _zimage(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    tokens = components.tokens(tokenizer_of(TEXT_ENCODER), prompt)
    return {"encoder_hidden_states": components.run(TEXT_ENCODER, cancel, input_ids=tokens.ids)["states"]}


def _unprompted(components: Components, content: Manifest, prompt: str, cancel: Cancel | None) -> Feeds:
    return {}


def _nothing(height: int, width: int) -> Feeds:
    return {}


def _time_ids(height: int, width: int) -> Feeds:
    """Return SDXL's micro-conditions: the picture's own size without a crop (Podell et al. 2023, section 2.2)."""
    return {"time_ids": np.array([[height, width, 0, 0, height, width]], np.float32)}


def _guide(negative: np.ndarray, positive: np.ndarray, guidance: float, content: Manifest) -> np.ndarray:
    return schedule.guide(negative, positive, guidance)


def _guide_longcat(negative: np.ndarray, positive: np.ndarray, guidance: float, content: Manifest) -> np.ndarray:
    return schedule.guide_renormalised(negative, positive, guidance, content.latents.patch)


def reference_tokens(encoded: Sequence[np.ndarray], channels: int) -> Feeds:
    """Return FLUX.2's inputs for reference pictures, given as latents float32 [1, channels, h, w] each, or for none.

    reference float32 [1, tokens, channels] holds one token for each latent, row by row, picture after picture. places
    float32 [1, tokens, 4] holds (10 + 10 * number of the picture, row, column, 0).
    """
    tokens, places = [np.zeros((1, 0, channels), np.float32)], [np.zeros((1, 0, 4), np.float32)]
    for number, latents in enumerate(encoded):
        _, _, height, width = latents.shape
        tokens.append(latents.reshape(1, channels, height * width).transpose(0, 2, 1).astype(np.float32))
        row, column = np.divmod(np.arange(height * width, dtype=np.float32), np.float32(width))
        still = np.zeros_like(row)
        places.append(np.stack([still + 10 * (1 + number), row, column, still], -1)[None])
    return {"reference": np.concatenate(tokens, 1), "places": np.concatenate(places, 1)}


CONDITIONING = {
    "sd3": Conditioning(_sd3, _nothing, _guide),
    "longcat-image": Conditioning(_longcat, _nothing, _guide_longcat),
    "flux2-klein": Conditioning(_klein, _nothing, _guide, reference_tokens),
    "z-image": Conditioning(_zimage, _nothing, _guide),
    "sdxl": Conditioning(_sdxl, _time_ids, _guide),
    "pixel-unet": Conditioning(_unprompted, _nothing, _guide),
}


def join_states(states: Sequence[np.ndarray], joint_width: int, t5_tokens: int) -> np.ndarray:
    """Join the penultimate states [1, length, width] of text encoders, in order, for Stable Diffusion 3.

    The states are concatenated along the width and padded with zeros to `joint_width`. Then `t5_tokens` zero tokens
    stand for the absent T5 (Esser et al. 2024, section 4). Raises BundleError if the encoders' widths together exceed
    `joint_width`; diffusers would crop them silently.
    """
    hidden = np.concatenate(states, axis=-1)
    missing = joint_width - hidden.shape[-1]
    if missing < 0:
        raise BundleError(
            f"the text encoders give {hidden.shape[-1]} features per token, but the denoiser takes only {joint_width}. "
            "Export the bundle again from a checkpoint with a larger joint_attention_dim."
        )
    return np.pad(hidden, ((0, 0), (0, t5_tokens), (0, missing)))
