"""The command that makes videos: animate."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import SegueError, UsageError
from .console import JSON, Output
from .options import (
    BUNDLE,
    SEED,
    TARGET,
    TRUST,
    VERBOSE,
    VIDEOS,
    YES,
    argument_missing,
    confirmed,
    memory_of,
    opened,
    plan_of,
    signing,
    stopped_with,
)  # fmt: skip
from .terminal.option_types import Bytes, Scaled, Size

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate
    from ..runtime.pipeline import Model
    from ..runtime.videos.request import PreparedAnimation
    from ..runtime.videos.stage_one import Event
    from .terminal.progress import Work


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("picture", type=click.Path(path_type=Path), required=False, metavar="PICTURE")
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(path_type=Path),
    help="MP4 or WebP file, a directory for PNG files, or - to write raw RGB frames to standard output.",
)
@click.option("--prompt", default="", help="Text that describes the motion.")
@click.option("--negative", default="", help="Text that guidance leads away from.")
@click.option("--frames", type=int, help="Video frames, rounded up to 4k + 1 (default: the bundle's).")
@click.option("--fps", type=float, help="Frames per second (default: the bundle's).")
@SEED
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option("--last", type=click.Path(path_type=Path), help="Picture that the video ends with, if BUNDLE takes one.")
@click.option(
    "--tile", type=int, help="Side of a tile of the frames' autoencoder, in latent pixels (default: no tiles)."
)
@click.option("--overlap", type=int, help="Overlap of tiles, in latent pixels (default: a quarter of --tile).")
@click.option("--anew", is_flag=True, help="Start again, even if an earlier run has finished or unfinished work here.")
@click.option("--resume", is_flag=True, hidden=True, help="Has no effect: the command resumes by itself.")
@click.option(
    "--lora", "loras", type=Scaled(), multiple=True,
    help="Play a LoRA file, as FILE=0.8 or transformer_2:FILE. The bundle needs segue export --lora-rank. Repeatable.",
)  # fmt: skip
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="Most memory to use, as 512MiB. segue plan shows the need.")
@TARGET
@TRUST
@signing
@YES
@VERBOSE
@JSON
def animate(
    bundle: str,
    picture: Path | None,
    output: Path,
    seed: int | None,
    last: Path | None,
    tile: int | None,
    overlap: int | None,
    anew: bool,
    resume: bool,
    loras: tuple[tuple[Path, float, str], ...],
    threads: int | None,
    budget: int | None,
    target: str,
    trust_engines: bool,
    metadata: bool,
    certificate: Certificate | None,
    yes: bool,
    verbose: bool,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Animate PICTURE with BUNDLE (a directory, or the name of a shipped bundle).

    The shipped emoji-motion animates pictures of emoji, not photographs. Some bundles also draw without PICTURE. The
    file grows piece by piece. Finished pieces stay in .OUTPUT.journal beside it until the end. After a stop, the same
    command continues and makes the same video.

    \b
    Examples:
      segue animate emoji-motion picture.png -o out.mp4 --prompt "waving hand"
      segue animate ./my-videos picture.png -o out.mp4 --frames 129
      segue animate ./wan-i2v-a14b first.png --last last.png -o out.mp4
      segue animate ./wan-ti2v-5b -o out.mp4 --prompt "a dog runs"
    """
    from ..runtime.bundle.limits import MAX_FRAMES
    from ..runtime.bundle.segments import latent_frames, video_frames
    from ..runtime.film import film, remember, seed_of_finished
    from ..runtime.media.read_image import read_image
    from ..runtime.media.sinks import find_sink
    from ..runtime.sampling.noise import random_seed
    from ..runtime.sampling.tiles import Tiling
    from ..runtime.storage.files import check_parent
    from ..runtime.storage.journal import finished
    from ..runtime.videos.request import AnimationRequest

    if picture is None and not _draws_from_text(bundle):
        raise argument_missing("animate", bundle, "PICTURE", VIDEOS, "picture.png -o out.mp4")
    show = Output(as_json, verbose)
    piped = str(output) == "-"
    if piped and as_json:
        raise UsageError("-o - writes frames to standard output, so --json cannot be used. Name a file.")
    sink = find_sink(output)
    if certificate is not None and output.suffix.lower() != ".mp4":
        raise UsageError(f"{output} cannot be signed: only .mp4 videos can. Name a .mp4 file.")
    if overlap is not None and tile is None:
        raise UsageError("--overlap needs tiles. Give --tile as well.")
    tiling = None if tile is None else Tiling(tile, tile // 4 if overlap is None else overlap)
    first, end = (None if path is None else read_image(path) for path in (picture, last))
    request = AnimationRequest(first, tiling=tiling, seed=seed, last=end, **wanted)
    asked = wanted["frames"]
    rounded = video_frames(latent_frames(asked)) if asked is not None and 0 < asked <= MAX_FRAMES else asked
    if rounded != asked:
        show.warning(f"the number of frames must be 4k + 1; {asked} was rounded up to {rounded}.")
    started = time.perf_counter()
    journal = None if piped else output.absolute().with_name(f".{output.name}.journal")
    if not piped:
        check_parent(output)
    work = show.work("frames")
    with opened(show, bundle, threads, target, trust_engines, budget, work.call) as model:
        for path, factor, component in loras:
            model.lora(path, factor, component, add=True)
        ready = model.prepare(request)
        signed, kept = certificate is not None, None
        if journal is not None and not anew:
            made = seed_of_finished(model, ready, output, metadata, signed, seed is None)
            if made is not None:
                _remove(journal)
                show.line(f"{output} is finished already: {ready.frames} frames, seed {made}. --anew makes it again.")
                show.event("video", path=str(output), frames=ready.frames, seconds=0.0, seed=made, finished=True)
                return
            kept = _begun(model, ready, journal, output, seed is None)
        if seed is None:
            ready = dataclasses.replace(ready, seed=random_seed() if kept is None else kept)
        confirmed(show, model, ready, yes)
        pieces = () if kept is None or journal is None else finished(journal)
        if pieces:
            show.note(f"Continuing an earlier run, which has finished {len(pieces)} parts. --anew starts over.")
        _plan(work, model, ready, pieces)

        def report(done: int, total: int) -> None:
            work.count(done, total)
            work.reach(done, total)
            show.event("frames", done=done, total=total, seconds=time.perf_counter() - started)

        def on_event(event: Event) -> None:
            if as_json or verbose:
                memory, stage = memory_of(model), f"window {event.window}: {event.stage}"
                work.say(f"{stage} {event.done}/{event.total}", **memory)
                show.event("progress", task=stage, done=event.done, total=event.total, share=work.done, **memory)

        again = "" if journal is None else "Run the same command again to continue after the last finished segment."
        with (
            work,
            stopped_with(again, lambda: journal is not None and bool(finished(journal))),
            show.stoppable() as stop,
        ):
            done = film(
                model,
                ready,
                output,
                sink=sink,
                metadata=metadata,
                certificate=certificate,
                on_frames=report,
                journal=journal,
                resume=kept is not None,
                on_event=on_event,
                cancel=stop,
            )
        if journal is not None:
            remember(model, ready, output, metadata, signed)
            shutil.rmtree(journal, ignore_errors=True)
            show.line(f"{output}: {done} frames in {time.perf_counter() - started:.1f} s")
    if seed is None and not as_json:
        show.note(f"The seed was {ready.seed}. Make the same again with --seed {ready.seed}.")
    show.event("video", path=str(output), frames=done, seconds=time.perf_counter() - started, seed=ready.seed)


def _draws_from_text(bundle: str) -> bool:
    """Return whether a bundle makes videos without a picture."""
    from ..runtime.bundle.reader import read_manifest
    from ..runtime.videos.request import takes_text_alone

    try:
        return takes_text_alone(read_manifest(bundle))
    except SegueError:
        return False  # it may be the picture


def _begun(model: Model, ready: PreparedAnimation, journal: Path, output: Path, any_seed: bool) -> int | None:
    """Return the seed of the unfinished video that the journal keeps of this request; None if there is none.

    With `any_seed` the request names no seed. Raises UsageError if the journal keeps work of another request.
    """
    from ..runtime.storage.journal import finished, kept_job
    from ..runtime.videos.request import as_begun, job

    try:
        kept = kept_job(journal)
    except UsageError:
        return None
    seed = kept.get("seed")
    if isinstance(seed, int) and any_seed:
        ready = dataclasses.replace(ready, seed=seed)
    if ready.tiling is None:
        ready = as_begun(ready, kept)  # a budget may have chosen them
    wanted = job(ready, model.bundle.digest, model.loras)
    other = [name for name in (*wanted, "last_sha256") if kept.get(name) != wanted.get(name)]
    if not other:
        return ready.seed
    if not finished(journal):
        return None  # nothing is lost
    words = {
        "bundle_sha256": "another bundle", "image_sha256": "another picture", "last_sha256": "another last picture",
    }  # fmt: skip
    named = [words.get(name, f"{name} {repr(kept.get(name))[:80]}, not {repr(wanted[name])[:80]}") for name in other]
    raise UsageError(
        f"an earlier run has begun {output} with {' and with '.join(named)}.",
        "Run its command again to continue it, add --anew to start over, or name another file with -o.",
    )


def _remove(journal: Path) -> None:
    """Remove the journal of a finished video, which a kill at the very end leaves; not one that is in use."""
    from ..runtime.storage.journal import kept_job, open_journal

    with contextlib.suppress(SegueError):
        open_journal(journal, kept_job(journal), resume=True).close()
        shutil.rmtree(journal, ignore_errors=True)


def _plan(work: Work, model: Model, ready: PreparedAnimation, pieces: tuple[str, ...]) -> None:
    """Give the bar the calls of a video; those whose results the journal keeps, as `pieces`, are skipped."""
    from ..runtime.bundle.families import Kind, Stage, role_of

    content, plan = model.bundle.manifest, plan_of(model, ready)
    assert content.video is not None
    work.count(0, ready.frames)
    work.plan(plan)
    windows = len(ready.windows(content.video))
    motions = sum(name.startswith("motion-") for name in pieces)
    segments = len(pieces) - motions
    for phase in plan.phases if plan is not None and pieces else ():
        role = role_of(phase.component)
        if role.stage is Stage.MOTION and role.kind in (Kind.ENCODER, Kind.DENOISER):
            work.skip(phase.component, phase.calls * motions / windows)
        elif role.kind is Kind.DENOISER:
            work.skip(phase.component, content.sampler.steps * segments)


COMMANDS = (animate,)
