"""Compare targets with `ort-cpu` from the same noise: by component, by step and in the pixels.

Relative L2 is |found - expected| / |expected|; `ort-cpu` gives the expected values.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...engines.base import Resident
from ...errors import SegueError, UsageError
from ..bundle.families import Kind, role_of, takes_picture
from ..bundle.manifest import STEP, Component, Manifest
from ..bundle.reader import Bundle
from ..bundle.shapes import default_range, profiles
from ..components import Feeds
from ..lora.inputs import plain
from ..media.read_image import test_pattern
from ..notices import silent
from ..pipeline import Model
from ..request import Request
from ..storage.files import write_whole, writing
from ..storage.paths import cache_directory
from ..videos.request import AnimationRequest
from .difference import Difference, difference, psnr

REFERENCE = "ort-cpu"
# The largest relative L2 of a component's outputs, by precision. GPUs multiply fp32 in TF32 and sum in another order;
# the processor computes most of fp16 in fp32
GATES = {"fp32": 5e-3, "fp16": 2e-2, "bf16": 1e-1, "int8": 1e-1, "w8a8": 1e-1, "fp8": 1e-1}
PICTURE = 25.0  # dB


@dataclass(frozen=True)
class Comparison:
    """One target compared with the reference, for one picture or one video from one noise.

    `components`: the difference of each component's worst output, if both targets get the reference's inputs. `steps`:
    relative L2 after each step, if each target goes on with its own values. For a picture, "picture" compares the
    latents after each step. For a video, "motion" (Stage I) and "detail" (Stage II) compare the denoiser's outputs in
    each call. `psnr` of the pixels is in dB, None if they are equal. If the target failed, `why` is the reason, and the
    other fields are empty.
    """

    target: str
    components: dict[str, Difference]
    steps: dict[str, tuple[float, ...]]
    psnr: float | None
    why: str = ""

    @property
    def growth(self) -> dict[str, float]:
        """Return the last relative L2 divided by the first, for each entry of `steps`; 1 if the first is 0."""
        return {name: steps[-1] / steps[0] if steps[0] else 1.0 for name, steps in self.steps.items()}

    def faults(self, bundle: Bundle) -> list[str]:
        """Return a message for each value beyond its gate."""
        found = [
            f"{name} differs by {far.relative_l2:.1e} (gate {gate:g})"
            for name, far in self.components.items()
            if not far.relative_l2 <= (gate := gate_of(bundle, name))
        ]
        if self.psnr is not None and not self.psnr >= PICTURE:
            found.append(f"the pixels are at {self.psnr:.1f} dB (gate {PICTURE:g})")
        return found


def gate_of(bundle: Bundle, component: str) -> float:
    """Return the largest allowed relative L2 of a component's outputs on any target."""
    return GATES[bundle.manifest.components[component].precision]


def usual_request(content: Manifest, inputs: Mapping[str, Any]) -> Request | AnimationRequest:
    """Return the request to compare: a red heart, or a window of a video that begins with a test pattern.

    A picture begins with `inputs`, arguments of `Request`. If there are none, it begins with the test pattern at
    strength 1: the encoder runs on a picture, and all steps run. Raises UsageError for inputs of a video.
    """
    pattern = test_pattern(*content.sizes.default)
    if content.video is None:
        usual = {"image": pattern, "strength": 1.0} if takes_picture(content) else {}
        return Request("a red heart", **(inputs or usual))
    if inputs:
        raise UsageError(f"{content.name} makes videos, so pictures do not apply. Leave them out.")
    return AnimationRequest(pattern, "waving hand")


