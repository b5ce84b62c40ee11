"""From a prompt to the two conditioning arrays of an SD3 transformer, as diffusers' pipeline builds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..errors import BundleError
from . import manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PromptTruncated(UserWarning):
    """A prompt was longer than the tokenizer's limit; the message names the part that was cut."""


@dataclass(frozen=True)
class Tokens:
    """A tokenised prompt: `ids` int64 [1, length], and the end of the prompt that did not fit (empty when all did)."""

    ids: np.ndarray
    cut: str


@dataclass(frozen=True)
class Conditioning:
    """What the transformer knows of one prompt.

    `sequence` [1, tokens, joint width] and `pooled` [1, pooled width], both in the text encoders' dtype.
    """

    sequence: np.ndarray
    pooled: np.ndarray


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizers file at `path` with its own padding and truncation off; raises BundleError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the bindings raise Exception itself
        raise BundleError(f"{path} is no tokenizers file: {error}. Export the bundle again.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenise(tokenizer: Tokenizer, spec: manifest.Tokenizer, prompt: str) -> Tokens:
    """Return `prompt` as begin token, words, end token and padding, `spec.length` in all.

    A longer prompt loses its last words, never its end token, as in diffusers.
    """
    encoding = tokenizer.encode(prompt)
    ids, cut = list(encoding.ids), ""
    if len(ids) > spec.length:
        cut = prompt[encoding.offsets[spec.length - 1][0] :].strip()
        ids = [*ids[: spec.length - 1], ids[-1]]
    ids += [spec.pad_id] * (spec.length - len(ids))
    return Tokens(np.array([ids], np.int64), cut)


def assemble(encoded: Sequence[tuple[np.ndarray, np.ndarray]], joint_width: int, t5_tokens: int) -> Conditioning:
    """Join what the text encoders gave into one conditioning.

    `encoded` holds, for each encoder in order, the penultimate hidden states [1, length, width] and the projected
    embedding [1, projection]. The hidden states are joined along the width and padded with zeros to `joint_width`; then
    come `t5_tokens` zero tokens in place of the absent T5 (Esser et al. 2024, section 4). Raises BundleError when the
    encoders' widths exceed `joint_width`, which diffusers would crop silently.
    """
    hidden = np.concatenate([states for states, _ in encoded], axis=-1)
    missing = joint_width - hidden.shape[-1]
    if missing < 0:
        raise BundleError(
            f"the text encoders give {hidden.shape[-1]} features a token, the transformer takes {joint_width}. "
            "Export the bundle again from a checkpoint whose joint_attention_dim holds both."
        )
    sequence = np.pad(hidden, ((0, 0), (0, t5_tokens), (0, missing)))
    return Conditioning(sequence, np.concatenate([pooled for _, pooled in encoded], axis=-1))
