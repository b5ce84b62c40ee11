"""Evaluate students beside their teacher, on the same prompts and noise, over several seeds."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import TrainingError
from ...runtime.sampling.noise import philox_normal
from ...runtime.sampling.schedule import Schedule, custom_schedule, default_schedule
from ..loop.device import fast_dtype, training_device
from ..metrics.nets import Lite0
from ..metrics.scores import kid, nearest_lpips
from ..pictures.captions import plain_caption
from ..pictures.dataset import Pictures
from ..pictures.sampling import Pipeline, load_pipeline, shift_of
from ..pictures.text_encoders import picture_features
from .measures import Classifier, Interval, diversity, interval, lpips, saturation

Progress = Callable[[str, int, int], None]
LADDER = range(1, 9)
PROMPTS_OF_DIVERSITY, PICTURES_OF_DIVERSITY = 24, 6


@dataclass(frozen=True)
class EvalSpec:
    """The amount of drawing, and the teacher's settings. `settings_of` gives the last three."""

    prompts: int = 1000
    seeds: int = 3
    ladder_prompts: int = 300
    steps: int = 28
    guidance: float = 4.0
    shift: float = 3.0


@dataclass(frozen=True)
class Subject:
    """One way to draw a picture: network, noise levels, guidance."""

    name: str
    pipeline: Pipeline
    schedule: Schedule
    guidance: float

    @property
    def calls(self) -> int:
        """Return the network's calls for each picture. Guidance doubles them."""
        return self.schedule.steps * (2 if self.guidance > 1 else 1)


@dataclass(frozen=True)
class Evaluation:
    """Figures by subject and measure, ladders by name and number of calls, sample pictures."""

    figures: dict[str, dict[str, Interval]]
    ladders: dict[str, dict[int, dict[str, Interval]]]
    classifier_on_real: float
    prompts: int  # drawn: the requested number, or all
    device: str
    precision: str
    grids: dict[str, Tensor]
    captions: list[str]


@dataclass(frozen=True)
class Student:
    """A distilled network and its raw levels."""

    name: str
    pipeline: Pipeline
    sigmas: tuple[float, ...]


def settings_of(teacher: Path) -> dict[str, Any]:
    """Return the checkpoint's settings of sampling, as keys of EvalSpec. Missing settings are absent."""
    shift = shift_of(teacher)
    said = _table(teacher / "segue.json") | ({} if shift is None else {"shift": shift})
    return {key: said[key] for key in ("steps", "guidance", "shift") if key in said}


def sigmas_of(student: Path) -> tuple[float, ...]:
    """Return the student's raw levels, or the paper's if the checkpoint gives none."""
    return tuple(_table(student / "segue.json").get("sigmas", (1.0, 0.75, 0.5, 0.25)))


def names_of(students: Sequence[Path]) -> dict[str, Path]:
    """Return the students by short names: the run of a checkpoint, else the directory."""
    short = [path.parent.name if path.name == "checkpoint" else path.name for path in students]
    names = short if len(set(short)) == len(short) else [str(path) for path in students]
    return dict(zip(names, students, strict=True))


