"""The recipe tables of SwiftI2V's two stages."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import TrainingError
from ...runtime.bundle.segments import SegmentSpec


@dataclass(frozen=True)
class DetailSpec:
    """Stage II's transformer, its inputs and its training."""

    data: str  # emoji clips
    codec: str  # a directory with `vae/`
    text: str  # a directory with `text_encoder/` and `tokenizer/`
    motion: str  # Stage I's checkpoint
    frames: int = 33  # of a window of a clip; 4k + 1
    scale: int = 4  # factor between the sides of both stages' frames
    windows: int = 2  # of each clip
    varied: bool = False  # draw the windows, and mirror, recolour, move or reverse each at random
    decoder: str = ""  # a directory with `vae/` of the same encoder; the checkpoint gets its decoder
    start: str = ""  # trains on a checkpoint's Stage II, or on its widened Stage I; empty: new weights
    layers: int = 8
    heads: int = 4
    head: int = 48
    feed_forward: int = 768
    length: int = 24  # text tokens
    targets: int = 3  # M, latent frames a segment
    before: int = 1  # N, neighbours before it
    after: int = 0  # neighbours after it
    reference: str = "transition"  # how to make the reference; for ablations "autoencoded" or "resampled"
    resampled: float = 0.0  # share of good references: clips only scaled down and up
    lowest: float = 0.3  # noise levels of the transition
    highest: float = 0.7
    image: bool = True  # put the image latent into every window; False for an ablation
    both_ways: bool = True  # clean frames attend to noisy ones; False for an ablation
    corrupted: float = 0.0  # deviation of the noise on neighbours, in half of the training samples
    shift: float = 5.0
    caption_dropout: float = 0.1
    revision: str = "1"
    compile: bool = False

    @property
    def segments(self) -> SegmentSpec:
        """Return the segments of a clip."""
        return SegmentSpec(self.targets, self.before, self.after)


@dataclass(frozen=True)
class MotionSpec:
    """Stage I's transformer and its training."""

    data: str  # emoji clips
    codec: str  # a directory with `vae/`
    text: str  # a directory with `text_encoder/` and `tokenizer/`
    frames: int = 33  # of a window; 4k + 1
    scale: int = 4  # divides the sides of a frame
    windows: int = 2  # of each clip
    varied: bool = False  # draw the windows, and mirror, recolour, move or reverse each at random
    start: str = ""  # trains on a checkpoint's transformer; empty: new weights of these sizes
    rank: int = 0  # of LoRA; 0 trains every weight
    layers: int = 8
    heads: int = 4
    head: int = 48
    feed_forward: int = 768
    length: int = 24  # text tokens
    shift: float = 5.0
    caption_dropout: float = 0.1
    guidance: float = 3.0  # the default of the written checkpoint
    revision: str = "1"
    compile: bool = False

    def __post_init__(self) -> None:
        """Raise TrainingError if LoRA has nothing to adapt."""
        if self.rank and not self.start:
            raise TrainingError("[motion] rank needs a trained transformer. Name its checkpoint as start.")
