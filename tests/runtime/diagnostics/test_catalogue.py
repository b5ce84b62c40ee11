"""The list of bundles and plans, with what each draws and takes."""

import json
import shutil

import pytest

from segue.errors import UsageError
from segue.runtime.bundle.reader import plans, shipped
from segue.runtime.diagnostics.catalogue import BUNDLE, OWN, PLAN, catalogue


def by_name(*places):
    return {facts.name: facts for facts in catalogue(places)}


def test_shipped_bundles_and_plans_are_listed_with_their_facts():
    found = by_name()
    assert {name for name, facts in found.items() if facts.kind == BUNDLE} == set(shipped())
    assert {name for name, facts in found.items() if facts.kind == PLAN} == set(plans())
    emoji, motion, medium = found["emoji"], found["emoji-motion"], found["sd3-medium"]
    assert (emoji.draws, emoji.sizes, emoji.steps, emoji.guidance) == ("pictures", ((128, 128),), 4, 1.0)
    assert (motion.draws, motion.frames) == ("videos", 33)
    assert medium.sizes == ((1024, 1024),)
    assert medium.bytes > 4e9 > emoji.bytes
    assert all(facts.peak > 100 * 2**20 and facts.seconds > 0 for facts in (emoji, motion, medium))


def test_a_machine_that_cannot_run_a_plan_is_told(monkeypatch):
    monkeypatch.setattr("segue.engines.devices.driver", lambda: type("Driver", (), {"gpus": (), "why": "none"})())
    found = by_name()["longcat-image"]
    assert found.peak is None
    assert "bf16" in found.why


def test_own_bundles_come_first_alone_or_in_a_directory(tiny_bundle, tmp_path):
    shutil.copytree(tiny_bundle, tmp_path / "mine/second")
    (tmp_path / "mine/empty").mkdir()
    names = list(by_name(tiny_bundle, tmp_path / "mine"))
    assert names[:3] == [str(tiny_bundle), str(tmp_path / "mine/second"), "emoji"]
    mine = by_name(tiny_bundle)[str(tiny_bundle)]
    assert (mine.kind, mine.names) == (OWN, None)


def test_a_place_without_a_bundle_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is not a bundle and holds none"):
        by_name(tmp_path)


def test_a_bundle_that_cannot_be_read_is_listed_with_the_reason(tiny_bundle):
    table = json.loads((tiny_bundle / "bundle.json").read_text())
    (tiny_bundle / "bundle.json").write_text(json.dumps({**table, "schema": 9}))
    found = by_name(tiny_bundle)[str(tiny_bundle)]
    assert (found.peak, found.bytes) == (None, 0)
    assert "schema 9" in found.why
