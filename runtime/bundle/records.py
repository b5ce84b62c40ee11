"""What a bundle tells people: its origin, and how near its results are to those of its model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parity:
    """One comparison of a component in ONNX Runtime with PyTorch, on fresh random inputs of these shapes.

    A quantized component is compared with the same weights in fp32, in ONNX Runtime; the note names the inputs.
    """

    component: str
    shapes: dict[str, tuple[int, ...]]
    relative_l2: float | None
    maximum: float | None
    gate: float | None
    note: str = ""  # "not checked: memory", "checked through its fp32 twin", "against its weights in fp32", or empty


@dataclass(frozen=True)
class Fidelity:
    """The pixels of a bundle compared with those of the same weights in fp32, from the same noise, on the processor.

    `against` names the reference. For an exported bundle it is "the checkpoint in fp32". For a quantized bundle it is
    the sha256 of its source bundle, followed by " in fp32": the weights of that bundle, computed in fp32. `psnr` is in
    dB over all pixels of `pictures` pictures or clips; export makes no bundle below `gate`. `source` is the fidelity of
    a quantized bundle's source.
    """

    against: str
    pictures: int
    psnr: float
    gate: float
    source: Fidelity | None = None


@dataclass(frozen=True)
class Merged:
    """A LoRA file that was merged at export: its name, its sha256, and its factor."""

    file: str
    sha256: str
    factor: float


@dataclass(frozen=True)
class Provenance:
    """The source of the weights, their licence and credits, the exporter, and the merged LoRA files."""

    source: str
    revision: str
    licence: str
    credits: tuple[str, ...]
    exporter: dict[str, str]  # package name -> version
    merged: tuple[Merged, ...] = ()
    single_file: str = ""  # the file that holds the weights; if set, the bundle is no diffusers checkpoint
