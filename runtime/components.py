"""The components of an opened bundle: loaded when first called, verified right before, released one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ..engines.base import Engine
from ..engines.ort import OrtEngine, check_threads
from ..errors import Cancelled, UsageError
from . import text
from .bundle import Bundle

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Cancel = Callable[[], bool]


class Components:
    """Engines and tokenizers of `bundle`, by the names that its manifest has for them; `close` frees them all."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        check_threads(threads)
        self.bundle = bundle
        self.closed = False
        self._threads = threads
        self._engines: dict[str, Engine] = {}
        self._tokenizers: dict[str, Tokenizer] = {}

    def run(self, component: str, cancel: Cancel | None, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        """Return the outputs of one call by name; `cancel` is asked before it.

        Raises Cancelled, UsageError once `close` was called, BundleError where the component cannot be loaded.
        """
        if cancel is not None and cancel():
            raise Cancelled("rendering was cancelled. Start again when you like.")
        self.check_open()
        if component not in self._engines:
            spec = self.bundle.manifest.components[component]
            self.bundle.check_unchanged(spec.graph, *spec.weights)
            self._engines[component] = OrtEngine(self.bundle.path(spec.graph), self._threads)
        return self._engines[component].run(feeds)

    def release(self, *components: str) -> None:
        """Free these components' memory; one that is called again is loaded again."""
        for component in components:
            if component in self._engines:
                self._engines.pop(component).close()

    def tokens(self, name: str, prompt: str) -> text.Tokens:
        """Return `prompt` as the tokenizer of that name cuts it."""
        spec = self.bundle.manifest.tokenizers[name]
        if name not in self._tokenizers:
            self.bundle.check_unchanged(spec.file)
            self._tokenizers[name] = text.load_tokenizer(self.bundle.path(spec.file))
        return text.tokenise(self._tokenizers[name], spec, prompt)

    def close(self) -> None:
        """Free every component. Closing twice is allowed."""
        self.closed = True
        self.release(*list(self._engines))

    def check_open(self) -> None:
        """Raise UsageError once `close` was called."""
        if self.closed:
            raise UsageError(f"the model of {self.bundle.directory} was closed. Open the bundle again.")
