"""Networks here are small maps whose velocity can be written down."""

import dataclasses

import pytest
import torch
from torch import nn

from segue.errors import TrainingError
from segue.training.cdm.draws import ScheduleSpec, draw, draw_steps
from segue.training.cdm.families import Condition
from segue.training.cdm.losses import spread
from segue.training.cdm.terms import TermsSpec, fake_term, off_point, roll_out, rows_at, student_terms

SHAPE = (2, 3, 3)
SEED = next(i for i in range(99) if draw_steps(ScheduleSpec(), i, 0) == 5)
BATCH = 6


class Net(nn.Module):
    """A velocity that mixes latents, level and condition, and counts its calls."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.mix = nn.Conv2d(2, 2, 1)
        self.time, self.text = nn.Linear(1, 2), nn.Linear(4, 2)
        self.levels: list[torch.Tensor] = []

    def forward(self, latents: torch.Tensor, level: torch.Tensor, condition: Condition) -> torch.Tensor:
        self.levels.append(level)
        return self.mix(latents) + (self.time(level[:, None]) + self.text(condition["pooled"]))[..., None, None]


def all_terms(*arguments) -> dict[str, torch.Tensor]:
    return {name: term for terms in student_terms(*arguments) for name, term in terms.items()}


@pytest.fixture
def scene():
    condition = {"pooled": torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(0))}
    draws = draw(ScheduleSpec(), SHAPE, SEED, 0, range(BATCH), BATCH)
    return Net(0), Net(1), Net(2), draws, condition, {"pooled": torch.zeros(BATCH, 4)}


def test_the_rollout_keeps_what_the_student_had_at_each_anchor_without_gradient(scene):
    student, _, _, draws, condition, _ = scene
    path = roll_out(student, draws, condition, to_the_end=True)
    assert len(student.levels) == 5
    for b in range(BATCH):
        x = draws.start[b : b + 1]
        for i in range(5):
            level, after = draws.sigmas[b : b + 1, i], draws.sigmas[b : b + 1, i + 1]
            velocity = student(x, level, {"pooled": condition["pooled"][b : b + 1]})
            if i == draws.anchor[b]:
                assert torch.allclose(path.latents[b : b + 1], x, atol=1e-6)
                assert torch.allclose(path.velocity[b : b + 1], velocity, atol=1e-6)
                assert path.level[b] == level
            x = x + spread(after - level, x) * velocity
        assert torch.allclose(path.end[b : b + 1], x, atol=1e-5)
    assert not path.latents.requires_grad
    assert not path.end.requires_grad


def test_a_rollout_that_stops_behind_the_last_anchor_keeps_the_same(scene):
    student, _, _, draws, condition, _ = scene
    early = dataclasses.replace(draws, anchor=draws.anchor.clamp(max=2), calls=3)
    whole, short = (roll_out(student, early, condition, to_the_end=end) for end in (True, False))
    assert len(student.levels) == 5 + 3
    for name in ("latents", "velocity", "level"):
        assert torch.allclose(getattr(whole, name), getattr(short, name), atol=1e-6)


def test_the_rollout_calls_samples_up_to_their_anchors_in_few_sizes_of_batch():
    draws = draw(ScheduleSpec(), (1,), SEED, 0, range(30), 30)
    calls = rows_at(draws)
    assert len(calls) == draws.calls
    for i, rows in enumerate(calls):
        assert set((draws.anchor >= i).nonzero()[:, 0].tolist()) <= set(rows.tolist())
        assert len(set(rows.tolist())) == len(rows)
    assert {len(rows) for rows in calls} == {8, 16, 24, 30}
    late = dataclasses.replace(draws, anchor=torch.zeros_like(draws.anchor))
    assert [len(rows) for rows in rows_at(late)] == [30] + [8] * (draws.calls - 1)


def test_gradient_reaches_the_student_through_two_calls_and_the_teachers_not_at_all(scene):
    student, real, fake, draws, condition, empty = scene
    path = roll_out(student, draws, condition)
    before = len(student.levels)
    terms = all_terms(student, real, fake, draws, path, condition, empty, TermsSpec())
    sum(terms.values()).backward()
    assert set(terms) == {"ca", "dm", "cdm"}
    assert len(student.levels) - before == 2
    assert torch.equal(student.levels[before], path.level)
    assert torch.equal(student.levels[before + 1], draws.off)
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())
    assert all(p.grad is None for net in (real, fake) for p in net.parameters())


def test_the_teachers_are_asked_at_each_terms_own_level(scene):
    student, real, fake, draws, condition, empty = scene
    all_terms(student, real, fake, draws, roll_out(student, draws, condition), condition, empty, TermsSpec())
    for found, expected in (
        (real.levels, (draws.ca.level, draws.ca.level, draws.dm.level, draws.cdm.level)),
        (fake.levels, (draws.dm.level, draws.cdm.level)),
    ):
        assert len(found) == len(expected)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_fake_teacher_that_equals_the_real_one_gives_no_matching_gradient(scene):
    student, real, _, draws, condition, empty = scene
    path = roll_out(student, draws, condition)
    terms = all_terms(student, real, real, draws, path, condition, empty, TermsSpec(ca=0))
    sum(terms.values()).backward()
    assert set(terms) == {"dm", "cdm"}
    assert not any(p.grad.any() for p in student.parameters())


def test_a_condition_that_equals_the_empty_one_gives_no_guidance_gradient(scene):
    student, real, fake, draws, condition, _ = scene
    path = roll_out(student, draws, condition)
    terms = all_terms(student, real, fake, draws, path, condition, condition, TermsSpec(dm=0, cdm=0))
    terms["ca"].backward()
    assert not any(p.grad.any() for p in student.parameters())


@pytest.mark.parametrize("matching", [1.0, 2.0])
def test_each_term_pushes_where_the_specification_says_and_as_hard(scene, matching):
    """Teachers of constant velocity: a difference of velocities d is one of clean estimates of -tau d."""
    _, _, _, draws, condition, empty = scene
    at = torch.zeros(BATCH, *SHAPE).requires_grad_()

    def student(latents, level, condition):
        return at[: len(latents)]

    def real(latents, level, asked):
        return torch.full_like(latents, 0.2 if asked is empty else 0.5)

    def fake(latents, level, asked):
        return torch.full_like(latents, -0.3)

    path = roll_out(student, draws, condition)
    guided = 0.2 + matching * (0.5 - 0.2)
    for name, renoised, level, gap, teacher in (
        ("ca", draws.ca, path.level, 7.0 * (0.5 - 0.2), 0.5),
        ("dm", draws.dm, path.level, guided - -0.3, guided),
        ("cdm", draws.cdm, draws.off, guided - -0.3, guided),
    ):
        at.grad = None
        spec = TermsSpec(**{n: float(n == name) for n in ("ca", "dm", "cdm")}, matching=matching)
        all_terms(student, real, fake, draws, path, condition, empty, spec)[name].backward()
        estimate = path.latents if name != "cdm" else off_point(path, draws, "velocity")[0]
        noisy = torch.lerp(estimate, renoised.noise, spread(renoised.level, estimate))
        wanted = noisy - teacher * spread(renoised.level, noisy)
        weight = 1 / (wanted - estimate).abs().flatten(1).mean(1).clamp_min(0.1)
        direction = -renoised.level * gap
        # dX / dv = -level, and dL / dX = -2 w direction / numel
        expected = 2 * level * weight * direction / at.numel()
        assert torch.allclose(at.grad, spread(expected, at).expand_as(at), rtol=1e-3, atol=1e-7), name


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"point": "gausian"}, "point = 'gausian' must be one of velocity, gaussian, on-trajectory"),
        ({"target": "end"}, "target = 'end' must be one of local, full-trajectory"),
        ({"ca": 0.0, "dm": 0.0, "cdm": 0.0}, "one above 0"),
        ({"dm": -1.0}, "weights must be at least 0"),
        ({"matching": 0.5}, "matching = 0.5 must be at least 1"),
    ],
)
def test_terms_that_cannot_be_are_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        TermsSpec(**change)


def test_the_sum_of_the_terms_has_the_gradient_of_the_terms_one_by_one(scene):
    student, real, fake, draws, condition, empty = scene
    path = roll_out(student, draws, condition)

    def gradient(spec: TermsSpec) -> torch.Tensor:
        student.zero_grad()
        sum(all_terms(student, real, fake, draws, path, condition, empty, spec).values()).backward()
        return torch.cat([p.grad.flatten() for p in student.parameters()])

    alone = [gradient(TermsSpec(**{n: float(n == kept) for n in ("ca", "dm", "cdm")})) for kept in ("ca", "dm", "cdm")]
    assert torch.allclose(gradient(TermsSpec()), sum(alone), rtol=1e-4, atol=1e-6)


def test_off_trajectory_points_of_the_paper_and_of_its_ablations(scene):
    student, _, _, draws, condition, _ = scene
    path = roll_out(student, draws, condition)
    moved, level = off_point(path, draws, "velocity")
    assert torch.equal(level, draws.off)
    assert (draws.off > path.level).any()
    assert (draws.off < path.level).any()
    assert torch.allclose(moved, path.latents + spread(draws.off - path.level, moved) * path.velocity)
    noisy, level = off_point(path, draws, "gaussian")
    assert torch.equal(level, draws.off)
    assert torch.allclose(noisy, torch.lerp(path.estimate, draws.off_noise, spread(draws.off, noisy)))
    same, level = off_point(path, draws, "on-trajectory")
    assert torch.equal(same, path.latents)
    assert torch.equal(level, path.level)


def test_the_full_trajectory_target_renoises_the_end_of_the_rollout(scene):
    student, real, fake, draws, condition, empty = scene
    spec = TermsSpec(ca=0, dm=0, target="full-trajectory")
    with pytest.raises(TrainingError, match="to the end"):
        all_terms(student, real, fake, draws, roll_out(student, draws, condition), condition, empty, spec)
    path = roll_out(student, draws, condition, to_the_end=True)
    seen = []

    def spy(latents, level, condition):
        seen.append(latents)
        return real(latents, level, condition)

    all_terms(student, spy, fake, draws, path, condition, empty, spec)
    assert torch.allclose(seen[0], torch.lerp(path.end, draws.cdm.noise, spread(draws.cdm.level, path.end)))


def test_the_fake_teacher_learns_the_local_estimates_and_moves_nobody_else(scene):
    student, _, fake, draws, condition, _ = scene
    path = roll_out(student, draws, condition)
    fake_term(fake, draws, path, condition).backward()
    assert all(p.grad.any() for p in fake.parameters())
    assert all(p.grad is None for p in student.parameters())

    def perfect(latents, level, _):
        return (latents - path.estimate) / spread(level, latents)

    assert fake_term(perfect, draws, path, condition) < 1e-6
