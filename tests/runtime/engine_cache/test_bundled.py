"""Putting engines into a bundle: which of those that are there stay, and what several processes do to one another."""

import dataclasses
import hashlib
import json

import pytest
from filelock import FileLock

from segue.engines.targets import TARGETS
from segue.engines.tensorrt.build import Built
from segue.errors import BundleError
from segue.runtime.bundle import bundle_json, manifest, reader
from segue.runtime.engine_cache import build, find, store
from segue.runtime.engine_cache.build import RECIPE
from segue.runtime.engine_cache.bundled import FOLDER, LOCK, put_into
from segue.runtime.engine_cache.find import find_engine
from segue.runtime.engine_cache.store import Fingerprint, Made

ADA = Fingerprint(
    graph="a" * 64, weights={}, precision="fp32", target="tensorrt-rtx", version="1.7.1", capabilities=(89,),
    profiles=(), workspace=None, streaming=False, system="Linux-x86_64", gpu="", driver="", recipe=RECIPE,
)  # fmt: skip
A4090 = {"target": "tensorrt", "capabilities": (), "gpu": "RTX 4090", "driver": "580"}


def made(component="transformer", **changed):
    """Return an engine of the user's cache, of a few bytes."""

    def write(out):
        out.write_bytes(b"plan")
        return Built(1.5, 3, 1, 0, ())

    graph = hashlib.sha256(component.encode()).hexdigest()
    fingerprint = dataclasses.replace(ADA, **{"graph": graph} | changed)
    return Made(component, *store.obtain(fingerprint, "tiny", component, write, "2026-01-01"))


def keys(*engines):
    return {each.entry.directory.name for each in engines}


def held(path):
    """Return the engines that the bundle names, which are those that it has."""
    named = set(reader.read(path).manifest.engines)
    assert named == {place.name for place in (path / FOLDER).iterdir()}
    return named


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"capabilities": (120,)}), ({"capabilities": (89, 120)}, {}), ({}, {"target": "tensorrt"}),
        ({}, {"system": "Windows-AMD64"}), (A4090, A4090 | {"gpu": "RTX 5090"}), ({}, {"component": "vae_decoder"}),
    ],
    ids=["capability", "fewer capabilities", "target", "system", "gpu", "component"],
)  # fmt: skip
def test_engines_that_serve_what_a_new_one_does_not_stay(tiny_bundle, old, new):
    for engine in (before := made(**old)), (after := made(**new | {"recipe": RECIPE + 1})):
        put_into(reader.read(tiny_bundle), [engine])
    assert held(tiny_bundle) == keys(before, after)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({}, {"version": "1.8.0"}), ({}, {"capabilities": (89, 120)}), ({}, {"graph": "b" * 64}),
        ({"capabilities": (89, 120)}, {"capabilities": (120, 89)}), (A4090, A4090 | {"driver": "590"}),
    ],
    ids=["version", "more capabilities", "graph", "order", "driver"],
)  # fmt: skip
def test_a_new_engine_takes_the_place_of_one_that_serves_nothing_more(tiny_bundle, old, new):
    put_into(reader.read(tiny_bundle), [made(**old)])
    after = made(**new)
    put_into(reader.read(tiny_bundle), [after])
    assert held(tiny_bundle) == keys(after)


def test_of_several_that_fit_the_one_put_in_last_is_taken(tiny_bundle, monkeypatch):
    monkeypatch.setattr(find, "load", lambda target: type("T", (), {"__version__": "1.7.1"}))
    monkeypatch.setattr(build.platform, "system", lambda: "Linux")
    monkeypatch.setattr(build.platform, "machine", lambda: "x86_64")
    opened = reader.read(tiny_bundle)
    spec, files = opened.manifest.components["transformer"], opened.manifest.files
    of = {"graph": files[spec.graph].sha256, "weights": {file: files[file].sha256 for file in spec.weights}}
    for capabilities in ((86, 89), (89, 120), (89,)):
        last = made(**of, capabilities=capabilities)
        put_into(opened, [last])
    for each in store.entries(store.root()):
        each.plan.unlink()
    found = find_engine(reader.read(tiny_bundle), "transformer", TARGETS["tensorrt-rtx"], 89, trust=True)
    assert found.directory == tiny_bundle / FOLDER / last.entry.directory.name


def test_what_another_process_put_in_since_the_bundle_was_opened_stays(tiny_bundle):
    first, second = reader.read(tiny_bundle), reader.read(tiny_bundle)
    engines = made(), made("vae_decoder")
    put_into(first, engines[:1])
    put_into(second, engines[1:])
    assert held(tiny_bundle) == keys(*engines)


def test_another_process_is_waited_for_and_what_it_wrote_meanwhile_stays(tiny_bundle):
    opened, engine = reader.read(tiny_bundle), made()
    lock = FileLock(tiny_bundle / LOCK)
    lock.acquire()

    def end_of_the_other():
        others = dataclasses.replace(opened.manifest, engines={"f" * 64: "0" * 64})
        (tiny_bundle / manifest.FILE_NAME).write_bytes(bundle_json.dump(others))
        lock.release()

    put_into(opened, [engine], end_of_the_other)
    assert set(reader.read(tiny_bundle).manifest.engines) == {"f" * 64} | keys(engine)


def test_a_bundle_that_became_another_one_takes_no_engines(tiny_bundle):
    opened = reader.read(tiny_bundle)
    path = tiny_bundle / manifest.FILE_NAME
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"name": "another"}))
    with pytest.raises(BundleError, match=r"was changed since it was opened\. Run segue build again"):
        put_into(opened, [made()])
    assert not (tiny_bundle / FOLDER).exists()
