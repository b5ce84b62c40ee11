"""The recipe tables of SwiftI2V's two stages."""

from __future__ import annotations

from dataclasses import dataclass

from ...errors import TrainingError
from ...runtime.bundle.segments import SegmentSpec


@dataclass(frozen=True)
class DetailSpec:
    """What the transformer is, what it sees and how it learns."""

    data: str  # emoji clips
    codec: str  # a directory with `vae/`
    text: str  # a directory with `text_encoder/` and `tokenizer/`
    motion: str  # Stage I's checkpoint
    frames: int = 33  # of a window of a clip; 4k + 1
    scale: int = 4  # Stage I's frames are smaller by it
    windows: int = 2  # of each clip
    varied: bool = False  # as many drawn windows, each mirrored, recoloured, moved, backwards by chance
    decoder: str = ""  # a directory with `vae/` of the same encoder, whose decoder the checkpoint gets
    start: str = ""  # a checkpoint whose Stage II is trained on, or, without one, its transformer widened; else anew
    layers: int = 8
    heads: int = 4
    head: int = 48
    feed_forward: int = 768
    length: int = 24  # text tokens
    targets: int = 3  # M, latent frames a segment
    before: int = 1  # N, neighbours before it
    after: int = 0  # neighbours after it
    reference: str = "transition"  # or "autoencoded", "resampled": what the reference is made by, for ablations
    resampled: float = 0.0  # share of samples whose reference is only scaled down and up: a good one is followed
    lowest: float = 0.3  # noise levels of the transition
    highest: float = 0.7
    image: bool = True  # the image latent is in every window; False for an ablation
    both_ways: bool = True  # clean frames attend to noisy ones; False for an ablation
    corrupted: float = 0.0  # deviation of noise on the neighbours in training, in half of the samples
    shift: float = 5.0
    caption_dropout: float = 0.1
    revision: str = "1"
    compile: bool = False

    @property
    def segments(self) -> SegmentSpec:
        """Return how a clip is cut."""
        return SegmentSpec(self.targets, self.before, self.after)


@dataclass(frozen=True)
class MotionSpec:
    """What the transformer is and how it learns."""

    data: str  # emoji clips
    codec: str  # a directory with `vae/`
    text: str  # a directory with `text_encoder/` and `tokenizer/`
    frames: int = 33  # of a window; 4k + 1
    scale: int = 4  # sides of a frame are divided by it
    windows: int = 2  # of each clip
    varied: bool = False  # as many drawn windows, each mirrored, recoloured, moved, backwards by chance
    start: str = ""  # a checkpoint whose transformer is trained on; else it begins anew with these sizes
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
        """Raise TrainingError where LoRA has nothing to adapt."""
        if self.rank and not self.start:
            raise TrainingError("[motion] rank adapts a trained transformer. Name its checkpoint as start.")
