"""The teacher's ends: pairs on disk, and a student that is drawn towards them."""

import dataclasses
import itertools
import tomllib
from pathlib import Path

import pytest
import torch

from segue.errors import TrainingError
from segue.runtime.sampling.schedule import default_schedule
from segue.training.cdm.data.conditions import Conditions, permuted, write_conditions
from segue.training.cdm.data.pairs import Pairs, PairsSpec, pair_noise, write_pairs
from segue.training.cdm.families import find_family
from segue.training.cdm.losses import ema_decay
from segue.training.cdm.networks import load_teacher
from segue.training.cdm.run import checked_spec, distillation
from segue.training.cdm.terms import TermsSpec
from segue.training.loop.run import LoopSpec

SPEC = PairsSpec("", "", size=(32, 32), count=6, steps=3, guidance=2.0, seed=5)


@pytest.fixture(scope="module")
def spec(teacher: Path, conditions: Path) -> PairsSpec:
    return dataclasses.replace(SPEC, teacher=str(teacher), conditions=str(conditions))


@pytest.fixture(scope="module")
def folder(spec: PairsSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("segue.training.cdm.data.pairs.SHARD", 4)
        write_pairs(spec, out, 3, lambda done, total: None)
        yield out


@torch.no_grad()
def test_an_end_is_where_the_guided_teacher_carries_its_noise(spec, folder, teacher, conditions):
    network, texts = load_teacher(teacher, find_family("sd3")), Conditions(conditions)
    pair = 5
    text, empty = texts.take([permuted(len(texts), 5, pair)]), texts.empty(1)
    latents = pair_noise((4, 4, 4), 5, pair)[None]
    sigmas = [*map(float, default_schedule(3, 3.0, 1000).sigmas), 0.0]
    for level, target in itertools.pairwise(sigmas[:4]):
        tied, free = (find_family("sd3").velocity(network, latents, torch.tensor([level]), t) for t in (text, empty))
        latents = latents + (target - level) * (free + 2 * (tied - free))
    noise, end, rows = Pairs(folder).take([pair])
    assert noise.equal(pair_noise((4, 4, 4), 5, pair)[None])
    assert rows == [permuted(len(texts), 5, pair)]
    torch.testing.assert_close(end, latents, rtol=2e-3, atol=2e-3)  # kept in fp16


def test_what_is_there_is_not_made_again_and_what_is_missing_comes_out_the_same(spec, folder):
    shards = sorted(folder.glob("*.safetensors"))
    assert [shard.name for shard in shards] == ["pairs-00000.safetensors", "pairs-00001.safetensors"]
    kept, made = shards[0].stat().st_mtime_ns, shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(TrainingError, match="does not hold all its pairs"):
        Pairs(folder)
    done = []
    write_pairs(spec, folder, 3, lambda count, total: done.append((count, total)))
    assert done == [(6, 6)]
    assert shards[0].stat().st_mtime_ns == kept
    assert shards[1].read_bytes() == made


def test_pairs_of_another_kind_are_not_mixed(spec, folder):
    with pytest.raises(TrainingError, match="pairs of other settings"):
        write_pairs(dataclasses.replace(spec, guidance=4.0), folder, 3, lambda done, total: None)


def weights(training, role: str) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in training.parameters[role].items()}


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> bool:
    return any(not before[name].equal(tensor) for name, tensor in after.items())


def test_regression_alone_needs_no_fake_teacher_and_comes_nearer_to_the_ends(worker, teacher, conditions, folder):
    terms = TermsSpec(ca=0.0, dm=0.0, cdm=0.0, regression=1.0)
    options = {"pairs": str(folder), "terms": terms, "student_every": 1}
    training = worker.build(teacher, conditions, options)
    fake, distances = weights(training, "fake"), []
    for step in range(40):
        (part,) = training._parts(step)
        distances.append((part.path.estimate - part.end).square().mean().item())
        assert set(training.iterate(step)) == {"regression", "estimate rms", "gradient norm, student"}
    assert not changed(fake, weights(training, "fake"))
    assert sum(distances[-8:]) < 0.8 * sum(distances[:8])


def test_roll_outs_begin_with_the_noise_and_prompt_of_their_pair(worker, teacher, conditions, folder):
    training = worker.build(teacher, conditions, {"pairs": str(folder), "terms": TermsSpec(regression=0.5)})
    (part,) = training._parts(1)
    noise, end, rows = Pairs(folder).take([permuted(6, 3, 4 + sample) for sample in range(4)])
    assert part.draws.start.equal(noise)
    assert part.end.equal(end)
    assert part.text["pooled"].equal(Conditions(conditions).take(rows)["pooled"])


