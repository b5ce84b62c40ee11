import pytest
import torch
from torch import nn

from segue.training.loop.optimiser import Muon, make_optimisers, orthogonalised


@pytest.mark.parametrize("shape", [(24, 96), (96, 24), (48, 48)])
def test_an_update_has_all_singular_values_near_one_and_the_same_singular_vectors(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    found = left.T @ orthogonalised(matrix) @ right.T
    inner = found.diagonal()[values > 0.05 * values[0]]
    assert ((inner > 0.6) & (inner < 1.3)).all(), inner
    assert (found - found.diagonal().diag()).abs().max() < 1e-3


def test_an_update_has_the_root_mean_square_that_adamw_has():
    weight = nn.Parameter(torch.zeros(32, 8, 3, 3))
    weight.grad = torch.randn(32, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.5).step()
    assert weight.square().mean().sqrt().item() == pytest.approx(0.5 * 0.2, rel=0.2)


def test_weights_decay_by_their_learning_rate():
    kept, decayed = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    for weight, decay in ((kept, 0.0), (decayed, 0.5)):
        weight.grad = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1, weight_decay=decay).step()
    assert torch.allclose(kept - decayed, torch.full((3, 4), 0.05))


def test_a_convolution_is_updated_as_its_matrix_whatever_its_memory_format():
    generator = torch.Generator().manual_seed(0)
    start, grad = torch.randn(2, 16, 4, 3, 3, generator=generator)
    flat, planes, last = (
        nn.Parameter(w) for w in (start.flatten(1), start.clone(), start.clone().to(memory_format=torch.channels_last))
    )
    flat.grad, planes.grad = grad.flatten(1), grad.clone()
    last.grad = grad.clone().to(memory_format=torch.channels_last)
    for weight in (flat, planes, last):
        optimiser = Muon([weight], lr=0.1)
        optimiser.step()
        optimiser.step()
    assert torch.allclose(planes.flatten(1), flat, atol=1e-6)
    assert torch.allclose(last, planes, atol=1e-5)


def test_muon_takes_the_matrices_and_adamw_the_rest_and_nobody_what_is_frozen():
    module = nn.ModuleDict(
        {"conv": nn.Conv2d(3, 4, 3), "norm": nn.GroupNorm(2, 4), "words": nn.Embedding(9, 4), "frozen": nn.Linear(4, 4)}
    )
    module["video"] = nn.Conv3d(3, 4, 3, bias=False)
    module["frozen"].requires_grad_(False)
    adamw, muon = make_optimisers("muon", module, 1e-3, 0.99, 0.0)
    names = {p: name for name, p in module.named_parameters()}
    taken = [{names[p] for group in o.param_groups for p in group["params"]} for o in (adamw, muon)]
    assert taken == [{"conv.bias", "norm.weight", "norm.bias", "words.weight"}, {"conv.weight", "video.weight"}]
    assert make_optimisers("muon", module, 1e-3, 0.99, 0.3)[1].param_groups[0]["weight_decay"] == 0.3
    (alone,) = make_optimisers("adamw", module, 1e-3, 0.99, 0.0)
    assert len(alone.param_groups[0]["params"]) == 6
