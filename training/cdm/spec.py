"""The recipe table of a distillation: which networks, on what, how."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

from ...errors import TrainingError
from .draws import ScheduleSpec
from .terms import TermsSpec


@dataclass(frozen=True)
class CdmSpec:
    """How a student is distilled; the defaults are those of the paper's program."""

    teacher: str  # a checkpoint in diffusers format, or a bundle
    conditions: str  # a directory of text embeddings, see `segue encode`
    family: str = "sd3"
    size: tuple[int, ...] = (1024, 1024)  # height and width in pixels; of a video the frames stand before them
    tokens: int = 333  # text tokens of a prompt; a plan counts on them
    rank: int = 0  # of LoRA; 0 trains every weight
    alpha: int = 128  # of LoRA
    checkpointing: bool = False  # gradient checkpointing: less memory, a third more time
    compile: bool = False  # torch.compile: faster calls after some minutes of compiling
    shard: bool = False  # FSDP2: every network split over all processes
    micro: int = 0  # samples a process takes at once (0: all of its part); changes memory, not the update
    student_every: int = 2  # R: updates of the fake teacher for each of the student
    fake_learning_rate: float = 5e-6
    pull: float = 1e-3  # towards the student, after each update of the fake teacher
    decay: float = 0.999  # of the student's average, after its warm-up
    revision: str = "1"  # of the student that is written
    start: str = ""  # a checkpoint that the student begins as; the teacher, if left out
    fake_lead: int = 0  # iterations in which only the fake teacher learns, to know a student that is not the teacher
    pairs: str = ""  # a directory of noise and the teacher's ends, see `segue pairs`, that roll-outs begin with
    limit: float = 10.0  # root mean square of clean estimates above which the run has diverged
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    terms: TermsSpec = field(default_factory=TermsSpec)

    def __post_init__(self) -> None:
        """Raise TrainingError for values that no distillation can have."""
        whole = all(isinstance(side, int) and side > 0 for side in self.size)
        wrong = {
            "size": len(self.size) not in (2, 3) or not whole or any(side % 16 for side in self.size[-2:]),
            "tokens": self.tokens < 1,
            "rank": self.rank < 0,
            "alpha": self.alpha <= 0,
            "micro": self.micro < 0,
            "student_every": self.student_every < 1,
            "fake_learning_rate": not 0 < self.fake_learning_rate < math.inf,
            "pull": not 0 <= self.pull <= 1,
            "decay": not 0 <= self.decay < 1,
            "fake_lead": self.fake_lead < 0,
            "limit": not 0 < self.limit < math.inf,
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            raise TrainingError(
                f"[cdm] {name} = {getattr(self, name)!r} is not possible. Mend the recipe: size is height and width, "
                "multiples of 16, after the frames of a video; decay lies in [0, 1), pull in [0, 1]; the others are "
                "above 0, or 0 to leave them out."
            )
        if self.rank and self.shard:
            raise TrainingError("[cdm] has rank and shard: adapters are not split over processes. Leave one out.")
        if self.compile and (self.rank or self.shard):
            raise TrainingError("[cdm] compile takes whole networks, without rank and shard. Leave it or those out.")


def updates(spec: CdmSpec, steps: int) -> int:
    """Return how many updates of the student the first `steps` iterations hold."""
    return max(steps - spec.fake_lead, 0) // spec.student_every


def spec_of(table: dict) -> CdmSpec:
    """Return the spec of a recipe's [cdm] table with its subtables; unknown keys are errors."""
    from ..loop.recipe_file import fill

    for name in ("schedule", "terms"):
        if not isinstance(table.get(name, {}), dict):
            raise TrainingError(f"[cdm] {name} = {table[name]!r} should be a table. Write it as [cdm.{name}].")
    flat = {name: value for name, value in table.items() if name not in ("schedule", "terms")}
    spec = fill(CdmSpec, flat, "cdm")
    return dataclasses.replace(
        spec,
        schedule=fill(ScheduleSpec, table.get("schedule", {}), "cdm.schedule"),
        terms=fill(TermsSpec, table.get("terms", {}), "cdm.terms"),
    )
