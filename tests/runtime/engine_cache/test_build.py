"""Engines of whole bundles, built by TensorRT-RTX."""

import hashlib
import json
import os
import shutil

import onnx
import pytest
from filelock import FileLock

from segue.engines import devices
from segue.engines.targets import TARGETS
from segue.errors import BundleError, Cancelled, EngineError, UsageError
from segue.runtime.bundle import manifest, reader
from segue.runtime.bundle.shapes import SizeRange
from segue.runtime.engine_cache import build, bundled, find, store, upkeep
from segue.runtime.engine_cache.build import BuildRequest
from segue.runtime.engine_cache.find import find_engine
from segue.runtime.pipeline import open_model

RTX = TARGETS["tensorrt-rtx"]
SMALL = (SizeRange(*[(64, 64)] * 3),)
GPU = devices.Gpu("NVIDIA GeForce RTX 4090", 89, 24 * 2**30)


@pytest.fixture
def opened(half, tmp_path):
    """A copy of the tiny bundle in half precision."""
    shutil.copytree(half, tmp_path / "tiny")
    return reader.read(tmp_path / "tiny")


@pytest.fixture
def engines(opened):
    """Engines of its text encoder and its decoder for an RTX 4090."""
    return build.build(opened, BuildRequest("tensorrt-rtx", (89,), SMALL, ("text_encoder", "vae_decoder")))


def test_all_components_become_engines_for_several_gpus(opened):
    seen = []
    request = BuildRequest("tensorrt-rtx", (80, 86, 89, 120))
    made = build.build(opened, request, lambda event: seen.append(event.component))
    assert [m.component for m in made] == list(opened.manifest.components)
    assert set(seen) == set(opened.manifest.components)
    assert all(m.fresh and m.entry.record.bytes == m.entry.plan.stat().st_size for m in made)
    again = build.build(opened, request)
    assert not any(m.fresh for m in again)


@pytest.mark.slow
def test_bfloat16_becomes_engines_whose_inputs_numpy_has(bf16_bundle):
    opened = reader.read(bf16_bundle)
    made = opened.manifest
    dtypes = {spec.dtype for c in made.components.values() for spec in (*c.inputs, *c.outputs)}
    assert dtypes == {"float32", "int64"}
    engines = build.build(opened, BuildRequest("tensorrt-rtx", (89,), SMALL))
    assert len(engines) == len(made.components)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sdxl_bundle", "longcat_bundle", "video_bundle", "wan_ti2v_bundle", "klein_bundle", "zimage_bundle"]
)
def test_the_other_families_become_engines(name, request):
    opened = reader.read(request.getfixturevalue(name))
    wanted = () if opened.manifest.video else SMALL
    made = build.build(opened, BuildRequest("tensorrt-rtx", (89,), wanted))
    assert [m.component for m in made] == list(opened.manifest.components)


def test_the_engine_that_fits_is_found(opened, engines):
    assert find_engine(opened, "vae_decoder", RTX, 89).directory == engines[1].entry.directory


def test_an_altered_engine_is_told_with_what_builds_it_again(opened, engines):
    plan = engines[1].entry.plan
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)
    with pytest.raises(EngineError, match=r"has bytes that were altered since it was built\. Run segue build '"):
        find_engine(opened, "vae_decoder", RTX, 89)


def test_what_differs_in_the_nearest_engine_is_named(opened, engines, monkeypatch):
    with pytest.raises(EngineError, match=r"capabilities \(89,\) instead of \(120,\).*--sm 120"):
        find_engine(opened, "vae_decoder", RTX, 120)
    with pytest.raises(EngineError, match=r"of transformer.*none was built"):
        find_engine(opened, "transformer", RTX, 89)
    monkeypatch.setattr(find, "load", lambda target: type("T", (), {"__version__": "9.9"}))
    with pytest.raises(EngineError, match=r"version .* instead of 9\.9"):
        find_engine(opened, "vae_decoder", RTX, 89)


