"""`prompts.json`: the names that a bundle can draw, and what a prompt has in common with them.

A bundle carries the file if its model knows a fixed list of names, as the emoji bundles do. Other bundles take any
text and have no such file.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from ...errors import BundleError
from ..storage import git, typed_json
from .limits import MAX_NAME, MAX_NAMES, MAX_PROMPTS
from .manifest import Manifest
from .reader import Bundle

FILE_NAME = "prompts.json"
SCHEMA = 1
NEAR = 0.5  # share of a prompt's words above which known names must cover it
LONGEST = 10  # words of a name that `Prompts.knows` finds
# What a word is worth in `nearest` if it is a name's word, begins one (half of it for a long one), begins
# with one, resembles one, or is a tag's
EXACT, BEGINS, LONGER, RESEMBLES, TAG = 1.0, 0.8, 0.7, 0.6, 0.6
EXTRA, UNSEEN = 0.04, 0.1  # what each further word of a name costs, and what a name costs that was not trained
LEAST = 0.2  # worth of a name that is still near
MAX_WORDS = 16  # of a prompt that `nearest` looks at
_PLAIN = re.compile(r"[^\W_]+")
_SELECTORS = re.compile("[\ufe0e\ufe0f]")  # they choose between the black and the coloured form of a character
_JOINER = "\u200d"
_CLOSING = ",.;:!?)]}'\"’”"
# Words that name nothing
_SMALL = frozenset(("a", "an", "and", "at", "by", "for", "from", "in", "is", "of", "on", "the", "to", "with"))
VARIANT = "skin tone"  # part of the names that vary another one
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")  # categories of characters that no name needs


@dataclass(frozen=True)
class Name:
    """One thing that a bundle can draw: its name in lower case, its emoji or "", and further words for it.

    `seen` says whether the model was trained on it.
    """

    name: str
    emoji: str
    tags: tuple[str, ...]
    seen: bool


@dataclass(frozen=True)
class Prompts:
    """The names that a bundle can draw, the styles to add after a comma, and whether it knows photographs."""

    names: tuple[Name, ...]
    styles: tuple[str, ...]
    photographs: bool

    @property
    def seen(self) -> tuple[str, ...]:
        """Return the names that the model was trained on."""
        return tuple(name.name for name in self.names if name.seen)

    def some(self, count: int) -> tuple[str, ...]:
        """Return up to `count` of the trained names with one or two words, evenly from the whole list."""
        short = [name for name in self.seen if name.count(" ") < 2 and not name.startswith("flag ")] or self.seen
        most = min(count, len(short))
        return tuple(short[(2 * i + 1) * len(short) // (2 * most)] for i in range(most))

    @cached_property
    def _spelled(self) -> dict[str, str]:
        """The name of each emoji, without selectors."""
        return {plain: name.name for name in self.names if (plain := _SELECTORS.sub("", name.emoji))}

    @cached_property
    def _longest(self) -> dict[str, int]:
        """The length of the longest emoji that begins with a character."""
        found: dict[str, int] = {}
        for emoji in self._spelled:
            found[emoji[0]] = max(found.get(emoji[0], 0), len(emoji))
        return found

    @cached_property
    def _numbers(self) -> dict[str, int]:
        """The number of each name, by its words."""
        return {" ".join(_content(name.name)): number for number, name in enumerate(self.names)}

    @cached_property
    def _named(self) -> dict[str, list[int]]:
        """The names that hold a word, by number."""
        return _index(_words_of(name.name) for name in self.names)

    @cached_property
    def _tagged(self) -> dict[str, list[int]]:
        """The names that have a word in their tags, by number."""
        return _index(_words_of(*name.tags) for name in self.names)

    def knows(self, text: str) -> bool:
        """Return whether most of a prompt's words belong to names that it holds whole, or to the tags of these."""
        asked = self._asked(text)
        covered: set[str] = set()
        for start in range(len(asked)):
            for end in range(start + 1, min(start + LONGEST, len(asked)) + 1):
                number = self._numbers.get(" ".join(asked[start:end]))
                if number is not None:
                    covered |= {*asked[start:end], *_words_of(*self.names[number].tags)}
        return bool(asked) and len(covered.intersection(asked)) > NEAR * len(asked)

    def _asked(self, text: str) -> tuple[str, ...]:
        """Return the words of a prompt without its styles, in order."""
        styles = _words_of(*self.styles)
        return tuple(word for word in _content(text) if word not in styles)


