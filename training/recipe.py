"""Run a recipe: a TOML file. An unknown key is an error."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from ..errors import OutputError, TrainingError
from ..runtime.storage.files import check_writable
from .loop.cached import Progress, silent
from .loop.device import plain_attention, training_device
from .loop.optimiser import OPTIMISERS
from .loop.recipe_file import fill, read_recipe
from .loop.run import LoopSpec, Reporter, Run, run
from .loop.single import SingleRun


def train(path: Path, out: Path, report: Reporter, progress: Progress = silent) -> None:
    """Run the recipe at `path` into the directory `out`. Resume if `out` has a state.

    A recipe has the table [loop] and the table of one task. `progress` reports the work before training.
    """
    recipe = read_recipe(path)
    task, loop = _checked(path, recipe)
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out / "losses.jsonl")
    except OSError as error:
        raise OutputError(f"{out} cannot be created: {error.strerror}. Name another directory with --out.") from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # they would disturb Segue's
    try:
        training = _built(task, recipe, loop, progress)
    except BaseException:
        with contextlib.suppress(OSError):  # keeps a directory that is not empty
            out.rmdir()
        raise
    with plain_attention(training_device()):
        run(training, loop, recipe, out, report)


def _built(task: str, recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    try:
        return RUNS[task](recipe, loop, progress)
    except (OSError, ValueError, TypeError) as error:
        # An earlier recipe's result is missing, or a size does not fit the network.
        raise TrainingError(
            f"[{task}] cannot be built: {error}. First run the recipes that it starts from, or correct the recipe."
        ) from error


def plan(path: Path, world: int) -> list[tuple[str, str]]:
    """Return the needs of a recipe on each of `world` processes, as rows of a table.

    Only a distillation, [cdm], has a plan of memory and time.
    """
    from .cdm.plan import described, make_plan
    from .cdm.run import checked_spec

    recipe = read_recipe(path)
    task, loop = _checked(path, recipe)
    if task != "cdm":
        return [
            ("task", task),
            ("steps", f"{loop.steps}"),
            ("samples", f"{loop.steps * loop.batch}, {loop.batch} a step"),
            ("memory and time", "not planned: only a distillation, [cdm], has a plan"),
        ]
    return described(make_plan(checked_spec(recipe, world), loop, world), world)


def _checked(path: Path, recipe: dict[str, Any]) -> tuple[str, LoopSpec]:
    """Return the task and the loop of a recipe; raises TrainingError if it has not exactly one of each."""
    tasks = sorted(recipe.keys() - {"loop"})
    if "loop" not in recipe or len(tasks) != 1 or tasks[0] not in RUNS:
        raise TrainingError(
            f"{path} needs [loop] and exactly one of {', '.join(RUNS)}; it has {sorted(recipe)}. Correct it."
        )
    loop = fill(LoopSpec, recipe["loop"], "loop")
    _check_loop(loop)
    return tasks[0], loop


def _check_loop(loop: LoopSpec) -> None:
    for name in ("steps", "batch", "learning_rate", "log_every", "save_every", "grid_every"):
        if not getattr(loop, name) > 0:
            raise TrainingError(f"[loop] {name} = {getattr(loop, name)} must be above 0. Correct the recipe.")
    for name in ("beta2", "ema"):
        if not 0 <= getattr(loop, name) < 1:
            raise TrainingError(f"[loop] {name} = {getattr(loop, name)} must be in [0, 1). Correct the recipe.")
    if loop.optimiser not in OPTIMISERS:
        raise TrainingError(
            f"[loop] optimiser = {loop.optimiser!r} must be one of {', '.join(OPTIMISERS)}. Correct the recipe."
        )


def _autoencoder(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .pictures.autoencoder import Autoencoder, AutoencoderSpec

    return SingleRun(Autoencoder(fill(AutoencoderSpec, recipe["autoencoder"], "autoencoder"), loop.seed), loop)


def _text_encoders(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .pictures.text_encoders import TextEncoders, TextEncodersSpec

    spec = fill(TextEncodersSpec, recipe["text_encoders"], "text_encoders")
    return SingleRun(TextEncoders(spec, loop.seed, progress), loop)


def _teacher(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .pictures.spec import TeacherSpec
    from .pictures.teacher import Teacher

    return SingleRun(Teacher(fill(TeacherSpec, recipe["teacher"], "teacher"), loop.seed, progress), loop)


def _cdm(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .cdm.run import distillation

    return distillation(recipe, loop)


def _codec(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .video.codec import Codec, CodecSpec

    return SingleRun(Codec(fill(CodecSpec, recipe["codec"], "codec"), loop.seed), loop)


def _video_text(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .video.text import VideoText, VideoTextSpec

    return SingleRun(VideoText(fill(VideoTextSpec, recipe["video_text"], "video_text"), loop.seed, progress), loop)


def _motion(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .video.motion import Motion
    from .video.spec import MotionSpec

    return SingleRun(Motion(fill(MotionSpec, recipe["motion"], "motion"), loop.seed, progress), loop)


def _detail(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .video.detail import Detail
    from .video.spec import DetailSpec

    return SingleRun(Detail(fill(DetailSpec, recipe["detail"], "detail"), loop.seed, progress), loop)


RUNS = {
    "autoencoder": _autoencoder,
    "text_encoders": _text_encoders,
    "teacher": _teacher,
    "cdm": _cdm,
    "codec": _codec,
    "video_text": _video_text,
    "motion": _motion,
    "detail": _detail,
}
