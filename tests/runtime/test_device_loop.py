"""The loop that keeps arrays on the device beside the one in numpy.

ONNX Runtime's IO binding is real here, with the processor as the device; that nothing is copied to a GPU and back is
shown as far as it can be without one: every feed of a denoiser is one of ONNX Runtime's own values.
"""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest

from segue.engines.base import Resident
from segue.engines.ort.engine import OrtResident
from segue.errors import Cancelled
from segue.runtime import device_loop
from segue.runtime.components import Components
from segue.runtime.diagnostics.difference import relative_l2
from segue.runtime.pipeline import open_model
from segue.runtime.request import Request
from segue.runtime.sampling.schedule import custom_schedule
from segue.runtime.sampling.tiles import Tiling
from segue.runtime.videos.request import AnimationRequest

LEVELS = custom_schedule([1.0, 0.5], 3.0, 1000)


@pytest.fixture
def on_device(monkeypatch):
    """Let the processor count as a GPU; return the copies to the host that were asked for."""
    monkeypatch.setattr(Components, "on_gpu", property(lambda self: True))
    copies, fetch = [], OrtResident.numpy
    monkeypatch.setattr(OrtResident, "numpy", lambda self: copies.append(self.shape) or fetch(self))
    return copies


def drawn(bundle, request, on_step=None):
    with open_model(bundle, threads=1) as model:
        return model.render(request, on_step=on_step)


@pytest.mark.parametrize(
    "name", ["exported", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sdxl_bundle", "longcat_bundle"))]
)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_are_those_of_the_loop_in_numpy(name, guidance, request, monkeypatch):
    bundle = request.getfixturevalue(name)
    wanted = Request(["a red heart", "a hare"], seed=3, steps=3, guidance=guidance, size=64)
    expected = drawn(bundle, wanted)
    copies = request.getfixturevalue("on_device")
    made = drawn(bundle, wanted)
    assert len(copies) == 2  # of the latents, once a picture
    assert relative_l2(made.latents, expected.latents) < 1e-5
    assert np.abs(made.images.astype(int) - expected.images).max() <= 1
    assert made.metadata == expected.metadata


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 1])
def test_reference_pictures_and_their_absence_stay_on_the_device(klein_bundle, count, request):
    references = [np.full((64, 96, 3), 90, np.uint8)] * count
    wanted = Request("a red heart", seed=3, steps=2, size=64, references=references)
    expected = drawn(klein_bundle, wanted)
    copies = request.getfixturevalue("on_device")
    made = drawn(klein_bundle, wanted)
    assert len(copies) == 1
    assert relative_l2(made.latents, expected.latents) < 1e-5


def test_every_feed_of_the_loop_is_on_the_device_already(exported, on_device):
    calls = []
    bundle = open_model(exported).bundle
    components = Components(bundle, 1, on_call=lambda *call: calls.append(call))
    with open_model(exported, threads=1) as model:
        model._components = components
        model.render(Request("a red heart", steps=3, guidance=2.0, size=64))
    in_loop = [(feeds, made) for name, feeds, made in calls if name.startswith("transformer")]
    assert len(in_loop) == 6
    assert all(isinstance(array, Resident) for _, made in in_loop for array in made.values())
    fed = {name: array for feeds, _ in in_loop for name, array in feeds.items() if not isinstance(array, Resident)}
    assert set(fed) == {"timestep", "change"}
    assert sum(array.nbytes for array in fed.values()) == 4 * (2 + 1)


def test_a_step_that_is_looked_at_is_copied_and_the_same(exported, on_device):
    seen = []
    wanted = Request("a red heart", steps=3, size=64)
    made = drawn(exported, wanted, lambda done, total, latents: seen.append(latents.copy()))
    assert len(on_device) == 4
    assert np.array_equal(seen[-1], made.latents)
    assert not np.array_equal(seen[0], seen[1])


def test_a_target_without_an_engine_of_the_step_takes_the_loop_in_numpy(exported, on_device, monkeypatch):
    monkeypatch.setattr(Components, "has", lambda self, name: not name.endswith("_step"))
    drawn(exported, Request("a red heart", steps=2, size=64))
    assert on_device == []


def test_experts_that_differ_in_precision_take_the_loop_in_numpy(video_bundle, on_device):
    with open_model(video_bundle) as model:
        components, content = model._components, model.bundle.manifest
        assert device_loop.can_stay(components, LEVELS, "transformer")
        first = content.components["transformer"]
        ports = tuple(dataclasses.replace(port, dtype="float16") for port in first.inputs)
        content.components["transformer_2"] = first
        assert device_loop.can_stay(components, LEVELS, "transformer", "transformer_2")
        content.components["transformer_2"] = dataclasses.replace(first, inputs=ports)
        assert not device_loop.can_stay(components, LEVELS, "transformer", "transformer_2")


