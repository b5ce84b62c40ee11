"""A bundle ready to render: prompt, sampler, decoder, one network call at a time."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from ..engines import heap
from ..engines.base import Closing
from ..engines.devices import driver
from ..engines.ort.engine import check_threads, default_threads
from ..engines.targets import DEFAULT, TARGETS, find_target
from ..errors import BusyError, UsageError
from .bundle import families, tokens
from .bundle import reader as bundles
from .components import Cancel, Components, Feeds, OnCall
from .pictures.render import OnStep, Picture, decode, render
from .planning.hardware import CPU, Machine, find_machine, gpu_here
from .planning.ledger import Ledger
from .planning.pictures import Plan, Wanted, plan, unbounded_plan
from .planning.videos import WantedVideo, plan_video, unbounded_video_plan
from .request import Prepared, Request, prepare
from .sampling.tiles import Tiling
from .storage.journal import check_job, kept_job, open_journal
from .units import bytes_of
from .videos.render import Animator, OnEvent
from .videos.request import AnimationRequest, PreparedAnimation, as_begun
from .videos.request import job as job_of
from .videos.request import prepare as prepare_animation

T = TypeVar("T")
Asked = Request | AnimationRequest | Prepared | PreparedAnimation


@dataclass(frozen=True, eq=False)
class Result:
    """What a request gave.

    `images` uint8 [pictures, height, width, 3], sRGB; `latents` float32 [pictures, channels, height / factor, width /
    factor], denoised; `metadata`, for each picture, what is needed to render it again (JSON types only), but for
    latents that were given.
    """

    images: np.ndarray
    latents: np.ndarray
    metadata: tuple[dict[str, Any], ...]


class Model(Closing):
    """An opened bundle. Use it as a context manager, or `close` it; one call at a time, another one gives BusyError
    (`ModelQueue` has several callers wait their turn).

    Components are loaded when first needed and stay until `close`. Pictures are rendered one after another, so the
    memory that `pictures` needs does not grow with `count`, while `render` and `generate` keep what they return. A
    picture's bytes do not depend on what is rendered beside it.

    With a `budget` in bytes each request is planned before anything is loaded (`runtime.plan`), and refused where it
    does not fit; then components are loaded for their turn, and stay only as far as there is room. It is a budget of
    the GPU's memory where the target runs on one.
    """

    def __init__(
        self,
        bundle: bundles.Bundle,
        threads: int | None = None,
        target: str = DEFAULT,
        on_call: OnCall | None = None,
        trust_engines: bool = False,
        budget: int | None = None,
    ) -> None:
        families.check(bundle.manifest, find_target(target))
        if budget is not None and not find_target(target).planned:
            raise UsageError(
                f"a budget holds for {' and '.join(name for name, of in TARGETS.items() if of.planned)}, not for the target {target}. Leave the budget out."
            )
        check_threads(threads)
        self.bundle = bundle
        self.budget = budget
        self.target = target
        self.threads = threads or default_threads()
        self._components = Components(bundle, threads, target, on_call, trust_engines, low_memory=budget is not None)
        self._prompts: dict[str, Feeds] = {}
        self._lock = threading.Lock()

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        count: int = 1,
        sigmas: Sequence[float] | None = None,
        latents: np.ndarray | None = None,
        noise: str = "philox",
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
    ) -> np.ndarray:
        """Render and return only the pixels, uint8, sRGB: [height, width, 3] for one text and a `count` of 1.

        For a list of texts, or a `count` above 1, it returns [pictures, height, width, 3], the pictures of a prompt
        side by side. The arguments are those of `Request`, `size` as (height, width); `on_step`, `cancel` and the
        errors are those of `pictures`.
        """
        request = Request(prompt, negative, seed, steps, guidance, size, count, sigmas, latents, noise)
        images = [picture.image for picture in self._start(request, on_step, cancel)]
        return images[0] if isinstance(prompt, str) and count == 1 else np.stack(images)

    def render(self, request: Request, *, on_step: OnStep | None = None, cancel: Cancel | None = None) -> Result:
        """Render `request` and return all its pictures at once; see `pictures`."""
        made = list(self._start(request, on_step, cancel))
        return Result(
            np.stack([picture.image for picture in made]),
            np.stack([picture.latents for picture in made]),
            tuple(picture.metadata for picture in made),
        )

    def pictures(
        self, request: Request, *, on_step: OnStep | None = None, cancel: Cancel | None = None
    ) -> Generator[Picture]:
        """Check `request` now, and render each picture when the iterator that this returns is asked for it.

        The same request gives the same bytes again on the same machine. `on_step(done, total, latents)` is called
        after each step: steps done and to do over all pictures, and the current picture's latents, read-only float32
        [1, channels, height / factor, width / factor]. `cancel()` is asked before every network call. Warns
        `PromptTruncated` when a prompt is cut. The model is busy until the iterator ends or is closed.

        Raises UsageError for a request that cannot be met and for a model that is closed, BusyError for one that is
        busy, Cancelled when `cancel` returned true, BundleError when a component cannot be loaded or its file was
        changed since the bundle was opened, BudgetError when this machine has not the memory or it runs out, and
        SegueError when a component fails.
        """
        return self._start(request, on_step, cancel)

    def animate(
        self,
        image: np.ndarray,
        prompt: str = "",
        *,
        negative: str = "",
        frames: int | None = None,
        fps: float | None = None,
        seed: int = 0,
        size: int | tuple[int, int] | None = None,
        tiling: Tiling | None = None,
        on_event: OnEvent | None = None,
        cancel: Cancel | None = None,
    ) -> Generator[np.ndarray]:
        """Yield the frames of a video that begins with `image`, uint8 [height, width, 3], as `frames` does.

        The arguments are those of `AnimationRequest`.
        """
        request = AnimationRequest(image, prompt, negative, frames, fps, seed, size, tiling)
        return self.frames(request, on_event=on_event, cancel=cancel)

    def frames(
        self,
        request: AnimationRequest,
        *,
        journal: str | os.PathLike[str] | None = None,
        resume: bool = False,
        on_event: OnEvent | None = None,
        cancel: Cancel | None = None,
    ) -> Generator[np.ndarray]:
        """Check `request` now; yield the video's frames, uint8 [n, height, width, 3], segment by segment when asked.

        Memory does not grow with the number of frames. `journal` is a directory for what is finished: with `resume` a
        request that was stopped goes on from there and gives the same frames, from the first one on. `on_event(Event)`
        is called before or after each call of a stage; `cancel()` is asked before each. The model is busy until the
        iterator ends or is closed. Raises as `pictures` does, UsageError also for a bundle that draws no videos and for
        a journal of another request, OutputError where the journal cannot be written.
        """
        self._components.check_open()
        prepared, place = self.prepare(request), None if journal is None else Path(journal)
        assert isinstance(prepared, PreparedAnimation)
        begun = kept_job(place) if resume and place is not None and prepared.tiling is None else None
        if begun is not None:  # another budget must not have other tiles: they would be another video
            prepared = as_begun(prepared, begun)
        if (found := self._admitted(prepared, settled=begun is not None)) is not None:
            prepared = dataclasses.replace(prepared, tiling=found.tiling)
        self._warn_of_cuts((prepared.prompt, prepared.negative))
        job = job_of(prepared, self.bundle.digest)
        if place is not None and resume:
            check_job(place, job)

        def made() -> Iterator[np.ndarray]:  # the journal is another one's until the model is this request's
            kept = None if place is None else open_journal(place, job, resume)
            try:
                yield from Animator(
                    self._components, prepared, kept, on_event, cancel, in_turns=self.budget is not None
                ).frames()
            finally:
                if kept is not None:
                    kept.close()

        return self._busy(made(), found)

    @overload
    def prepare(self, request: Request | Prepared) -> Prepared: ...

    @overload
    def prepare(self, request: AnimationRequest | PreparedAnimation) -> PreparedAnimation: ...

    def prepare(self, request: Asked) -> Prepared | PreparedAnimation:
        """Return a request with defaults filled in and values checked; a prepared one comes back unchanged.

        Raises UsageError for a request that this bundle cannot meet.
        """
        if isinstance(request, Prepared | PreparedAnimation):
            return request
        moving = self.bundle.manifest.video is not None
        if isinstance(request, AnimationRequest):
            if not moving:
                raise UsageError(
                    f"the bundle {self.bundle.manifest.name!r} draws pictures, not videos. Open emoji-motion, or "
                    "another bundle of the family swifti2v."
                )
            return prepare_animation(request, self.bundle.manifest)
        if moving:
            raise UsageError(
                f"the bundle {self.bundle.manifest.name!r} draws videos, not pictures. Call animate, or segue animate."
            )
        return prepare(request, self.bundle.manifest)

    def plan(self, request: Asked) -> Plan:
        """Return how a request would be met, within the budget if there is one; loads nothing.

        Raises UsageError for a request that cannot be met and BudgetError if the budget does not suffice.
        """
        return self._plan(self.prepare(request))

    @property
    def ledger(self) -> Ledger:
        """What this model has taken of memory, and what was planned."""
        return self._components.ledger

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Return pictures, uint8 [n, height, width, 3], of latents as `on_step` is given them; it may be called there.

        Early latents are mostly noise, and so are their pictures. Under a budget a preview may need more memory than
        was planned.
        """
        return decode(self._components, latents, None, None)

    def call(self, component: str, feeds: Mapping[str, np.ndarray]) -> Feeds:
        """Return what one component makes of `feeds`, by name; the manifest tells its inputs and outputs."""
        if component not in self.bundle.manifest.components:
            raise UsageError(
                f"the bundle {self.bundle.manifest.name!r} has no component {component!r}. Choose among "
                f"{', '.join(self.bundle.manifest.components)}."
            )
        return self._components.run(component, None, **feeds)

    def device_bytes(self, component: str) -> int | None:
        """Return the device memory in bytes that a component holds now; None where what runs it does not tell."""
        return self._components.device_bytes(component)

    def forget(self) -> None:
        """Forget what was made of texts, so that the next request encodes them anew."""
        self._prompts.clear()

    def close(self) -> None:
        """Free every component, and give the memory back to the system. Closing twice is allowed."""
        self.forget()  # first: what was made of texts lies in the arena, and keeps its regions
        self._components.close()
        heap.trim()

    def _start(self, request: Request, on_step: OnStep | None, cancel: Cancel | None) -> Generator[Picture]:
        self._components.check_open()
        prepared = self.prepare(request)
        prompts = (*prepared.prompts, prepared.negative) if prepared.guided else prepared.prompts
        if prepared.negative and not prepared.guided:
            warnings.warn(
                f"guidance is {prepared.guidance:g}, so the negative text has no effect. Ask for more guidance, with a "
                "model that is made for it.",
                stacklevel=3,  # the caller of generate, render or pictures
            )
        found = self._admitted(prepared)
        self._warn_of_cuts(prompts)
        return self._busy(render(self._components, prepared, found, self._prompts, on_step, cancel), found)

    def _plan(self, prepared: Prepared | PreparedAnimation, settled: bool = False) -> Plan:
        content, machine = self.bundle.manifest, self._machine()
        if isinstance(prepared, Prepared):
            count = len(prepared.prompts)
            of = Wanted(prepared.height, prepared.width, prepared.schedule.steps, prepared.guided, count)
            if self.budget is None:
                return unbounded_plan(content, of, machine)
            return plan(content, of, machine, self.budget)
        video = WantedVideo(prepared.height, prepared.width, prepared.frames, prepared.tiling, settled)
        if self.budget is None:
            return unbounded_video_plan(content, video, machine)
        return plan_video(content, video, machine, self.budget)

    def _machine(self) -> Machine:
        return find_machine(CPU, self.threads) if find_target(self.target).device == "cpu" else gpu_here()

    def _admitted(self, prepared: Prepared | PreparedAnimation, settled: bool = False) -> Plan | None:
        """Return how a request stays within the budget, None without one; raises BudgetError where memory lacks.

        With `settled` a video has the tiles that it has, or none.
        """
        if not find_target(self.target).planned or (
            self.budget is None and self.target != DEFAULT and not driver().gpus
        ):
            return None  # without a GPU loading says what is missing
        found = self._plan(prepared, settled)
        self.ledger.require(found.peak, found.host)
        return None if self.budget is None else found

    def _busy(self, made: Iterator[T], found: Plan | None) -> Generator[T]:
        """Yield from `made` as planned, and refuse other calls until it ends."""
        if not self._lock.acquire(blocking=False):
            raise BusyError(
                f"the model of {self.bundle.directory} is busy with another call. Wait until that one ends (close its "
                "iterator if it came from pictures or frames), or let callers wait in a segue.ModelQueue."
            )
        try:
            if found is not None:
                self._components.set_residency(found.keep, found.streamed, found.limits)
            yield from made
        except MemoryError as error:
            raise self.ledger.ran_out("the arrays between calls") from error
        finally:
            self._lock.release()

    def _warn_of_cuts(self, prompts: Iterable[str]) -> None:
        tokenizers = families.family_of(self.bundle.manifest).tokenizers_of(self.bundle.manifest)
        for prompt in dict.fromkeys(prompts):
            cuts = [(self._components.tokens(name, prompt).cut, name) for name in tokenizers]
            cut, name = max(cuts, key=lambda found: len(found[0]))
            if cut:
                limit = self.bundle.manifest.tokenizers[name].length
                shown = cut if len(cut) <= 200 else f"{cut[:200]}…"
                warnings.warn(
                    f"a prompt is longer than {limit} tokens; this part of it was cut: {shown!r}. Shorten the prompt.",
                    tokens.PromptTruncated,
                    stacklevel=4,  # the caller of generate, render or pictures
                )


def open_model(
    name_or_path: str | os.PathLike[str],
    threads: int | None = None,
    progress: bundles.Progress | None = None,
    target: str = DEFAULT,
    trust_engines: bool = False,
    budget: int | str | None = None,
) -> Model:
    """Open a bundle, given the name of one that ships with Segue or a path, and verify it.

    `threads` is the number of processor threads of one network call (None: the cores that this process may use). No
    component is loaded yet. Weight files are hashed at the first open, which takes a second for about a GB:
    `progress(file, done, total)` is told the bytes hashed and to hash. `target` is what runs the graphs
    (`engines.targets`); of "tensorrt-rtx" and "tensorrt" engines have to be built first (`runtime.build`). With
    `trust_engines` engines that came with the bundle are run as well: an engine is code of whoever made it. `budget` is
    the most memory that the model may take, in bytes or as "512MiB", beside what the process has before it opens it,
    the GPU's where the target runs on one.

    Raises UsageError for an unknown name and BundleError for a bundle that is damaged, altered, unsafe, of a newer
    schema or of a family that this Segue does not run.
    """
    limit = None if budget is None else bytes_of(budget)
    return Model(bundles.read(name_or_path, progress=progress), threads, target, None, trust_engines, limit)