def test_the_engine_has_to_have_room_for_the_shapes(opened, engines):
    fits, wide = {"latents": (1, 8, 8, 8)}, {"latents": (1, 8, 16, 16)}
    assert find_engine(opened, "vae_decoder", RTX, 89, fits).directory == engines[1].entry.directory
    with pytest.raises(EngineError, match=r"no profile with room for latents \[1, 8, 16, 16\]"):
        find_engine(opened, "vae_decoder", RTX, 89, wide)
    large = BuildRequest("tensorrt-rtx", (89,), (SizeRange((64, 64), (64, 64), (128, 128)),), ("vae_decoder",))
    (made,) = build.build(opened, large)
    assert find_engine(opened, "vae_decoder", RTX, 89, wide).directory == made.entry.directory


def test_newer_engines_take_the_place_of_older_ones_in_a_bundle(opened, engines):
    bundled.put_into(opened, engines)
    again = reader.read(opened.directory)
    large = BuildRequest("tensorrt-rtx", (89,), (SizeRange((64, 64), (64, 64), (128, 128)),), ("vae_decoder",))
    bundled.put_into(again, build.build(again, large))
    kept = reader.read(opened.directory).manifest.engines
    assert len(kept) == 2
    assert set(kept) == {path.name for path in (opened.directory / "engines").iterdir()}


def test_the_engines_of_a_request_stay_together_and_others_give_way(opened, engines, monkeypatch):
    monkeypatch.setenv("SEGUE_ENGINE_CACHE", "1000B")  # less than one of them
    request = BuildRequest("tensorrt-rtx", (120,), SMALL, ("text_encoder", "vae_decoder"))
    made = build.build(opened, request)
    assert {each.entry.directory for each in made} == set(store.root().glob("?" * 64))
    bundled.put_into(opened, made)
    assert len(reader.read(opened.directory).manifest.engines) == 2


def test_a_request_that_fails_keeps_what_it_has_and_others_give_way_as_well(opened, engines, monkeypatch):
    def fails(graph, *others):
        if "vae" in graph.parts:
            raise EngineError("the builder gave up. Try again.")
        return build_apart(graph, *others)

    build_apart = build.build_apart
    monkeypatch.setattr(build, "build_apart", fails)
    monkeypatch.setenv("SEGUE_ENGINE_CACHE", "1000B")
    with pytest.raises(EngineError, match="gave up"):
        build.build(opened, BuildRequest("tensorrt-rtx", (120,), SMALL, ("text_encoder", "vae_decoder")))
    (kept,) = store.entries(store.root())
    assert (kept.record.component, kept.record.fingerprint.capabilities) == ("text_encoder", (120,))


def test_a_request_that_waits_for_another_process_can_be_cancelled(opened, engines):
    (entry,) = store.entries(store.root())[:1]
    phases = []
    request = BuildRequest("tensorrt-rtx", (89,), SMALL, (entry.record.component,))
    with FileLock(f"{entry.directory}.lock"), pytest.raises(Cancelled, match="Start again"):
        build.build(opened, request, lambda event: phases.append(event.phase), lambda: len(phases) > 1)
    assert phases == ["starting", "waiting for another process"]


def test_a_limit_that_is_no_amount_is_refused_before_anything_is_built(opened, monkeypatch):
    monkeypatch.setenv("SEGUE_ENGINE_CACHE", "much")
    with pytest.raises(UsageError, match=r"SEGUE_ENGINE_CACHE cannot be read: 'much' is not an amount.*8GiB"):
        build.build(opened, BuildRequest("tensorrt-rtx", (89,), SMALL, ("text_encoder",)))
    assert not store.root().exists()


@pytest.mark.skipif(os.name == "nt", reason="modes of directories are POSIX's")
def test_a_cache_that_others_may_write_to_is_not_trusted(opened, engines):
    store.root().chmod(0o777)
    with pytest.raises(EngineError, match=r"others may write to it.*chmod go-w"):
        find_engine(opened, "vae_decoder", RTX, 89)
    with pytest.raises(EngineError, match="others may write"):
        build.build(opened, BuildRequest("tensorrt-rtx", (89,), SMALL, ("text_encoder",)))


