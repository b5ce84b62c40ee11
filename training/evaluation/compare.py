"""Compare two bundles, or a bundle and finished pictures, on your prompts: quality, time, memory, cost, verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...engines.targets import DEFAULT
from ...errors import UsageError
from ...runtime.bundle.reader import read
from ...runtime.diagnostics.bench import BundleProcess
from ...runtime.input_picture import digest_of
from ...runtime.media.read_image import fitted, read_image
from ...runtime.request import check_size
from ..metrics.nets import Lite0, embed_names
from ..metrics.scores import fit_retriever, kid
from ..pictures.dataset import Pictures
from ..pictures.text_encoders import picture_features
from .measures import diversity, lpips

Progress = Callable[[str, int, int], None]
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class CompareSpec:
    """The task of both sides: prompts, time limit of a picture in seconds, pictures for each prompt, (height, width).

    `price` is the price of this machine per hour, in any currency. `target` runs the graphs. `steps` None means each
    bundle's default. `inputs` are the pictures that both get, and what belongs to them: further arguments of `Request`.
    """

    prompts: tuple[str, ...]
    budget: float
    seeds: int = 2
    size: tuple[int, int] | None = None
    threads: int | None = None
    price: float | None = None
    target: str = DEFAULT
    steps: int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """Return the task as JSON types: of the pictures in `inputs`, the sha256 of their pixels."""
        told = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "inputs"}
        return told | ({"inputs": {name: _told(value) for name, value in self.inputs.items()}} if self.inputs else {})


@dataclass(frozen=True)
class Side:
    """One side: pictures (prompts, seeds, height, width, 3) uint8, seconds of each (None: finished before), figures.

    Figures by name: "diversity", "agreement", "median s", "p95 s", "MiB", "cost of 1000". Figures without a
    measurement are absent.
    """

    name: str
    images: np.ndarray
    seconds: np.ndarray | None
    figures: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """Both sides, their gap ("LPIPS", "KID x 1e3"), and the verdict."""

    sides: tuple[Side, Side]
    gap: dict[str, float]
    verdict: str


def compare(first: str, second: str, spec: CompareSpec, data: Path | None, progress: Progress) -> Comparison:
    """Draw and measure. The bundles draw in turn, each in its own process, after one picture as a warm-up.

    Raises UsageError if the second side is neither a bundle nor a directory with a picture for each prompt.
    """
    pictures = _pictures(second, spec)
    size = check_size(spec.size, read(first).manifest.sizes)
    names = [first] if pictures is not None else [first, second]
    drawn = _drawn(names, spec, size, progress)
    if pictures is not None:
        images = np.stack([fitted(image, *size) for image in pictures])[:, None]
        drawn.append((images, None, None))
    tensors = [torch.from_numpy(images).movedim(-1, -3).float() / 127.5 - 1 for images, _, _ in drawn]
    net = Lite0()
    progress("measuring", 0, 3)
    features = [net.features(tensor.flatten(0, 1)) for tensor in tensors]
    progress("measuring", 1, 3)
    agreed = None if data is None else _agreement(data, spec.prompts, features)
    progress("measuring", 2, 3)
    sides = []
    for number, (name, (images, seconds, memory)) in enumerate(zip((first, second), drawn, strict=True)):
        figures: dict[str, float] = {}
        if images.shape[1] > 1:
            figures["diversity"] = float(np.mean(diversity(tensors[number])))
        if agreed is not None:
            figures["agreement"] = agreed[number]
        if seconds is not None and memory is not None:
            figures |= {"median s": float(np.median(seconds)), "p95 s": float(np.quantile(seconds, 0.95))}
            figures["MiB"] = memory / 2**20
            if spec.price is not None:
                figures["cost of 1000"] = 1000 * float(seconds.mean()) / 3600 * spec.price
        sides.append(Side(name, images, seconds, figures))
    sets = [found.unflatten(0, tensor.shape[:2]) for found, tensor in zip(features, tensors, strict=True)]
    gap = {"LPIPS": _apart(*tensors), "KID x 1e3": _sets_apart(*sets)}
    progress("measuring", 3, 3)
    return Comparison((sides[0], sides[1]), gap, verdict(sides[0], sides[1], gap, spec.budget))


def _told(value: Any) -> Any:
    if isinstance(value, list):
        return [_told(one) for one in value]
    return digest_of(value) if isinstance(value, np.ndarray) else value


def verdict(first: Side, second: Side, gap: dict[str, float], budget: float) -> str:
    """Say which side keeps the time limit in 95 of 100 pictures, and how far apart the pictures are."""
    said = []
    for side in (first, second):
        if "p95 s" not in side.figures:
            said.append(f"{side.name} holds finished pictures, without a time")
        else:
            slow = side.figures["p95 s"]
            holds = "keeps" if slow <= budget else "misses"
            said.append(f"{side.name} {holds} {1000 * budget:.0f} ms (95 % within {1000 * slow:.0f} ms)")
    of = "prompt" if second.seconds is None else "prompt and seed"
    return (
        f"{'; '.join(said)}. Pictures of the same {of} are {gap['LPIPS']:.3f} apart in LPIPS, both sets "
        f"{gap['KID x 1e3']:.1f} in KID x 1e3: look at them before you choose."
    )


def _apart(first: Tensor, second: Tensor) -> float:
    """Return the mean LPIPS between pictures (prompts, seeds, 3, height, width) of the same prompt and seed.

    A side with one picture for a prompt pairs it with each of the other side's.
    """
    first, second = torch.broadcast_tensors(first, second)
    return float(lpips(first.flatten(0, 1), second.flatten(0, 1)).mean())


def _sets_apart(first: Tensor, second: Tensor) -> float:
    """Return a thousand times the KID between Lite0 features (prompts, seeds, 1280) of two sets.

    If a side has one picture for a prompt, this is the mean over the other side's seeds. That side's rows are not
    repeated, because KID would take a picture and its copy for two pictures that are alike.
    """
    if first.shape[1] == second.shape[1]:
        return kid(second.flatten(0, 1), first.flatten(0, 1))[0]
    first, second = torch.broadcast_tensors(first, second)
    return float(np.mean([kid(there, here)[0] for here, there in zip(first.unbind(1), second.unbind(1), strict=True)]))


def rows_of(found: Comparison) -> list[tuple[str, str, str]]:
    """Return the figures as rows: name, first side, second side. The gap stands in the last column."""
    names = list(dict.fromkeys(name for side in found.sides for name in side.figures))
    first, second = (side.figures for side in found.sides)
    shown = lambda value: "" if value is None else f"{value:.3g}"  # noqa: E731
    rows = [(name, shown(first.get(name)), shown(second.get(name))) for name in names]
    return [*rows, *((f"{name} to the first", "", f"{value:.3g}") for name, value in found.gap.items())]


def _pictures(second: str, spec: CompareSpec) -> list[np.ndarray] | None:
    """Return the pictures of a directory, one for each prompt; None for a bundle."""
    folder = Path(second)
    if not folder.is_dir() or (folder / "bundle.json").is_file():
        read(second)  # the manifest's own error explains the fault
        return None
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)
    if len(paths) != len(spec.prompts):
        raise UsageError(
            f"{folder} has {len(paths)} pictures for {len(spec.prompts)} prompts. Put one picture for each prompt "
            "there, in the order of the file names."
        )
    return [read_image(path) for path in paths]


def _drawn(
    names: list[str], spec: CompareSpec, size: tuple[int, int], progress: Progress
) -> list[tuple[np.ndarray, np.ndarray | None, int | None]]:
    painters = [BundleProcess(name, spec.threads, spec.target) for name in names]
    try:
        for painter in painters:  # a warm-up, not counted
            painter.draw(spec.prompts[0], 0, size, spec.steps, spec.inputs)
        total, done = len(spec.prompts) * spec.seeds * len(names), 0
        made: list[list[Any]] = [[] for _ in names]
        for prompt in spec.prompts:
            for seed in range(spec.seeds):
                for number, painter in enumerate(painters):
                    made[number].append(painter.draw(prompt, seed, size, spec.steps, spec.inputs))
                    done += 1
                    progress("drawing", done, total)
    finally:
        for painter in painters:
            painter.close()
    shape = (len(spec.prompts), spec.seeds)
    return [
        (
            np.stack([one.image for one in side]).reshape(*shape, *size, 3),
            np.array([one.seconds for one in side]),
            max(one.memory for one in side),
        )
        for side in made
    ]


def _agreement(data: Path, prompts: tuple[str, ...], features: list[Tensor]) -> list[float]:
    """Return each side's agreement of pictures with prompts, as a cosine of MiniLM's embeddings.

    A ridge regression, fitted on the captioned pictures in `data`, maps Lite0 features to the embeddings of names. The
    score fits only that domain, and is comparable only with itself.
    """
    known = Pictures(data)
    names = [row.name for row in known.rows]
    reader = fit_retriever(picture_features(data, known), embed_names(names))
    texts, found = embed_names(list(prompts)), []
    for side in features:
        said = torch.cat([F.normalize(side, dim=-1), torch.ones(len(side), 1)], -1) @ reader
        wanted = texts.repeat_interleave(len(side) // len(prompts), 0)
        found.append(F.cosine_similarity(said, wanted, dim=-1).mean().item())
    return found
