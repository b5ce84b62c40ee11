"""Read a staged single file as a checkpoint, and point its tensors into the file that a bundle holds."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch

from ....errors import BundleError, CheckpointError
from ....runtime.bundle.bundle_json import check_path
from ....runtime.storage.safetensors import read_tensor
from .. import convert as weights
from .. import headers, read
from ..headers import Tensor
from ..view import link
from .converters import State, converter
from .layout import V_PREDICTION, ZERO_SNR, Place, held, pipeline_of, tensors_of, unused
from .probe import Convert, Found, compute, probe

PATCH = "single_patch.safetensors"  # in the component's folder


@dataclasses.dataclass(frozen=True)
class Component:
    """One component in a single file: the file's tensors, their conversion, and what it makes."""

    folder: str
    tensors: dict[str, Tensor]
    convert: Convert
    found: Found

    def load(self, path: Path, name: str) -> torch.Tensor:
        """Return a converted tensor, float32; `path` is the single file."""
        if name in self.found.ranges:
            return torch.from_numpy(read_tensor(path, self.found.ranges[name]).copy())
        tensors = self.tensors

        def source(key: str) -> torch.Tensor:
            return torch.from_numpy(read_tensor(path, tensors[key]).copy())

        return compute(name, self.found, tensors, self.convert, source)


def folders_of(root: Path, single: str) -> dict[str, Place]:
    """Return the components that the single file of a bundle or a staged checkpoint holds; empty without one."""
    if not single:
        return {}
    table = headers.read(root / single, single)
    return held(table, pipeline_of(table, single))


def component(root: Path, single: str, folder: str) -> Component:
    """Return one component of the single file in the directory `root`.

    Raises CheckpointError for a file that diffusers cannot convert.
    """
    table = headers.read(root / single, single)
    pipeline = pipeline_of(table, single)
    place = held(table, pipeline)[folder]
    config = read.read_json(root / folder / "config.json", root)
    tensors, convert = tensors_of(table, place), converter(pipeline, place, config)
    try:
        return Component(folder, tensors, convert, probe(tensors, convert))
    except (KeyError, IndexError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{single} cannot be converted to {folder} by diffusers ({type(error).__name__}: {str(error)[:200]}). "
            "It lacks tensors, or its base is of another model. Fetch it again, or give another --base."
        ) from None


def read_staged(
    root: Path, folders: tuple[str, ...], single: str, title: str, note: Callable[[str], None] = lambda text: None
) -> read.Checkpoint:
    """Return the checkpoint at `root`, whose file `single` holds the weights of some of `folders` (empty: no file).

    `title` is the model's name, and `note` gets remarks for people. Raises CheckpointError as `read.read` does, and for
    a file that diffusers cannot convert.
    """
    if not single:
        return dataclasses.replace(read.read(root, folders), title=title)
    places = folders_of(root, single)
    found = read.read(root, tuple(folder for folder in folders if folder not in places))
    try:
        check_path(single, str(root))
    except BundleError:
        raise CheckpointError(
            f"{single!r} cannot be a bundle's file name, which is printable and has neither ':' nor a backslash. "
            "Rename the file."
        ) from None
    named = [folder for folder in places if found.has(folder)]
    for folder in places.keys() - named:
        note(f"{single}: its {folder} is left unused, because the base has none")
    parts = dict(found.parts)
    for folder in named:
        made = component(root, single, folder)
        dtype = next((t.dtype for t in made.tensors.values() if t.dtype.startswith(("F", "BF"))), "F32")
        size = headers.ITEM_BYTES[dtype]
        computed = {
            name: Tensor(name, f"{folder}/{PATCH}", 0, size * math.prod(shape), dtype, shape)
            for name, shape in made.found.computed.items()
        }
        config = read.read_json(root / folder / "config.json", root)
        parts[folder] = read.Part(folder, config, (single,), made.found.ranges | computed)
    table = headers.read(root / single, single)
    base = found.settings  # how the base draws, and whose it is, says nothing about the file
    settings = read.Settings(
        t5_tokens=base.t5_tokens, maximum_size=base.maximum_size, trained=base.trained,
        prediction=_prediction(table, root, single),
    )  # fmt: skip
    files = tuple(sorted({*found.files, single}))
    rest = unused(table, pipeline_of(table, single))
    if rest:
        note(f"{single}: {len(rest)} tensors belong to no component, such as {min(rest)!r}")
    return dataclasses.replace(found, parts=parts, settings=settings, files=files, title=title, single=single)


def tensors_in(
    found: read.Checkpoint, root: Path, kinds: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], list[str]]:
    """Return the tensors of each part by folder, as the files of the new bundle at `root` hold them.

    Parts in a single file may get a patch file beside their config; the second result names those.
    """
    tensors, patches = {}, []
    for folder, part in found.parts.items():
        if found.single in part.weights:
            tensors[folder] = placed(found.root, root, found.single, folder, kinds[folder])
            patches += [f"{folder}/{PATCH}"] if (root / folder / PATCH).is_file() else []
        else:
            tensors[folder] = dict(read.read_part(root, folder).tensors)
    return tensors, patches


