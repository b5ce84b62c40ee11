"""Convert `bundle.json` to a manifest and back, and check every field, path and number.

The numbers must be in the ranges that an export writes.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from pathlib import PurePosixPath
from typing import Any

from ...errors import BundleError
from ..storage import typed_json
from .limits import GIVEN, GRIDS, MAX_FPS, MAX_FRAMES, MAX_SIDE, MAX_STEPS, MAX_TOKENS, MAX_TRAINED, MAX_WIDTH, MIN_FPS
from .manifest import SCHEMA, Detail, Latents, Manifest, Sampler, Sizes, Video
from .polynomial import Polynomial
from .segments import COMPRESSION


def dump(manifest: Manifest) -> bytes:
    """Return `manifest` as the bytes of bundle.json."""
    table = dataclasses.asdict(manifest)
    if table["video"] is not None:  # the fields of Stage II lie beside the others, as in bundles of every age
        table["video"] |= table["video"].pop("detail") or {}
    return (json.dumps(table, indent=1, ensure_ascii=False) + "\n").encode()


def parse(data: bytes, where: str) -> Manifest:
    """Return the manifest that `data` holds; `where` names it in messages.

    Raises BundleError for invalid JSON, a newer schema, unknown, missing or ill-typed fields and unsafe paths.
    """
    try:
        table = typed_json.read(data)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{where} is not valid JSON ({error}).", "Export or fetch the bundle again.") from None
    schema = table.get("schema") if isinstance(table, dict) else None
    if not isinstance(schema, int) or isinstance(schema, bool):
        raise BundleError(
            f"{where} has no schema number, so it is not a Segue bundle.", "Name a directory made by segue export."
        )
    if schema < 1:
        raise BundleError(f"{where} has schema {schema}, which never existed.", "Export or fetch the bundle again.")
    if schema > SCHEMA:
        raise BundleError(f"{where} has schema {schema}; this Segue reads up to {SCHEMA}.", "Use a newer Segue.")
    try:
        manifest: Manifest = typed_json.build(Manifest, _nested(table, where), where)
    except ValueError as error:
        raise BundleError(f"{error}.", "Export the bundle again.") from None
    _check_numbers(manifest, where)
    for path in manifest.files:
        check_path(path, where)
    named = [t.file for t in manifest.tokenizers.values()]
    for component in manifest.components.values():
        named += [*component.graphs, *component.weights]
    named += [path for path in (manifest.prompts, manifest.provenance.single_file) if path]
    for path in named:
        if path not in manifest.files:
            raise BundleError(f"{where} uses {path!r} but lists no hash for it.", "Export the bundle again.")
    return manifest


def _nested(table: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the table of a manifest with the keys of Stage II in a table of their own, if there are any."""
    video = table.get("video")
    if not isinstance(video, dict):
        return table
    if "detail" in video:
        raise ValueError(f"{where}:video has the unknown key 'detail'")
    own = {field.name for field in dataclasses.fields(Detail)}
    detail = {key: value for key, value in video.items() if key in own}
    rest = {key: value for key, value in video.items() if key not in own}
    return table | {"video": rest | ({"detail": detail} if detail else {})}


def check_path(path: str, where: str) -> None:
    """Raise BundleError unless `path` is a plain relative POSIX path that stays inside its directory."""
    parts = PurePosixPath(path).parts
    plain = parts and path == "/".join(parts) and path.isprintable() and not any(mark in path for mark in "\\:")
    if not plain or path.startswith("/") or ".." in parts:
        raise BundleError(
            f"{where} names the path {path!r}, which leaves the bundle's directory or is not plain.",
            "Do not use this bundle; export it again from its checkpoint.",
        )


_TINY = 1e-6
PADDINGS = ("prompt", "end", "none")  # of a template
WORDS = {
    "spacing": ("trailing", "leading", "linspace"),
    "prediction": ("epsilon", "sample", "v_prediction"),
    "last": ("zero", "first"),
}


