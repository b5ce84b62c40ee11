"""Plans: what a request takes, and how it stays within a budget."""

import dataclasses
import json
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import segue
from segue.errors import BudgetError, UsageError
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.planning.costs import ComponentCost, MemoryUse, streamed_cost
from segue.runtime.planning.hardware import CPU, find_machine, published
from segue.runtime.planning.pictures import Wanted, plan
from segue.runtime.planning.videos import WantedVideo, plan_video
from segue.runtime.units import bytes_of, mebibytes

MIB = 2**20
CONTENT = {name: read_manifest(name) for name in ("emoji", "emoji-teacher")}
HERE = find_machine(CPU, threads=2)
sides = st.integers(4, 16).map(lambda n: 16 * n)
bundles = st.sampled_from(sorted(CONTENT))
machines = st.sampled_from([HERE, *published().values()])


def wanted_of(name, height, width, count=1):
    sampler = CONTENT[name].sampler
    return Wanted(height, width, sampler.steps, sampler.guidance > 1, count)


def smallest(name, wanted, machine=HERE):
    with pytest.raises(BudgetError) as refused:
        plan(CONTENT[name], wanted, machine, 1)
    return mebibytes(refused.value.needed) * MIB


@given(bundles, sides, sides, st.integers(1, 4), machines)
@settings(max_examples=40, deadline=None)
def test_the_smallest_budget_named_does_and_a_mebibyte_less_does_not(name, height, width, count, machine):
    wanted = wanted_of(name, height, width, count)
    least = smallest(name, wanted, machine)
    assert plan(CONTENT[name], wanted, machine, least).peak <= least
    with pytest.raises(BudgetError, match=r"takes \d+ MiB for \d+x\d+ px, which is \d+ MiB above the budget of"):
        plan(CONTENT[name], wanted, machine, least - MIB)


