"""Distillation of a thin SD3 transformer: one process, micro-batches, two processes, sharded, adapters."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from segue.errors import TrainingError
from segue.training.cdm.draws import draw
from segue.training.cdm.losses import ema_decay
from segue.training.cdm.plan import make_plan
from segue.training.cdm.terms import fake_term, roll_out, student_terms


def snapshot(training) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in training.tensors().items()}


def close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], relative: float) -> None:
    """Compare weights and moments; what a weight moved by is what may differ by rounding."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name] - tensor).norm() / tensor.norm().clamp_min(1e-12)
        assert error <= relative, (name, error.item())


@pytest.fixture(scope="module")
def one_process(teacher: Path, conditions: Path, worker):
    training = worker.build(teacher, conditions, {})
    figures = [training.iterate(step) for step in range(4)]
    return figures, snapshot(training)


def test_the_fake_teacher_learns_each_time_and_the_student_each_second(worker, teacher, conditions):
    training = worker.build(teacher, conditions, {})
    before = snapshot(training)
    figures = training.iterate(0)
    after = snapshot(training)
    assert set(figures) == {"loss", "estimate rms", "gradient norm, fake"}
    changed = {name for name in before if not before[name].equal(after[name])}
    # The last block's text is thrown away, so nothing tells its queries what to do.
    learns = {n for n in before if n.startswith("weight.fake.") and "blocks.1.attn.add_q_proj" not in n}
    assert {name for name in changed if name.startswith("weight.")} == learns
    assert set(training.iterate(1)) >= {"ca", "dm", "cdm", "gradient norm, student"}
    assert any(not after[name].equal(t) for name, t in training.tensors().items() if name.startswith("weight.student"))


def test_an_iteration_is_the_formulas_in_their_order(worker, teacher, conditions):
    """Against the same iterations put together by hand from the pure functions."""
    training, by_hand = worker.build(teacher, conditions, {}), worker.build(teacher, conditions, {})
    training.iterate(0)
    training.iterate(1)
    for step in range(2):
        draws = draw(by_hand.spec.schedule, (4, 4, 4), 3, step, range(4), 4)
        (part,) = by_hand._parts(step)
        path = roll_out(by_hand._student, draws, part.text)
        assert path.latents.equal(part.path.latents)

        def update(role, loss):
            parameters = list(by_hand.parameters[role].values())
            for p in parameters:
                p.grad = None
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            by_hand.optimisers[role].param_groups[0]["lr"] = 1e-3
            by_hand.optimisers[role].step()

        update("fake", fake_term(by_hand._fake, draws, path, part.text))
        with torch.no_grad():
            for name, p in by_hand.parameters["fake"].items():
                p.lerp_(by_hand.parameters["student"][name], 1e-3)
        if step == 1:
            terms = student_terms(
                by_hand._student, by_hand._real, by_hand._fake, draws, path, part.text, part.empty, by_hand.spec.terms
            )
            update("student", sum(term for named in terms for term in named.values()))
            with torch.no_grad():
                for name, p in by_hand.parameters["student"].items():
                    by_hand.average[name].lerp_(p, 1 - ema_decay(1))
    close(snapshot(training), snapshot(by_hand), 1e-5)


def test_micro_batches_change_the_memory_but_not_the_update(worker, teacher, conditions, one_process):
    training = worker.build(teacher, conditions, {"micro": 3})  # 3 and 1: unequal parts weigh what they hold
    figures = [training.iterate(step) for step in range(4)]
    close(snapshot(training), one_process[1], 1e-3)
    for found, expected in zip(figures, one_process[0], strict=True):
        assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("shard", [False, True], ids=["DDP", "FSDP2"])
def test_two_processes_make_the_update_of_one(worker, teacher, conditions, one_process, tmp_path, shard):
    options = json.dumps({"shard": shard})
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0", "--standalone",
         worker.__file__, teacher, conditions, tmp_path, options],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["sharded"] == (found["parameters"] if shard else 0)
    close(load_file(tmp_path / "tensors.safetensors"), one_process[1], 1e-3)
    for figures, expected in zip(found["figures"], one_process[0], strict=True):
        assert figures == pytest.approx(expected, rel=1e-3)


