"""The commands that draw pictures: render, demo."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.bundle.limits import MAX_COUNT, NOISES
from .console import JSON, Output
from .options import BUNDLE, PICTURES, TARGET, TRUST, VIDEOS, Bytes, Sigmas, Size, memory_of, opened, signing

if TYPE_CHECKING:
    from ..runtime.media.provenance import Certificate

DEMO = ("a red heart", "pizza", "rocket", "grinning cat", "woman astronaut medium skin tone", "snowman, noto")
MOVING = 3  # index in DEMO of the picture that is animated


@click.command()
@click.argument("bundle", type=BUNDLE)
@click.argument("prompt")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="PNG file (default: a name from prompt and seed)."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the noise, 0 to 2^64 - 1.")
@click.option("--steps", type=int, help="Network calls per picture (default: the bundle's).")
@click.option("--guidance", type=float, help="Classifier-free guidance; 1 or less is off (default: the bundle's).")
@click.option("--size", type=Size(), help="Pixels, as 128 or 192x128 (default: the bundle's).")
@click.option("--negative", default="", help="Text that guidance leads away from.")
@click.option("--count", type=click.IntRange(1, MAX_COUNT), default=1, show_default=True, help="Number of pictures.")
@click.option("--sigmas", type=Sigmas(), help="Noise levels before the shift, as 1,0.75,0.5,0.25.")
@click.option(
    "--noise",
    type=click.Choice(NOISES),
    default=NOISES[0],
    show_default=True,
    help="torch: the noise of torch's CPU generator, to compare with diffusers.",
)
@click.option("--threads", type=int, help="CPU threads (default: the cores of this process).")
@click.option("--budget", type=Bytes(), help="Most memory to use, as 512MiB. segue plan shows the need.")
@TARGET
@TRUST
@signing
@JSON
def render(
    bundle: str,
    prompt: str,
    output: Path | None,
    as_json: bool,
    threads: int | None,
    target: str,
    trust_engines: bool,
    budget: int | None,
    metadata: bool,
    certificate: Certificate | None,
    **wanted: Any,
) -> None:
    """Render PROMPT with BUNDLE (a directory, or the name of a shipped bundle) into a PNG file.

    \b
    Examples:
      segue render emoji "a red heart" --seed 7
      segue render emoji "rocket, noto" --count 3 -o rocket.png
      segue render emoji "pizza" --certificate chain.pem --key key.pem
    """
    from ..runtime.media.png import picture_paths
    from ..runtime.media.provenance import write_picture
    from ..runtime.request import Request

    show = Output(as_json)
    paths = picture_paths(output, prompt, wanted["seed"], wanted["count"])
    started = time.perf_counter()
    with opened(show, bundle, threads, target, trust_engines, budget) as model, show.progress("rendering") as update:

        def report(done: int, total: int, _: Any) -> None:
            update(done, total, **memory_of(model))

        pictures = model.pictures(Request(prompt, **wanted), on_step=report)
        for path, picture in zip(paths, pictures, strict=True):
            write_picture(path, picture.image, picture.metadata if metadata else None, certificate)
            show.line(str(path))
            show.event("image", path=str(path), **picture.metadata)
    show.event("done", seconds=time.perf_counter() - started)


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("segue-demo.png"),
    show_default=True,
    help="PNG file; the video has the same name with .mp4.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of the noise, 0 to 2^64 - 1.")
@JSON
def demo(output: Path, seed: int, as_json: bool) -> None:
    """Render six pictures with the shipped emoji bundle and animate one of them, without torch.

    \b
    Example:
      segue demo
    """
    import numpy as np

    from ..runtime.media.png import check_png, write_png
    from ..runtime.request import Request

    show = Output(as_json)
    check_png(output)
    started = time.perf_counter()
    with opened(show, PICTURES, None) as model, show.progress("rendering") as update:
        result = model.render(Request(DEMO, seed=seed), on_step=lambda done, total, _: update(done, total))
    rows = [np.concatenate(list(result.images[i : i + 3]), axis=1) for i in (0, 3)]
    sheet = {"prompt": ", ".join(DEMO), "prompts": DEMO, "layout": {"rows": 2, "columns": 3}}
    write_png(output, np.concatenate(rows), {**result.metadata[0], **sheet})
    seconds = time.perf_counter() - started
    show.line(f"{output}: {', '.join(DEMO)} in {seconds:.1f} s")
    show.event("image", path=str(output), seconds=seconds, prompts=DEMO)
    _animate(show, result.images[MOVING], DEMO[MOVING], output.with_suffix(".mp4"))


def _animate(show: Output, image: Any, prompt: str, path: Path) -> None:
    from ..runtime.film import film
    from ..runtime.videos.request import AnimationRequest

    started = time.perf_counter()
    with opened(show, VIDEOS, None) as model, show.progress("animating", "frames") as update:
        done = film(model, AnimationRequest(image, prompt), path, on_frames=update)
    seconds = time.perf_counter() - started
    show.line(f"{path}: {prompt}, {done} frames in {seconds:.1f} s")
    show.event("video", path=str(path), frames=done, seconds=seconds, prompt=prompt)


COMMANDS = (render, demo)