def _check_numbers(manifest: Manifest, where: str) -> None:
    """Refuse numbers that no export writes, because they would break arithmetic or exhaust memory."""
    sampler, latents, sizes = manifest.sampler, manifest.latents, manifest.sizes
    ranges: dict[str, tuple[float, float, float]] = {  # lowest, value, highest
        "sampler.shift": (_TINY, sampler.shift, 1e6),
        "sampler.train_timesteps": (1, sampler.train_timesteps, 10**6),
        "sampler.steps": (1, sampler.steps, MAX_STEPS),
        "sampler.guidance": (0, sampler.guidance, 1e6),
        "latents.channels": (1, latents.channels, 4096),
        "latents.factor": (1, latents.factor, 256),
        "latents.patch": (1, latents.patch, 256),
        "latents.scaling": (_TINY, latents.scaling, 1e6),
        "latents.shift": (-1e6, latents.shift, 1e6),
        "sizes.minimum": (1, sizes.minimum, MAX_SIDE),
        "sizes.maximum": (1, sizes.maximum, MAX_SIDE),
        "sizes.multiple": (1, sizes.multiple, MAX_SIDE),
        "t5_tokens": (0, manifest.t5_tokens, MAX_TOKENS),
    }
    ranges |= _sampler_ranges("sampler", sampler)
    if manifest.video is not None:
        ranges |= _sampler_ranges("video.motion.sampler", manifest.video.motion.sampler)
    for name, tokenizer in manifest.tokenizers.items():
        ranges[f"tokenizers.{name}.length"] = (2, tokenizer.length, MAX_TOKENS)  # at least the begin and the end token
        ranges[f"tokenizers.{name}.pad_id"] = (0, tokenizer.pad_id, 2**31 - 1)
        if tokenizer.template is not None:
            padding, known = tokenizer.template.padding, ", ".join(PADDINGS)
            ranges[f"tokenizers.{name}.template.tokens"] = (0, tokenizer.template.tokens, MAX_TOKENS)
            ranges[f"the count of tokenizers.{name}.template.padding {padding!r:.40} in {known}"] = (
                1,
                PADDINGS.count(padding),
                1,
            )
    for name, component in manifest.components.items():
        for what in ("flops", "activations", "widened") if component.cost is not None else ():
            _check_polynomial(getattr(component.cost, what), f"components.{name}.cost.{what}", where)
        if component.footprint is not None:
            _check_polynomial(component.footprint.working, f"components.{name}.footprint.working", where)
            ranges[f"components.{name}.footprint.loaded"] = (0, component.footprint.loaded, 2**50)
            ranges[f"components.{name}.footprint.loading"] = (0, component.footprint.loading, 2**50)
        for i, part in enumerate(component.parts):
            for what in ("bytes", "loading", "loaded"):
                ranges[f"components.{name}.parts[{i}].{what}"] = (0, getattr(part, what), 2**50)
            if part.working is not None:
                _check_polynomial(part.working, f"components.{name}.parts[{i}].working", where)
        ranges[f"components.{name}.parameters"] = (0, component.parameters, 2**50)
        ranges[f"components.{name}.weight_bytes"] = (0, component.weight_bytes, 2**50)
        for spec in (*component.inputs, *component.outputs):
            for i, size in enumerate(spec.shape):
                if isinstance(size, int):
                    ranges[f"components.{name}.{spec.name}.shape[{i}]"] = (0, size, MAX_WIDTH)
    for name, file in manifest.files.items():
        ranges[f"files.{name}.bytes"] = (0, file.bytes, 2**50)
    if manifest.video is not None:
        ranges |= _video_ranges(manifest.video, latents)
    if (shown := manifest.preview) is not None:
        ranges["the length of preview.factors"] = (latents.channels, len(shown.factors), latents.channels)
        for i, row in enumerate((shown.bias, *shown.factors[:4096])):
            ranges |= {f"preview, row {i}, colour {colour}": (-1e6, value, 1e6) for colour, value in enumerate(row)}
    for name, (lowest, value, highest) in ranges.items():
        if not lowest <= value <= highest:
            raise BundleError(
                f"{where} has {name} = {str(value)[:40]}, which must be from {lowest:g} to {highest:g}.",
                "Export the bundle again.",
            )
    if manifest.video is not None:
        _check_stages(manifest.video, sampler, latents, where)
    elif sampler.grid:
        raise BundleError(
            f"{where} has sampler.grid = {sampler.grid[:40]!r}, which only videos have.", "Export it again."
        )
    for of in (sampler, *([manifest.video.motion.sampler] if manifest.video else [])):
        levels = of.sigmas
        falling = all(a > b for a, b in itertools.pairwise((*levels, 0.0)))
        if levels and not (len(levels) == of.steps and levels[0] <= 1 and falling):
            raise BundleError(
                f"{where} has sampler.sigmas = {str(levels)[:80]}, which must be {of.steps} levels that decrease "
                "within (0, 1].",
                "Export the bundle again.",
            )
    _check_sizes(sizes, manifest.video, latents, where)