def test_adapters_share_one_base_and_begin_as_the_teacher(worker, teacher, conditions):
    training = worker.build(teacher, conditions, {"rank": 2, "alpha": 4})
    (part,) = training._parts(1)
    velocities = [
        training.networks.velocity(role, part.path.latents, part.path.level, part.text)
        for role in ("student", "fake", "real")
    ]
    assert velocities[0].equal(velocities[2])
    assert velocities[1].equal(velocities[2])
    base = {name: p.clone() for name, p in training.networks.base.named_parameters() if ".lora_" not in name}
    bare = sum(p.numel() for p in worker.load_teacher(teacher, training.networks.family).parameters())
    assert sum(p.numel() for p in base.values()) == bare
    adapters = sum(p.numel() for role in ("student", "fake") for p in training.networks.parameters(role).values())
    held = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in training.networks.base.parameters()}
    assert sum(held.values()) == 4 * (bare + adapters) == make_plan(training.spec, training.loop).bytes["weights"]
    training.iterate(0)
    training.iterate(1)
    now = dict(training.networks.base.named_parameters())
    assert all(now[name].equal(p) for name, p in base.items())
    student, fake, real = (
        training.networks.velocity(role, part.path.latents, part.path.level, part.text).detach()
        for role in ("student", "fake", "real")
    )
    assert real.equal(velocities[2])
    assert not student.equal(real)
    assert not fake.equal(real)
    assert not fake.equal(student)


@pytest.mark.parametrize("rank", [0, 2], ids=["full", "LoRA"])
def test_checkpointing_changes_the_memory_but_not_the_update(worker, teacher, conditions, rank):
    made = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        training = worker.build(teacher, conditions, {"rank": rank, "alpha": 4, "checkpointing": checkpointing})
        for step in range(4):
            training.iterate(step)
        made.append(snapshot(training))
    close(made[1], made[0], 1e-3)


@pytest.mark.slow
def test_compiled_networks_make_the_same_update(worker, teacher, conditions, one_process):
    training = worker.build(teacher, conditions, {})
    (part,) = training._parts(1)

    def velocities() -> list[torch.Tensor]:
        inputs = part.path.latents, part.path.level, part.text
        return [training.networks.velocity(role, *inputs) for role in ("student", "fake", "real")]

    plain = velocities()
    training.networks.compile(backend="aot_eager")  # the graphs of a compiled run, and no compiler
    compiled = (*training.networks.trained.values(), training.networks.real)
    assert all(network._compiled_call_impl is not None for network in compiled)
    for found, expected in zip(velocities(), plain, strict=True):
        assert (found - expected).norm() < 1e-3 * expected.norm()
    for step in range(4):
        training.iterate(step)
    close(snapshot(training), one_process[1], 1e-3)


def test_a_state_of_a_student_that_explodes_is_not_saved(worker, teacher, conditions):
    training = worker.build(teacher, conditions, {})
    training.check(0)
    with torch.no_grad():
        for p in training.parameters["student"].values():
            p.mul_(50)
    with pytest.raises(TrainingError, match="diverged"):
        training.check(0)


def test_a_student_that_explodes_is_stopped_before_it_changes(worker, teacher, conditions):
    training = worker.build(teacher, conditions, {"limit": 0.5})
    before = snapshot(training)
    with pytest.raises(TrainingError, match=r"diverged at iteration 0.*limit is 0\.5.*lower"):
        training.iterate(0)
    assert all(before[name].equal(tensor) for name, tensor in training.tensors().items())


def test_a_batch_that_cannot_be_split_is_refused(worker, teacher, conditions):
    with pytest.raises(TrainingError, match=r"loop\.batch = 4 cannot be split over 3"):
        worker.build(teacher, conditions, {}, worker.Place(0, 3)).iterate(0)
