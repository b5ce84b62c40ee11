"""One step of the sampler as a separate graph, so that latents stay on the device between a denoiser's calls.

The processor runs the same formulas in `runtime/sampling/recurrence.py`; `tests/runtime/test_device_loop.py` compares
both.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch

from ...runtime.bundle.manifest import step_of
from .graph import WEIGHT, Graph, Port


class _Step(torch.nn.Module):
    """Takes `latents` and the denoiser's output; see `with_step`."""

    def __init__(self, patch: int, free: tuple[str, ...]) -> None:
        super().__init__()
        self.patch, self.free = patch, free

    def forward(self, latents, made, guidance, change, *others):  # type: ignore[no-untyped-def]
        given = dict(zip(self.free, others, strict=True))
        made = made.float()
        without, told = made[:1], made[-1:]
        guided = without + guidance * (told - without)
        if self.patch:
            scale = self._norms(told) / (self._norms(guided) + 1e-8)
            guided = guided * scale.clamp(max=1).repeat_interleave(self.patch, -2).repeat_interleave(self.patch, -1)
        moved = change * guided
        keep, channels = given.get("keep"), made.shape[1]
        if "noisy" in given:  # the other frames stay as they are
            noisy = given["noisy"][None, None, :, None, None]
            moved = moved * noisy
            keep = None if keep is None else 1 + (keep - 1) * noisy
        old = latents[:, :channels]
        after = (old if keep is None else keep * old) + moved
        if "noise" in given:
            after = after + given["noise"][:, :channels] * (noisy if "noisy" in given else 1)
        after = torch.cat([after, latents[:, channels:]], 1)
        seen = after * given["scale"] if "scale" in given else after
        return after, seen.expand(made.shape[0], *seen.shape[1:])

    def _norms(self, latents):  # type: ignore[no-untyped-def]
        count, channels, height, width = latents.shape
        rows, columns = height // self.patch, width // self.patch
        tokens = latents.reshape(count, channels, rows, self.patch, columns, self.patch)
        return (tokens**2).sum((1, 3, 5)).sqrt()[:, None]


class _Typed(torch.nn.Module):
    """Returns the denoiser's next input in the denoiser's dtype."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, latents, made, *others):  # type: ignore[no-untyped-def]
        after, seen = self.model(latents, made, *others)
        return after, seen.to(made.dtype)


def with_step(
    denoiser: Graph, *, patch: int = 0, windows: bool = False, takes: Collection[str] = ()
) -> tuple[Graph, Graph]:
    """Return `denoiser`, whose first input is latents, and the graph of the sampler's step that follows each call.

    latents float32 [1, channels, ...], made [batch, first channels of these, ...], guidance and change (`move` of the
    schedule) float32 [1] -> after, float32 as latents, and seen [batch, channels, ...] for the next call. If made has a
    batch of two, without and with the prompt, the step applies guidance; `patch` selects LongCat-Image's guidance.

    `windows` take noisy float32 [frames], 1 for frames that change and 0 for others. `takes` names the inputs that the
    sampler needs: scale float32 [1], the factor of seen; keep float32 [1], which multiplies latents; and noise, float32
    as latents, which is added.
    """
    latents, output = denoiser.inputs[0], denoiser.outputs[0]
    whole: tuple[int | str, ...] = (1, *latents.shape[1:])
    possible = (
        Port("scale", "float32", (1,)), Port("noisy", "float32", ("frames",)), Port("keep", "float32", (1,)),
        Port("noise", "float32", whole),
    )  # fmt: skip
    wanted = {*takes, "noisy"} if windows else set(takes)
    ports = [port for port in possible if port.name in wanted]
    extra = tuple(port.name for port in ports)
    inputs = (
        Port("latents", "float32", whole),
        Port("made", WEIGHT, output.shape),
        Port("guidance", "float32", (1,)),
        Port("change", "float32", (1,)),
        *ports,
    )

    def feed(rng: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
        drawn = {port.name: rng.standard_normal(port.sized(sizes), dtype=np.float32) for port in inputs}
        return drawn | ({"noisy": (drawn["noisy"] > 0).astype(np.float32)} if windows else {})

    return denoiser, Graph(
        component=step_of(denoiser.component),
        folder=denoiser.folder,
        file="step.onnx",
        opset=denoiser.opset,
        build=lambda: _Step(patch, extra),
        load=lambda folder: _Step(patch, extra),
        wrap=_Typed,
        inputs=inputs,
        outputs=(Port("after", "float32", whole), Port("seen", WEIGHT, latents.shape)),
        traced=denoiser.traced,
        trials=denoiser.trials,
        feed=feed,
        buffer=lambda name: None,
        weighted=False,
    )
