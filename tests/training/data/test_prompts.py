"""The names that training writes into a checkpoint."""

from pathlib import Path

from segue.runtime.bundle.prompts import Name, parse, spell_emoji
from segue.training.data import prompts
from segue.training.data.clips import Clip
from segue.training.data.emoji import Row


def row(name: str, hexcode: str, style: str = "3d", split: str = "train", group: int = 0, tags=("tag",)) -> Row:
    return Row(style, hexcode, name, name, tags, group, split)


def test_each_name_comes_once_with_its_emoji_and_whether_it_was_trained() -> None:
    found = prompts.prompts_of(
        [
            row("pizza", "1F355", group=4),
            row("pizza", "1F355", "noto", "held-out combination", group=4),
            row("abacus", "1F9EE", "noto", "held-out name", group=7),
            row("waving hand dark skin tone", "1F44B-1F3FF", "twemoji", group=1),
            row("grinning face", "1F600"),
        ]
    )
    assert found.names == (
        Name("grinning face", "😀", ("tag",), True),
        Name("waving hand dark skin tone", "👋🏿", (), True),
        Name("pizza", "🍕", ("tag",), True),
        Name("abacus", "🧮", ("tag",), False),
    )
    assert (found.styles, found.photographs) == (("3d", "noto", "twemoji"), False)
    assert spell_emoji("👋🏿", found) == "waving hand dark skin tone"


def test_clips_have_names_and_no_styles(tmp_path: Path) -> None:
    prompts.write_names([Clip("1F355", "pizza", "pizza", "train", 20)], tmp_path)
    found = parse((tmp_path / "prompts.json").read_bytes())
    assert found == prompts.Prompts((Name("pizza", "🍕", (), True),), (), False)
