"""The recipe table of a distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ...errors import TrainingError
from .draws import ScheduleSpec
from .names import SD3
from .terms import TermsSpec


@dataclass(frozen=True)
class CdmSpec:
    """How to distil a student. The defaults come from the paper's program."""

    teacher: str  # a checkpoint in diffusers format, or a bundle
    conditions: str  # a directory of text embeddings, see `segue encode`
    family: str = SD3
    size: tuple[int, ...] = (1024, 1024)  # [height, width] in pixels; [frames, height, width] for a video
    tokens: int = 333  # text tokens of a prompt; only a plan uses them
    rank: int = 0  # of LoRA; 0 trains every weight
    alpha: int = 128  # of LoRA
    checkpointing: bool = False  # gradient checkpointing: less memory, a third more time
    compile: bool = False  # torch.compile: faster calls after some minutes of compiling
    shard: bool = False  # FSDP2: split every network over all processes
    micro: int = 0  # samples a process computes at once (0: all of its share); changes memory, not the update
    student_every: int = 2  # R: updates of the fake teacher for one update of the student
    fake_learning_rate: float = 5e-6
    pull: float = 1e-3  # of the fake teacher towards the student, after each of its updates
    decay: float = 0.999  # of the student's average, after its warm-up
    revision: str = "1"  # written into the student's checkpoint
    start: str = ""  # checkpoint of the student's first weights; empty: the teacher
    fake_lead: int = 0  # first iterations train only the fake teacher, because `start` differs from the teacher
    pairs: str = ""  # directory of pairs for roll-outs, see `segue pairs`
    limit: float = 10.0  # above this root mean square of clean estimates the run has diverged
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    terms: TermsSpec = field(default_factory=TermsSpec)

    def __post_init__(self) -> None:
        """Raise TrainingError for impossible values."""
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
                f"[cdm] {name} = {getattr(self, name)!r} is not possible. size is [height, width] or [frames, height, "
                "width], sides in multiples of 16. decay is in [0, 1), pull in [0, 1]. The others are above 0, or 0 to "
                "turn an option off. Correct the recipe."
            )
        if self.rank and self.shard:
            raise TrainingError("[cdm] has rank and shard, but adapters cannot be sharded. Remove one.")
        if self.compile and (self.rank or self.shard):
            raise TrainingError("[cdm] compile needs whole networks, without rank and shard. Remove one.")


def updates(spec: CdmSpec, steps: int) -> int:
    """Return the number of student updates in the first `steps` iterations."""
    return max(steps - spec.fake_lead, 0) // spec.student_every
