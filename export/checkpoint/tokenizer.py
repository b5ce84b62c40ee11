"""Write a tokenizers file for the runtime, and check that it gives the same ids as transformers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError
from ...runtime.bundle import manifest, tokens
from ...runtime.bundle.limits import MAX_TEXT, MAX_TOKENS
from ...runtime.bundle.manifest import Template
from ...runtime.units import is_whole

FILE = "tokenizer.json"
MARK = "\ue000"  # a private code point that stands for the prompt in a chat template
OWN_FILE = "segue_tokenizer.json"  # if the checkpoint's tokenizer.json gives other ids
PROBES = (
    "", "a red heart", "A  Photo of\ta CAT,\nsitting!", "it's 2024's café — naïve", "日本語 🦊🎉",
    "hello!!! !world ! a", "<|startoftext|> odd <|endoftext|> tokens", "x" * 300, "word " * 200,
    "Ünïcödé e\u0301 \u00a0 ＡＢＣ",
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """The tokenizers file relative to the bundle, whether export added it, and how prompts are padded."""

    file: str
    added: bool
    length: int
    pad_id: int
    template: Template | None = None


def write(
    bundle: Path,
    folder: str,
    length: int | None,
    kind: str = "CLIPTokenizer",
    template: Template | None = None,
    chat: Mapping[str, Any] | None = None,
) -> Written:
    """Make sure that the bundle at `bundle` has a tokenizers file for the tokenizer in `folder`, of class `kind`.

    Prompts are padded to `length` tokens; None takes the tokenizer's model_max_length (SD3's pipeline pads both CLIP
    prompts to the length of the first tokenizer). With a `template` prompts get no begin and end token; with `chat`,
    options of the tokenizer's own chat template, that template gives its texts. Raises CheckpointError for a tokenizer
    that cannot be loaded, and if no file gives transformers' ids on the probes.
    """
    import transformers
    from tokenizers import Tokenizer

    try:
        reference = getattr(transformers, kind).from_pretrained(str(bundle / folder), local_files_only=True)
    except Exception as error:  # the library raises many types, even a bare Exception from Rust
        raise CheckpointError(
            f"The tokenizer in {folder} cannot be loaded ({str(error)[:200]}). It needs tokenizer.json, or its "
            "vocabulary files. Fetch them again."
        ) from None
    length = length or reference.model_max_length
    if not is_whole(length) or not 1 <= length <= MAX_TOKENS:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json gives no model_max_length, so prompts cannot be padded. "
            "Add it there, as large as the text encoder's max_position_embeddings."
        )
    pad = reference.pad_token_id
    if pad is None:
        raise CheckpointError(
            f"{folder}/tokenizer_config.json gives no pad_token, so prompts cannot be padded. Add it there."
        )
    if template is not None and chat is not None:
        template = _rendered(reference, folder, template, chat)
    elif template is not None:
        texts = [reference(text, add_special_tokens=False).input_ids for text in (template.before, template.after)]
        template = dataclasses.replace(template, tokens=sum(map(len, texts)))

    def agrees(path: Path) -> bool:
        fast = Tokenizer.from_file(str(path))
        fast.no_padding()
        fast.no_truncation()
        for text in PROBES:
            if template is not None and chat is not None:
                if not _in_chat(fast, reference, manifest.Tokenizer("", length, pad, template), template, text):
                    return False
                continue
            if template is not None:
                if (
                    fast.encode(text, add_special_tokens=False).ids
                    != reference(text, add_special_tokens=False).input_ids
                ):
                    return False
                continue
            expected = reference(text, padding="max_length", max_length=length, truncation=True).input_ids
            ids = fast.encode(text).ids
            if len(ids) > length:
                ids = [*ids[: length - 1], ids[-1]]
            if ids + [pad] * (length - len(ids)) != expected:
                return False
        return True

    shipped = bundle / folder / FILE
    if shipped.exists():
        if agrees(shipped):
            return Written(f"{folder}/{FILE}", False, length, pad, template)
        shipped = bundle / folder / OWN_FILE
    backend = reference.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()
    table = json.loads(backend.to_str(pretty=False))
    merges = table["model"].get("merges")
    if merges and not any(" " in part for pair in merges for part in pair):
        table["model"]["merges"] = [" ".join(pair) for pair in merges]  # makes the file an eighth smaller
    shipped.write_text(json.dumps(table, ensure_ascii=False, separators=(",", ":")), encoding="utf-8")
    if not agrees(shipped):
        raise CheckpointError(
            f"The tokenizer in {folder} gives other ids through the tokenizers library than through transformers. "
            f"Save it again with transformers 5 ({kind}.from_pretrained(...).save_pretrained(...)) and export."
        )
    return Written(f"{folder}/{shipped.name}", True, length, pad, template)


def _in_chat(fast: Any, reference: Any, spec: manifest.Tokenizer, template: Template, text: str) -> bool:
    """Return whether the runtime gives the ids and the mask of the tokenizer `reference` for a prompt in a template."""
    made, padding = tokens.tokenise(fast, spec, text), "max_length" if template.padding == "end" else False
    whole = template.before + text + template.after
    expected = reference(whole, padding=padding, max_length=spec.length, truncation=True)
    return [made.ids[0].tolist(), made.mask[0].tolist()] == [expected.input_ids, expected.attention_mask]


def _rendered(reference: Any, folder: str, template: Template, chat: Mapping[str, Any]) -> Template:
    """Return `template` with the texts that the chat template of the tokenizer `reference` puts around a prompt."""

    def render(prompt: str) -> str:
        turns = [{"role": "user", "content": prompt}]
        return str(reference.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, **chat))

    for side in ("padding_side", "truncation_side"):
        if getattr(reference, side) != "right":
            raise CheckpointError(
                f"{folder}/tokenizer_config.json sets {side} to {str(getattr(reference, side))[:40]!r}, which Segue "
                'does not support. Choose a checkpoint with "right".'
            )
    try:
        before, _, after = render(MARK).partition(MARK)
        kept = all(render(text) == before + text + after for text in PROBES)
    except Exception as error:  # a template is a program, and can fail in any way
        raise CheckpointError(
            f"The chat template of the tokenizer in {folder} cannot be used ({str(error)[:200]}). "
            "Fetch chat_template.jinja and tokenizer_config.json again."
        ) from None
    if not kept or len(before) + len(after) > MAX_TEXT:
        raise CheckpointError(
            f"The chat template of the tokenizer in {folder} changes a prompt, or puts more than {MAX_TEXT} characters "
            "around it. Choose a checkpoint whose template leaves prompts as they are."
        )
    count = len(reference(before + after).input_ids)
    return dataclasses.replace(template, before=before, after=after, tokens=count)
