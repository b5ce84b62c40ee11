"""How a checkpoint wants to be drawn: the sampler, steps, guidance and levels that a bundle takes as its defaults.

The first of these that says something decides: the options of the export, segue.json, the file of CDM's authors, the
name of a published student, the class of the scheduler, and the family.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import CheckpointError
from ...runtime.bundle.families import Family
from .headers import reading
from .read import STUDENT, Checkpoint, Settings, read_json

HINTS = re.compile(
    r"turbo|lightning|distill|few-?step|[1-8][- _]?steps?\b|lcm|dmd2?\b|hyper-?sd|schnell|consistency", re.I
)
CARD = "README.md"
CARD_BYTES = 2**16  # of a model card that are searched for a hint


@dataclass(frozen=True)
class Asked:
    """What the caller of an export says about drawing; None, an empty string and an empty tuple say nothing."""

    sampler: str = ""
    steps: int | None = None
    guidance: float | None = None
    sigmas: tuple[float, ...] = ()


AS_STATED = Asked()


@dataclass(frozen=True)
class Student:
    """A published student: the pattern of its name, and what its card says. {n} in the pattern is the steps."""

    pattern: str
    settings: dict[str, Any] = field(default_factory=dict)


# From the model cards of ByteDance/SDXL-Lightning, tianweiy/DMD2, ByteDance/Hyper-SD, latent-consistency/lcm-sdxl,
# stabilityai/sdxl-turbo, stabilityai/stable-diffusion-3.5-large-turbo and Tongyi-MAI/Z-Image-Turbo (discussion 158:
# 8 steps since diffusers' pull request 13730, 9 before)
STUDENTS = (
    Student(r"sdxl_lightning_1step", {"sampler": "euler", "spacing": "trailing", "prediction": "sample", "steps": 1}),
    Student(r"sdxl_lightning_(?P<n>[248])step", {"sampler": "euler", "spacing": "trailing"}),
    Student(r"dmd2_sdxl_1step", {"sampler": "lcm", "timesteps": (399,), "steps": 1}),
    Student(r"dmd2_sdxl_4step", {"sampler": "lcm", "timesteps": (999, 749, 499, 249), "steps": 4}),
    Student(r"hyper-sdxl-1step-unet", {"sampler": "lcm", "timesteps": (800,), "steps": 1}),
    Student(r"hyper-sdxl-1step-lora", {"sampler": "tcd", "eta": 1.0, "timesteps": (800,), "steps": 1}),
    Student(r"hyper-sdxl-(?P<n>[248])steps?-lora", {"sampler": "ddim", "spacing": "trailing"}),
    Student(r"lcm[-_](lora|sdxl|dreamshaper)", {"sampler": "lcm", "steps": 4, "guidance": 1.0}),
    # Its single file, sd_xl_turbo_1.0, may have a base with the scheduler of plain SDXL
    Student(r"sd_?xl[-_]turbo", {"sampler": "euler-ancestral", "spacing": "trailing", "steps": 1}),
    Student(r"z[-_]?image[-_]turbo", {"steps": 8}),
    Student(r"(^|/)z[-_]?image$", {"steps": 50, "guidance": 6.0}),  # a teacher: the defaults of diffusers' pipeline
    Student(r"turbo", {"steps": 4}),
)
OF_A_SCHEDULER = {"LCMScheduler": {"steps": 4, "guidance": 1.0}, "TCDScheduler": {"steps": 4, "guidance": 0.0}}
BASE = {"steps": 50, "guidance": 4.0}  # of FLUX.2-klein before it is distilled (the defaults of its pipeline)
EMBEDDED = 8.0  # guidance of a network that takes it as an input (the card of lcm-sdxl)


@dataclass(frozen=True)
class Found:
    """The settings with steps and guidance, one line that says where they come from, and a hint that they are wrong."""

    settings: Settings
    reason: str
    hint: str = ""


def find_defaults(
    found: Checkpoint, family: Family, names: Sequence[str], scheduler: str | None, asked: dict[str, Any]
) -> Found:
    """Return the settings of a checkpoint with all defaults.

    `names` are the names of its directory, its source and the files merged into it. `scheduler` is the class of its
    scheduler. `asked` holds the caller's own sampler, steps, guidance and sigmas. Raises CheckpointError for a file of
    CDM's authors that cannot be read.
    """
    name, student = _student(names)
    embedded = any(part.config.get("time_cond_proj_dim") for part in found.parts.values())
    sources = [
        (asked, "as asked"),
        ({key: getattr(found.settings, key) for key in FIELDS}, "from segue.json"),
        (_meta(found), f"from {STUDENT}"),
        ({"guidance": EMBEDDED, "steps": 4} if embedded else {}, "because the network takes guidance as an input"),
        (student, f"as the card of {name!r} says"),
        (OF_A_SCHEDULER.get(scheduler or "", {}), f"because the scheduler is {scheduler}"),
        (BASE if found.index.get("is_distilled") is False else {}, "because the model is not distilled"),
        ({"steps": family.steps, "guidance": family.guidance}, f"the defaults of {family.name}"),
    ]
    result: dict[str, Any] = {}
    why: dict[str, str] = {}
    for values, reason in sources:
        new = {key: value for key, value in values.items() if value not in (None, (), "") and key not in result}
        for levels in [key for key in ("sigmas", "timesteps") if key in new]:
            count = len(new[levels])
            if "steps" in result:
                if result["steps"] != count:
                    del new[levels]  # those of another number of steps
            elif new.setdefault("steps", count) != count:
                raise CheckpointError(
                    f"{count} {levels} and {new['steps']} steps are given {reason}. Give one of the two."
                )
        result |= new
        why |= dict.fromkeys(new, reason)
    hint = _hint(found, names) if why["steps"] == sources[-1][1] else ""
    settings = dataclasses.replace(found.settings, **result)
    return Found(settings, f"{_described(settings)}: {why['steps']}", hint)


FIELDS = ("steps", "guidance", "sigmas", "sampler", "spacing", "prediction", "timesteps", "eta")


def _student(names: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the first name that is of a published student, and its settings; guidance is off unless stated."""
    for name in names:
        for student in STUDENTS:
            match = re.search(student.pattern, name, re.IGNORECASE)
            if match:
                counted = {"steps": int(match["n"])} if "n" in match.groupdict() else {}
                return name, {"guidance": 0.0, **student.settings, **counted}
    return "", {}


