"""Evaluate a SwiftI2V model beside simpler baselines, on held-out clips and their first frames."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...errors import TrainingError
from ...runtime.bundle.segments import SegmentSpec
from ..loop.device import training_device
from ..metrics.nets import Lite0
from ..metrics.scores import kid
from ..video.clips.dataset import Clips, scaled
from ..video.clips.places import places
from .measures import Interval, interval, lpips
from .upscale import FACTORS, AnimeVideo
from .video import by_frame, dynamic_degree, flicker, loop_gap, seams, warp_error
from .video_model import Noise, VideoModel, settings_of

Progress = Callable[[str, int, int], None]
TRUTH, TRUE, MADE = "the clip itself", "motion of the clip", "motion of Stage I"
FROZEN, BICUBIC, ANIME = "frozen first frame", "bicubic", "realesr-animevideov3"
HELD_OUT = ("held-out name", "held-out combination")
SHOWN = 12  # sample clips


@dataclass(frozen=True)
class VideoEvalSpec:
    """The amount of drawing."""

    clips: int = 96
    seeds: int = 1
    batch: int = 8


@dataclass(frozen=True)
class VideoEvaluation:
    """The figures by candidate and measure. `most` covers the half of the clips with the most motion."""

    figures: dict[str, dict[str, Interval]]
    most: dict[str, dict[str, Interval]]
    clips: list[str]
    device: str
    sheets: dict[str, Tensor]  # (clips, 3, F, H, W) of the first clips, by candidate


def evaluate(models: dict[str, Path], data: Path, spec: VideoEvalSpec, progress: Progress) -> VideoEvaluation:
    """Evaluate checkpoints or bundles, by name, on held-out clips of `data`.

    All models get the same clips and frames. The baselines use the first model's motion. `progress` takes the current
    work, and the numbers of finished and of all batches.
    """
    device = training_device()
    for path in models.values():  # what is missing is told before the models load
        settings_of(path)
    clips, net = Clips(data, HELD_OUT), Lite0().to(device)
    loaded = {name: VideoModel(path, device) for name, path in models.items()}
    first = next(iter(loaded.values()))
    frames = first.settings.frames
    scale = first.settings.scale
    differing = [n for n, m in loaded.items() if (m.settings.frames, m.settings.scale) != (frames, scale)]
    if differing:
        raise TrainingError(
            f"{differing[0]} does not draw {frames} frames at scale {scale} like the first model. Compare models with "
            "the same frames and scale."
        )
    where = places(clips, 1)
    chosen = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[: spec.clips]
    anime = AnimeVideo(scale) if scale in FACTORS else None
    records: list[Record] = []
    sheets: dict[str, list[Tensor]] = {}
    batches = list(chosen.split(spec.batch))
    for seed, (number, batch) in itertools.product(range(spec.seeds), enumerate(batches)):
        progress(f"seed {seed}", seed * len(batches) + number, spec.seeds * len(batches))
        truth = where.videos(clips, batch, frames)
        captions = where.names(clips, batch)
        for way, made in drawn(loaded, anime, truth, captions, Noise(seed, batch.tolist())):
            segments = loaded.get(way.split(",")[0], first).settings.segments
            videos, real = made.transpose(1, 2), truth.transpose(1, 2)
            distances = lpips(videos[:, 1:].flatten(0, 1), real[:, 1:].flatten(0, 1)).unflatten(0, (len(batch), -1))
            for clip, video, true, far in zip(batch.tolist(), videos, real, distances.tolist(), strict=True):
                scores = measured(video, true, far, segments, way.endswith(TRUE))
                records.append(Record(way, seed, clip, scores, net.features(video[4::8])))
            if not seed and number * spec.batch < SHOWN:
                sheets.setdefault(way, []).append(made)
    progress("done", spec.seeds * len(batches), spec.seeds * len(batches))
    moving = {r.clip: r.scores["dynamic degree"] for r in records if r.way == TRUTH}
    lively = sorted(moving, key=moving.__getitem__)[len(moving) // 2 :]
    return VideoEvaluation(
        summary(records),
        summary([record for record in records if record.clip in lively]),
        where.names(clips, chosen),
        str(device),
        {way: torch.cat(parts)[:SHOWN] for way, parts in sheets.items()},
    )


@dataclass(frozen=True)
class Record:
    """The measures of one video."""

    way: str
    seed: int
    clip: int
    scores: dict[str, float]
    features: Tensor  # (frames, 1280) of Lite0, of every eighth frame


def drawn(
    models: dict[str, VideoModel], anime: AnimeVideo | None, truth: Tensor, captions: list[str], noise: Noise
) -> Iterator[tuple[str, Tensor]]:
    """Yield the name and the clips (B, 3, F, H, W) of every candidate, drawn from the first frames."""
    yield TRUTH, truth
    image = truth[:, :, 0]
    yield FROZEN, image[:, :, None].expand_as(truth)
    first = next(iter(models.values()))
    scale = first.settings.scale
    true_low = scaled(truth, scale)
    for source in (TRUE, MADE):
        for number, (name, model) in enumerate(models.items()):
            if source == TRUE:
                low = true_low.to(model.device)
            else:
                low = model.low(scaled(image[:, :, None], scale)[:, :, 0].to(model.device), captions, noise)
            if not number:
                frames = low.cpu().transpose(1, 2)
                flat = frames.flatten(0, 1)
                up = F.interpolate(flat, scale_factor=scale, mode="bicubic").clamp(-1, 1)
                yield f"{BICUBIC}, {source}", up.unflatten(0, frames.shape[:2]).transpose(1, 2)
                if anime:
                    yield f"{ANIME}, {source}", anime(flat).unflatten(0, frames.shape[:2]).transpose(1, 2)
            yield f"{name}, {source}", model.high(low, image.to(model.device), captions, noise).cpu()


def measured(
    video: Tensor, truth: Tensor, distances: list[float], segments: SegmentSpec, follows: bool
) -> dict[str, float]:
    """Return the measures of a video (F, 3, H, W) beside the true one, without the first frame.

    `distances` are the LPIPS, frame by frame. If the video `follows` the true motion, warping uses the true flow. Some
    measures may be absent: a still video has no loop, a single segment no seam.
    """
    mean, drift = by_frame(distances)
    errors = (video - truth).square().flatten(1).mean(1)
    found = {
        "LPIPS": mean,
        "LPIPS drift a frame x 1e3": 1e3 * drift,
        "PSNR": _psnr(errors[1:].mean().item()),
        "PSNR of the first frame": _psnr(errors[0].item()),
        "dynamic degree": dynamic_degree(video),
        "flicker": flicker(video),
        "warp error": warp_error(video, truth if follows else None, every=4),
    }
    with contextlib.suppress(ZeroDivisionError):
        found["loop gap"] = loop_gap(video)
    with contextlib.suppress(ValueError):
        found["seam ratio"] = seams(video, segments).ratio
    return found


def summary(records: list[Record]) -> dict[str, dict[str, Interval]]:
    """Return the mean of every measure over clips, with its interval over seeds, by candidate."""
    found: dict[str, dict[str, list[float]]] = {}
    for seed in sorted({record.seed for record in records}):
        of_seed = [record for record in records if record.seed == seed]
        ways = {way: [r for r in of_seed if r.way == way] for way in dict.fromkeys(r.way for r in of_seed)}
        real = torch.cat([record.features for record in ways[TRUTH]])
        motion = np.mean([record.scores["dynamic degree"] for record in ways[TRUTH]])
        for way, rows in ways.items():
            measures = dict.fromkeys(name for row in rows for name in row.scores)
            scores = {
                name: float(np.mean([row.scores[name] for row in rows if name in row.scores])) for name in measures
            }
            scores["dynamic degree / the clip's"] = scores["dynamic degree"] / float(motion)
            scores["KID of frames x 1e3"] = kid(real, torch.cat([row.features for row in rows]))[0]
            for name, value in scores.items():
                found.setdefault(way, {}).setdefault(name, []).append(value)
    return {way: {name: interval(values) for name, values in of.items()} for way, of in found.items()}


def _psnr(mean_square: float) -> float:
    return 10 * float(np.log10(4 / max(mean_square, 4e-10)))  # at most 100
