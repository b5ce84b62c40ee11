"""Write a tokenizers file for the runtime, and check that it gives the same ids as transformers."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from ...errors import CheckpointError
from ...runtime.bundle.limits import MAX_TOKENS
from ...runtime.bundle.manifest import Template
from ...runtime.units import is_whole

FILE = "tokenizer.json"
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
    bundle: Path, folder: str, length: int | None, kind: str = "CLIPTokenizer", template: Template | None = None
) -> Written:
    """Make sure that the bundle at `bundle` has a tokenizers file for the tokenizer in `folder`, of class `kind`.

    Prompts are padded to `length` tokens; None takes the tokenizer's model_max_length (SD3's pipeline pads both CLIP
    prompts to the length of the first tokenizer). With a `template` prompts get no begin and end token. Raises
    CheckpointError for a tokenizer that cannot be loaded, and if no file gives transformers' ids on the probes.
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
    if template is not None:
        texts = [reference(text, add_special_tokens=False).input_ids for text in (template.before, template.after)]
        template = dataclasses.replace(template, tokens=sum(map(len, texts)))

    def agrees(path: Path) -> bool:
        fast = Tokenizer.from_file(str(path))
        fast.no_padding()
        fast.no_truncation()
        for text in PROBES:
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
