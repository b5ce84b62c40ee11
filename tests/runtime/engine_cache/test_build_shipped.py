"""Engines of the shipped bundles, built by TensorRT-RTX."""

import dataclasses

import pytest

from segue.engines.targets import find_target
from segue.errors import EngineError
from segue.runtime.bundle import reader
from segue.runtime.bundle.shapes import SizeRange
from segue.runtime.engine_cache import build
from segue.runtime.engine_cache.build import BuildRequest
from segue.runtime.engine_cache.find import find_engine


@pytest.mark.slow
@pytest.mark.parametrize("name", ["emoji", "emoji-teacher", "emoji-motion"])
def test_every_graph_of_a_shipped_bundle_becomes_an_engine(name):
    opened = reader.read(name)
    made = build.build(opened, BuildRequest("tensorrt-rtx", (89,)))
    assert [m.component for m in made] == list(opened.manifest.components)


def test_a_student_has_room_for_guidance_where_it_is_asked_for():
    opened, rtx, size = reader.read("emoji"), find_target("tensorrt-rtx"), SizeRange(*[(64, 64)] * 3)
    shapes = {"latents": (1, 16, 8, 8), "made": (2, 16, 8, 8), "guidance": (1,), "change": (1,)}
    request = BuildRequest("tensorrt-rtx", (89,), (size,), ("transformer_step",))
    build.build(opened, request)
    assert find_engine(opened, "transformer_step", rtx, 89, {**shapes, "made": (1, 16, 8, 8)})
    with pytest.raises(EngineError, match=r"no profile with room for .*made \[2, 16, 8, 8\].*--sm 89 --guidance$"):
        find_engine(opened, "transformer_step", rtx, 89, shapes)
    (made,) = build.build(opened, dataclasses.replace(request, guided=True))
    assert find_engine(opened, "transformer_step", rtx, 89, shapes).directory == made.entry.directory
