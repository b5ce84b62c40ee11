from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from segue.training.cdm.draws import ScheduleSpec
from segue.training.cdm.families import FAMILIES
from segue.training.cdm.plan import adapter_parameters, counted, make_plan, mean_calls
from segue.training.cdm.spec import CdmSpec
from segue.training.cdm.terms import TermsSpec
from segue.training.loop.recipe_file import find_recipe
from segue.training.loop.run import LoopSpec
from segue.training.recipe import plan

LOOP = LoopSpec(steps=10, batch=8, learning_rate=1e-4)


def test_the_published_recipe_costs_37_calls_an_update_and_47_where_rollouts_go_to_their_ends() -> None:
    whole = mean_calls(CdmSpec("", "", terms=TermsSpec(target="full-trajectory")))
    assert whole["roll-out"] == 29
    assert sum(whole.values()) == 29 + 6 + 6 + 4 + 2
    calls = mean_calls(CdmSpec("", ""))
    assert calls["roll-out"] == pytest.approx(18.6, abs=0.1)
    assert calls["fake teacher"] == calls["student"] == 6
    assert calls["real teacher"] == 4
    assert calls["fake score"] == 2


def test_a_term_that_is_left_out_costs_nothing() -> None:
    calls = mean_calls(CdmSpec("", "", terms=TermsSpec(dm=0, cdm=0), schedule=ScheduleSpec("fixed")))
    assert calls == {"roll-out": 5, "fake teacher": 0, "student": 3, "real teacher": 2, "fake score": 0}


def test_the_bytes_of_full_training_are_those_of_three_networks(teacher: Path) -> None:
    found = make_plan(CdmSpec(str(teacher), "", size=(32, 32), tokens=5), LOOP)
    from segue.training.cdm.networks import load_teacher

    network = load_teacher(teacher, FAMILIES["sd3"])
    parameters = sum(p.numel() for p in network.parameters())
    assert found.parameters == found.trained == parameters
    assert found.bytes["weights"] == 12 * parameters
    assert found.bytes["moments"] == 16 * parameters
    halved = make_plan(CdmSpec(str(teacher), "", size=(32, 32), tokens=5, shard=True), LOOP, world=2)
    assert halved.bytes["weights"] == 6 * parameters
    assert halved.bytes["activations"] == found.bytes["activations"] // 2


def test_what_a_backward_pass_keeps_is_counted_once_and_without_weights() -> None:
    with torch.device("meta"):
        network = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4))
        inputs = torch.empty(5, 8)
    flops, kept = counted(network, lambda: network(inputs), {99})
    assert flops == 2 * 5 * (8 * 32 + 32 * 4)
    assert kept == 4 * (5 * 8 + 5 * 32 + 5 * 32)  # the first product's input, GELU's and the second product's


def test_checkpointing_and_adapters_keep_less(teacher: Path) -> None:
    def kept(**options: Any) -> int:
        spec = CdmSpec(str(teacher), "", size=(32, 32), tokens=5, **options)
        return make_plan(spec, LOOP).bytes["activations"]

    assert kept(checkpointing=True) < kept()
    assert kept(rank=2) < kept()


def test_adapters_are_counted_as_peft_makes_them(teacher: Path) -> None:
    from segue.training.cdm.networks import LoraNetworks, load_teacher

    network = load_teacher(teacher, FAMILIES["sd3"])
    expected = adapter_parameters(network, FAMILIES["sd3"], 3)
    made = LoraNetworks(network, FAMILIES["sd3"], False, 3, 6.0)
    assert sum(p.numel() for p in made.parameters("student").values()) == expected


def test_the_operations_of_a_call_are_those_of_its_products(teacher: Path) -> None:
    found = make_plan(CdmSpec(str(teacher), "", size=(32, 32), tokens=5), LOOP)
    from segue.training.cdm.networks import load_teacher

    network = load_teacher(teacher, FAMILIES["sd3"])
    # 4 patches and 5 text tokens: every linear of a block sees the one or the other, embeddings of time and text one.
    least = sum(2 * m.weight.numel() for m in network.modules() if isinstance(m, nn.Linear))
    assert least < found.flops < 12 * least


def test_attention_is_counted() -> None:
    network = nn.MultiheadAttention(8, 2, batch_first=True, device="meta")
    inputs = torch.empty(1, 16, 8, device="meta")
    flops, _ = counted(network, lambda: network(inputs, inputs, inputs, need_weights=False), {16})
    assert flops == 2 * 16 * 8 * 32 + 2 * 2 * 16 * 16 * 8


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("sd3-medium-cdm", 2.03),
        pytest.param("longcat-image-cdm", 6.2, marks=pytest.mark.slow),
        pytest.param("swifti2v-wan22", 5.0, marks=pytest.mark.slow),
    ],
)
def test_the_full_size_recipes_are_planned_without_weights(name: str, billions: float) -> None:
    before = torch.get_rng_state()
    rows = dict(plan(find_recipe(name), 8))
    assert torch.get_rng_state().equal(before)
    assert float(rows["transformer"].split(" M ")[0]) / 1e3 == pytest.approx(billions, rel=0.02)
    assert set(rows) >= {"bytes, weights", "bytes, activations", "calls, roll-out", "the run"}