def _meta(found: Checkpoint) -> dict[str, Any]:
    """Return what the file of CDM's authors says: levels, as many steps, and guidance 1."""
    if not (found.root / STUDENT).is_file():
        return {}
    table = read_json(found.root / STUDENT, found.root)
    sigmas = table.get("custom_sigmas")
    if sigmas is None:
        return {}
    numbers = isinstance(sigmas, list) and all(isinstance(s, int | float) and not isinstance(s, bool) for s in sigmas)
    levels = [s for s in sigmas if s != 0] if numbers else []  # some files hold the final 0
    if not levels or not all(a > b for a, b in itertools.pairwise([*levels, 0])) or levels[0] > 1:
        raise CheckpointError(
            f"{STUDENT} has custom_sigmas {str(sigmas)[:80]!r}, which must decrease within (0, 1]. "
            "Correct it, or remove that file and give --sigmas."
        )
    return {"sigmas": tuple(map(float, levels)), "steps": len(levels), "guidance": 1.0}


def _hint(found: Checkpoint, names: Sequence[str]) -> str:
    """Return what hints at a few-step student that no file describes, or an empty string."""
    card = found.root / CARD
    texts = [(name, f"the name {name!r}") for name in names]
    if card.is_file():
        with reading(found.root), card.open("rb") as file:
            texts.append((file.read(CARD_BYTES).decode("utf-8", "replace"), CARD))
    for text, where in texts:
        match = HINTS.search(text)
        if match:
            return f"{where} says {match[0]!r}"
    return ""


def _described(settings: Settings) -> str:
    levels = f", sigmas {', '.join(f'{level:g}' for level in settings.sigmas)}" if settings.sigmas else ""
    levels += f", timesteps {', '.join(map(str, settings.timesteps))}" if settings.timesteps else ""
    return f"draws with {settings.steps} step{'s' * (settings.steps != 1)}, guidance {settings.guidance:g}{levels}"