def _check_sizes(sizes: Sizes, video: Video | None, latents: Latents, where: str) -> None:
    unit = latents.factor * latents.patch
    if video is not None:
        unit = math.lcm(unit, video.scale * video.motion.factor * video.motion.patch)
    named = [side for size in (sizes.default, *sizes.trained) for side in size]
    if sizes.multiple % unit or any(side % sizes.multiple for side in (sizes.minimum, sizes.maximum, *named)):
        raise BundleError(
            f"{where} has sizes {str(sizes)[:300]} that are not multiples of {sizes.multiple}, or of the {unit} pixels "
            "of one patch.",
            "Export the bundle again.",
        )
    if not all(sizes.minimum <= side <= sizes.maximum for side in named):
        raise BundleError(
            f"{where} has a default or trained size outside its own range: {str(sizes)[:300]}.",
            "Export the bundle again.",
        )
    if len(sizes.trained) > MAX_TRAINED:
        raise BundleError(
            f"{where} has {len(sizes.trained)} trained sizes, and the limit is {MAX_TRAINED}.",
            "Export the bundle again.",
        )


_MOST_TERMS, _MOST_FACTORS = 256, 16  # of a polynomial; an export writes a tenth of this


def _check_polynomial(found: Polynomial, name: str, where: str) -> None:
    known = {"batch", "height", "width", "frames", "length", "text", "references"}
    whole = len(found.terms) == len(found.coefficients) <= _MOST_TERMS
    whole = whole and all(known.issuperset(term) and len(term) <= _MOST_FACTORS for term in found.terms)
    if not whole or not 0 <= found.error < 1 or not all(0 <= c <= 2**60 for c in found.coefficients):
        raise BundleError(
            f"{where} has {name} = {str(found)[:80]}, which is not a polynomial of {', '.join(sorted(known))} "
            "with coefficients of 0 or more and an error below 1.",
            "Export the bundle again.",
        )


def _sampler_ranges(name: str, sampler: Sampler) -> dict[str, tuple[float, float, float]]:
    ranges: dict[str, tuple[float, float, float]] = {}
    if sampler.token_shift is not None:
        (low, high), mu = sampler.token_shift.tokens, sampler.token_shift.mu
        ranges |= {
            f"{name}.token_shift.tokens[0]": (1, low, 2**24),
            f"{name}.token_shift.tokens[1]": (low + 1, high, 2**25),
        }
        ranges |= {f"{name}.token_shift.mu[{i}]": (-10, value, 10) for i, value in enumerate(mu)}
        slope = (mu[1] - mu[0]) / max(high - low, 1)
        ranges[f"the growth per token of {name}.token_shift"] = (-1e-2, slope, 1e-2)
    if sampler.step_shift is not None:
        shift = sampler.step_shift
        few, many = shift.steps
        ranges |= {
            f"{name}.step_shift.steps[0]": (1, few, MAX_STEPS),
            f"{name}.step_shift.steps[1]": (few + 1, many, 2 * MAX_STEPS),
            f"{name}.step_shift.most": (1, shift.most, 2**25),
        }
        ranges |= {f"{name}.step_shift.slopes[{i}]": (-1e-2, value, 1e-2) for i, value in enumerate(shift.slopes)}
        ranges |= {f"{name}.step_shift.offsets[{i}]": (-10, value, 10) for i, value in enumerate(shift.offsets)}
    if sampler.noise is not None:
        ranges |= {f"{name}.noise.betas[{i}]": (_TINY, value, 0.5) for i, value in enumerate(sampler.noise.betas)}
        ranges[f"{name}.noise.offset"] = (0, sampler.noise.offset, 1)
        ranges[f"{name}.noise.original_steps"] = (1, sampler.noise.original_steps, sampler.train_timesteps)
        ranges[f"{name}.noise.timestep_scaling"] = (_TINY, sampler.noise.timestep_scaling, 1e6)
        ranges[f"{name}.noise.eta"] = (0, sampler.noise.eta, 1)
        for field, known in WORDS.items():
            value = getattr(sampler.noise, field)
            ranges[f"the count of {name}.noise.{field} {value!r:.40} in {', '.join(known)}"] = (
                1,
                known.count(value),
                1,
            )
        last = sampler.train_timesteps
        if sampler.noise.timesteps:
            ranges[f"the length of {name}.noise.timesteps"] = (
                sampler.steps,
                len(sampler.noise.timesteps),
                sampler.steps,
            )
        for i, timestep in enumerate(sampler.noise.timesteps):
            ranges[f"{name}.noise.timesteps[{i}]"] = (0, timestep, last - 1)
            last = timestep
    return ranges