def read_prompts(bundle: Bundle) -> Prompts | None:
    """Return the names of an opened bundle; None if it has no list of names. Raises as `names_in` does."""
    return names_in(bundle.directory, bundle.manifest)


def names_in(directory: Path, content: Manifest) -> Prompts | None:
    """Return the names of the bundle directory with this manifest; None if it has no list of names.

    The file's sha256 is checked before it is parsed. Raises BundleError for a file that is missing, altered, too large
    or malformed.
    """
    if not content.prompts:
        return None
    path = directory / content.prompts
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PROMPTS + 1)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
    if len(data) > MAX_PROMPTS:
        raise BundleError(f"{path} is above the limit of {MAX_PROMPTS} bytes.", "Export the bundle again.")
    found, expected = hashlib.sha256(data).hexdigest(), content.files[content.prompts].sha256
    if found != expected:
        if why := git.explain(path, expected):
            raise BundleError(f"{path} {why[0]}.", why[1])
        raise BundleError(
            f"{path} was altered: its sha256 is {found}, bundle.json says {expected}.",
            "Fetch or export the bundle again.",
        )
    try:
        return parse(data)
    except ValueError as error:
        raise BundleError(f"{path}: {error}.", "Export the bundle again.") from None


def parse(data: bytes) -> Prompts:
    """Return the names in the bytes of prompts.json; raises ValueError for any other content."""
    try:
        table = typed_json.read(data)
    except RecursionError as error:
        raise ValueError(f"it nests too deeply ({error})") from None
    if not isinstance(table, dict) or table.keys() != {"schema", "styles", "photographs", "names"}:
        raise ValueError("it must be an object with the keys schema, styles, photographs and names")
    if table["schema"] != SCHEMA:
        raise ValueError(f"it has schema {str(table['schema'])[:20]}; this Segue reads {SCHEMA}")
    styles, rows = table["styles"], table["names"]
    if not _texts(styles) or not isinstance(table["photographs"], bool) or not isinstance(rows, list):
        raise ValueError("styles must be a list of texts, photographs true or false, and names a list")
    if not 0 < len(rows) <= MAX_NAMES:
        raise ValueError(f"it has {len(rows)} names; 1 to {MAX_NAMES} are possible")
    return Prompts(tuple(_name(row) for row in rows), tuple(styles), table["photographs"])


def dump(prompts: Prompts) -> bytes:
    """Return the bytes of prompts.json, one name a line."""
    rows = [
        json.dumps(
            {"name": name.name, "emoji": name.emoji, "tags": list(name.tags), "seen": name.seen}, ensure_ascii=False
        )
        for name in prompts.names
    ]
    styles = json.dumps(list(prompts.styles), ensure_ascii=False)
    head = f'"schema": {SCHEMA},\n"styles": {styles},\n"photographs": {json.dumps(prompts.photographs)}'
    return ("{" + head + ',\n"names": [\n' + ",\n".join(rows) + "\n]}\n").encode()


def nearest(prompts: Prompts, text: str, count: int = 5) -> tuple[str, ...]:
    """Return up to `count` names that are nearest to `text`, the nearest first; without any word some names.

    A word counts if it is a word of the name or its tags, begins one, or is spelled alike. So it also completes a
    prompt that is being typed. Variants by skin tone come only if `text` mentions a skin tone.
    """
    asked = prompts._asked(text)[:MAX_WORDS]
    if not asked:
        return prompts.some(count)
    worth: dict[int, float] = {}
    known_words = list(dict.fromkeys([*prompts._named, *prompts._tagged]))
    for word in asked:
        best: dict[int, float] = {}
        for known, value in _alike(word, known_words):
            for share, index in ((1.0, prompts._named), (TAG, prompts._tagged)):
                for number in index.get(known, ()):
                    best[number] = max(best.get(number, 0.0), share * value)
        for number, value in best.items():
            worth[number] = worth.get(number, 0.0) + value / len(asked)
    for number in worth:
        more = len(_words_of(prompts.names[number].name).difference(asked))
        worth[number] -= EXTRA * more + (0.0 if prompts.names[number].seen else UNSEEN)
    varied = not _words_of(VARIANT).isdisjoint(asked)
    order = sorted(worth, key=lambda number: (-round(worth[number], 6), len(prompts.names[number].name), number))
    names = (prompts.names[number].name for number in order if worth[number] >= LEAST)
    return tuple(dict.fromkeys(name for name in names if varied or VARIANT not in name))[:count]


