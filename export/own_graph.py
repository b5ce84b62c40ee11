"""Make a bundle from an ONNX graph that somebody has already: a network of pixels, without prompt and decoder."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx_ir as ir

from ..engines.ort.engine import OrtEngine
from ..errors import CheckpointError, SegueError, UsageError
from ..runtime.bundle import bundle_json, manifest
from ..runtime.bundle.families import FAMILIES, UNET
from ..runtime.bundle.limits import BETAS
from ..runtime.storage.directory import NewDirectory
from .checkpoint import convert as weights
from .checkpoint.headers import reading
from .graphs.cost_model import cost_model

FAMILY = FAMILIES["pixel-unet"]
GRAPH, WEIGHTS = f"{UNET}/model.onnx", f"{UNET}/model.onnx.data"
LATENTS, TIME = "hidden_states", "timestep"  # the runtime's names of a denoiser's inputs
VECTOR = "segue_timestep"
SMALL = 1024  # bytes of a tensor that stays in the graph
FLOATS = {ir.DataType.FLOAT: "float32", ir.DataType.FLOAT16: "float16"}
PREDICTIONS = ("sample", "epsilon", "v_prediction")


@dataclass(frozen=True)
class Play:
    """How a graph is played: the sampler, what the network gives, and the steps or their own `timesteps`.

    `betas` are the ends of the scaled-linear table that the network was trained on. `size` is (height, width) in
    pixels; None takes the graph's own. `fixed` gives other inputs of the graph one number each, such as a class.
    """

    sampler: str = "euler"
    prediction: str = "sample"
    steps: int = 1
    timesteps: tuple[int, ...] = ()
    betas: tuple[float, float] = (0.00085, 0.012)
    size: tuple[int, int] | None = None
    fixed: Mapping[str, float] | None = None


def import_graph(source: Path, out: Path, play: Play = Play(), name: str | None = None) -> manifest.Manifest:
    """Write the ONNX file `source` as the bundle `out` of the family "pixel-unet", and return its manifest.

    The graph takes pictures [batch, 3, height, width] and a timestep, and gives an array of that shape, in [-1, 1] if
    it is the picture. It is run once. Raises CheckpointError for a graph of another form or one that fails, UsageError
    for a wrong `play`, OutputError for `out`.
    """
    if play.sampler not in BETAS or play.prediction not in PREDICTIONS:
        raise UsageError(
            f"the sampler is {play.sampler!r} and the prediction {play.prediction!r}. Choose one of "
            f"{', '.join(BETAS)}, and one of {', '.join(PREDICTIONS)}."
        )
    if list(play.timesteps) != sorted({*play.timesteps}, reverse=True):
        raise UsageError(f"the timesteps are {', '.join(map(str, play.timesteps))}. Give them from noise to picture.")
    new = NewDirectory(out)
    model = _loaded(source)
    size = _prepare(model, source, play)
    with new:
        (new.path / UNET).mkdir()
        ir.save(model, new.path / GRAPH, external_data=Path(WEIGHTS).name, size_threshold_bytes=SMALL)
        held = [file for file in (GRAPH, WEIGHTS) if (new.path / file).exists()]
        files = {f: manifest.File(weights.digest(new.path / f), (new.path / f).stat().st_size, False) for f in held}
        made = _manifest(model, files, play, size, name or new.target.name, source)
        bundle_json.parse(bundle_json.dump(made), manifest.FILE_NAME)  # it bounds the picture that is tried
        _try(new.path / GRAPH, source, size)
        made = replace(made, components={UNET: _counted(new.path, made, source)})
        data = bundle_json.dump(made)
        bundle_json.parse(data, manifest.FILE_NAME)
        (new.path / manifest.FILE_NAME).write_bytes(data)
        new.commit()
    return made


def _loaded(source: Path) -> ir.Model:
    """Return the graph; its external data must lie beside it."""
    with reading(source):
        source.open("rb").close()
    try:
        model = ir.load(source)
        for tensor in [v.const_value for graph in model.graphs() for v in graph.initializers.values()]:
            if isinstance(tensor, ir.ExternalTensor):
                place = (source.parent / tensor.location).resolve()
                if not place.is_relative_to(source.parent.resolve()) or not place.is_file():
                    raise CheckpointError(
                        f"{source} reads {tensor.name!r} from {tensor.location!r}, which is not a file beside it. Put "
                        "the graph's data there."
                    )
                if (tensor.offset or 0) + tensor.nbytes > place.stat().st_size:
                    raise CheckpointError(
                        f"{source} reads {tensor.name!r} beyond the end of {tensor.location!r}. Copy that file again."
                    )
    except CheckpointError:
        raise
    except Exception as error:  # the parser raises many types
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{source} is not an ONNX graph: {what[:200]}. Give the .onnx file.") from None
    return model


def _prepare(model: ir.Model, source: Path, play: Play) -> tuple[int, int]:
    """Give the graph's inputs and output the runtime's names and fixed sizes; return (height, width)."""
    graph = model.graph
    for value in [v for v in graph.inputs if v.name in graph.initializers]:  # a default, as old exporters write it
        graph.inputs.remove(value)
    for name, number in (play.fixed or {}).items():
        _fix(graph, name, number, source)
    pictures = [v for v in graph.inputs if v.shape is not None and len(v.shape) == 4]
    others = [v for v in graph.inputs if v not in pictures]
    form = f"{source} takes {', '.join(_told(v) for v in graph.inputs) or 'nothing'}"
    if len(pictures) != 1 or pictures[0].shape is None or pictures[0].shape[1] != 3 or pictures[0].dtype not in FLOATS:
        raise CheckpointError(f"{form}; Segue feeds one picture [batch, 3, height, width] in fp32 or fp16. Change it.")
    if len(others) != 1 or (others[0].shape is not None and len(others[0].shape) > 1):
        raise CheckpointError(
            f"{form}; Segue feeds one picture and one timestep. Give every other input a number: --fix NAME=NUMBER."
        )
    if not graph.outputs or not len(graph):
        raise CheckpointError(f"{source} gives nothing. Give a graph with an output.")
    picture, time = pictures[0], others[0]
    if time.dtype is None or graph.outputs[0].dtype not in FLOATS:
        raise CheckpointError(
            f"{source} must state the type of its timestep, and give a picture in fp32 or fp16. Export it so."
        )
    assert picture.shape is not None
    own = [side if isinstance(side, int) else None for side in picture.shape[2:]]
    size = play.size or (own[0], own[1])
    if None in size:
        raise UsageError(f"{source} takes pictures of any size. Give the size that it was trained at: --size 64x64.")
    if any(side not in (None, asked) for side, asked in zip(own, size, strict=True)):
        text = f"{source} takes pictures of {own[1]}x{own[0]}, and --size is {size[1]}x{size[0]}."
        raise UsageError(text, "Leave --size out.")
    if picture.shape[0] != 1 and isinstance(picture.shape[0], int):
        raise CheckpointError(
            f"{source} takes {picture.shape[0]} pictures at once, and Segue feeds one. Make the graph again with a "
            "batch of 1, or with a free batch."
        )
    batch = picture.shape[0] if isinstance(picture.shape[0], int) else "batch"
    for node in graph:
        for value in node.outputs:
            value.shape = None
            if value.name in (LATENTS, TIME, VECTOR, FAMILY.output):  # names that others get below
                value.name = f"{value.name}.own"
    picture.name, picture.shape = LATENTS, ir.Shape([batch, 3, *size])
    if time.shape is not None and len(time.shape) == 0:
        _from_vector(graph, time)
    else:
        kept = time.shape[0] if time.shape is not None and isinstance(time.shape[0], int) else "batch"
        time.name, time.shape = TIME, ir.Shape([kept])
    del graph.outputs[1:]
    graph.outputs[0].name, graph.outputs[0].shape = FAMILY.output, ir.Shape([batch, 3, *size])
    return int(size[0] or 0), int(size[1] or 0)


def _fix(graph: ir.Graph, name: str, number: float, source: Path) -> None:
    found = next((value for value in graph.inputs if value.name == name), None)
    if found is None or found.dtype is None:
        known = ", ".join(_told(value) for value in graph.inputs)
        raise UsageError(f"{source} has no input {name!r}; it takes {known}. Name one of these.")
    shape = [side if isinstance(side, int) else 1 for side in found.shape or ()]
    with np.errstate(all="ignore"):  # numbers that do not fit are found below, or by the run
        array = np.full(shape, number, np.float64).astype(found.dtype.numpy())
    if not found.dtype.is_floating_point() and (array != number).any():
        raise UsageError(f"{source} takes whole numbers for {_told(found)}, got {number:g}. Give one that fits.")
    graph.inputs.remove(found)
    found.const_value = ir.tensor(array, name=name)
    found.shape = ir.Shape(shape)
    graph.register_initializer(found)


def _from_vector(graph: ir.Graph, scalar: ir.Value) -> None:
    """Let the graph take a timestep [1] where it takes a number without dimensions."""
    vector = ir.Value(name=TIME, shape=ir.Shape([1]), type=ir.TensorType(scalar.dtype or ir.DataType.FLOAT))
    axis = ir.Value(name="segue_axis", const_value=ir.tensor(np.array([0], np.int64), name="segue_axis"))
    graph.register_initializer(axis)
    node = ir.node("Squeeze", [vector, axis])
    node.outputs[0].name = VECTOR
    graph.insert_before(graph[0], node)
    ir.convenience.replace_all_uses_with(scalar, node.outputs[0])
    place = graph.inputs.index(scalar)
    graph.inputs[place] = vector


def _told(value: ir.Value) -> str:
    shape = "?" if value.shape is None else ", ".join(str(side) for side in value.shape)
    return f"{value.name} [{shape}]"


def _manifest(
    model: ir.Model, files: dict[str, manifest.File], play: Play, size: tuple[int, int], name: str, source: Path
) -> manifest.Manifest:
    def port(value: ir.Value) -> manifest.TensorSpec:
        assert value.dtype is not None
        assert value.shape is not None
        shape = tuple(side if isinstance(side, int) else str(side.value) for side in value.shape)
        return manifest.TensorSpec(str(value.name), np.dtype(value.dtype.numpy()).name, shape)

    graph, values = model.graph, [v.const_value for v in model.graph.initializers.values()]
    latents = next(value for value in graph.inputs if value.name == LATENTS)
    unet = manifest.Component(
        graph=GRAPH, weights=(WEIGHTS,) if WEIGHTS in files else (),
        precision={"float32": "fp32", "float16": "fp16"}[port(latents).dtype],
        parameters=sum(math.prod(v.shape.numpy()) for v in values if v is not None and v.dtype.is_floating_point()),
        opset=model.opset_imports.get("", 1), inputs=tuple(map(port, graph.inputs)),
        outputs=(port(graph.outputs[0]),),
    )  # fmt: skip
    noise = manifest.NoisePrediction(play.betas, "trailing", 0, play.prediction, play.timesteps)
    steps = len(play.timesteps) or play.steps
    versions = {package: importlib.metadata.version(package) for package in ("segue", "onnx-ir")}
    return manifest.Manifest(
        schema=manifest.SCHEMA, name=name, family=FAMILY.name, components={UNET: unet}, tokenizers={},
        sampler=manifest.Sampler(play.sampler, 1.0, 1000, steps, 1.0, noise=noise),
        latents=manifest.Latents(3, 1, 1, 1.0, 0.0),
        sizes=manifest.Sizes(size, min(size), max(size), math.gcd(*size), (size,)), t5_tokens=0,
        provenance=manifest.Provenance(source.name, weights.digest(source), "unknown", (), versions), files=files,
    )  # fmt: skip


def _counted(bundle: Path, content: manifest.Manifest, source: Path) -> manifest.Component:
    """Return the network with the model of its cost; raises CheckpointError for operators that cannot be counted."""
    try:
        return replace(content.components[UNET], cost=cost_model(bundle, content, UNET))
    except SegueError:
        raise
    except Exception as error:  # onnx raises many types, all derived only from Exception
        what = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"the work of {source} cannot be counted: {what[:200]}. Export it with operators of ONNX alone."
        ) from None


def _try(graph: Path, source: Path, size: tuple[int, int]) -> None:
    """Run the graph once on zeros; raises CheckpointError unless it gives a picture of numbers."""
    try:
        with OrtEngine(graph) as engine:
            batch = {spec.name: spec.shape[0] if isinstance(spec.shape[0], int) else 1 for spec in engine.inputs}
            feeds = {
                LATENTS: np.zeros((batch[LATENTS], 3, *size), np.float32), TIME: np.zeros(batch[TIME], np.float32),
            }  # fmt: skip
            made = engine.run(feeds)[FAMILY.output]
    except SegueError as error:
        what = error.what.replace(str(graph.parent), str(source.parent))
        raise CheckpointError(f"{source} does not run: {what} Export it again with the tool that made it.") from None
    if made.shape != feeds[LATENTS].shape or not np.isfinite(made).all():
        raise CheckpointError(
            f"{source} gives {list(made.shape)} for a picture of {list(feeds[LATENTS].shape)}, or NaN. The output "
            "must have the picture's shape and finite values. Correct the graph."
        )
