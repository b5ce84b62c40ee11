"""The command that makes videos: animate."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from .console import JSON, Output
from .options import BUNDLE, TARGET, TRUST, Bytes, Size, memory_of, opened, signing, stopped_with

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate
    from ..runtime.videos.render import Event


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("picture", type=click.Path(path_type=Path))
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
@click.option("--seed", default=0, show_default=True, help="Seed of the noise, 0 to 2^64 - 1.")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option(
    "--tile", type=int, help="Side of a tile of Stage II's autoencoder, in latent pixels (default: no tiles)."
)
@click.option("--overlap", type=int, help="Overlap of tiles, in latent pixels (default: a quarter of --tile).")
@click.option("--resume", is_flag=True, help="Continue where the same command was stopped.")
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="Most memory to use, as 512MiB. segue plan shows the need.")
@TARGET
@TRUST
@signing
@JSON
def animate(
    bundle: str,
    picture: Path,
    output: Path,
    tile: int | None,
    overlap: int | None,
    resume: bool,
    threads: int | None,
    budget: int | None,
    target: str,
    trust_engines: bool,
    metadata: bool,
    certificate: Certificate | None,
    as_json: bool,
    **wanted: Any,
) -> None:
    """Animate PICTURE with BUNDLE (a directory, or the name of a shipped bundle).

    The file grows segment by segment. Finished segments stay in .OUTPUT.journal beside it until the end. After a stop,
    the same command with --resume continues and makes the same video.

    \b
    Examples:
      segue animate ./my-videos picture.png -o out.mp4 --prompt "waving hand"
      segue animate ./my-videos picture.png -o out.mp4 --frames 129 --resume
    """
    from ..runtime.bundle.limits import MAX_FRAMES
    from ..runtime.bundle.segments import latent_frames, video_frames
    from ..runtime.film import film
    from ..runtime.media.provenance import MIME
    from ..runtime.media.read_image import read_image
    from ..runtime.media.sinks import find_sink
    from ..runtime.sampling.tiles import Tiling
    from ..runtime.storage.files import check_parent
    from ..runtime.storage.journal import finished
    from ..runtime.videos.request import AnimationRequest

    show = Output(as_json)
    piped = str(output) == "-"
    if piped and (resume or as_json):
        raise UsageError("-o - writes frames to standard output, so --resume and --json cannot be used. Name a file.")
    sink = find_sink(output)
    if certificate is not None and output.suffix.lower() not in MIME:
        raise UsageError(f"{output} cannot be signed: only .mp4 videos can. Name a .mp4 file.")
    if overlap is not None and tile is None:
        raise UsageError("--overlap needs tiles. Give --tile as well.")
    tiling = None if tile is None else Tiling(tile, tile // 4 if overlap is None else overlap)
    request = AnimationRequest(read_image(picture), tiling=tiling, **wanted)
    asked = wanted["frames"]
    rounded = video_frames(latent_frames(asked)) if asked is not None and 0 < asked <= MAX_FRAMES else asked
    if rounded != asked:
        show.warning(f"the number of frames must be 4k + 1; {asked} was rounded up to {rounded}.")
    started = time.perf_counter()

    def report(done: int, total: int) -> None:
        show.event("frames", done=done, total=total, seconds=time.perf_counter() - started)

    journal = None if piped else output.absolute().with_name(f".{output.name}.journal")
    if not piped:
        check_parent(output)
    if journal is not None and not resume and (lost := finished(journal)):
        show.warning(f"{lost} finished pieces of an earlier run are deleted. Use --resume to continue from them.")
    if journal is not None and resume and output.exists() and not journal.exists():
        raise UsageError(f"{output} is finished: it has no journal to resume. Leave --resume out to make it again.")
    again = "" if journal is None else "Run the same command with --resume to continue after the last finished segment."
    with (
        stopped_with(again, lambda: journal is not None and finished(journal) > 0),
        opened(show, bundle, threads, target, trust_engines, budget) as model,
        show.stages() as update,
    ):

        def on_event(event: Event) -> None:
            label = f"window {event.window}: {event.stage}"
            update(label, "calls", event.done, event.total, **memory_of(model))

        done = film(
            model,
            request,
            output,
            sink=sink,
            metadata=metadata,
            certificate=certificate,
            on_frames=report,
            journal=journal,
            resume=resume,
            on_event=on_event,
        )
    if journal is not None:
        shutil.rmtree(journal, ignore_errors=True)
        show.line(f"{output}: {done} frames in {time.perf_counter() - started:.1f} s")
    show.event("video", path=str(output), frames=done, seconds=time.perf_counter() - started)


COMMANDS = (animate,)
