"""The recipe table of a picture teacher."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TeacherSpec:
    """The transformer and its training."""

    data: str
    autoencoder: str  # a directory with `vae/`; Segue caches its latents beside the data
    text: str  # a directory with `text_encoder/`, `text_encoder_2/`, `tokenizer/` and `tokenizer_2/`
    layers: int = 8
    heads: int = 4
    head: int = 64
    joint_width: int = 160
    positions: int = 16  # largest picture side in patches of 16 px
    shift: float = 3.0
    time_mean: float = 0.7  # sigma = sigmoid(N(time_mean, time_std^2))
    time_std: float = 1.2
    caption_dropout: float = 0.1
    align: float = 0.0  # weight of the representation alignment (REPA's lambda)
    align_depth: int = 3  # the aligned block, counted from 1
    guidance: float = 4.0  # the default of the written checkpoint
    revision: str = "1"
    compile: bool = False
