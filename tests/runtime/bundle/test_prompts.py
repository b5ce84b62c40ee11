"""The list of names of a bundle: read safely, searched, and used to spell emoji."""

import json

import pytest

from segue.errors import BundleError
from segue.runtime.bundle import prompts as p
from segue.runtime.bundle.limits import MAX_PROMPTS
from segue.runtime.bundle.reader import read

NAMES = p.Prompts(
    (
        p.Name("grinning face", "😀", ("face", "grin"), True),
        p.Name("grinning cat", "😺", ("cat", "face"), True),
        p.Name("cat face", "🐱", ("pet",), True),
        p.Name("red heart", "❤️", ("love",), True),
        p.Name("heart on fire", "❤️‍🔥", ("burn",), True),
        p.Name("pizza", "🍕", ("cheese", "slice"), True),
        p.Name("racing car", "🏎️", ("car",), True),
        p.Name("police car", "🚓", ("patrol",), True),
        p.Name("automobile", "🚗", ("car",), True),
        p.Name("abacus", "🧮", ("calculation",), False),
        p.Name("flag germany", "🇩🇪", (), True),
        p.Name("flag england", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", (), True),
        p.Name("thumbs up", "👍", ("hand",), True),
        p.Name("thumbs up medium skin tone", "👍🏽", (), True),
        p.Name("man astronaut medium skin tone", "👨🏽‍🚀", (), True),
        p.Name("medium skin tone", "🏽", (), True),
        p.Name("keycap 1", "1️⃣", (), True),
        p.Name("nine o’clock", "🕘", ("time",), False),
        p.Name("flag côte d’ivoire", "🇨🇮", (), False),
    ),
    ("3d", "noto", "twemoji"),
    False,
)


@pytest.mark.parametrize(
    ("text", "spelled"),
    [
        ("🍕", "pizza"),
        ("a 🍕, noto", "a pizza, noto"),
        ("🐱🍕", "cat face pizza"),
        ("my🍕!", "my pizza!"),
        ("🍕pie", "pizza pie"),
        ("❤", "red heart"),
        ("❤\ufe0f", "red heart"),
        ("❤\ufe0f\u200d🔥", "heart on fire"),
        ("🇩🇪", "flag germany"),
        ("🇩🇪🇨🇮", "flag germany flag côte d’ivoire"),
        ("🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "flag england"),
        ("👍🏽", "thumbs up medium skin tone"),
        ("👨🏽\u200d🚀", "man astronaut medium skin tone"),
        ("🍕🏽", "pizza medium skin tone"),
        ("🐱\u200d🍕", "cat face pizza"),
        ("1\ufe0f\u20e3", "keycap 1"),
    ],
)
def test_an_emoji_becomes_its_name(text, spelled):
    assert p.spell_emoji(text, NAMES) == spelled


@pytest.mark.parametrize("text", ["", "a red heart", "für Jörg", "红心", "🦄", "1 pizza", "a\ufe0fb", "🇩"])
def test_a_text_without_a_known_emoji_stays_as_it_is(text):
    assert p.spell_emoji(text, NAMES) == text


def test_without_a_list_nothing_is_spelled():
    assert p.spell_emoji("🍕") == "🍕"


@pytest.mark.parametrize(
    "text",
    [
        "pizza", "a pizza", "Pizza!", "a red heart", "red heart, noto", "a grinning cat, face, twemoji", "abacus, 3d",
        "flag of Germany", "nine o'clock", "nine o’clock", "FLAG COTE D'IVOIRE", "a cat face and a pizza",
        "a big red heart", "pizza, cheese, slice, noto",
    ],
)  # fmt: skip
def test_a_prompt_with_a_whole_name_is_known(text):
    assert NAMES.knows(text)


@pytest.mark.parametrize(
    "text",
    ["", " ", "noto", "car", "heart", "rotes herz", "红心", "Müsli", "a medieval castle on a hill with one pizza"],
)
def test_a_prompt_that_is_mostly_other_words_is_not_known(text):
    assert not NAMES.knows(text)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("car", ("racing car", "police car", "automobile")),
        ("grining cat", ("grinning cat",)),
        ("heart, noto", ("red heart", "heart on fire")),
        ("piz", ("pizza",)),
        ("gri", ("grinning cat", "grinning face")),
        ("pizzas", ("pizza",)),
        ("love", ("red heart",)),
        ("abacus", ("abacus",)),
    ],
)
def test_the_nearest_names_come_first(text, first):
    assert p.nearest(NAMES, text)[: len(first)] == first


