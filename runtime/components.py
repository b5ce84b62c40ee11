"""The components of an opened bundle: checked and loaded at the first call, released one by one."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines import devices, heap
from ..engines.base import Array, Closing, Engine, Resident
from ..engines.ort.engine import OrtEngine, check_threads
from ..engines.ort.providers import COMPILING, CUDA, cuda_options, provider_options
from ..engines.process import ran_out
from ..engines.streamed import StreamedEngine, StreamedPart
from ..engines.targets import DEFAULT, find_target
from ..engines.tensorrt.engine import TensorRtEngine
from ..engines.tensorrt.scratch import Scratch
from ..errors import BudgetError, Cancelled, EngineError, MissingDependencyError, UsageError
from .bundle.families import Kind, family_of, role_of
from .bundle.manifest import STEP
from .bundle.reader import Bundle
from .bundle.shapes import default_range, profiles
from .bundle.tokens import PromptTruncated, Tokens, load_tokenizer, tokenise
from .engine_cache.find import find_engine
from .engine_cache.store import Entry
from .lora.adapter import Adapters
from .planning.ledger import Ledger

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Cancel = Callable[[], bool]
Feeds = dict[str, np.ndarray]
OnCall = Callable[[str, dict[str, Any], dict[str, Any]], None]  # component, feeds, outputs


class Components(Closing):
    """Engines and tokenizers of `bundle` by their names in the manifest; `close` frees them all.

    `target` is the engine that runs the graphs (`engines.targets`), `threads` the threads of a call on the CPU.
    `on_call` runs after every call. `trust_engines` also runs engines that came with the bundle, and an engine is code.
    `low_memory` returns freed memory to the system and keeps only the components that `set_residency` names.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int | None = None,
        target: str = DEFAULT,
        on_call: OnCall | None = None,
        trust_engines: bool = False,
        low_memory: bool = False,
    ) -> None:
        self._trust = trust_engines
        self._low_memory = low_memory
        self._held: Collection[str] = ()
        self._streamed: Mapping[str, bool] = {}
        self._limits: Mapping[str, int] = {}
        self._scratch = Scratch()
        self._on_call = on_call
        check_threads(threads)
        self.target = target
        self._target = find_target(target)
        if low_memory and not self.on_gpu:
            heap.give_back()
        self.ledger = Ledger(self._target.provider == CUDA)
        self.bundle = bundle
        self.adapters = Adapters(bundle)
        self._placed: dict[str, tuple[int, dict[str, Resident]]] = {}  # LoRA inputs on the device, and their version
        self.closed = False
        self._threads = threads
        self._engines: dict[str, Engine] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._found: dict[str, bool] = {}  # answers of `has`
        self._calling = threading.RLock()
        # At exit: wait for the call of a daemon thread, which would abort the process, and block further calls
        weakref.finalize(self, self._calling.acquire, timeout=60)

    @property
    def on_gpu(self) -> bool:
        """Whether the components run on a GPU, where arrays can stay between calls."""
        return self._target.device == "gpu"

    def stays_on_device(self, component: str) -> bool:
        """Return whether a component's arrays can stay on a GPU between its calls; not if it is streamed."""
        return self.on_gpu and component not in self._streamed

    def run(
        self, component: str, cancel: Cancel | None, keep: Collection[str] = (), /, **feeds: Array
    ) -> dict[str, Any]:  # fmt: skip
        """Return the outputs of one call by name; `cancel` is called first.

        Feeds and outputs are numpy arrays. Outputs named in `keep` stay on the device; they, and arrays from `put`, can
        be feeds of a later call (`engines.base.Engine`).

        | Error | Reason |
        |---|---|
        | Cancelled | `cancel` returned true |
        | UsageError | `close` was called |
        | BundleError | the component cannot be loaded |
        | EngineError | none of its engines fits this machine |
        | BudgetError | memory ran out |
        """
        with self._calling:
            self.check_going_on(cancel)
            with self._memory_of(component):
                engine = self._engine(component, feeds)
                made = engine.run({**self._lora(component, engine), **feeds}, keep)
        if self._on_call is not None:
            self._on_call(component, feeds, made)
        return made

    def _lora(self, component: str, engine: Engine) -> Mapping[str, Array]:
        """Return the feeds of the inputs that take a LoRA, copied to the device once."""
        feeds = self.adapters.feeds(component)
        if not feeds or not self.stays_on_device(component):
            return feeds
        version, placed = self._placed.get(component, (-1, {}))
        if version != self.adapters.version:
            self._displace(component)
            placed = engine.put(feeds)
            self._placed[component] = self.adapters.version, placed
        return placed

    def _displace(self, component: str) -> None:
        for array in self._placed.pop(component, (0, {}))[1].values():
            array.close()

    def has(self, component: str) -> bool:
        """Return whether the bundle has a component, and an engine for this machine if the target needs one."""
        if component not in self.bundle.manifest.components:
            return False
        if not self._target.compiled or component in self._engines:
            return True
        if component not in self._found:
            try:
                self._entry(component, None)
            except (EngineError, MissingDependencyError):
                self._found[component] = False
            else:
                self._found[component] = True
        return self._found[component]

    def device_bytes(self, component: str) -> int | None:
        """Return the device memory that a component holds (`engines.base.Engine`); 0 if it is not loaded."""
        held = self._engines.get(component)
        return 0 if held is None else held.device_bytes

    def load(self, component: str) -> None:
        """Load a component now instead of at its first call; raises the errors of `run`."""
        with self._calling, self._memory_of(component):
            self._engine(component, {})

    def put(self, component: str, feeds: Mapping[str, np.ndarray]) -> dict[str, Resident]:
        """Return copies of `feeds` in the memory of the component's device; raises the errors of `run`."""
        with self._calling, self._memory_of(component):
            return self._engine(component, feeds).put(feeds)

    def _engine(self, component: str, feeds: Mapping[str, Array]) -> Engine:
        self.check_open()
        shapes = {name: array.shape for name, array in feeds.items()}
        held = self._engines.get(component)
        if isinstance(held, TensorRtEngine) and not held.fits(shapes):
            self.release(component)  # another engine may fit these shapes
        # Free the others even if this one is loaded, because an earlier request may have left some. A denoiser
        # alternates with its step and with previews, so all stay
        if self._low_memory and not _is_aside(component):
            others = self._engines.keys() - {*self._held, component}
            denoises = role_of(component).kind is Kind.DENOISER
            stay = {name for name in others if name.endswith(STEP) or (denoises and _is_aside(name))}
            self.release(*(others - stay))
        if component not in self._engines:
            with self.ledger.entry(component):
                self._engines[component] = self._open(component, shapes)
            if self._low_memory:
                heap.trim()
        return self._engines[component]

    def _open(self, component: str, shapes: Mapping[str, tuple[int, ...]]) -> Engine:
        if self._target.compiled:
            entry = self._entry(component, shapes)
            of = entry.record.fingerprint
            weights = of.workspace if of.streaming else None
            return TensorRtEngine(entry.plan, self._target.name, weights, self._scratch)
        spec = self.bundle.manifest.components[component]
        self.bundle.check_unchanged(spec.graph, *spec.weights)
        provider, settings = self._target.provider, {}
        if provider in COMPILING:
            content = self.bundle.manifest
            profile = profiles(content, [default_range(content)], guided=True)[component][0]  # none is kept
            role = role_of(component)
            wide = role.kind is Kind.TEXT or role.step
            settings = provider_options(provider, profile, spec.precision, wide)
        elif provider == CUDA:
            settings = cuda_options(self._limits.get(component))
        if component not in self._streamed:
            return OrtEngine(
                self.bundle.path(spec.graph), self._threads, provider, settings, pooled=not self._low_memory
            )

        def load(graph: str) -> Engine:
            self.bundle.check_unchanged(graph, *spec.weights)  # every call reads them again
            return OrtEngine(self.bundle.path(graph), self._threads, provider, settings, pooled=False)

        parts = [StreamedPart(partial(load, part.graph), part.inputs) for part in spec.parts]
        where = f"the component {component} of {self.bundle.directory}"
        return StreamedEngine(parts, spec.inputs, spec.outputs, where, self._streamed[component])

    @contextmanager
    def _memory_of(self, component: str) -> Iterator[None]:
        """Turn an error of memory that runs out in the block into the ledger's BudgetError."""
        try:
            yield
        except Exception as error:
            if isinstance(error, BudgetError) or ran_out(error):
                raise self.ledger.ran_out(component) from error
            raise

    def _entry(self, component: str, shapes: Mapping[str, tuple[int, ...]] | None) -> Entry:
        """Return the checked engine of a component for this machine's GPU."""
        found = devices.driver()
        if not found.gpus:
            raise EngineError(f"the target {self._target.name} needs a GPU: {found.why}. Use the target ort-cpu.")
        return find_engine(self.bundle, component, self._target, found.gpus[0].capability, shapes, self._trust)

    def set_residency(
        self, components: Collection[str], streamed: Mapping[str, bool], limits: Mapping[str, int] | None = None
    ) -> None:
        """Set which components stay loaded while others work (with `low_memory`), and which are streamed.

        The values of `streamed` say whether the next part loads ahead. `limits` bounds the GPU memory in bytes of a
        component's engine, or of each part of a streamed component.
        """
        limits = (limits or {}) if self._target.provider == CUDA else {}
        changed = {
            name
            for name in self._engines
            if self._streamed.get(name) != streamed.get(name) or self._limits.get(name) != limits.get(name)
        }
        self.release(*changed, *(f"{name}{STEP}" for name in streamed))  # a streamed denoiser's loop runs on the host
        self._held, self._streamed, self._limits = components, streamed, limits

    def release(self, *components: str) -> None:
        """Free these components' memory; the next call loads a component again."""
        for component in components:
            if component in self._engines:
                self._displace(component)
                self._engines.pop(component).close()
                self.ledger.loaded.pop(component, None)
        if components:
            heap.trim()

    def tokens(self, name: str, prompt: str) -> Tokens:
        """Return the tokens of `prompt` by the tokenizer of that name."""
        spec = self.bundle.manifest.tokenizers[name]
        if name not in self._tokenizers:
            self.bundle.check_unchanged(spec.file)
            self._tokenizers[name] = load_tokenizer(self.bundle.path(spec.file))
        return tokenise(self._tokenizers[name], spec, prompt)

    def cuts(self, prompts: Iterable[str]) -> Iterator[str]:
        """Yield a line for each prompt that is longer than a tokenizer's limit."""
        names = family_of(self.bundle.manifest).tokenizers_of(self.bundle.manifest)
        for prompt in dict.fromkeys(prompts):
            found = [(self.tokens(name, prompt).cut, name) for name in names]  # none if no prompt is taken
            cut, name = max(found, key=lambda one: len(one[0]), default=("", ""))
            if cut:
                limit = self.bundle.manifest.tokenizers[name].length
                shown = cut if len(cut) <= 200 else f"{cut[:200]}…"
                yield f"a prompt is longer than {limit} tokens; its end was cut: {shown!r}. Shorten the prompt."

    def warn_of_cuts(self, prompts: Iterable[str]) -> None:
        """Warn `PromptTruncated` with each line of `cuts`."""
        for text in self.cuts(prompts):
            warnings.warn(text, PromptTruncated, stacklevel=4)  # the caller of generate, render, pictures or animate

    def close(self) -> None:
        """Free every component. Closing twice is allowed."""
        self.closed = True
        self.release(*list(self._engines))
        self._scratch.close()

    def check_going_on(self, cancel: Cancel | None) -> None:
        """Raise Cancelled if `cancel` returns true, and UsageError after `close`."""
        if cancel is not None and cancel():
            raise Cancelled("rendering was cancelled. Send the request again to render it.")
        self.check_open()

    def check_open(self) -> None:
        """Raise UsageError after `close`."""
        if self.closed:
            raise UsageError(f"the model of {self.bundle.directory} was closed. Open the bundle again.")


def _is_aside(component: str) -> bool:
    """Return whether a component works between the calls of a denoiser."""
    return component.endswith(STEP) or role_of(component).kind is Kind.PREVIEW