def _check_stages(video: Video, sampler: Sampler, latents: Latents, where: str) -> None:
    """Refuse unknown words, and a bundle of one stage whose sampler or latents are not that stage's."""
    motion = video.motion
    for name, value, known in (
        ("video.given", video.given, GIVEN),
        ("sampler.grid", sampler.grid, GRIDS),
        ("video.motion.sampler.grid", motion.sampler.grid, GRIDS),
    ):
        if value not in known:
            raise BundleError(
                f"{where} has {name} = {value[:40]!r}, which must be one of {', '.join(map(repr, known))}.",
                "Export the bundle again.",
            )
    own = Latents(motion.channels, motion.factor, motion.patch, 1.0, 0.0)
    if video.detail is None and (video.scale, motion.sampler, own) != (1, sampler, latents):
        raise BundleError(
            f"{where} has a video of one stage whose scale, sampler or latents are not those of video.motion.",
            "Export the bundle again.",
        )


def _video_ranges(video: Video, latents: Latents) -> dict[str, tuple[float, float, float]]:
    motion, detail = video.motion, video.detail
    ranges: dict[str, tuple[float, float, float]] = {
        "video.frames": (COMPRESSION + 1, video.frames, MAX_FRAMES),
        "video.frames modulo 4": (1, video.frames % COMPRESSION, 1),
        "video.fps": (MIN_FPS, video.fps, MAX_FPS),
        "video.scale": (1, video.scale, 64),
        "video.motion.channels": (1, motion.channels, 4096),
        "video.motion.factor": (1, motion.factor, 256),
        "video.motion.patch": (1, motion.patch, 256),
        "video.motion.boundary": (0, motion.boundary, 1),
        "video.motion.sampler.shift": (_TINY, motion.sampler.shift, 1e6),
        "video.motion.sampler.train_timesteps": (1, motion.sampler.train_timesteps, 10**6),
        "video.motion.sampler.steps": (1, motion.sampler.steps, MAX_STEPS),
        "video.motion.sampler.guidance": (0, motion.sampler.guidance, 1e6),
    }
    normal = [("video.motion", motion.mean, motion.std, motion.channels)]
    if detail is not None:
        normal.append(("video", detail.mean, detail.std, latents.channels))
        ranges |= {
            "video.targets": (1, detail.targets, MAX_FRAMES),
            "video.before": (0, detail.before, MAX_FRAMES),
            "video.after": (0, detail.after, MAX_FRAMES),
        }
    for name, mean, std, channels in normal:
        ranges[f"the length of {name}.mean"] = (channels, len(mean), channels)
        ranges[f"the length of {name}.std"] = (channels, len(std), channels)
        ranges |= {f"{name}.mean[{i}]": (-1e6, value, 1e6) for i, value in enumerate(mean)}
        ranges |= {f"{name}.std[{i}]": (_TINY, value, 1e6) for i, value in enumerate(std)}
    return ranges