def test_nothing_is_near_to_a_word_of_another_language():
    assert p.nearest(NAMES, "红心") == ()


def test_without_a_word_some_trained_names_are_offered():
    assert p.nearest(NAMES, " ", 3) == NAMES.some(3) == ("grinning cat", "racing car", "thumbs up")
    assert not {"abacus", "nine o’clock"} & set(NAMES.some(99))


def test_variants_by_skin_tone_are_offered_only_if_they_are_asked_for():
    assert p.nearest(NAMES, "thumbs up") == ("thumbs up",)
    assert p.nearest(NAMES, "thumbs up medium")[0] == "thumbs up"
    assert p.nearest(NAMES, "thumbs up medium skin tone")[0] == "thumbs up medium skin tone"


def test_a_very_long_prompt_is_searched_in_bounded_time():
    text = " ".join(f"word{number}" for number in range(20_000))
    assert not NAMES.knows(text)
    assert isinstance(p.nearest(NAMES, text), tuple)


def test_names_survive_dump_and_parse():
    assert p.parse(p.dump(NAMES)) == NAMES


ROW = {"name": "pizza", "emoji": "🍕", "tags": [], "seen": True}
WHOLE = {"schema": 1, "styles": [], "photographs": False, "names": [ROW]}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ([], "must be an object"),
        ({**WHOLE, "more": 1}, "with the keys"),
        ({**WHOLE, "schema": 2}, "schema 2"),
        ({**WHOLE, "styles": [1]}, "styles must be"),
        ({**WHOLE, "photographs": 0}, "photographs true or false"),
        ({**WHOLE, "names": []}, "0 names"),
        ({**WHOLE, "names": [ROW] * 50_001}, "50001 names"),
        ({**WHOLE, "names": ["pizza"]}, "must have the keys"),
        ({**WHOLE, "names": [{**ROW, "name": ""}]}, "no text"),
        ({**WHOLE, "names": [{**ROW, "name": "x" * 401}]}, "above 400"),
        ({**WHOLE, "names": [{**ROW, "name": "\x1b[31mred"}]}, "holds another type"),
        ({**WHOLE, "names": [{**ROW, "emoji": "\ud83c"}]}, "holds another type"),
        ({**WHOLE, "names": [{**ROW, "tags": "cheese"}]}, "holds another type"),
        ({**WHOLE, "names": [{**ROW, "seen": 1}]}, "holds another type"),
    ],
)
def test_another_content_is_refused(table, said):
    with pytest.raises(ValueError, match=said):
        p.parse(json.dumps(table).encode())


@pytest.mark.parametrize("data", [b"", b"{", b"[" * 100_000, b"\xff"])
def test_what_is_no_json_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011  the words are those of the JSON parser
        p.parse(data)


@pytest.fixture
def named(edit):
    """Function that gives the tiny bundle a prompts.json of these bytes."""
    return lambda data: edit(lambda table: table.update(prompts="prompts.json"), {"prompts.json": data})


def test_a_bundle_carries_its_names(named, tiny_bundle):
    assert p.read_prompts(read(tiny_bundle)) is None
    assert p.read_prompts(read(named(p.dump(NAMES)))) == NAMES


def test_a_changed_list_is_refused_before_it_is_parsed(named, monkeypatch):
    opened = read(named(p.dump(NAMES)))
    opened.path("prompts.json").write_bytes(b"{")
    monkeypatch.setattr(p, "parse", lambda data: pytest.fail("it was parsed"))
    with pytest.raises(BundleError, match=r"prompts\.json was altered: its sha256 is .*, bundle\.json says"):
        p.read_prompts(opened)


def test_a_list_that_is_too_large_or_malformed_is_refused(named):
    with pytest.raises(BundleError, match=r"prompts\.json is above the limit"):
        p.read_prompts(read(named(b" " * (MAX_PROMPTS + 1))))
    with pytest.raises(BundleError, match=r"prompts\.json: it must be an object.*Export the bundle again"):
        p.read_prompts(read(named(b"[]")))


def test_a_list_without_a_hash_is_refused(edit):
    with pytest.raises(BundleError, match=r"uses 'prompts\.json' but lists no hash"):
        read(edit(lambda table: table.update(prompts="prompts.json")))
