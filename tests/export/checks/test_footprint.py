"""What a component takes of memory is measured at export, and agrees with what was counted of its graph."""

import sys

import pytest

from segue.export.checks.footprint import with_footprints
from segue.runtime.bundle import reader
from segue.runtime.planning import memory

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's high-water mark is read")


@pytest.fixture(scope="module")
def emoji():
    opened = reader.read("emoji")
    return opened, with_footprints(opened.directory, opened.manifest).components


def test_a_loaded_component_holds_its_weights_in_fp32_and_more_while_it_loads(emoji):
    _, components = emoji
    for name in ("transformer", "vae_decoder", "text_encoder"):
        held, spec = components[name].footprint, components[name]
        weights = 4 * spec.parameters
        assert weights < held.loading
        assert 0.5 * weights < held.loaded < 2 * weights, name
        assert held.loaded < held.loading


@pytest.mark.parametrize("side", [16, 32, 48])
def test_a_decoder_works_in_what_was_counted(emoji, side):
    spec = emoji[1]["vae_decoder"]
    dims = {"batch": 1, "height": side, "width": side}
    found, counted = spec.footprint.working.at(dims), spec.cost.widened.at(dims)
    assert 0.9 * counted < found < 1.2 * counted + 6e6  # a call also takes some pages of its own, 3 to 5 MB


def test_a_graph_without_weights_is_not_measured(emoji):
    assert emoji[1]["transformer_step"].footprint is None


def test_without_memory_nothing_is_measured(emoji, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 0)
    opened = emoji[0]
    found = with_footprints(opened.directory, opened.manifest).components
    assert {spec.footprint for spec in found.values()} == {None}


def test_a_child_that_fails_is_told_and_leaves_no_footprint(emoji, tmp_path):
    told = []
    found = with_footprints(tmp_path, emoji[0].manifest, told.append).components  # there are no graphs here
    assert "memory was not measured" in told[0]
    assert {spec.footprint for spec in found.values()} == {None}


def test_an_export_has_them(exported):
    content = reader.read(exported).manifest
    assert all((spec.footprint is None) == (not spec.weights) for spec in content.components.values())
