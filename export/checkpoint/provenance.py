"""Where the weights of a bundle come from, and what made it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Sequence

from ...runtime.bundle import manifest
from . import convert, headers, read
from .hub import Origin
from .lora.merge import Lora

VERSIONS = ("segue", "torch", "diffusers", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime")


def provenance(found: read.Checkpoint, origin: Origin | None, loras: Sequence[Lora]) -> manifest.Provenance:
    """Return the provenance of a checkpoint with its merged LoRA files; `origin` is its source on the hub."""
    settings = found.settings
    if origin is not None:
        settings = dataclasses.replace(settings, source=origin.name, revision=origin.commit)
    source = settings.source if settings.source not in ("", "unknown") else found.title or found.root.resolve().name
    versions = {package: importlib.metadata.version(package) for package in VERSIONS}
    merged = []
    for lora in loras:
        with headers.reading(lora.path):
            merged.append(manifest.Merged(lora.path.name, convert.digest(lora.path), lora.scale))
    return manifest.Provenance(
        source, settings.revision, settings.licence, settings.credits, versions, tuple(merged), found.single
    )