@given(bundles, sides, st.lists(st.integers(0, 120), min_size=2, max_size=2), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_a_larger_budget_is_never_slower(name, side, more, count):
    wanted = wanted_of(name, side, side, count)
    least = smallest(name, wanted)
    small, large = (plan(CONTENT[name], wanted, HERE, least + step * MIB) for step in sorted(more))
    assert large.tiling is None or small.tiling is not None
    if (large.tiling is None) == (small.tiling is None):
        assert large.seconds <= small.seconds
    assert small.peak <= least + min(more) * MIB


@given(bundles, sides, sides, machines)
@settings(max_examples=40, deadline=None)
def test_a_larger_picture_never_takes_less(name, one, other, machine):
    peaks = [plan(CONTENT[name], wanted_of(name, side, side), machine, None).peak for side in sorted((one, other))]
    assert peaks == sorted(peaks)


def test_a_plan_is_the_same_each_time_and_made_at_once():
    started = time.perf_counter()
    made = [plan(CONTENT["emoji"], wanted_of("emoji", 128, 128), HERE, None) for _ in range(2)]
    assert made[0] == made[1]
    assert time.perf_counter() - started < 2


def test_a_way_without_tiles_is_taken_where_one_fits():
    wanted = wanted_of("emoji", 256, 256)
    assert plan(CONTENT["emoji"], wanted, HERE, None).tiling is None


def test_without_a_measured_footprint_the_plan_goes_by_what_was_counted():
    content = CONTENT["emoji"]
    bare = {name: dataclasses.replace(spec, footprint=None) for name, spec in content.components.items()}
    wanted = wanted_of("emoji", 128, 128)
    counted = plan(dataclasses.replace(content, components=bare), wanted, HERE, None).peak
    assert counted == pytest.approx(plan(content, wanted, HERE, None).peak, rel=0.3)


def test_parts_are_streamed_where_the_whole_does_not_fit():
    content, wanted = CONTENT["emoji"], wanted_of("emoji", 128, 128)
    whole = {name: dataclasses.replace(spec, parts=()) for name, spec in content.components.items()}
    with pytest.raises(BudgetError) as refused:
        plan(dataclasses.replace(content, components=whole), wanted, HERE, 1)
    needed = mebibytes(refused.value.needed)
    least = smallest("emoji", wanted)
    assert least < 0.75 * needed * MIB
    assert "transformer" in plan(content, wanted, HERE, least).streamed
    assert plan(content, wanted, HERE, None).streamed == {}


def test_what_is_loaded_ahead_takes_more_and_is_taken_where_it_fits():
    content, wanted = CONTENT["emoji"], wanted_of("emoji", 512, 512)
    machine = dataclasses.replace(HERE, memory=2**40)
    whole = plan(content, wanted, machine, None).peak
    found = [
        plan(content, wanted, machine, budget).streamed for budget in range(whole, smallest("emoji", wanted), -MIB)
    ]
    ways = list(dict.fromkeys(streamed.get("transformer") for streamed in found))
    assert ways == [None, True, False]  # the tighter the budget
    assert not any(streamed.get("text_encoder") for streamed in found)  # it works for too short a time to hide anything


def test_on_a_gpu_weights_that_are_read_meanwhile_cost_no_time():
    gpu = published()["rtx4090"]
    turn = ComponentCost(MemoryUse(3 * MIB, 3 * MIB, MIB), 2, 1e12, 3 * MIB)
    turn = dataclasses.replace(turn, parts=(MemoryUse(MIB, MIB, MIB),) * 3)
    for machine, hidden in ((gpu, True), (HERE, False)):
        ahead, behind = (streamed_cost(turn, machine, which) for which in (True, False))
        assert ahead.overlapped is hidden
        assert not behind.overlapped
        assert ahead.held.loading > behind.held.loading
        assert behind.weights == 2 * turn.weights


def test_a_budget_beyond_the_machine_is_the_machine():
    small = dataclasses.replace(HERE, memory=64 * MIB)
    with pytest.raises(BudgetError, match="above the memory of this processor, 64 MiB"):
        plan(CONTENT["emoji"], wanted_of("emoji", 64, 64), small, 2**40)


def test_machines_have_names():
    assert find_machine("rtx4090").memory == 24 * 2**30
    with pytest.raises(UsageError, match="the machine 'rtx1' is unknown"):
        find_machine("rtx1")


@pytest.mark.parametrize(("text", "size"), [("8GiB", 2**33), ("1.5MiB", 3 * 2**19), ("6GB", 6 * 10**9), (5, 5)])
def test_amounts_of_memory(text, size):
    assert bytes_of(text) == size
    assert mebibytes(2**20 + 1) == 2


CHILD = """
import json, sys
from pathlib import Path
import segue
def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))
name, budget, size, frames, start = json.loads(sys.argv[1])
idle = resident("VmRSS")
with segue.open(name, budget=budget) as model:
    import numpy as np
    if frames:
        image = np.full((size, size, 3), 200, np.uint8)
        total = sum(int(new.astype(int).sum()) for new in model.animate(image, "a wink", frames=frames, size=size))
    else:
        given = {}
        if start:
            rows, columns = np.mgrid[0:size, 0:size]
            given["image"] = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
        if start == "mask":
            given |= {"mask": np.zeros((size, size), np.uint8), "feather": 3}
            given["mask"][size // 4 : size // 2, size // 4 : -4] = 255
        model.generate("pizza", size=size, **given)
        total = int(model.generate("red apple", seed=1, size=size, **given).astype(int).sum())
print(json.dumps([resident("VmHWM") - idle, total]))
"""


def measured(name, budget, size, frames, start=None):
    """Return what a process of its own took, and the sum of the pixels that it made; `start`: image or mask."""
    asked = json.dumps([name, budget, size, frames, start])
    done = subprocess.run([sys.executable, "-c", CHILD, asked], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's high-water mark is read")
@pytest.mark.parametrize(("size", "more"), [(64, 0), (128, 24)])
def test_a_run_stays_within_its_budget_and_the_picture_is_the_same(size, more):
    budget = smallest("emoji", wanted_of("emoji", size, size)) + more * MIB
    taken, total = measured("emoji", budget, size, None)
    peak = plan(CONTENT["emoji"], wanted_of("emoji", size, size), find_machine(CPU), budget).peak
    assert taken <= peak <= min(budget, taken + max(0.1 * taken, 16 * MIB))
    with segue.open("emoji") as model:
        assert int(model.generate("red apple", seed=1, size=size).astype(int).sum()) == total


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's high-water mark is read")
@pytest.mark.parametrize("start", ["image", "mask"])
@pytest.mark.parametrize("more", [0, 40])
@pytest.mark.parametrize("size", [128, 256])
def test_a_run_that_begins_with_a_picture_stays_within_its_budget(size, more, start):
    steps = {"image": 3, "mask": 4}[start]  # strength 0.6 of 4 steps, rounded up, and all of them
    wanted = dataclasses.replace(wanted_of("emoji", size, size), steps=steps, given=True)
    budget = smallest("emoji", wanted) + more * MIB
    made = plan(CONTENT["emoji"], wanted, find_machine(CPU), budget)
    assert [phase.calls for phase in made.phases if phase.component == "vae_encoder"] == [4 if made.tiling else 1]
    taken, total = measured("emoji", budget, size, None, start)
    assert taken <= made.peak <= min(budget, taken + max(0.1 * taken, 16 * MIB))
    if made.tiling is None:
        assert measured("emoji", None, size, None, start)[1] == total
    else:
        assert (size, more) == (256, 0)  # the smallest budget wants tiles, of the encoder too


def test_a_picture_to_begin_with_is_planned_with_its_encoder_and_only_the_steps_that_run():
    content, plain = CONTENT["emoji"], wanted_of("emoji", 256, 256)
    given = dataclasses.replace(plain, steps=2, given=True)
    without, within = (plan(content, one, HERE, None) for one in (plain, given))
    calls = [{phase.component: phase.calls for phase in made.phases} for made in (without, within)]
    assert calls[1] == calls[0] | {"vae_encoder": 1, "transformer": 2}
    assert next(iter(calls[1])) == "vae_encoder"
    many = plan(content, dataclasses.replace(given, count=3), HERE, None)
    found = {phase.component: phase.calls for phase in many.phases}
    assert (found["vae_encoder"], found["transformer"]) == (1, 6)  # encoded once for all pictures
    least = smallest("emoji", given)
    tiled = plan(content, given, HERE, least)
    assert tiled.tiling is not None
    assert next(phase.calls for phase in tiled.phases if phase.component == "vae_encoder") > 1


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux's high-water mark is read")
def test_a_video_stays_within_the_smallest_budget_and_its_frames_are_the_same():
    content, wanted, here = read_manifest("emoji-motion"), WantedVideo(64, 64, 17), find_machine(CPU)
    with pytest.raises(BudgetError) as refused:
        plan_video(content, wanted, here, 1)
    budget = mebibytes(refused.value.needed) * MIB
    taken, total = measured("emoji-motion", budget, 64, 17)
    peak = plan_video(content, wanted, here, budget).peak
    assert taken <= peak <= min(budget, taken + max(0.1 * taken, 16 * MIB))
    assert measured("emoji-motion", None, 64, 17)[1] == total


def test_guidance_in_two_calls_is_nearly_the_same_picture(monkeypatch):
    from segue.runtime import plan_prepared as prepared

    with segue.open("emoji-teacher", budget="1GiB") as model:
        whole = model.generate("red apple", steps=2, size=64)
        make = prepared.plan
        monkeypatch.setattr(prepared, "plan", lambda *given: dataclasses.replace(make(*given), together=False))
        assert np.abs(model.generate("red apple", steps=2, size=64).astype(int) - whole).max() <= 1


def test_what_an_earlier_request_left_is_not_held_beside_the_next():
    with segue.open("emoji", budget="221MiB") as model:
        parts, beside = model._components, []
        running = parts._engine

        def watched(component, feeds):
            engine = running(component, feeds)
            beside.append(parts._engines.keys() - {*parts._held, component})
            return engine

        parts._engine = watched
        for size in (256, 256, 64, 256):
            model.generate("pizza", size=size, steps=1)
        assert beside
        assert not any(beside)


def test_what_does_not_fit_is_refused_before_anything_is_loaded():
    with segue.open("emoji", budget=smallest("emoji", wanted_of("emoji", 128, 128)) - MIB) as model:
        started = time.perf_counter()
        with pytest.raises(BudgetError, match="The smallest budget that is enough is"):
            model.generate("red apple")
        assert time.perf_counter() - started < 0.5
        assert not model._components._engines


def test_a_budget_is_refused_where_it_would_not_hold():
    with pytest.raises(UsageError, match="works only with ort-cpu and ort-cuda, not with the target tensorrt-rtx"):
        segue.open("emoji", budget="1GiB", target="tensorrt-rtx")
    with pytest.raises(UsageError, match="is not an amount of memory"):
        segue.open("emoji", budget="much")


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA GeForce RTX 4090 Laptop GPU"),  # as slow as the slowest known
        ("NVIDIA GeForce RTX 4080 SUPER", "NVIDIA GeForce RTX 4080 SUPER"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
    ],
)
def test_this_machine_is_known_by_the_name_that_its_driver_tells(monkeypatch, told, found):
    from segue.engines import devices

    driver = devices.Driver("1", (devices.Gpu(told, 89, 20 * 2**30),))
    monkeypatch.setattr(devices, "driver", lambda: driver)
    machine = find_machine("this")
    assert machine.name == found
    assert machine.kind == "cpu" or machine.memory == 20 * 2**30


def test_the_timeline_shows_every_phase_and_the_budget(tmp_path):
    import xml.etree.ElementTree as ET

    from click.testing import CliRunner

    from segue.cli import cli

    path = tmp_path / "plan.svg"
    told = CliRunner().invoke(cli, ["plan", "emoji", "--device", "cpu", "--budget", "300MiB", "--timeline", str(path)])
    assert told.exit_code == 0, told.output
    bars = [one for one in ET.parse(path).iter() if one.tag.endswith("rect")]
    assert len(bars) == 4
    assert "budget 300 MiB" in path.read_text()
    base = {float(bar.get("y")) + float(bar.get("height")) for bar in bars}
    assert max(base) - min(base) < 0.2  # all stand on one line


def test_threads_results_and_tokenizers_are_counted():
    content, one = read_manifest("emoji"), Wanted(64, 64, 4, False)
    few, many = (plan(content, one, find_machine("cpu", threads), None) for threads in (1, 256))
    assert many.peak - few.peak >= 255 * 2 * 45_000
    hundred = plan(content, dataclasses.replace(one, count=100), find_machine("cpu", 1), None)
    assert hundred.peak - few.peak >= 99 * (2 * 3 * 64 * 64 + 4 * 16 * 8 * 8)
    file = content.tokenizers["tokenizer"].file
    larger = dataclasses.replace(content.files[file], bytes=content.files[file].bytes + 2**20)
    more = dataclasses.replace(content, files=content.files | {file: larger})
    assert plan(more, one, find_machine("cpu", 1), None).peak - few.peak >= 13 * 2**20
