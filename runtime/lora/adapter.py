"""The LoRA files that an opened bundle plays, as feeds of its denoisers (`inputs`)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import BundleError, CheckpointError, UsageError
from ..bundle.families import family_of
from ..bundle.manifest import Component
from ..bundle.reader import Bundle
from ..storage.safetensors import Tensor, read_tensor, reading
from .file import ADVICE, LoraFile, read_lora
from .inputs import DOWN, MAX_NAMES, NAMES, PREFIX, SCALE, UP, adapted, rank_of, zeros
from .names import readings

Feeds = dict[str, np.ndarray]
MERGE = "Merge the file instead: segue export CHECKPOINT --lora FILE -o BUNDLE"
KNOWN = {"down", "up", "alpha"}
Runs = Sequence[tuple[int, int]]  # rows of B: (first, count)


@dataclass(frozen=True)
class _Target:
    """A module that takes a LoRA, and the rows of a file's B that are its own (None: all)."""

    module: str
    runs: Runs | None = None


@dataclass(frozen=True)
class _Halves:
    down: np.ndarray  # [rank, in]
    up: np.ndarray  # [out, rank], with the scale and the factor


@dataclass
class Adapters:
    """The LoRA files of one opened bundle. `version` changes with them."""

    bundle: Bundle
    version: int = 0
    used: tuple[dict[str, Any], ...] = ()
    _held: dict[str, dict[str, list[_Halves]]] = field(default_factory=dict)
    _feeds: dict[str, Feeds] = field(default_factory=dict)

    def feeds(self, component: str) -> Feeds:
        """Return the feeds of a component's LoRA inputs; empty if it takes no LoRA."""
        if component not in self._feeds:
            self._feeds[component] = _feeds(self.bundle.manifest.components[component], self._held.get(component, {}))
        return self._feeds[component]

    def use(self, path: Path | None, factor: float = 1.0, component: str = "", add: bool = False) -> None:
        """Play the file at `path` in place of the others, or with `add` beside them; None: play none.

        `component` takes the names that mean the denoiser (empty: the bundle's denoiser). Raises UsageError for a
        bundle without inputs for it, a rank above theirs, and a change that these inputs cannot take; CheckpointError
        for a file that is damaged or of another model. After an error the earlier files are still played.
        """
        if path is None:
            self._change({}, ())
            return
        content = self.bundle.manifest
        ranks = {name: rank for name, of in content.components.items() if (rank := rank_of(of))}
        target = component or family_of(content).denoiser
        if target not in ranks:
            advice = f"Choose {' or '.join(ranks)}." if ranks else "Export the checkpoint with --lora-rank 64."
            raise UsageError(f"{target} of the bundle {content.name!r} takes no LoRA at run time. {advice}")
        if not math.isfinite(factor):
            raise UsageError(f"{path} has the factor {factor}. Give a finite number, such as 0.8.")
        file = read_lora(path)
        held = {name: {module: list(of) for module, of in mods.items()} for name, mods in self._held.items()}
        held = held if add else {}
        targets = {name: self._modules(name) for name in ranks}
        seen: dict[tuple[str, frozenset[str]], str] = {}
        for stem, parts in file.modules.items():
            name, modules = _find(file, stem, parts, targets, target)
            own = frozenset(of.module for of in modules)
            if (twin := seen.setdefault((name, own), stem)) != stem:  # as at a merge, or it would count twice
                raise CheckpointError(f"{path} changes one weight as {twin!r} and as {stem!r}. Fetch the file again.")
            self._add(held.setdefault(name, {}), file, (stem, factor), modules, name)
        for name, of in held.items():
            for module, halves in of.items():
                need = sum(len(half.down) for half in halves)
                if need > ranks[name]:
                    raise UsageError(
                        f"{path} brings {module!r} to rank {need}, and the bundle {content.name!r} takes "
                        f"{ranks[name]}. Export the checkpoint with --lora-rank {need}."
                    )
        with reading(path), path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        entry = {"file": path.name, "sha256": digest, "factor": factor, "component": target}
        made = {name: _feeds(content.components[name], of) for name, of in held.items()}
        for name, feeds in made.items():
            if any(not np.isfinite(array).all() for array in feeds.values()):
                raise UsageError(f"{path} overflows the precision of {name}. Lower its factor of {factor:g}.")
        self._change(held, (*(self.used if add else ()), entry))
        self._feeds |= made

    def _change(self, held: dict[str, dict[str, list[_Halves]]], used: tuple[dict[str, Any], ...]) -> None:
        self._held, self.used, self._feeds = held, used, {}
        self.version += 1

    def _modules(self, component: str) -> dict[str, tuple[_Target, ...]]:
        """Return the modules of a component by their names, dots as underscores."""
        spec = self.bundle.manifest.components[component]
        rows = {module: up.shape[0] for module, _, up in adapted(spec)}
        file = f"{Path(spec.graph).parent.as_posix()}/{NAMES}" if "/" in spec.graph else f"{component}/{NAMES}"
        found: dict[str, tuple[_Target, ...]] = {}
        if file in self.bundle.manifest.files:
            self.bundle.check_unchanged(file)
            found |= _original(self.bundle.path(file), rows)
        for module in rows:
            for name in (module.replace(".to_out.0", ".to_out"), module):
                found[name.replace(".", "_")] = (_Target(module),)
        return found

    def _add(
        self, held: dict[str, list[_Halves]], file: LoraFile, change: tuple[str, float],
        targets: tuple[_Target, ...], component: str,
    ) -> None:  # fmt: skip
        stem, factor = change
        parts = file.modules[stem]
        specs = {m: (down, up) for m, down, up in adapted(self.bundle.manifest.components[component])}
        down, up = parts["down"].shape, parts["up"].shape
        rows = sum(int(specs[target.module][1].shape[0]) for target in targets)
        taken = int(specs[targets[0].module][0].shape[1])
        fits = len(down) >= 2 and len(up) >= 2 and (down[0], math.prod(down[1:])) == (up[1], taken)
        if not fits or (up[0], math.prod(up[2:])) != (rows, 1):
            raise UsageError(
                f"{file.path} has {list(up)} by {list(down)} for {parts['down'].name!r}, a weight of {[rows, taken]}. "
                f"{ADVICE}"
            )
        rank = down[0]
        if rank > rank_of(self.bundle.manifest.components[component]):  # before any memory is taken
            raise UsageError(
                f"{file.path} brings {parts['down'].name!r} to rank {rank}, above that of the bundle. "
                f"Export the checkpoint with --lora-rank {rank}."
            )
        by = np.float32(file.scale(stem, component, rank) * factor)
        low = read_tensor(file.path, parts["down"]).reshape(rank, taken)
        wide = read_tensor(file.path, parts["up"]).reshape(rows, rank) * by
        for target in targets:
            own = wide if target.runs is None else np.concatenate([wide[a : a + n] for a, n in target.runs])
            held.setdefault(target.module, []).append(_Halves(low, own))


