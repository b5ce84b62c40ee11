"""The commands that draw pictures: render, demo."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError
from ..runtime.bundle.limits import MAX_COUNT, NOISES
from .console import JSON, Output
from .options import (
    BUNDLE,
    PICTURES,
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
from .terminal.input_pictures import input_pictures
from .terminal.option_types import Bytes, Scaled, Sigmas, Size

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate

# What the demo draws: a prompt and its seed
DEMO = (
    ("a red heart", 0),
    ("rocket", 4),
    ("dog face", 2),
    ("frog", 4),
    ("cherries", 6),
    ("sunflower", 5),
)
MOVING, CLIP_SEED, CLIP_FRAMES = 2, 1, 17  # the picture (index in DEMO) that is animated, and its clip
NEXT = (
    ("segue list", "the models that are here, and what they draw"),
    ('segue render emoji "birthday cake"', "a picture of your own"),
    ("segue serve", "the same in your browser; first run pip install '.[app]'"),
)


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("prompt", required=False, metavar="PROMPT")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="PNG, JPEG or WebP file, or - for a PNG on standard output (default: a name from prompt and seed).",
)
@SEED
@click.option("--steps", type=int, help="Network calls per picture (default: the bundle's).")
@click.option("--guidance", type=float, help="Classifier-free guidance; 1 or less is off (default: the bundle's).")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option("--negative", default="", help="Text that guidance leads away from.")
@click.option("--count", type=click.IntRange(1, MAX_COUNT), default=1, show_default=True, help="Number of pictures.")
@input_pictures
@click.option("--sigmas", type=Sigmas(), help="Noise levels before the shift, as 1,0.75,0.5,0.25.")
@click.option(
    "--noise",
    type=click.Choice(NOISES),
    default=NOISES[0],
    show_default=True,
    help="torch: the noise of torch's CPU generator, to compare with diffusers.",
)
@click.option(
    "--lora", "loras", type=Scaled(), multiple=True,
    help="Play a LoRA file, as FILE=0.8. The bundle needs segue export --lora-rank. Repeatable.",
)  # fmt: skip
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="Most memory to use, as 512MiB. segue plan shows the need.")
@TARGET
@TRUST
@signing
@YES
@VERBOSE
@JSON
def render(
    bundle: str,
    prompt: str | None,
    output: Path | None,
    seed: int | None,
    count: int,
    loras: tuple[tuple[Path, float, str], ...],
    threads: int | None,
    target: str,
    trust_engines: bool,
    budget: int | None,
    metadata: bool,
    certificate: Certificate | None,
    yes: bool,
    verbose: bool,
    as_json: bool,
    inputs: dict[str, Any],
    **wanted: Any,
) -> None:
    """Render PROMPT with BUNDLE (a directory, or the name of a shipped bundle) into a picture file.

    Without --seed the seed is random. Segue prints it, and the file's metadata hold it.

    \b
    Examples:
      segue render emoji "a red heart" --seed 7
      segue render emoji "rocket, noto" --count 3 -o rocket.png
      segue render emoji "red apple" --image heart.png --strength 0.6
      segue render emoji "pizza" --certificate chain.pem --key key.pem
    """
    from ..runtime.bundle.prompts import spell_emoji
    from ..runtime.media.names import given_names, new_names
    from ..runtime.media.provenance import write_picture
    from ..runtime.request import Request
    from ..runtime.sampling.noise import random_seed

    if prompt is None:
        raise argument_missing("render", bundle, "PROMPT", PICTURES, '"a red heart"')
    show = Output(as_json, verbose)
    piped = output is not None and str(output) == "-"
    if piped:
        _check_pipe(count, as_json)
    given = [Path("-")] if piped else None if output is None else given_names(output, count)
    chosen = random_seed() if seed is None else seed
    started = time.perf_counter()
    work = show.work("picture" if count == 1 else "pictures", count)
    with opened(show, bundle, threads, target, trust_engines, budget, work.call) as model:
        for path, factor, component in loras:
            model.lora(path, factor, component, add=True)
        request = Request(prompt, seed=chosen, count=count, **inputs, **wanted)
        confirmed(show, model, request, yes)
        work.plan(plan_of(model, request))

        def report(done: int, total: int, _: Any) -> None:
            work.reach(done, total)
            if as_json or verbose:
                memory = memory_of(model)
                work.say("", **memory)
                show.event("progress", task="rendering", done=done, total=total, share=work.done, **memory)

        words = spell_emoji(prompt, model.prompts)
        names = nullcontext(given) if given else new_names(words, chosen, count)
        with names as paths, work, stopped_with(""), show.stoppable() as stop:
            pictures = model.pictures(request, on_step=report, cancel=stop)
            for number, (path, picture) in enumerate(zip(paths, pictures, strict=True), 1):
                told = picture.metadata if metadata else None
                if piped:
                    _write_out(picture.image, told, certificate, picture.metadata)
                else:
                    write_picture(path, picture.image, told, certificate, described=picture.metadata)
                    show.line(str(path))
                work.count(number, count)
                show.event("image", path=str(path), **picture.metadata)
    if seed is None and not as_json:
        show.note(f"The seed was {chosen}. Draw the same again with --seed {chosen}.")
    show.event("done", seconds=time.perf_counter() - started, seed=chosen)


def _check_pipe(count: int, as_json: bool) -> None:
    if count > 1 or as_json:
        raise UsageError("-o - writes one PNG to standard output, so --count and --json cannot be used. Name a file.")
    if sys.stdout is None or sys.stdout.isatty():
        raise UsageError("standard output is a terminal or closed. Redirect it to a file or a program.")


def _write_out(image: Any, metadata: Any, certificate: Certificate | None, described: Any) -> None:
    from ..errors import OutputError
    from ..runtime.media.formats import MIME, encode_picture
    from ..runtime.media.provenance import signed

    data = encode_picture(image, "png", metadata)
    if certificate is not None:
        data = signed(data, MIME["png"], certificate, metadata, described)
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise OutputError(
            f"standard output was closed: {error.strerror}.", "Keep the program that reads the picture running."
        ) from None


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("segue-demo.png"),
    show_default=True,
    help="PNG file; the video has the same name with .mp4.",
)
@click.option("--seed", type=int, help="Seed of all pictures and of the clip, 0 to 2^64 - 1 (default: chosen ones).")
@JSON
def demo(output: Path, seed: int | None, as_json: bool) -> None:
    """Render six pictures with the shipped emoji bundle and animate one of them, without torch.

    It draws the same each time.

    \b
    Example:
      segue demo
    """
    import numpy as np

    from ..engines.process import peak_resident
    from ..runtime.media.names import with_ending
    from ..runtime.media.png import write_png
    from ..runtime.request import Request
    from ..runtime.storage.files import check_writable
    from ..runtime.units import mebibytes

    show = Output(as_json)
    output = with_ending(output, (".png",))
    check_writable(output)
    started = time.perf_counter()
    prompts = [prompt for prompt, _ in DEMO]
    seeds = [chosen if seed is None else seed for _, chosen in DEMO]
    work = show.work("pictures", len(DEMO))
    images, metadata = list[Any](), dict[str, Any]()
    with opened(show, PICTURES, None, on_call=work.call) as model:
        work.plan(plan_of(model, Request(prompts)))
        with work, stopped_with(""), show.stoppable() as stop:
            for number, (prompt, one) in enumerate(zip(prompts, seeds, strict=True), 1):
                (picture,) = model.pictures(Request(prompt, seed=one), cancel=stop)
                metadata = metadata or picture.metadata
                images.append(picture.image)
                work.count(number, len(DEMO))
    rows = [np.concatenate(images[i : i + 3], axis=1) for i in (0, 3)]
    sheet = {"prompt": ", ".join(prompts), "prompts": prompts, "seeds": seeds, "layout": {"rows": 2, "columns": 3}}
    write_png(output, np.concatenate(rows), {**metadata, **sheet})
    seconds = time.perf_counter() - started
    show.line(f"{output}: {', '.join(prompts)} in {seconds:.1f} s")
    show.event("image", path=str(output), seconds=seconds, prompts=prompts, seeds=seeds)
    _animate(show, images[MOVING], prompts[MOVING], CLIP_SEED if seed is None else seed, output.with_suffix(".mp4"))
    seconds, peak = time.perf_counter() - started, peak_resident()
    show.line(f"The demo took {seconds:.1f} s and at most {mebibytes(peak)} MiB of memory. It downloaded nothing.")
    show.line("Try next:")
    widest = max(len(command) for command, _ in NEXT)
    for command, why in NEXT:
        show.line(f"  {command.ljust(widest)}  {why}")
    show.event("done", seconds=seconds, peak=peak)


def _animate(show: Output, image: Any, prompt: str, seed: int, path: Path) -> None:
    from ..runtime.film import film
    from ..runtime.videos.request import AnimationRequest

    started = time.perf_counter()
    work = show.work("frames", CLIP_FRAMES)
    with opened(show, VIDEOS, None, on_call=work.call) as model:
        request = AnimationRequest(image, prompt, frames=CLIP_FRAMES, seed=seed)
        work.plan(plan_of(model, request))
        with work, stopped_with(""), show.stoppable() as stop:
            done = film(model, request, path, on_frames=work.count, cancel=stop)
    seconds = time.perf_counter() - started
    show.line(f"{path}: {prompt}, {done} frames in {seconds:.1f} s")
    show.event("video", path=str(path), frames=done, seconds=seconds, prompt=prompt, seed=seed)


COMMANDS = (render, demo)