def compare(
    bundle: Bundle,
    targets: Sequence[str],
    request: Request | AnimationRequest,
    progress: Callable[[str, int, int], None] = lambda target, done, total: None,
    trust_engines: bool = False,
) -> list[Comparison]:
    """Return the comparison of each of `targets` with the reference, `ort-cpu`.

    `request` is for one picture, or for a video if the bundle makes videos. With `trust_engines` the bundle's own
    engines run, too. A target that fails does not stop the others. Raises UsageError for a bundle in bf16,
    MissingDependencyError without polygraphy, and the errors of opening and rendering with `ort-cpu`.
    """
    if any(component.precision == "bf16" for component in bundle.manifest.components.values()):
        raise UsageError(
            f"the bundle {bundle.manifest.name!r} is in bf16, which {REFERENCE} cannot run.",
            "Export it in fp16 or fp32 to compare it.",
        )
    progress(REFERENCE, 0, len(targets) + 1)
    calls: dict[str, tuple[Feeds, Feeds]] = {}
    denoised: dict[str, list[np.ndarray]] = {}  # the denoiser's outputs by stage of a video

    def keep(name: str, feeds: Feeds, made: Feeds) -> None:
        calls.setdefault(name, (feeds, made))
        watch(name, feeds, made)

    def watch(name: str, feeds: Feeds, made: Feeds) -> None:
        if role_of(name).kind is Kind.DENOISER and not role_of(name).step:
            given = (value.numpy() if isinstance(value, Resident) else value for value in made.values())
            denoised.setdefault(str(role_of(name).stage), []).extend(given)

    with Model(bundle, target=REFERENCE, on_call=keep) as model:
        expected, before = _drawn(model, request, denoised)
        for name, spec in bundle.manifest.components.items():
            if not spec.weights:  # an Euler step, which the processor computes in numpy
                model.call(name, _invented(spec, calls[name.removesuffix(STEP)]))
            elif name not in calls:  # rendering does not use it: the encoder, if no picture was given
                model.call(name, _random(bundle, name))

    def beside(target: str) -> Comparison:
        seen: dict[str, Difference] = {}
        with Model(bundle, target=target, on_call=watch, trust_engines=trust_engines) as model:
            for name, (feeds, outputs) in calls.items():
                seen[name] = difference(outputs, model.call(name, feeds))
            image, after = _drawn(model, request, denoised)
        steps = {
            name: tuple(difference({name: b}, {name: a}).relative_l2 for a, b in zip(after[name], calls, strict=True))
            for name, calls in before.items()
        }
        ratio = psnr(image, expected)
        return Comparison(target, seen, steps, ratio if np.isfinite(ratio) else None)

    found = []
    for number, target in enumerate(targets):
        progress(target, number + 1, len(targets) + 1)
        try:
            found.append(beside(target))
        except SegueError as error:  # for example a target without engines
            found.append(Comparison(target, {}, {}, None, str(error)))
    return found


def _random(bundle: Bundle, name: str) -> Feeds:
    """Return random feeds for a component, at the bundle's usual size."""
    rng, content = np.random.default_rng(0), bundle.manifest
    shapes = profiles(content, [default_range(content)], guided=False)[name][0]
    ports = plain(content.components[name].inputs)
    return {p.name: rng.standard_normal(shapes[p.name][1]).astype(p.dtype) for p in ports}


def _invented(spec: Component, denoised: tuple[Feeds, Feeds]) -> Feeds:
    """Return random feeds for the step after a call of a denoiser, with shapes that fit that call."""
    rng = np.random.default_rng(0)
    seen, made = next(iter(denoised[0].values())), next(iter(denoised[1].values()))
    shapes = {"latents": (1, *seen.shape[1:]), "made": made.shape, "noisy": made.shape[2:3]}
    drawn = {p.name: rng.standard_normal(shapes.get(p.name, (1,)), dtype=np.float32) for p in spec.inputs}
    return {p.name: drawn[p.name].astype(p.dtype) for p in spec.inputs}


def _drawn(
    model: Model, request: Request | AnimationRequest, denoised: dict[str, list[np.ndarray]]
) -> tuple[np.ndarray, dict[str, list[np.ndarray]]]:
    """Return the picture and the latents after each step, or the frames and the denoiser's outputs."""
    denoised.clear()
    if isinstance(request, AnimationRequest):
        with silent():
            frames = np.concatenate(list(model.frames(request)))
        return frames, {stage: made.copy() for stage, made in denoised.items()}
    steps: list[np.ndarray] = []
    with silent():
        (picture,) = model.pictures(request, on_step=lambda done, total, latents: steps.append(latents.copy()))
    return picture.image, {"picture": steps}


def as_json(found: Comparison) -> dict[str, Any]:
    """Return a comparison as JSON types, with its growth."""
    return {**asdict(found), "growth": found.growth}


def store(bundle: Bundle, found: Sequence[Comparison]) -> Path:
    """Write the comparisons to the user's cache, under the bundle's hash, and return the file; raises OutputError."""
    path = cache_directory() / "parity" / f"{bundle.digest}.json"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        when = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        table = {
            "bundle": bundle.manifest.name,
            "reference": REFERENCE,
            "when": when,
            "found": [as_json(c) for c in found],
        }
        write_whole(path, (json.dumps(table, indent=1) + "\n").encode())
    return path
