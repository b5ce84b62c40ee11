"""`Model`: an opened bundle that renders pictures and videos."""

from __future__ import annotations

import dataclasses
import os
import threading
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, overload

import numpy as np

from ..engines import heap
from ..engines.devices import driver
from ..engines.ort.engine import check_threads, default_threads
from ..engines.targets import DEFAULT, TARGETS, find_target
from ..errors import UsageError
from .bundle.families import check
from .bundle.reader import Bundle, Progress, read
from .components import Cancel, Components, Feeds, OnCall
from .lora.playing import Playing
from .notices import Described, Notice, notices
from .pictures.preview import Previewing
from .pictures.render import OnStep, Picture, Result, decode, render
from .plan_prepared import Asked, plan_prepared, prepare_any
from .planning.hardware import CPU, find_machine, gpu_here
from .planning.ledger import Ledger
from .planning.pictures import Plan
from .request import Prepared, Request
from .sampling.tiles import Tiling
from .storage.journal import check_job, kept_job
from .units import bytes_of
from .videos.render import OnEvent, animate
from .videos.request import AnimationRequest, PreparedAnimation, as_begun
from .videos.request import job as job_of

T = TypeVar("T")


class Model(Described, Playing, Previewing):
    """An opened bundle. Use it as a context manager, or call `close`.

    A model serves one call at a time; another call raises BusyError (`ModelQueue` lets callers wait). It loads each
    component at its first use and keeps it until `close`. Pictures are rendered one after another, so the memory of
    `pictures` does not grow with `count`; `render` and `generate` keep what they return. A picture's bytes do not
    depend on the other pictures of the request.

    `budget` limits the memory in bytes: the GPU's memory if the target runs on a GPU. Each request is then planned
    before anything is loaded (`runtime.planning`), and refused if it does not fit. Components stay loaded only if
    there is room.
    """

    def __init__(
        self, bundle: Bundle, threads: int | None = None, target: str = DEFAULT, on_call: OnCall | None = None,
        trust_engines: bool = False, budget: int | None = None,
    ) -> None:  # fmt: skip
        check(bundle.manifest, find_target(target))
        if budget is not None and not find_target(target).planned:
            planned = " and ".join(name for name, of in TARGETS.items() if of.planned)
            raise UsageError(f"a budget works only with {planned}, not with the target {target}. Leave the budget out.")
        check_threads(threads)
        self.bundle = bundle
        self.budget = budget
        self.target = target
        self.threads = threads or default_threads()
        self._components = Components(bundle, threads, target, on_call, trust_engines, low_memory=budget is not None)
        self._adapters = self._components.adapters
        self._prompts: dict[str, Feeds] = {}
        self._lock = threading.Lock()

    def notices(self, request: Asked) -> tuple[str, ...]:
        """Return one line for each reason why a request is likely to disappoint; runs nothing.

        Reasons: a size that is not a trained one, guidance on a model made to draw without, a prompt like no name of
        the bundle, a photograph for a model that knows none, a given picture that is cropped or that hardly counts.
        `generate`, `render`, `pictures`, `animate` and `frames` warn each line as a `Notice`. Raises UsageError if this
        bundle cannot meet the request.
        """
        return notices(self.bundle.manifest, self.prepare(request), self.prompts)

    def cuts(self, request: Asked) -> tuple[str, ...]:
        """Return the text of each `PromptTruncated` that a request would warn; runs only the tokenizers."""
        return tuple(self._components.cuts(_read_texts(self.prepare(request))))

    def generate(
        self, prompt: str | Sequence[str], *, negative: str = "", seed: int = 0, steps: int | None = None,
        guidance: float | None = None, size: int | tuple[int, int] | None = None, count: int = 1,
        sigmas: Sequence[float] | None = None, latents: np.ndarray | None = None, noise: str = "philox",
        image: np.ndarray | None = None, strength: float | None = None, mask: np.ndarray | None = None,
        feather: int = 0, references: Sequence[np.ndarray] = (),
        on_step: OnStep | None = None, cancel: Cancel | None = None,
    ) -> np.ndarray:  # fmt: skip
        """Render and return only the pixels, uint8 sRGB: [height, width, 3] for one prompt and a `count` of 1.

        A list of prompts, or a `count` above 1, gives [pictures, height, width, 3]; pictures of one prompt stand next
        to each other. `PIL.Image.fromarray(image)` shows or saves it. The arguments are those of `Request`. `on_step`,
        `cancel` and the errors are those of `pictures`.
        """
        request = Request(
            prompt, negative, seed, steps, guidance, size, count, sigmas, latents, noise, image, strength, mask,
            feather, references,
        )  # fmt: skip
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
        """Check `request` now; render each picture when the returned iterator reaches it.

        The same request gives the same bytes on the same machine. `on_step(done, total, latents)` runs after each
        step: it gets the steps done and in all, over all pictures, and the current picture's latents, read-only
        float32 [1, channels, height / factor, width / factor]. `cancel()` is called before every network call.
        Warns `PromptTruncated` if a prompt is cut, and `Notice` for each line of `notices`. The model is busy until the
        iterator ends or is closed.

        | Error | Reason |
        |---|---|
        | UsageError | the bundle cannot meet the request, or the model is closed |
        | BusyError | the model is busy with another call |
        | Cancelled | `cancel` returned true |
        | BundleError | a component cannot be loaded, or its file changed since the bundle was opened |
        | BudgetError | the request needs more memory than it may use, or memory runs out |
        | SegueError | a component fails |
        """
        return self._start(request, on_step, cancel)

    def animate(
        self, image: np.ndarray | None = None, prompt: str = "", *, negative: str = "", frames: int | None = None,
        fps: float | None = None, seed: int = 0, size: int | tuple[int, int] | None = None,
        tiling: Tiling | None = None, last: np.ndarray | None = None, on_event: OnEvent | None = None,
        cancel: Cancel | None = None,
    ) -> Generator[np.ndarray]:  # fmt: skip
        """Yield the frames of a video that begins with `image`, uint8 [height, width, 3]; see `frames`.

        The arguments are those of `AnimationRequest`.
        """
        request = AnimationRequest(image, prompt, negative, frames, fps, seed, size, tiling, last)
        return self.frames(request, on_event=on_event, cancel=cancel)

    def frames(
        self, request: AnimationRequest | PreparedAnimation, *, journal: str | os.PathLike[str] | None = None,
        resume: bool = False, on_event: OnEvent | None = None, cancel: Cancel | None = None,
    ) -> Generator[np.ndarray]:  # fmt: skip
        """Check `request` now; yield the video's frames, uint8 [n, height, width, 3], segment by segment.

        Memory does not grow with the number of frames. `journal` is a directory for finished work. With `resume` a
        stopped request continues from there and gives the same frames, from the first one on. `on_event(Event)` runs
        before or after each call of a stage, and `cancel()` before each. The model is busy until the iterator ends or
        is closed. Raises the errors of `pictures`, UsageError also for a bundle of pictures and for the journal of
        another request, and OutputError if the journal cannot be written.
        """
        self._components.check_open()
        prepared, folder = self.prepare(request), None if journal is None else Path(journal)
        assert isinstance(prepared, PreparedAnimation)
        begun = kept_job(folder) if resume and folder is not None and prepared.tiling is None else None
        if begun is not None:  # a new budget must not change the tiles: the frames would differ
            prepared = as_begun(prepared, begun)
        if (plan := self._require_memory(prepared, settled=begun is not None)) is not None:
            prepared = dataclasses.replace(prepared, tiling=plan.tiling)
        self._warn(prepared, 3)  # the caller of frames
        self._components.warn_of_cuts(_read_texts(prepared))
        job = job_of(prepared, self.bundle.digest, self.loras)
        if folder is not None and resume:
            check_job(folder, job)

        made = animate(
            self._components, prepared, None if folder is None else (folder, job), resume, on_event, cancel,
            in_turns=self.budget is not None,
        )  # fmt: skip
        return self._exclusively(made, plan)

    @overload
    def prepare(self, request: Request | Prepared) -> Prepared: ...

    @overload
    def prepare(self, request: AnimationRequest | PreparedAnimation) -> PreparedAnimation: ...

    def prepare(self, request: Asked) -> Prepared | PreparedAnimation:
        """Return a request with its defaults, checked for this bundle; a prepared one comes back unchanged.

        Emoji in prompts become names, see `bundle.prompts.spell_emoji`. Raises UsageError if this bundle cannot meet
        the request.
        """
        return prepare_any(self.bundle.manifest, request, self.prompts)

    def plan(self, request: Asked) -> Plan:
        """Return the plan of a request, within the budget if there is one; loads nothing.

        Raises UsageError if this bundle cannot meet the request, and BudgetError if the budget is too small.
        """
        return self._plan(self.prepare(request), settled=False)

    @property
    def ledger(self) -> Ledger:
        """The memory that this model has taken, and the memory that its plan allows."""
        return self._components.ledger

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """Return pictures, uint8 [n, height, width, 3], of latents as `on_step` gets them or `estimate` returns them.

        It runs the decoder, which may need more memory than the plan of a budget allows. `preview` costs next to
        nothing.
        """
        return decode(self._components, latents, None, None)

    def call(self, component: str, feeds: Mapping[str, np.ndarray]) -> Feeds:
        """Run one component on `feeds` and return its outputs by name; the manifest lists both."""
        if component not in self.bundle.manifest.components:
            raise UsageError(
                f"the bundle {self.bundle.manifest.name!r} has no component {component!r}. Choose one of "
                f"{', '.join(self.bundle.manifest.components)}."
            )
        return self._components.run(component, None, **feeds)

    def device_bytes(self, component: str) -> int | None:
        """Return the device memory in bytes that a component holds now; None if its engine does not report it."""
        return self._components.device_bytes(component)

    def forget(self) -> None:
        """Forget the states of earlier prompts, so the next request encodes them again."""
        self._prompts.clear()

    def close(self) -> None:
        """Free every component and return the memory to the system. Closing twice is allowed."""
        self.forget()  # first: the prompts' states lie in the arena and keep its regions
        self._components.close()
        heap.trim()

    def _start(self, request: Request, on_step: OnStep | None, cancel: Cancel | None) -> Generator[Picture]:
        self._components.check_open()
        prepared = self.prepare(request)
        self._warn(prepared, 4)  # the caller of generate, render or pictures
        plan = self._require_memory(prepared, previews=on_step is not None)
        self._components.warn_of_cuts(_read_texts(prepared))
        report = None if on_step is None else self._noting(on_step)
        return self._exclusively(render(self._components, prepared, plan, self._prompts, report, cancel), plan)

    def _warn(self, prepared: Prepared | PreparedAnimation, level: int) -> None:
        for text in self.notices(prepared):
            warnings.warn(text, Notice, stacklevel=level)

    def _plan(self, prepared: Prepared | PreparedAnimation, settled: bool, previews: bool = False) -> Plan:
        machine = find_machine(CPU, self.threads) if find_target(self.target).device == "cpu" else gpu_here()
        return plan_prepared(self.bundle.manifest, prepared, machine, self.budget, settled, previews)

    def _require_memory(
        self, prepared: Prepared | PreparedAnimation, settled: bool = False, previews: bool = False
    ) -> Plan | None:
        """Return the plan of a request, None without a budget; raises BudgetError if memory is too small.

        With `settled` a video keeps its own tiling, even if that is None. `previews`: the caller may show some.
        """
        if not find_target(self.target).planned or (
            self.budget is None and self.target != DEFAULT and not driver().gpus
        ):
            return None  # without a GPU the error comes from loading
        plan = self._plan(prepared, settled, previews)
        self.ledger.require(plan.peak, plan.host)
        return None if self.budget is None else plan

    def _exclusively(self, results: Iterator[T], plan: Plan | None) -> Generator[T]:
        """Yield from `results` within the plan, and refuse other calls until they end."""
        with self._taken():
            try:
                if plan is not None:
                    self._counted = plan.previews
                    self._components.set_residency(plan.keep, plan.streamed, plan.limits)
                yield from results
            except MemoryError as error:
                raise self.ledger.ran_out("the arrays between calls") from error


