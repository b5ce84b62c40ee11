import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import TrainingError
from segue.training.cdm.draws import SHARED_SCHEDULE, WHOLE_BATCH, ScheduleSpec, draw, draw_raw, draw_steps, stream

SHAPE = (2, 4, 4)


def everything(draws) -> list[torch.Tensor]:
    pairs = [getattr(draws, name) for name in ("fake", "ca", "dm", "cdm")]
    return [
        draws.sigmas,
        draws.anchor,
        draws.start,
        draws.off,
        draws.off_noise,
        *(t for p in pairs for t in (p.level, p.noise)),
    ]


@given(st.integers(0, 2**32), st.integers(0, 10**6), st.sampled_from(["dynamic", "stratified", "fixed"]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_schedules_fall_from_one_to_zero_and_levels_stay_in_range(seed, iteration, schedule, shared):
    spec = ScheduleSpec(schedule=schedule, shared=shared)
    draws = draw(spec, SHAPE, seed, iteration, range(5), 5)
    assert draws.sigmas.dtype == draws.start.dtype == torch.float32
    assert (draws.sigmas[:, 0] == 1).all()
    assert (draws.sigmas[:, -1] == 0).all()
    assert (draws.sigmas.diff(dim=1) <= 0).all()
    assert draws.sigmas[:, 1:-1].numel() == 0 or draws.sigmas[:, 1:-1].min() >= 0.4999  # raw 0.25, shifted by 3
    assert ((draws.anchor >= 0) & (draws.anchor < draws.sigmas.shape[1] - 1)).all()
    for level in (draws.fake.level, draws.ca.level, draws.dm.level, draws.cdm.level, draws.off):
        assert ((level >= 0.02 - 1e-7) & (level <= 0.98)).all()
    assert (draws.ca.level <= draws.anchor_sigma.clamp_min(0.02)).all()


def test_any_split_over_processes_draws_the_same_iteration():
    whole = draw(ScheduleSpec(), SHAPE, 7, 3, range(6), 6)
    halves = [draw(ScheduleSpec(), SHAPE, 7, 3, part, 6) for part in (range(0, 3), range(3, 6))]
    for one, *parts in zip(everything(whole), *(everything(half) for half in halves), strict=True):
        assert torch.equal(one, torch.cat(parts))
    assert {whole.calls} == {half.calls for half in halves} == {1 + int(whole.anchor.max())}


def test_seeds_iterations_and_samples_draw_differently():
    starts = {
        draw(ScheduleSpec(), SHAPE, seed, iteration, [sample], 3).start[0, 0, 0, 0].item()
        for seed in range(3)
        for iteration in range(3)
        for sample in range(3)
    }
    assert len(starts) == 27


def test_the_number_of_steps_is_uniform_and_one_for_all_samples():
    counts = np.bincount([draw_steps(ScheduleSpec(longest=4), 0, i) for i in range(2000)], minlength=5)
    assert counts[0] == 0
    assert np.allclose(counts[1:] / 2000, 0.25, atol=0.04)
    assert draw_steps(ScheduleSpec(schedule="fixed"), 0, 1) == 4


def test_a_shared_schedule_is_one_for_the_batch_and_its_own_for_each_sample_otherwise():
    seed = next(i for i in range(99) if draw_steps(ScheduleSpec(), i, 0) > 3)
    own = draw(ScheduleSpec(), SHAPE, seed, 0, range(4), 4).sigmas
    one = draw(ScheduleSpec(shared=True), SHAPE, seed, 0, range(4), 4).sigmas
    assert len({tuple(row) for row in own.tolist()}) == 4
    assert len({tuple(row) for row in one.tolist()}) == 1


def test_stratified_levels_have_one_in_each_bin():
    spec = ScheduleSpec(schedule="stratified")
    raw = draw_raw(spec, 8, stream(0, 0, 0))[1:]
    edges = np.linspace(spec.lowest, spec.highest, 8)
    assert (np.histogram(raw, edges)[0] == 1).all()


def test_the_fixed_schedule_is_the_grid_that_the_student_renders_on():
    from segue.runtime.sampling.schedule import custom_schedule

    sigmas = draw(ScheduleSpec(schedule="fixed"), SHAPE, 0, 0, [0], 1).sigmas[0]
    assert np.allclose(sigmas.numpy(), custom_schedule((1.0, 0.75, 0.5, 0.25), 3.0, 1000).sigmas, atol=1e-7)


def test_nothing_is_drawn_twice():
    draws = draw(ScheduleSpec(), SHAPE, 0, 0, range(64), 64)
    pairs = [draws.fake, draws.ca, draws.dm, draws.cdm]
    noises = [draws.start, draws.off_noise, *(p.noise for p in pairs)]
    levels = [draws.off, draws.ca.level / draws.anchor_sigma, *(p.level for p in pairs if p is not draws.ca)]
    for parts in (noises, levels):
        together = torch.corrcoef(torch.stack([part.flatten() for part in parts]))
        assert (together - torch.eye(len(parts))).abs().max() < 0.5
    assert stream(0, 0, WHOLE_BATCH).random() != stream(0, 0, SHARED_SCHEDULE).random()


def test_the_level_of_guidance_is_uniform_below_the_anchor():
    draws = draw(ScheduleSpec(), (1,), 0, 1, range(2000), 2000)
    share = draws.ca.level / draws.anchor_sigma
    assert share.mean().item() == pytest.approx(0.5, abs=0.03)
    assert share.std().item() == pytest.approx(12**-0.5, abs=0.02)


def test_draws_move_to_a_device_whole():
    moved = draw(ScheduleSpec(), SHAPE, 0, 0, range(2), 2).to(torch.device("meta"))
    assert {tensor.device.type for tensor in everything(moved)} == {"meta"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule": "cosine"}, "schedule = 'cosine' must be one of dynamic, stratified, fixed"),
        ({"longest": 0}, "longest = 0.*longest is at least 1"),
        ({"lowest": 0.9, "highest": 0.3}, "lowest < highest"),
        ({"fixed": (0.9, 0.5)}, "fixed decreases from 1"),
        ({"fixed": (1.0, 0.5, 0.5)}, "fixed decreases from 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(change, message):
    with pytest.raises(TrainingError, match=message):
        ScheduleSpec(**change)
