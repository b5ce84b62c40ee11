"""The families of models that Segue exports, by the pipeline of diffusers."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...errors import CheckpointError
from ...runtime.bundle import families as table
from ...runtime.bundle.families import SECOND_EXPERT, T5, TINY, tokenizer_of
from ...runtime.bundle.manifest import Template
from .base import Facts
from .checks import check_tiny

if TYPE_CHECKING:
    from ..checkpoint.read import Checkpoint, Settings
    from .graph import Graph


@dataclass(frozen=True)
class Family:
    """One family: its row in the table of families, the package of its graphs, and the folders with weights.

    `template` and `tokens` are set if the pipeline encodes a prompt inside a text of its own. With `chat`, options of
    the tokenizer's chat template, that template gives the texts of `template`. `guided_above` is the guidance at
    which diffusers' pipeline leaves it off; Segue's is 1.
    """

    row: table.Family
    package: str
    folders: tuple[str, ...]
    tokenizers: Mapping[str, str]  # folder, which a checkpoint may lack -> class of transformers
    check: Callable[[dict[str, Any]], None]  # of a model_index.json; raises CheckpointError
    facts: Callable[[Checkpoint], Facts]
    optional: tuple[str, ...] = ()  # folders that a checkpoint may have
    template: Template | None = None
    chat: Mapping[str, Any] | None = None
    tokens: int | None = None
    guided_above: float = 1.0
    pipelines: tuple[str, ...] = ()  # of videos: the pipelines that may hold the family
    holds: Callable[[Mapping[str, Any]], bool] = lambda index: False  # and whether a model_index.json is of it

    @property
    def name(self) -> str:
        """Return the family's name in bundles."""
        return self.row.name

    def tokens_of(self, settings: Settings, folder: str) -> int | None:
        """Return the number of tokens that a prompt is padded to; None if the text encoder's own length decides."""
        if folder == tokenizer_of(T5):
            return settings.t5_tokens
        return settings.video.text_tokens if self.row.moving else self.tokens

    def graphs(self, configs: Mapping[str, dict[str, Any]], takes: Collection[str] = ()) -> tuple[Graph, ...]:
        """Return the graphs of a checkpoint; `configs` holds its config.json files by folder. Imports torch.

        `takes` names the inputs that the step graphs have for the sampler (`step.inputs_for`).
        """
        from importlib import import_module

        graphs: tuple[Graph, ...] = import_module(f"{self.package}.graphs").graphs(configs, takes)
        if TINY not in configs:
            return graphs
        from .modules import tiny_decoder

        return (*graphs, tiny_decoder(configs[TINY]))


def find(index: Mapping[str, Any]) -> Family:
    """Return the family of a checkpoint with the model_index.json `index`; raises CheckpointError if unknown."""
    pipeline, known, moving = index.get("_class_name"), families(), videos()
    for family in moving:
        if pipeline in family.pipelines and family.holds(index):
            return family
    if not isinstance(pipeline, str) or pipeline not in known:
        names = dict.fromkeys((*known, *(name for family in moving for name in family.pipelines)))
        also = ""
        if isinstance(pipeline, str) and pipeline in names:
            also = " Of text to video it exports Wan 2.2 TI2V, whose model_index.json has expand_timesteps: true."
        raise CheckpointError(
            f"The checkpoint is of {str(pipeline)[:80]!r}; Segue exports {', '.join(names)}.{also} "
            "Choose a checkpoint of one of these pipelines."
        )
    return known[pipeline]


def named(name: str) -> Family:
    """Return the family of that name in bundles."""
    return next(family for family in (*families().values(), *videos()) if family.name == name)


def families() -> dict[str, Family]:
    """Return the families of pictures by `_class_name`, the pipeline of diffusers that a model_index.json names."""
    from .flux2_klein import facts as klein_facts
    from .longcat import facts as longcat_facts
    from .sd3 import facts as sd3_facts
    from .sdxl import facts as sdxl_facts
    from .zimage import facts as zimage_facts

    clip, t5 = "CLIPTokenizer", "T5Tokenizer"
    return {
        sd3_facts.PIPELINE: _family("sd3", sd3_facts, (clip, clip, t5), optional=(T5,)),
        longcat_facts.PIPELINE: _family(
            "longcat-image", longcat_facts, ("Qwen2Tokenizer",), template=longcat_facts.TEMPLATE,
            tokens=longcat_facts.TOKENS,
        ),
        klein_facts.PIPELINE: _family(
            "flux2-klein", klein_facts, ("Qwen2Tokenizer",), template=klein_facts.TEMPLATE, tokens=klein_facts.TOKENS,
            chat=klein_facts.CHAT,
        ),
        zimage_facts.PIPELINE: _family(
            "z-image", zimage_facts, ("Qwen2Tokenizer",), template=zimage_facts.TEMPLATE,
            chat=zimage_facts.CHAT, tokens=zimage_facts.TOKENS, guided_above=0.0,
        ),
        sdxl_facts.PIPELINE: _family("sdxl", sdxl_facts, (clip, clip)),
    }  # fmt: skip


def videos() -> tuple[Family, ...]:
    """Return the families of videos, whose pipelines several of them share; the first that `holds` an index has it."""
    from .swifti2v import facts as swifti2v
    from .wan_i2v import facts as wan_i2v
    from .wan_ti2v import facts as wan_ti2v

    rows = (
        ("swifti2v", swifti2v, (SECOND_EXPERT,)), ("wan-ti2v", wan_ti2v, ()), ("wan-i2v", wan_i2v, (SECOND_EXPERT,)),
    )  # fmt: skip
    return tuple(
        _family(name, facts, ("T5Tokenizer",), optional=optional, pipelines=facts.PIPELINES, holds=facts.holds)
        for name, facts, optional in rows
    )


def _family(name: str, facts: Any, tokenizers: Sequence[str], **others: Any) -> Family:
    """Return the family of that name in the table; `tokenizers` gives the class of each of its tokenizers, in order."""
    row = table.FAMILIES[name]
    classes = dict(zip(row.tokenizers.values(), tokenizers, strict=True))

    def read(found: Checkpoint) -> Facts:
        settings = found.settings
        steps = row.steps if settings.steps is None else settings.steps
        guidance = row.guidance if settings.guidance is None else settings.guidance
        filled = replace(settings, steps=steps, guidance=guidance)
        made: Facts = facts.facts(replace(found, settings=filled))
        if TINY in found.parts:
            check_tiny(found.parts[TINY].config, made.latents)
        return made

    if not row.moving:
        others["optional"] = (*others.get("optional", ()), TINY)
    return Family(row, facts.__package__, facts.FOLDERS, classes, facts.check, read, **others)
