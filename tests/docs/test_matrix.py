"""README's table of what runs has every family and every shipped bundle, and claims no more than was run."""

import re
from pathlib import Path

import pytest

from segue.engines.targets import TARGETS
from segue.runtime.bundle.families import FAMILIES
from segue.runtime.bundle.reader import shipped

ROOT = Path(__file__).parents[2]
STATES = {"*tested*", "*built*", "*built* in part", "*never run*"}


@pytest.fixture(scope="module")
def rows():
    """The rows of the table below "What it runs": the model, and its state on each target."""
    text = (ROOT / "README.md").read_text().partition("## What it runs")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (lines[0], *lines[2:])]
    return {row[0]: dict(zip(cells[0][1:], row[1:], strict=True)) for row in cells}


def test_every_family_and_every_shipped_bundle_is_in_the_table(rows):
    named = {name for model in rows for name in re.findall(r"`([\w-]+)`", model)}
    assert named - {"model"} == {*FAMILIES, *shipped()}


def test_every_target_has_a_column_and_every_entry_is_a_known_state(rows):
    columns = next(iter(rows.values()))
    assert set(re.findall(r"`([\w-]+)`", " ".join(columns))) == set(TARGETS)
    for model, states in list(rows.items())[1:]:
        assert set(states.values()) <= STATES, model


def test_no_entry_claims_a_run_that_the_status_page_denies(rows):
    """No RTX card and no other system has run anything, so these columns cannot say tested."""
    status = (ROOT / "docs/evidence/status.md").read_text()
    assert "Has never run on a GPU" in status
    for model, states in list(rows.items())[1:]:
        for target, state in states.items():
            if target not in ("`ort-cpu`", "`ort-cuda`"):
                assert state != "*tested*", (model, target)


def test_every_tested_family_has_tests_that_draw_with_it(rows):
    text = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    fixtures = {"sd3": "exported", "sdxl": "sdxl_bundle", "longcat-image": "longcat_bundle", "swifti2v": "video_bundle"}
    fixtures |= {"pixel-unet": "own_graph", "flux2-klein": "klein_bundle", "z-image": "zimage_bundle"}
    fixtures |= {"wan-i2v": "wan_i2v_bundle", "wan-ti2v": "wan_ti2v_bundle"}
    assert set(fixtures) == set(FAMILIES)
    for model, states in rows.items():
        for family in set(re.findall(r"`([\w-]+)`", model)) & set(FAMILIES):
            if states["`ort-cpu`"] == "*tested*":
                assert len(re.findall(rf"\b{fixtures[family]}\b", text)) >= 1, (model, family)
