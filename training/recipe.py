"""Recipes: TOML files whose every key is known. A misspelt key is an error, not a silent default."""

from __future__ import annotations

import contextlib
import dataclasses
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from ..errors import OutputError, TrainingError
from ..runtime.files import check_writable
from .device import plain_attention, training_device
from .latents import Progress, silent
from .loop import LoopSpec, Reporter, Run, run
from .optimiser import OPTIMISERS
from .single import SingleRun

T = TypeVar("T")


def find_recipe(name: str) -> Path:
    """Return the path of a recipe: a file, or the name of one that ships with Segue ("emoji-teacher.toml")."""
    shipped = Path(str(resources.files(f"{__package__}.recipes")))
    for path in (Path(name), shipped / name, shipped / f"{name}.toml"):
        if path.is_file():
            return path
    known = ", ".join(sorted(p.name for p in shipped.glob("*.toml")))
    raise TrainingError(f"there is no recipe {name!r}. Shipped recipes: {known}. Name one of them, or a file.")


def read_recipe(path: Path) -> dict[str, Any]:
    """Return the recipe's tables; raises TrainingError when the file is not valid TOML."""
    try:
        recipe = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path} is not valid TOML: {error}. Mend that line, then run it again.") from None
    bare = sorted(name for name, table in recipe.items() if not isinstance(table, dict))
    if bare:
        raise TrainingError(f"{path} has {bare[0]!r} outside a table. Put it below [loop] or below its task.")
    return recipe


def fill(spec: type[T], table: dict[str, Any], where: str) -> T:
    """Make the frozen dataclass `spec` from a table; unknown, missing and ill-typed keys are errors."""
    fields = {f.name: f for f in dataclasses.fields(spec)}  # type: ignore[arg-type]
    unknown = sorted(table.keys() - fields.keys())
    if unknown:
        raise TrainingError(f"[{where}] has no key {unknown[0]!r}. Known keys: {', '.join(fields)}. Mend the recipe.")
    required = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    missing = sorted(required - table.keys())
    if missing:
        raise TrainingError(f"[{where}] needs the key {missing[0]!r}. Add it to the recipe.")
    values = {}
    for name, value in table.items():
        kind: Any = {"int": int, "float": (int, float), "str": str, "bool": bool}.get(str(fields[name].type), list)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise TrainingError(f"[{where}] {name} = {value!r} should be of type {fields[name].type}. Mend the recipe.")
        values[name] = tuple(value) if isinstance(value, list) else value
    return spec(**values)


def train(path: Path, out: Path, report: Reporter, progress: Progress = silent) -> None:
    """Run the recipe at `path` into the directory `out`, resuming where a state is there.

    A recipe has the table [loop] and one table that names its task. `progress` takes what is computed before training.
    """
    recipe = read_recipe(path)
    tasks = sorted(recipe.keys() - {"loop"})
    if "loop" not in recipe or len(tasks) != 1 or tasks[0] not in RUNS:
        raise TrainingError(f"{path} needs [loop] and exactly one of {', '.join(RUNS)}; it has {sorted(recipe)}.")
    loop = fill(LoopSpec, recipe["loop"], "loop")
    _check_loop(loop)
    try:
        out.mkdir(parents=True, exist_ok=True)
        check_writable(out / "losses.jsonl")
    except OSError as error:
        raise OutputError(f"{out} cannot be made: {error.strerror}. Name another place with --out.") from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # it would write into ours
    try:
        training = _built(tasks[0], recipe, loop, progress)
    except BaseException:
        with contextlib.suppress(OSError):  # a directory with something in it stays
            out.rmdir()
        raise
    with plain_attention(training_device()):
        run(training, loop, recipe, out, report)


def _built(task: str, recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    try:
        return RUNS[task](recipe, loop, progress)
    except (OSError, ValueError, TypeError) as error:
        # What an earlier recipe should have written is missing, or a size does not fit the network.
        raise TrainingError(
            f"[{task}] cannot be built: {error}. Run the recipes that it starts from first, or mend the recipe."
        ) from error


def plan(path: Path, world: int) -> list[tuple[str, str]]:
    """Return what the distillation of the recipe at `path` needs on each of `world` processes, as rows of a table."""
    from .cdm.plan import described, make_plan
    from .cdm.run import checked_spec

    recipe = read_recipe(path)
    if sorted(recipe) != ["cdm", "loop"]:
        raise TrainingError(f"{path} is no distillation: only those are planned. Run it without --dry-run.")
    loop = fill(LoopSpec, recipe["loop"], "loop")
    _check_loop(loop)
    return described(make_plan(checked_spec(recipe, world), loop, world), world)


def _check_loop(loop: LoopSpec) -> None:
    for name in ("steps", "batch", "learning_rate", "log_every", "save_every", "grid_every"):
        if not getattr(loop, name) > 0:
            raise TrainingError(f"[loop] {name} = {getattr(loop, name)} must be above 0. Mend the recipe.")
    for name in ("beta2", "ema"):
        if not 0 <= getattr(loop, name) < 1:
            raise TrainingError(f"[loop] {name} = {getattr(loop, name)} must be in [0, 1). Mend the recipe.")
    if loop.optimiser not in OPTIMISERS:
        raise TrainingError(
            f"[loop] optimiser = {loop.optimiser!r} is none of {', '.join(OPTIMISERS)}. Mend the recipe."
        )


def _autoencoder(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .autoencoder import Autoencoder, AutoencoderSpec

    return SingleRun(Autoencoder(fill(AutoencoderSpec, recipe["autoencoder"], "autoencoder"), loop.seed), loop)


def _text_encoders(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .text_encoders import TextEncoders, TextEncodersSpec

    spec = fill(TextEncodersSpec, recipe["text_encoders"], "text_encoders")
    return SingleRun(TextEncoders(spec, loop.seed, progress), loop)


def _teacher(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .teacher import Teacher, TeacherSpec

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
    from .video.motion import Motion, MotionSpec

    return SingleRun(Motion(fill(MotionSpec, recipe["motion"], "motion"), loop.seed, progress), loop)


def _detail(recipe: dict[str, Any], loop: LoopSpec, progress: Progress) -> Run:
    from .video.detail import Detail, DetailSpec

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
