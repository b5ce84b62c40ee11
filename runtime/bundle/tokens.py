"""Turn a prompt into tokens, as diffusers' pipelines do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ...errors import BundleError
from . import manifest

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class PromptTruncated(UserWarning):
    """A prompt was longer than the tokenizer's limit; the message names the part that was cut off."""


# Pairs of quotation marks, straight and curly; a straight single one inside a word is an apostrophe
_QUOTED = re.compile(r"'[^']*?'|\"[^\"]*?\"|\u2018[^\u2018\u2019]*?\u2019|\u201c[^\u201c\u201d]*?\u201d")
_APOSTROPHE = re.compile(r"(?<=[a-zA-Z])'(?=[a-zA-Z])")
_STAND_IN = "\ue000"  # a private code point that replaces apostrophes during the search for quotations


@dataclass(frozen=True)
class Tokens:
    """A tokenised prompt: `ids` int64 [1, length]; `cut` is the end of the prompt that did not fit, or empty.

    `mask` int64 [1, length] is 0 for padding and 1 for other tokens. The network sees the states of `inner`.
    """

    ids: np.ndarray
    cut: str
    mask: np.ndarray
    inner: slice = field(default_factory=lambda: slice(None))


def load_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of the file at `path`, without its own padding and truncation; raises BundleError."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the bindings raise the class Exception
        raise BundleError(f"{path} is not a tokenizers file: {error}.", "Export the bundle again.") from None
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenise(tokenizer: Tokenizer, spec: manifest.Tokenizer, prompt: str) -> Tokens:
    """Return `prompt` as begin token, words, end token and padding, `spec.length` tokens in total.

    A longer prompt loses its last words, never its end token, as in diffusers. With a template the texts before and
    after stand around the words, and `Template.padding` says where the padding stands.
    """
    if spec.template is not None:
        put = _between if spec.template.padding == "prompt" else _inside
        return put(tokenizer, spec, spec.template, prompt)
    encoding = tokenizer.encode(prompt)
    ids, cut = list(encoding.ids), ""
    if len(ids) > spec.length:
        cut = prompt[encoding.offsets[spec.length - 1][0] :].strip()
        ids = [*ids[: spec.length - 1], ids[-1]]
    missing = spec.length - len(ids)
    mask = [1] * len(ids) + [0] * missing
    return Tokens(np.array([ids + [spec.pad_id] * missing], np.int64), cut, np.array([mask], np.int64))


def _inside(tokenizer: Tokenizer, spec: manifest.Tokenizer, template: manifest.Template, prompt: str) -> Tokens:
    """Return a prompt in its template as one text, which is cut and padded at its end."""
    encoding = tokenizer.encode(template.before + prompt + template.after)
    ids, cut = list(encoding.ids[: spec.length]), ""
    if len(encoding.ids) > spec.length:
        start = encoding.offsets[spec.length][0] - len(template.before)
        cut = prompt[max(start, 0) :].strip()
    missing = spec.length - len(ids) if template.padding == "end" else 0
    mask = [1] * len(ids) + [0] * missing
    return Tokens(np.array([ids + [spec.pad_id] * missing], np.int64), cut, np.array([mask], np.int64))


def _between(tokenizer: Tokenizer, spec: manifest.Tokenizer, template: manifest.Template, prompt: str) -> Tokens:
    """Return a prompt in its template, as in LongCat-Image's pipeline: padding follows the prompt."""

    def plain(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    ids: list[int] = []
    cut = ""
    for part, quoted in quotations(prompt) if template.quotations else [(prompt, False)]:
        for piece in part if quoted else [part]:
            encoding = tokenizer.encode(piece, add_special_tokens=False)
            room = spec.length - len(ids)
            if room < len(encoding.ids):
                cut += piece[encoding.offsets[max(room, 0)][0] :]
            ids += encoding.ids
    ids = ids[: spec.length]
    before, after = plain(template.before), plain(template.after)
    missing = spec.length - len(ids)
    mask = [1] * (len(before) + len(ids)) + [0] * missing + [1] * len(after)
    row = [*before, *ids, *[spec.pad_id] * missing, *after]
    inner = slice(len(before), len(before) + spec.length)
    return Tokens(np.array([row], np.int64), cut.strip(), np.array([mask], np.int64), inner)


def quotations(prompt: str) -> Iterator[tuple[str, bool]]:
    """Yield the prompt in nonempty parts, and whether each part is a quotation (with its marks)."""
    hidden, end = _APOSTROPHE.sub(_STAND_IN, prompt), 0
    for found in _QUOTED.finditer(hidden):
        for start, stop, quoted in ((end, found.start(), False), (found.start(), found.end(), True)):
            if start < stop:
                yield prompt[start:stop], quoted
        end = found.end()
    if end < len(prompt):
        yield prompt[end:], False