def test_regression_pulls_the_estimate_towards_the_end_by_the_normalised_difference(
    worker, teacher, conditions, folder
):
    terms = TermsSpec(ca=0.0, dm=0.0, cdm=0.0, regression=0.5)
    training = worker.build(teacher, conditions, {"pairs": str(folder), "terms": terms})
    (part,) = training._parts(1)
    (named,) = training._student_losses([part])
    gap = (part.end - part.path.estimate).abs().flatten(1).mean(1).clamp_min(0.1).view(-1, 1, 1, 1)
    expected = 0.5 * ((part.end - part.path.estimate) / gap).square().mean()
    torch.testing.assert_close(named["regression"], expected, rtol=1e-4, atol=1e-6)


def test_pairs_give_the_same_update_however_the_batch_is_cut(worker, teacher, conditions, folder):
    options = {"pairs": str(folder), "terms": TermsSpec(regression=0.5), "student_every": 1}
    whole = worker.build(teacher, conditions, options)
    cut = worker.build(teacher, conditions, options | {"micro": 3})
    for step in range(2):
        assert cut.iterate(step) == pytest.approx(whole.iterate(step), rel=1e-3)
    for name, tensor in weights(whole, "student").items():
        torch.testing.assert_close(cut.parameters["student"][name].detach(), tensor, rtol=1e-2, atol=1e-4)


def test_the_fake_teacher_may_learn_first(worker, teacher, conditions):
    training = worker.build(teacher, conditions, {"fake_lead": 3})
    student = weights(training, "student")
    for step in range(4):
        assert not any("student" in name for name in training.iterate(step))
    assert not changed(student, weights(training, "student"))
    training.iterate(4)  # the second one after the lead
    assert changed(student, weights(training, "student"))
    name, moved = next((n, p) for n, p in training.parameters["student"].items() if not student[n].equal(p))
    torch.testing.assert_close(training.average[name], student[name].lerp(moved, 1 - ema_decay(1)))
    training.restored(5)
    assert {int(s["step"]) for s in training.optimisers["student"].state.values()} == {1}
    assert {int(s["step"]) for s in training.optimisers["fake"].state.values()} == {5}


def test_pairs_of_other_prompts_or_sizes_are_not_taken(teacher, conditions, folder, encode, tmp_path):
    recipe = {
        "cdm": {
            "teacher": str(teacher), "conditions": str(conditions), "pairs": str(folder), "size": [32, 32],
            "terms": {"regression": 1.0},
        },
        "loop": {"steps": 2, "batch": 2, "learning_rate": 1e-3},
    }  # fmt: skip
    loop = LoopSpec(steps=2, batch=2, learning_rate=1e-3)
    assert distillation(recipe, loop).pairs is not None
    recipe["cdm"]["size"] = [32, 16]
    with pytest.raises(TrainingError, match="were made for"):
        distillation(recipe, loop)
    write_conditions(tmp_path / "others", ["another prompt"], encode)
    recipe["cdm"] |= {"size": [32, 32], "conditions": str(tmp_path / "others")}
    with pytest.raises(TrainingError, match="were made for"):
        distillation(recipe, loop)


def test_the_student_may_begin_elsewhere_and_the_teachers_do_not(teacher, conditions, tmp_path):
    other = load_teacher(teacher, find_family("sd3"))
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    other.save_pretrained(tmp_path / "start/transformer")
    table = {"teacher": str(teacher), "conditions": str(conditions), "size": [32, 32], "start": str(tmp_path / "start")}
    recipe = {"cdm": table, "loop": {"steps": 2, "batch": 2, "learning_rate": 1e-3}}
    made = distillation(recipe, LoopSpec(steps=2, batch=2, learning_rate=1e-3))
    name, begun = next(iter(other.named_parameters()))
    before = dict(load_teacher(teacher, find_family("sd3")).named_parameters())[name]
    assert made.parameters["student"][name].equal(begun)
    assert made.average[name].equal(begun)
    assert made.parameters["fake"][name].equal(before)
    assert dict(made.networks.real.named_parameters())[name].equal(before)
    table["start"] = str(tmp_path)
    with pytest.raises(TrainingError, match="as cdm\\.start"):
        distillation(recipe, LoopSpec(steps=2, batch=2, learning_rate=1e-3))


def test_a_lead_must_leave_updates_and_have_a_fake_teacher(teacher, conditions):
    for table in ({"fake_lead": 2}, {"fake_lead": 1, "terms": {"dm": 0.0, "cdm": 0.0}}):
        recipe = {"cdm": {"teacher": str(teacher), "conditions": str(conditions)} | table, "loop": {"steps": 3}}
        with pytest.raises(TrainingError, match="fake_lead"):
            checked_spec(recipe, 1)


def test_the_term_and_its_pairs_go_together():
    recipe = tomllib.loads('[cdm]\nteacher = "t"\nconditions = "c"\n[cdm.terms]\nregression = 1.0\n[loop]\nsteps = 1')
    with pytest.raises(TrainingError, match="one needs the other"):
        checked_spec(recipe, 1)