def spell_emoji(text: str, prompts: Prompts | None = None) -> str:
    """Return `text` with each emoji replaced by its name in `prompts`, as "a 🍕, noto" becomes "a pizza, noto".

    The longest sequence wins, so skin tones, flags and joined emoji get their own names. Characters without a name
    stay. Without emoji, or without `prompts`, the text comes back unchanged.
    """
    if text.isascii() or prompts is None:
        return text
    table, longest = prompts._spelled, prompts._longest
    plain, parts, position, found = _SELECTORS.sub("", text), [""], 0, False
    while position < len(plain):
        most = longest.get(plain[position], 0)
        width = next((n for n in range(most, 0, -1) if plain[position : position + n] in table), 0)
        if width:
            gap = "" if not parts[-1] or parts[-1][-1].isspace() else " "
            parts.append(f"{gap}{table[plain[position : position + width]]}")
            found = True
            position += width
            while plain[position : position + 1] == _JOINER:  # the rest of a sequence without a name of its own
                position += 1
            if position < len(plain) and not (plain[position].isspace() or plain[position] in _CLOSING):
                parts.append(" ")
        else:
            parts.append(plain[position])
            position += 1
    return "".join(parts) if found else text


def _name(row: Any) -> Name:
    if not isinstance(row, dict) or row.keys() != {"name", "emoji", "tags", "seen"}:
        raise ValueError(f"a name must have the keys name, emoji, tags and seen, found {str(row)[:80]}")
    name, emoji, tags, seen = row["name"], row["emoji"], row["tags"], row["seen"]
    if not _texts([name, emoji]) or not name or not _texts(tags) or not isinstance(seen, bool):
        raise ValueError(f"the name {str(row)[:80]} holds another type, no text, or a text above {MAX_NAME} characters")
    return Name(name, emoji, tuple(map(sys.intern, tags)), seen)


def _texts(values: Any) -> bool:
    return isinstance(values, list) and all(
        isinstance(text, str) and len(text) <= MAX_NAME and (text.isprintable() or not _steers(text)) for text in values
    )


def _steers(text: str) -> bool:
    return any(unicodedata.category(c) in _CONTROLS for c in text)


def _content(text: str) -> tuple[str, ...]:
    """Return the words of a text that name something, each once and in order, without accents and capitals."""
    plain = text.lower()
    if not text.isascii():
        plain = "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))
    words = _PLAIN.findall(re.sub("['’]", "", plain))
    return tuple(dict.fromkeys(word for word in words if word not in _SMALL) or dict.fromkeys(words))


def _words_of(*texts: str) -> frozenset[str]:
    return frozenset(word for text in texts for word in _content(text))


def _index(words: Iterable[frozenset[str]]) -> dict[str, list[int]]:
    made: dict[str, list[int]] = {}
    for number, each in enumerate(words):
        for word in each:
            made.setdefault(word, []).append(number)
    return made


def _alike(word: str, known: list[str]) -> Iterator[tuple[str, float]]:
    """Yield the known words that are like a word, and what each is worth."""
    for other in known:
        if other == word:
            yield other, EXACT
        elif other.startswith(word) and len(word) > 1:
            yield other, BEGINS * (1 + len(word) / len(other)) / 2
        elif word.startswith(other) and len(other) > 2:
            yield other, LONGER
    if len(word) > 2:
        for other in get_close_matches(word, known, 8, 0.75):
            yield other, RESEMBLES * SequenceMatcher(None, word, other).ratio()