def _table(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except ValueError as error:
        raise TrainingError(f"{path} is not valid JSON: {error}. Fetch that file again.") from None


def subjects(students: Sequence[Student], teacher: Pipeline, spec: EvalSpec) -> list[Subject]:
    """Return the teacher with its own settings, then its cheaper uses, then the students.

    The teacher's few-step runs use the first student's levels.
    """
    whole = default_schedule(spec.steps, spec.shift, 1000)
    grids = [custom_schedule(student.sigmas, spec.shift, 1000) for student in students]
    return [
        Subject(f"teacher, {spec.steps} steps, guidance {spec.guidance:g}", teacher, whole, spec.guidance),
        Subject(f"teacher, {spec.steps} steps, no guidance", teacher, whole, 1.0),
        Subject(f"teacher, {grids[0].steps} steps, guidance {spec.guidance:g}", teacher, grids[0], spec.guidance),
        *(
            Subject(f"{student.name}, {grid.steps} steps", student.pipeline, grid, 1.0)
            for student, grid in zip(students, grids, strict=True)
        ),
    ]


def even_schedule(steps: int, shift: float) -> Schedule:
    """Return `steps` raw levels 1 - i / steps, shifted. Four steps give the students' grid."""
    return custom_schedule([1 - i / steps for i in range(steps)], shift, 1000)


def evaluate(students: dict[str, Path], teacher: Path, data: Path, spec: EvalSpec, progress: Progress) -> Evaluation:
    """Evaluate checkpoints or bundles, by name, beside `teacher` on training names of `data`.

    `progress` takes the current drawing, and the numbers of finished and of all drawings. Raises TrainingError if a
    checkpoint cannot be read.
    """
    device = training_device()
    pictures, _ = Pictures(data), Lite0()  # first: what is missing is told before the models load
    loaded = [Student(name, load_pipeline(path, device), sigmas_of(path)) for name, path in students.items()]
    bench = Bench(pictures, data, spec, device)
    compared = subjects(loaded, load_pipeline(teacher, device), spec)
    total = len(compared) * (spec.seeds + 1) + 2 * len(loaded) * len(LADDER) * spec.seeds
    done = 0

    def told(what: str) -> None:
        nonlocal done
        progress(what, done, total)
        done += 1

    values: dict[str, dict[str, list[float]]] = {s.name: {} for s in compared}
    grids: dict[str, Tensor] = {}
    for seed in range(spec.seeds):
        reference: tuple[Tensor, dict[str, float]] | None = None
        for subject in compared:
            told(f"{subject.name}, seed {seed}")
            drawings = bench.draw(subject, bench.chosen, seed)
            scores = bench.score(drawings, bench.chosen) | bench.nearness(drawings)
            reference = reference or (drawings, scores)
            scores |= beside(drawings, scores, *reference)
            for name, value in scores.items():
                values[subject.name].setdefault(name, []).append(value)
            grids.setdefault(subject.name, drawings[:24].clamp(-1, 1))
    for subject in compared:
        told(f"{subject.name}, diversity")
        values[subject.name]["diversity"] = bench.diversity(subject)
        values[subject.name]["calls"] = [float(subject.calls)]
    ladders: dict[str, dict[int, dict[str, Interval]]] = {}
    few = bench.chosen[: spec.ladder_prompts]
    grids_of_ladders = {"even levels": even_schedule, "diffusers' default levels": _default}
    for student, (name, grid) in itertools.product(loaded, grids_of_ladders.items()):
        rungs = ladders.setdefault(f"{student.name}, {name}", {})
        for steps in LADDER:
            rung = Subject("", student.pipeline, grid(steps, spec.shift), 1.0)
            drawn: dict[str, list[float]] = {}
            for seed in range(spec.seeds):
                told(f"{student.name}, {steps} steps, {name}, seed {seed}")
                for measure, value in bench.score(bench.draw(rung, few, seed), few).items():
                    drawn.setdefault(measure, []).append(value)
            rungs[steps] = {measure: interval(v) for measure, v in drawn.items()}
    progress("done", total, total)
    return Evaluation(
        {name: {measure: interval(v) for measure, v in found.items()} for name, found in values.items()},
        ladders,
        bench.classifier.accuracy_on_real,
        len(bench.chosen),
        str(device),
        str(fast_dtype(device)).removeprefix("torch."),
        grids,
        [plain_caption(bench.pictures.rows[i]) for i in bench.chosen[:24].tolist()],
    )


def beside(
    pictures: Tensor, scores: dict[str, float], reference: Tensor, of_reference: dict[str, float]
) -> dict[str, float]:
    """Return the measures that pair two subjects' pictures from the same noise, seed by seed."""
    return {
        "LPIPS to the teacher": lpips(pictures, reference).mean().item(),
        "KID / the teacher's": scores["KID x 1e3"] / of_reference["KID x 1e3"],
        "accuracy - the teacher's": scores["accuracy"] - of_reference["accuracy"],
    }


def _default(steps: int, shift: float) -> Schedule:
    return default_schedule(steps, shift, 1000)


class Bench:
    """The prompts, the features of their real pictures, and the measuring networks."""

    def __init__(self, pictures: Pictures, data: Path, spec: EvalSpec, device: torch.device) -> None:
        self.pictures, self.spec, self.device = pictures, spec, device
        generator = torch.Generator().manual_seed(1)
        self.chosen = torch.multinomial(pictures.weights, min(spec.prompts, len(pictures.rows)), generator=generator)
        self.features = picture_features(data, pictures)
        self.net = Lite0().to(device)
        self.keys = [row.key for row in pictures.rows]
        self.groups = [str(row.group) for row in pictures.rows]
        styles = [row.style for row in pictures.rows]
        self.classifier = Classifier(self.features, self.keys, styles)
        self.group_classifier = Classifier(self.features, self.groups, styles)

    def draw(self, subject: Subject, chosen: Tensor, seed: int) -> Tensor:
        """Return unclipped pictures (N, 3, H, W), each from its own noise of `seed`."""
        channels = subject.pipeline.transformer.config.in_channels
        side = subject.pipeline.transformer.config.sample_size
        noise = np.stack([philox_normal((channels, side, side), seed, image) for image in range(len(chosen))])
        captions = [plain_caption(self.pictures.rows[i]) for i in chosen.tolist()]
        latents = subject.pipeline.draw(
            captions, torch.from_numpy(noise).to(self.device), subject.schedule, subject.guidance
        )
        return subject.pipeline.decode(latents).cpu()

    def score(self, pictures: Tensor, chosen: Tensor) -> dict[str, float]:
        """Return the measures of pictures of `chosen` that need no other subject."""
        features = self.net.features(pictures.clamp(-1, 1))
        return {
            "KID x 1e3": kid(self.features[chosen], features)[0],
            "accuracy": self.classifier.accuracy(features, [self.keys[i] for i in chosen.tolist()]),
            "group accuracy": self.group_classifier.accuracy(features, [self.groups[i] for i in chosen.tolist()]),
            "saturation": saturation(pictures),
        }

    def nearness(self, pictures: Tensor, count: int = 100) -> dict[str, float]:
        """Return the median LPIPS of the first `count` pictures to the nearest training picture (memorisation)."""
        few = pictures[:count].clamp(-1, 1)
        distances = nearest_lpips(few, self.net.features(few), self.pictures.on_white, self.features)
        return {"LPIPS to the nearest training picture": distances.median().item()}

    def diversity(self, subject: Subject) -> list[float]:
        """Return the mean LPIPS between pictures of one prompt, for some prompts."""
        few = self.chosen[:PROMPTS_OF_DIVERSITY]
        drawn = [self.draw(subject, few, 1000 + i) for i in range(PICTURES_OF_DIVERSITY)]
        return diversity(torch.stack(drawn, 1))


def table(figures: dict[str, dict[str, Interval]]) -> list[dict[str, Any]]:
    """Return one row of text for each subject."""
    return [{"": name, **{measure: str(value) for measure, value in found.items()}} for name, found in figures.items()]
