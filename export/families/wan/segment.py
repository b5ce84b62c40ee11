"""SwiftI2V's Stage II: Wan's transformer on a window of latent frames, which need not be consecutive.

It has the parameters of diffusers' class, under the same names, and differs in three ways. Temporal positions are an
input, because a window has the image latent, some neighbours and the targets (`runtime/bundle/segments.py`). Each
latent frame has a timestep: 0 for a clean frame, as in Wan 2.2's TI2V. The patch embedding takes the motion reference
as further channels, whose weights begin at zero.
"""

from __future__ import annotations

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor


class SegmentTransformer(WanTransformer3DModel):
    """Velocity of a window. All frames attend to all others, so no keys or values can be cached."""

    def forward(  # type: ignore[override]
        self, latents: Tensor, timesteps: Tensor, text: Tensor, positions: Tensor
    ) -> Tensor:
        """Return the velocity (batch, out channels, frames, height, width) of every frame of the window.

        `latents` (batch, in channels, frames, height, width) are the noisy or clean latents, then the
        reference; `timesteps` (batch, frames) are 1000 sigma; `text` is (batch, tokens, width); `positions` are (batch,
        frames) int64, the numbers of the latent frames in the clip. Height and width are multiples of the patch.
        """
        hidden = self.patch_embedding(latents)
        batch, _, frames, height, width = hidden.shape
        rotary = self._rotary(positions, height, width)
        hidden = hidden.flatten(2).transpose(1, 2).contiguous()
        embedded, modulation, text, _ = self.condition_embedder(timesteps.flatten(), text, timestep_seq_len=frames)
        a_frame = height * width
        modulation = _each(modulation, a_frame).unflatten(2, (6, -1))
        for block in self.blocks:
            if torch.is_grad_enabled() and self.gradient_checkpointing:
                hidden = self._gradient_checkpointing_func(block, hidden, text, modulation, rotary)
            else:
                hidden = block(hidden, text, modulation, rotary)
        shift, scale = (self.scale_shift_table[:, None] + _each(embedded, a_frame)[:, :, None]).unbind(2)
        hidden = self.proj_out((self.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden))
        _, high, wide = self.config.patch_size
        pieces = hidden.view(batch, frames, height, width, high, wide, -1)
        return pieces.permute(0, 6, 1, 2, 4, 3, 5).reshape(batch, -1, frames, height * high, width * wide)

    def _rotary(self, positions: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (batch, tokens, 1, head) of Wan's three-axis rotary embedding."""
        rope, (batch, frames) = self.rope, positions.shape
        grid = batch, frames, height, width

        def placed(table: Tensor) -> Tensor:
            of_time, of_rows, of_columns = table.split([rope.t_dim, rope.h_dim, rope.w_dim], 1)
            parts = (
                of_time[positions][:, :, None, None],
                of_rows[:height][None, None, :, None],
                of_columns[:width][None, None, None],
            )
            return torch.cat([part.expand(*grid, -1) for part in parts], -1).flatten(1, 3)[:, :, None]

        return placed(rope.freqs_cos), placed(rope.freqs_sin)


def _each(of_frame: Tensor, tokens: int) -> Tensor:
    """Repeat the values of each frame (batch, frames, width) for each of its tokens: (batch, frames tokens, width).

    The ONNX graph of repeat_interleave would fix the number of tokens.
    """
    return of_frame[:, :, None].expand(-1, -1, tokens, -1).flatten(1, 2)


def widened(model: WanTransformer3DModel, reference: int) -> SegmentTransformer:
    """Return `model` as a SegmentTransformer whose input has `reference` more channels, with weights of zero.

    At first its output equals that of `model` for any reference. `model` does not change.
    """
    taken = model.config.in_channels + reference
    wide = SegmentTransformer.from_config(model.config, in_channels=taken)
    weights = model.state_dict()
    old = weights["patch_embedding.weight"]
    weights["patch_embedding.weight"] = torch.cat([old, old.new_zeros(len(old), reference, *old.shape[2:])], 1)
    wide.load_state_dict(weights)
    return wide.to(old.dtype)