def placed(source: Path, root: Path, single: str, folder: str, kind: str) -> dict[str, Tensor]:
    """Return the tensors of one component in the bundle directory `root`, which holds the copied single file.

    What is no byte range of the copy is written to a patch file in the component's folder, in `kind`: computed tensors,
    and those that the copy holds rounded although this component keeps its precision. They are read from `source`, the
    staged checkpoint, one at a time.
    """
    copied, original = component(root, single, folder), component(source, single, folder)
    dtype = weights.DTYPES[kind]
    ranges = original.found.ranges
    wrong = [n for n, t in copied.found.ranges.items() if t.dtype != dtype and ranges[n].dtype == dtype]
    shapes = copied.found.computed | {name: copied.found.ranges[name].shape for name in wrong}
    if not shapes:
        return copied.found.ranges
    file = f"{folder}/{PATCH}"
    size = headers.ITEM_BYTES[dtype]
    head = headers.encode([(name, dtype, shape, size * math.prod(shape)) for name, shape in shapes.items()])
    with (root / file).open("xb") as out:
        out.write(head)
        for name in shapes:
            array = original.load(source / single, name).contiguous().numpy()
            out.write(weights.pack(array, dtype))
    return copied.found.ranges | headers.read(root / file, file)


def write_ranges(root: Path, single: str, folder: str, target: Path) -> None:
    """Write one component of the bundle at `root` as a safetensors file in fp32, from its byte ranges and its patch."""
    tensors = component(root, single, folder).found.ranges
    patch = f"{folder}/{PATCH}"
    if (root / patch).is_file():
        tensors = tensors | headers.read(root / patch, patch)
    floating = [t for t in tensors.values() if t.dtype.startswith(("F", "BF"))]
    with target.open("xb") as out:
        out.write(headers.encode([(t.name, "F32", t.shape, 4 * math.prod(t.shape)) for t in floating]))
        for tensor in floating:
            out.write(weights.pack(read_tensor(root / tensor.file, tensor), "F32"))


def write_folder(root: Path, single: str, folder: str, target: Path) -> Path:
    """Write one component as a folder of a diffusers checkpoint below `target`, converted by diffusers, and return it.

    `root` is a bundle or a staged checkpoint. The weights are those of the single file, read whole: this is how the
    checks get a model that shares no byte range with the graphs.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    made = component(root, single, folder)
    (target / folder).mkdir(parents=True)
    with safe_open(str(root / single), "pt") as file:
        state: State = {name: file.get_tensor(name) for name in made.tensors}
    converted = {name: value.contiguous().clone() for name, value in made.convert(state).items() if value is not None}
    config = root / folder / "config.json"
    stem = read.STEMS[0 if "_class_name" in read.read_json(config, root) else 1]  # diffusers writes that key
    save_file(converted, target / folder / f"{stem}.safetensors", {"format": "pt"})
    (target / folder / "config.json").write_bytes(config.read_bytes())
    return target / folder


@contextmanager
def plain_folder(root: Path, single: str, folder: str, scratch: str | None = None) -> Iterator[Path]:
    """Yield a folder that diffusers or transformers loads: the one at `root`, or one written from the single file."""
    if folder not in folders_of(root, single):
        yield root / folder
        return
    with tempfile.TemporaryDirectory(prefix="segue-single-", dir=scratch) as directory:
        yield write_folder(root, single, folder, Path(directory))


@contextmanager
def plain_checkpoint(root: Path, single: str) -> Iterator[Path]:
    """Yield a checkpoint that diffusers loads: `root` itself, or with what its single file holds written as folders."""
    inside = folders_of(root, single)
    if not inside:
        yield root
        return
    with tempfile.TemporaryDirectory(prefix="segue-single-") as directory:
        target = Path(directory)
        for path in root.rglob("*.*"):
            folder = path.relative_to(root).parts[0]
            if path.is_file() and folder not in inside and path.suffix != ".onnx" and path.name != single:
                link(path, target / path.relative_to(root))
        for folder in inside:
            if (root / folder / "config.json").is_file():
                write_folder(root, single, folder, target)
        yield target


def _prediction(table: Mapping[str, Tensor], root: Path, single: str) -> str:
    """Return the prediction that the file asks for by an empty tensor; an empty string leaves it to the scheduler."""
    if V_PREDICTION not in table:
        return ""
    path = root / "scheduler/scheduler_config.json"
    if ZERO_SNR in table and not read.read_json(path, root).get("rescale_betas_zero_snr"):
        raise CheckpointError(
            f"{single} holds {ZERO_SNR!r}, so it was trained with rescale_betas_zero_snr, which Segue does not play. "
            "Choose another file."
        )
    return "v_prediction"
