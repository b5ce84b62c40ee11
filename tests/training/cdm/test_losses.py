import pytest
import torch

from segue.training.cdm.losses import clean_estimate, ema_decay, flow_loss, move, renoise, surrogate


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_extrapolation_over_one_stride_of_the_grid_is_a_rollout_step_and_to_its_own_level_nothing():
    latents, velocity = randn(3, 4, 2, 2), randn(3, 4, 2, 2, seed=1)
    level, after = torch.tensor([1.0, 0.9, 0.5]), torch.tensor([0.9, 0.75, 0.0])
    stepped = torch.stack([x + (b - a) * v for x, v, a, b in zip(latents, velocity, level, after, strict=True)])
    assert torch.equal(move(latents, velocity, level, after), stepped)
    assert torch.equal(move(latents, velocity, level, level), latents)
    assert torch.equal(clean_estimate(latents, velocity, level)[2], stepped[2])


def test_the_true_velocity_gives_back_the_clean_latents_at_every_level():
    clean, noise = randn(4, 3), randn(4, 3, seed=1)
    level = torch.tensor([0.02, 0.3, 0.7, 1.0])
    assert torch.allclose(clean_estimate(renoise(clean, noise, level), noise - clean, level), clean, atol=1e-6)
    assert flow_loss(noise - clean, clean, noise) == 0


def test_the_gradient_of_the_surrogate_is_minus_two_w_direction_over_the_number_of_entries():
    estimate = randn(2, 3, 4, 4).requires_grad_()
    direction, reference = randn(2, 3, 4, 4, seed=1), randn(2, 3, 4, 4, seed=2)
    reference[1] = estimate[1].detach() + 0.01  # nearer than the floor
    surrogate(estimate, direction, reference).backward()
    weight = torch.tensor([1 / (reference - estimate)[0].abs().mean().item(), 1 / 0.1])
    expected = -2 * weight[:, None, None, None] * direction / estimate.numel()
    assert torch.allclose(estimate.grad, expected, rtol=1e-4, atol=1e-8)


def test_gradient_reaches_the_estimate_alone():
    estimate, direction, reference = (randn(2, 3, seed=i).requires_grad_() for i in range(3))
    surrogate(estimate, direction, reference).backward()
    assert estimate.grad.abs().sum() > 0
    assert direction.grad is None
    assert reference.grad is None


def test_equal_teachers_give_no_gradient_and_no_number_counts_as_none():
    estimate, real = randn(2, 3).requires_grad_(), randn(2, 3, seed=1)
    surrogate(estimate, real - real, real).backward()
    assert not estimate.grad.any()
    direction = torch.full((2, 3), float("nan"))
    direction[0, 0] = 1.0
    surrogate(estimate, direction, real).backward()
    assert estimate.grad[0, 0] < 0
    assert not estimate.grad.flatten()[1:].any()


def test_one_forward_for_two_terms_has_the_gradient_of_two_forwards():
    weight = randn(3, 3).requires_grad_()
    inputs, first, second, reference = (randn(2, 3, seed=i) for i in range(1, 5))
    shared = inputs @ weight
    (surrogate(shared, first, reference) + surrogate(shared, second, reference)).backward()
    together = weight.grad.clone()
    weight.grad = None
    for direction in (first, second):
        surrogate(inputs @ weight, direction, reference).backward()
    assert torch.allclose(weight.grad, together, rtol=1e-6, atol=0)


def test_half_precision_estimates_are_measured_in_float32():
    loss = surrogate(randn(2, 3).half().requires_grad_(), randn(2, 3, seed=1).half(), randn(2, 3, seed=2).half())
    assert loss.dtype == torch.float32


def test_the_average_warms_up():
    assert ema_decay(0) == pytest.approx(0.1)
    assert ema_decay(90) == pytest.approx(0.91)
    assert ema_decay(10**6) == 0.999
