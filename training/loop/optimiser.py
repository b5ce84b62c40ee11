"""The optimisers of recipes: AdamW for every parameter, or Muon for matrices and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .device import fast_dtype

OPTIMISERS = ("adamw", "muon")


class Muon(torch.optim.Optimizer):
    """Momentum with nearly orthogonal updates (Jordan et al. 2024). A convolution counts as one matrix.

    A factor of 0.2 sqrt(max(rows, columns)) gives the update AdamW's root mean square (Liu et al. 2025, equation 4).
    AdamW's learning rates therefore fit. torch.optim.Muon takes no convolutions and works only in bf16. On processors
    without bf16 instructions that is 100 times slower than fp32.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum"] = torch.zeros_like(p)
                momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
                ahead = torch.lerp(p.grad, momentum, group["momentum"]).flatten(1)  # Nesterov
                update = orthogonalised(ahead.to(fast_dtype(p.device))).to(p.dtype).view(p.shape)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * max(ahead.shape) ** 0.5 * group["lr"])


def orthogonalised(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """Return `matrix` with its singular values brought near 1 (0.7 to 1.2), by Jordan's quintic Newton-Schulz steps."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = 3.4445 * x + torch.addmm(square, square, square, beta=-4.7750, alpha=2.0315) @ x
    return x.T if tall else x


def make_optimisers(
    name: str, module: nn.Module, learning_rate: float, beta2: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Return the optimisers of the module's trainable parameters; `name` is one of OPTIMISERS.

    With "muon", Muon trains the weights of linear layers and of 2-D and 3-D convolutions. AdamW trains norms, biases
    and embeddings.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    matrices: list[nn.Parameter] = []
    if name == "muon":
        layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.Conv3d))]
        weights = {id(layer.weight) for layer in layers}
        matrices = [p for p in trainable if id(p) in weights]
    taken = {id(p) for p in matrices}
    rest = [p for p in trainable if id(p) not in taken]
    adamw = torch.optim.AdamW(rest, lr=learning_rate, betas=(0.9, beta2), weight_decay=weight_decay, fused=True)
    return [adamw, Muon(matrices, learning_rate, weight_decay=weight_decay)] if matrices else [adamw]


def moments(optimiser: torch.optim.Optimizer, names: dict[nn.Parameter, str]) -> dict[str, torch.Tensor]:
    """Return the optimiser's moments by "kind.name"; zeros for parameters without a step.

    These are the optimiser's own tensors: writing into them restores its state.
    """
    kinds = ("momentum",) if isinstance(optimiser, Muon) else ("exp_avg", "exp_avg_sq")
    found = {}
    for p in (p for group in optimiser.param_groups for p in group["params"]):
        state = optimiser.state[p]
        if not state and not isinstance(optimiser, Muon):
            state["step"] = torch.zeros((), device=p.device)
        for kind in kinds:
            if kind not in state:
                # The fused optimiser walks memory in order: moments need the weight's memory layout.
                state[kind] = torch.zeros_like(p)
            found[f"{kind}.{names[p]}"] = state[kind]
    return found


def set_steps(optimiser: torch.optim.Optimizer, steps: int) -> None:
    """Set the number of steps of an optimiser with restored `moments`."""
    for state in optimiser.state.values():
        if "step" in state:
            state["step"].fill_(steps)