def _read_texts(prepared: Prepared | PreparedAnimation) -> tuple[str, ...]:
    """Return the texts that the text encoders read."""
    if isinstance(prepared, PreparedAnimation):
        return prepared.prompt, prepared.negative
    return (*prepared.prompts, prepared.negative) if prepared.guided else prepared.prompts


def open_model(
    name_or_path: str | os.PathLike[str], threads: int | None = None, progress: Progress | None = None,
    target: str = DEFAULT, trust_engines: bool = False, budget: int | str | None = None,
) -> Model:  # fmt: skip
    """Open and verify a bundle by its path, or by the name of one that ships with Segue. It loads no component yet.

    - `threads`: processor threads of one network call (None: the cores that this process may use).
    - `progress(file, done, total)`: gets the bytes hashed and to hash. Only the first open hashes weight files, about
      a GB a second.
    - `target`: the engine that runs the graphs (`engines.targets`). Build engines of "tensorrt-rtx" and "tensorrt"
      first (`runtime.engine_cache.build`).
    - `trust_engines`: also run engines that came with the bundle. An engine is code of its maker.
    - `budget`: the most memory that the model may take, in bytes or as "512MiB", beyond what the process has before
      the open; GPU memory if the target runs on a GPU.

    Raises UsageError for an unknown name. Raises BundleError for a bundle that is damaged, altered, unsafe, of a newer
    schema or of an unknown family.
    """
    limit = None if budget is None else bytes_of(budget)
    return Model(read(name_or_path, progress=progress), threads, target, None, trust_engines, limit)
