"""What differs between the families of models that Segue exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...runtime.bundle.manifest import Template
from .base import Facts

if TYPE_CHECKING:
    from ..checkpoint.read import Checkpoint
    from .graph import Graph


@dataclass(frozen=True)
class Family:
    """One family: its name in bundles, the module of its graphs, the folders with weights, and what reads them.

    `template` and `tokens` are set where prompts are encoded inside a text of the pipeline's own.
    """

    name: str
    module: str
    folders: tuple[str, ...]
    optional: tuple[str, ...]  # folders that a checkpoint may have
    tokenizers: Mapping[str, str]  # folder, which a checkpoint may lack -> class of transformers
    check: Callable[[dict[str, Any]], None]  # of a model_index.json; raises CheckpointError
    facts: Callable[[Checkpoint], Facts]
    template: Template | None = None
    tokens: int | None = None

    def graphs(self, configs: Mapping[str, dict[str, Any]]) -> tuple[Graph, ...]:
        """Return the graphs of the checkpoint with those config.json files, by folder; imports torch."""
        from importlib import import_module

        graphs: tuple[Graph, ...] = import_module(f".{self.module}.graphs", __package__).graphs(configs)
        return graphs


def find(pipeline: object) -> Family:
    """Return the family of checkpoints whose model_index.json names this `_class_name`; raises CheckpointError."""
    known = families()
    if pipeline not in known:
        raise CheckpointError(
            f"The checkpoint is of {str(pipeline)[:80]!r}; Segue exports {', '.join(known)}. "
            "Name a checkpoint of one of these pipelines."
        )
    return known[str(pipeline)]


def families() -> dict[str, Family]:
    """Return the families by the pipelines of diffusers that they are checkpoints of."""
    from .longcat import facts as longcat_facts
    from .sd3 import facts as sd3_facts
    from .sdxl import facts as sdxl_facts
    from .wan import facts as wan_facts

    clip = dict.fromkeys(("tokenizer", "tokenizer_2"), "CLIPTokenizer")
    three = {**clip, "tokenizer_3": "T5Tokenizer"}
    return {
        sd3_facts.PIPELINE: Family(
            "sd3", "sd3", sd3_facts.FOLDERS, (sd3_facts.T5,), three, sd3_facts.check, sd3_facts.facts
        ),
        longcat_facts.PIPELINE: Family(
            "longcat-image", "longcat", longcat_facts.FOLDERS, (), {"tokenizer": "Qwen2Tokenizer"}, longcat_facts.check,
            longcat_facts.facts, longcat_facts.TEMPLATE, longcat_facts.TOKENS,
        ),
        sdxl_facts.PIPELINE: Family("sdxl", "sdxl", sdxl_facts.FOLDERS, (), clip, sdxl_facts.check, sdxl_facts.facts),
        wan_facts.PIPELINE: Family(
            "swifti2v", "wan", wan_facts.FOLDERS, (wan_facts.SECOND_EXPERT,), {"tokenizer": "T5Tokenizer"},
            wan_facts.check, wan_facts.facts,
        ),
    }  # fmt: skip
