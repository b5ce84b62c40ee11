"""Engines of the shipped bundles, built by TensorRT-RTX."""

import pytest

from segue.runtime import build, bundle
from segue.runtime.build import BuildRequest


@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_every_graph_of_a_shipped_bundle_becomes_an_engine(name):
    opened = bundle.read(name)
    made = build.build(opened, BuildRequest("tensorrt-rtx", (89,)))
    assert [m.component for m in made] == list(opened.manifest.components)