def test_a_cancelled_loop_loads_nothing(exported, on_device):
    with open_model(exported, threads=1) as model:
        loaded = model._components._engines
        with pytest.raises(Cancelled):
            model.render(Request("a red heart", steps=3, size=64), cancel=lambda: "text_encoder_2" in loaded)
        assert set(loaded) == {"text_encoder", "text_encoder_2"}


def test_a_bundle_without_the_step_falls_back_to_numpy(tiny_bundle, on_device):
    drawn(tiny_bundle, Request("a red heart", steps=2, size=64))
    assert on_device == []


@pytest.mark.parametrize("tiling", [None, Tiling(4, 2)])
def test_videos_are_those_of_the_loop_in_numpy(video_bundle, request, tiling):
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    wanted = AnimationRequest(image, "a red heart", frames=17, seed=5, size=(128, 64), tiling=tiling)

    calls = []

    def animated():
        calls.clear()
        with open_model(video_bundle, threads=1) as model:
            model._components._on_call = lambda name, feeds, made: calls.append((name, feeds))
            frames = np.concatenate(list(model.frames(wanted)))
            held = set(model._components._engines)
        return frames, held

    expected, _ = animated()
    copies = request.getfixturevalue("on_device")
    made, held = animated()
    assert np.abs(made.astype(int) - expected).max() <= 1
    assert len(copies) == 1 + 2  # of Stage I's latents, and of the two segments
    assert not held & {"transformer", "transformer_step"}  # Stage I is gone, its step as well
    caches = [a for name, feeds in calls if name.startswith("detail_vae") for n, a in feeds.items() if "cache" in n]
    assert caches
    assert all(isinstance(array, Resident) == (tiling is None) for array in caches)


IMAGE = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


def animated(bundle, wanted):
    with open_model(bundle, threads=1) as model:
        return np.concatenate(list(model.frames(wanted)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "image", "last"),
    [
        ("wan_i2v_bundle", IMAGE, None),
        ("wan_i2v_bundle", IMAGE, IMAGE[::-1].copy()),
        ("wan_ti2v_bundle", IMAGE, None),
        ("wan_ti2v_bundle", None, None),
    ],
)
def test_videos_of_one_stage_are_those_of_the_loop_in_numpy(request, name, image, last):
    bundle = request.getfixturevalue(name)
    wanted = AnimationRequest(image, "a red heart", frames=13, seed=5, last=last)
    expected = animated(bundle, wanted)
    copies = request.getfixturevalue("on_device")
    made = animated(bundle, wanted)
    assert len(copies) == 2  # of the latents, once a window
    assert np.abs(made.astype(int) - expected).max() <= 1


@pytest.fixture(scope="module")
def renoised(wan_ti2v_bundle, wan_ti2v_checkpoint, tmp_path_factory):
    """The bundle of a student that adds noise anew, with the step graph that its export would write."""
    from segue.export.checkpoint import read
    from segue.export.families.registry import find
    from segue.export.graphs import trace

    copy = tmp_path_factory.mktemp("renoised") / "bundle"
    shutil.copytree(wan_ti2v_bundle, copy)
    family = find(read.read_index(wan_ti2v_checkpoint))
    found = read.read(wan_ti2v_checkpoint, family.folders)
    graphs = family.graphs({name: part.config for name, part in found.parts.items()}, {"keep", "noise"})
    (step,) = (graph for graph in graphs if graph.component == "transformer_step")
    table = json.loads((copy / "bundle.json").read_text())
    file = copy / table["components"]["transformer_step"]["graph"]
    file.unlink()
    trace.write(step, "fp32", {}, file)
    data = file.read_bytes()
    listed = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data), "origin": False}
    table["files"][table["components"]["transformer_step"]["graph"]] = listed
    ports = [{"name": p.name, "dtype": p.dtype.replace("weight", "float32"), "shape": p.shape} for p in step.inputs]
    table["components"]["transformer_step"]["inputs"] = ports
    for sampler in (table["sampler"], table["video"]["motion"]["sampler"]):
        sampler |= {"kind": "flow-match-renoised", "guidance": 1.0}
    (copy / "bundle.json").write_text(json.dumps(table))
    return copy


@pytest.mark.parametrize("image", [None, IMAGE], ids=["text", "picture"])
def test_noise_that_is_added_anew_spares_the_frame_that_is_given(renoised, request, image):
    wanted = AnimationRequest(image, "a red heart", frames=9, seed=5)
    expected = animated(renoised, wanted)
    copies = request.getfixturevalue("on_device")
    made = animated(renoised, wanted)
    assert len(copies) == 1
    assert np.abs(made.astype(int) - expected).max() <= 1