def test_an_engine_of_another_graph_is_not_taken(opened, engines):
    spec = opened.manifest.components["vae_decoder"]
    table = json.loads((opened.directory / manifest.FILE_NAME).read_bytes())
    path = opened.path(spec.graph)
    model = onnx.load(path, load_external_data=False)
    model.doc_string = "another file, the same graph"
    path.write_bytes(model.SerializeToString())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    table["files"][spec.graph] |= {"sha256": digest, "bytes": path.stat().st_size}
    (opened.directory / manifest.FILE_NAME).write_text(json.dumps(table))
    with pytest.raises(EngineError, match="the nearest has graph"):
        find_engine(reader.read(opened.directory), "vae_decoder", RTX, 89)


def test_a_graph_that_changed_since_the_bundle_was_opened_is_not_built(opened):
    path = opened.path(opened.manifest.components["vae_decoder"].graph)
    path.write_bytes(path.read_bytes() + b"\x3a\x00")
    with pytest.raises(BundleError, match="was changed since"):
        build.build(opened, BuildRequest("tensorrt-rtx", (89,), SMALL, ("vae_decoder",)))


def test_engines_travel_with_a_bundle_that_names_their_hashes(opened, engines, tmp_path):
    bundled.put_into(opened, engines)
    upkeep.clear()
    again = reader.read(opened.directory)
    with pytest.raises(EngineError, match=r"none was built; the bundle's engines were not considered.*--trust-engines"):
        find_engine(again, "vae_decoder", RTX, 89)
    found = find_engine(again, "vae_decoder", RTX, 89, trust=True)
    assert bundled.verify_engines(again) == 2
    assert found.directory.parent == opened.directory / "engines"
    record = found.directory / store.RECORD
    record.write_bytes(record.read_bytes().replace(b'"seconds": ', b'"seconds": 1'))
    with pytest.raises(EngineError, match="none was built"):
        find_engine(again, "vae_decoder", RTX, 89, trust=True)
    with pytest.raises(EngineError, match=r"record of the engine .* was altered"):
        bundled.verify_engines(again)
    shutil.rmtree(opened.directory / "engines")
    assert reader.verify(opened.directory).manifest.engines  # safe to delete


def test_a_target_without_engines_has_nothing_to_build(opened):
    with pytest.raises(UsageError, match="nothing to build"):
        build.build(opened, BuildRequest("ort-cpu"))


def test_an_unknown_component_is_refused(opened):
    with pytest.raises(UsageError, match="no component 'unet'"):
        build.build(opened, BuildRequest("tensorrt-rtx", (89,), components=("unet",)))


def test_a_budget_bounds_scratch_memory_and_streams_weights_that_do_not_fit(opened):
    content = opened.manifest
    weights = sum(content.files[file].bytes for file in content.components["transformer"].weights)
    found = {}
    for budget in (4 * weights, weights):
        request = BuildRequest("tensorrt-rtx", (89,), SMALL, ("transformer",), budget)
        of = build._settings(content, "transformer", request, ())
        found[budget] = (of.workspace, of.streaming)
    assert found == {4 * weights: (3 * weights, False), weights: (weights // 2, True)}
    request = BuildRequest("tensorrt-rtx", (89,), SMALL, ("text_encoder",), 2**28)
    (made,) = build.build(opened, request)
    assert made.entry.record.fingerprint.workspace is not None


def test_without_a_gpu_an_engine_is_not_run(opened, engines, monkeypatch):
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("", (), "no driver"))
    with open_model(opened.directory, target="tensorrt-rtx") as model, pytest.raises(EngineError, match="no driver"):
        model.generate("red", size=64)


def test_the_capability_comes_from_the_gpu_at_hand(monkeypatch):
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580", (GPU,)))
    assert build.here("tensorrt-rtx") == (89,)
    assert build.here("tensorrt") == ()
    hopper = devices.Gpu("NVIDIA H100 80GB HBM3", 90, 80 * 2**30)
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("580", (hopper,)))
    with pytest.raises(UsageError, match=r"H100 80GB HBM3, of compute capability 9\.0\. Use the target ort-cuda"):
        build.here("tensorrt-rtx")
    monkeypatch.setattr(devices, "driver", lambda: devices.Driver("", (), "no driver"))
    with pytest.raises(UsageError, match=r"no driver.*--sm 89"):
        build.here("tensorrt-rtx")