def _find(
    file: LoraFile, stem: str, parts: Mapping[str, Tensor],
    targets: Mapping[str, Mapping[str, tuple[_Target, ...]]], target: str,
) -> tuple[str, tuple[_Target, ...]]:  # fmt: skip
    """Return the component and the modules that a file calls `stem`."""
    key = next(iter(parts.values())).name
    place = next(
        ((n, targets[n][module]) for n, module in readings(stem, targets, target) if module in targets.get(n, {})), None
    )
    if place is None:
        raise UsageError(f"{file.path} changes {key!r}, which takes no LoRA at run time in this bundle. {MERGE}")
    other = min(parts.keys() - KNOWN, default=None)
    if other is not None or not parts.keys() >= {"down", "up"}:
        shown = parts[other].name if other else key
        raise UsageError(f"{file.path} holds {shown!r}; at run time a change is two halves and an alpha. {MERGE}")
    return place


def _feeds(spec: Component, held: Mapping[str, Sequence[_Halves]]) -> Feeds:
    feeds = zeros(spec.inputs)
    for module, halves in held.items():
        low, wide = feeds[f"{PREFIX}{module}{DOWN}"], feeds[f"{PREFIX}{module}{UP}"]
        place = 0
        with np.errstate(over="ignore"):  # the caller looks for infinities
            for half in halves:
                end = place + len(half.down)
                low[place:end], wide[:, place:end] = half.down, half.up
                place = end
    if held and SCALE in feeds:
        feeds[SCALE][:] = 1
    return feeds


def _original(path: Path, rows: Mapping[str, Any]) -> dict[str, tuple[_Target, ...]]:
    """Read the names of the original layout; raises BundleError for a file that does not fit the graph."""
    try:
        if path.stat().st_size > MAX_NAMES:
            raise ValueError(f"it has more than {MAX_NAMES} bytes")
        table = json.loads(path.read_bytes())
        found = {
            str(name): tuple(_Target(module, [(int(a), int(n)) for a, n in runs]) for module, runs in of)
            for name, of in table.items()
        }
        for name, of in found.items():
            total = sum(rows[target.module] for target in of)
            for target in of:
                runs = target.runs or ()
                if any(a < 0 or n < 1 or a + n > total for a, n in runs):
                    raise ValueError(f"{name!r} has rows beyond {total}")
                if sum(n for _, n in runs) != rows[target.module]:
                    raise ValueError(f"{name!r} does not have the rows of {target.module!r}")
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise BundleError(f"{path} is not as Segue writes it: {error}.", "Export the checkpoint again.") from None
    return found
