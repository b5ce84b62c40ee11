"""Plans for a GPU beside what runs took on one (`benchmarks/results/gpu_budget.json`), and how a budget is held."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import segue
from segue.engines import devices
from segue.engines.ort.providers import cuda_options
from segue.errors import BudgetError, EngineError
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.components import Components
from segue.runtime.planning import memory
from segue.runtime.planning.costs import SESSION
from segue.runtime.planning.hardware import gpu_here, published
from segue.runtime.planning.ledger import Ledger
from segue.runtime.planning.pictures import Wanted, plan, unbounded_plan
from segue.runtime.planning.videos import WantedVideo, plan_video, unbounded_video_plan
from segue.runtime.units import mebibytes

GIB, MIB = 2**30, 2**20
H100 = published()["h100"]
PLANS = {"sd3-random": "sd3-medium-without-t5"}  # that bundle has random weights, and graphs of these configurations
ENTRIES = json.loads((Path(__file__).parents[3] / "benchmarks/results/gpu_budget.json").read_text())
MEASURED = [(entry, row) for entry in ENTRIES for row in entry["rows"]]


def planned(entry, budget):
    content, side = read_manifest(PLANS.get(entry["bundle"], entry["bundle"])), entry["size"]
    if entry["frames"] is not None:
        wanted = WantedVideo(side, side, entry["frames"])
        return (
            unbounded_video_plan(content, wanted, H100) if budget is None else plan_video(content, wanted, H100, budget)
        )
    wanted = Wanted(side, side, 4, guided=False)
    return unbounded_plan(content, wanted, H100) if budget is None else plan(content, wanted, H100, budget)


@pytest.mark.parametrize(
    ("entry", "row"), MEASURED, ids=[f"{e['bundle']}-{r['budget'] and r['budget'] // MIB}" for e, r in MEASURED]
)
def test_a_run_on_a_gpu_took_no_more_than_its_plan_says(entry, row):
    way = planned(entry, row["budget"])
    assert way.streamed == row["streamed"]
    assert row["taken"] <= way.peak <= 1.36 * row["taken"]
    assert row["budget"] is None or row["taken"] <= row["budget"]
    assert row["host"] <= way.host


def test_a_component_may_take_its_own_and_what_its_phase_leaves_of_the_budget():
    way = plan(read_manifest("sd3-medium"), Wanted(1024, 1024, 4, False), published()["rtx4090"], 8 * GIB)
    for phase in way.phases:
        others = phase.peak - phase.own + SESSION  # which cuBLAS and cuDNN take past the limit
        ahead = phase.own - SESSION - phase.session  # what the next part takes while one works
        assert (ahead > 0) == way.streamed.get(phase.component, False)
        assert phase.session < way.limits[phase.component] == 8 * GIB - others - ahead
    assert unbounded_plan(read_manifest("emoji"), Wanted(128, 128, 4, False), H100).limits == {}
    assert cuda_options(123)["gpu_mem_limit"] == "123"
    assert cuda_options(None)["arena_extend_strategy"] == "kSameAsRequested"
    assert "gpu_mem_limit" not in cuda_options(None)


@pytest.fixture
def gpu(monkeypatch):
    """Let this machine say that it has a GPU; return what it has in use, which tests change."""
    state = {"total": 8 * GIB, "used": 0}
    found = devices.Driver("1", (devices.Gpu("NVIDIA Some GPU", 89, state["total"]),))
    monkeypatch.setattr(devices, "driver", lambda: found)
    monkeypatch.setattr("segue.runtime.pipeline.driver", lambda: found)
    monkeypatch.setattr(devices, "memory", lambda: devices.DeviceMemory(state["total"] - state["used"], state["used"]))
    return state


def test_a_gpu_whose_figures_are_not_known_is_as_slow_as_the_slowest_and_has_its_own_memory(gpu):
    machine = gpu_here()
    assert machine.name == "NVIDIA Some GPU"
    assert machine.memory == 8 * GIB
    assert machine.flops == min(known.flops for known in published().values())


def test_without_a_gpu_a_budget_of_one_is_refused_and_says_what_to_do():
    with segue.open("emoji", target="ort-cuda", budget="1GiB") as model:
        with pytest.raises(EngineError, match=r"GPU needs one.*Use the target ort-cpu"):
            model.pictures(segue.Request("a red heart"))
        assert model.ledger.loaded == {}


@pytest.mark.parametrize("budget", [None, "6GiB"])
def test_a_request_that_the_gpu_has_no_room_for_is_refused_before_anything_is_loaded(gpu, budget):
    gpu["used"] = gpu["total"] - 600 * MIB
    with segue.open("emoji", target="ort-cuda", budget=budget) as model:
        with pytest.raises(BudgetError, match=r"only 600 MiB left \(the free memory of the GPU\)"):
            model.pictures(segue.Request("a red heart"))
        assert model.ledger.loaded == {}


def test_a_budget_that_no_way_fits_is_refused_with_the_smallest_that_does(gpu):
    smallest = r"The smallest budget that is enough is (\d+) MiB"
    with (
        segue.open("emoji", target="ort-cuda", budget="300MiB") as model,
        pytest.raises(BudgetError, match=smallest) as refused,
    ):
        model.pictures(segue.Request("a red heart"))
    least = mebibytes(refused.value.needed)
    with segue.open("emoji", target="ort-cuda", budget=f"{least}MiB") as model:
        assert model.plan(segue.Request("a red heart")).peak <= least * MIB


def test_the_ledger_of_a_gpu_counts_what_this_process_has_there_and_asks_for_the_hosts_memory_too(gpu, monkeypatch):
    gpu["used"] = 2500 * MIB  # of other processes
    ledger = Ledger(on_gpu=True)
    with ledger.entry("transformer"):
        gpu["used"] += 1000 * MIB
    assert ledger.used == ledger.loaded["transformer"] == 1000 * MIB
    ledger.require(2 * GIB, host=MIB)
    assert ledger.planned == 2 * GIB
    monkeypatch.setattr(memory, "available", lambda: 0)
    with pytest.raises(BudgetError, match="MiB of host memory in addition to the GPU's"):
        ledger.require(2 * GIB, host=64 * GIB)


def test_frames_in_tiles_have_the_host_keep_their_caches():
    content, wanted = read_manifest("swifti2v-wan22"), WantedVideo(1408, 2560, 81)
    whole, tiled = (plan_video(content, wanted, replace(H100, memory=2**50), b) for b in (2**50, 24 * GIB))
    assert whole.tiling is None
    assert tiled.host - whole.host > 20 * GIB


def test_a_denoiser_that_is_streamed_from_here_on_leaves_no_graph_of_its_step(exported, monkeypatch):
    monkeypatch.setattr(Components, "on_gpu", property(lambda self: True))
    with segue.open(exported, threads=1, budget="4GiB") as model:
        model.generate("a red heart", steps=2, size=64)
        parts = model._components
        assert "transformer_step" in parts._engines
        parts.set_residency((), {"transformer": False})
        assert not {"transformer", "transformer_step"} & parts._engines.keys()


def test_what_goes_to_the_device_before_the_loop_is_in_the_ledger_too(exported, monkeypatch):
    with segue.open(exported, threads=1) as model:
        parts = model._components
        monkeypatch.setattr(parts, "_open", lambda name, shapes: (_ for _ in ()).throw(MemoryError("out of memory")))
        with pytest.raises(BudgetError, match="memory ran out in transformer"):
            parts.put("transformer", {})


def test_under_a_budget_the_graph_of_the_euler_step_stays_beside_its_denoiser(exported, monkeypatch):
    """As on a GPU, where the two take turns: a processor takes the loop in numpy."""
    monkeypatch.setattr(Components, "on_gpu", property(lambda self: True))
    loads = []
    with segue.open(exported, threads=1, budget="4GiB") as model:
        opened = model._components._open
        monkeypatch.setattr(model._components, "_open", lambda name, shapes: loads.append(name) or opened(name, shapes))
        model.generate("a red heart", steps=3, size=64)
    assert loads.count("transformer") == loads.count("transformer_step") == 1
