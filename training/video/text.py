"""Train a small UMT5 text encoder and its tokenizer by a contrastive loss, like the picture model's encoders."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.storage.directory import NewDirectory
from ...runtime.storage.files import write_whole
from ..loop.cached import Progress, silent
from ..loop.networks import pretrained
from ..pictures.captions import STYLES, draw_captions
from ..pictures.dataset import Pictures
from ..pictures.text_encoders import Targets, contrastive, picture_features


@dataclass(frozen=True)
class VideoTextSpec:
    """The encoder and its vocabulary."""

    data: str  # emoji pictures
    width: int = 128
    layers: int = 4
    head: int = 32
    feed_forward: int = 256
    vocabulary: int = 2000
    length: int = 24  # tokens of a prompt
    temperature: float = 0.05
    style_gap: float = 0.1


class VideoText:
    """Trains the encoder with a projection of frozen Lite0 features. Drops the projection afterwards."""

    after: tuple[str, ...] = ()

    def __init__(self, spec: VideoTextSpec, seed: int, progress: Progress = silent) -> None:
        from transformers import UMT5Config, UMT5EncoderModel

        self.spec = spec
        self.pictures = Pictures(Path(spec.data))
        device = self.pictures.device
        self.features = picture_features(Path(spec.data), self.pictures, progress).to(device)
        self.targets = Targets(self.pictures, spec.style_gap, spec.temperature)
        words = [text for row in self.pictures.rows for text in (row.name, *row.tags, *STYLES)]
        self.tokenizer = make_tokenizer(words, spec.vocabulary, spec.length)
        torch.manual_seed(seed)
        self.encoder: Any = UMT5EncoderModel(
            UMT5Config(
                vocab_size=len(self.tokenizer), d_model=spec.width, d_kv=spec.head, d_ff=spec.feed_forward,
                num_layers=spec.layers, num_heads=spec.width // spec.head, dropout_rate=0.0,
            )
        )  # fmt: skip
        self.head = nn.Sequential(nn.LayerNorm(1280), nn.Linear(1280, 512), nn.GELU(), nn.Linear(512, spec.width))
        self.scale = nn.Parameter(torch.tensor(2.5))
        parts = {"encoder": self.encoder, "head": self.head, "scale": nn.ParameterList([self.scale])}
        self.module: nn.Module = nn.ModuleDict(parts).to(device)

    def draw(self, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw pictures, token ids and masks of two captions each, and the mask of features."""
        chosen = self.pictures.draw(batch, generator)
        rows = [self.pictures.rows[i] for i in chosen.tolist()]
        ids, mask = tokens(self.tokenizer, draw_captions(rows, 0.0, generator) + draw_captions(rows, 0.0, generator))
        return chosen, ids, mask, torch.rand(batch, self.features.shape[1], generator=generator) >= 0.2

    def loss(self, drawn: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        """Return the contrastive loss on the mean of the tokens' states."""
        here, ids, mask, kept = (part.to(self.features.device) for part in drawn)
        text = pooled(self.encoder(ids, mask).last_hidden_state, mask)
        return contrastive(text, self.head(self.features[here] * kept / 0.8), self.scale, self.targets(here)), {}

    def grid(self) -> None:
        """Text has no picture to show."""

    def finish(self, out: Path) -> None:
        """Write `out/text_encoder/` and `out/tokenizer/`, and the retrieval score on held-out names."""
        with NewDirectory(out / "tokenizer", replace=True) as new:
            self.tokenizer.save_pretrained(new.path)
            new.commit()
        with NewDirectory(out / "text_encoder", replace=True) as new:
            self.encoder.save_pretrained(new.path)
            new.commit()
        write_whole(out / "retrieval.json", f"{json.dumps(self._recall(), indent=1)}\n".encode())

    @torch.no_grad()
    def _recall(self) -> dict[str, float]:
        held = Pictures(Path(self.spec.data), ("held-out name",))
        if not held.rows:
            return {}
        seen = self.head(picture_features(Path(self.spec.data), held).to(self.features.device))
        ids, mask = tokens(self.tokenizer, [f"{row.name}, {row.style}" for row in held.rows])
        text = pooled(self.encoder(ids.to(seen.device), mask.to(seen.device)).last_hidden_state, mask.to(seen.device))
        best = (F.normalize(text, dim=-1) @ F.normalize(seen, dim=-1).T).topk(min(10, len(seen))).indices.cpu()
        hits = (best == torch.arange(len(best))[:, None]).any(1).float().mean().item()
        return {"recall at 10": round(hits, 4), "chance": round(10 / len(best), 4), "pictures": len(best)}


class Umt5Conditioner:
    """The frozen encoder, like in Wan's pipelines: the prompt's states, then zeros."""

    def __init__(self, folder: Path, length: int, device: torch.device) -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        self.tokenizer.model_max_length = length
        self.encoder: Any = pretrained(UMT5EncoderModel, folder / "text_encoder").eval().to(device)
        self.device, self.width = device, self.encoder.config.d_model

    @torch.no_grad()
    def __call__(self, captions: list[str]) -> Tensor:
        """Return states (B, length, width)."""
        ids, mask = (part.to(self.device) for part in tokens(self.tokenizer, captions))
        return self.encoder(ids, mask).last_hidden_state * mask[..., None]


def make_tokenizer(words: list[str], size: int, length: int) -> Any:
    """Return a T5Tokenizer with at most `size` unigram pieces, learned from `words`."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import T5Tokenizer

    learner = Tokenizer(models.Unigram())
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True),
        ]
    )
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=size, special_tokens=special, unk_token="<unk>", show_progress=False)
    learner.train_from_iterator(words, trainer)
    pieces = [(piece, score) for piece, score in json.loads(learner.to_str())["model"]["vocab"]]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=length)


def tokens(tokenizer: Any, captions: list[str]) -> tuple[Tensor, Tensor]:
    """Return token ids and attention mask (B, length) int64, padded and cut like Wan's pipelines."""
    found = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return found.input_ids, found.attention_mask


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, W) of the unmasked states (B, L, W)."""
    kept = mask[..., None].to(states.dtype)
    return (states * kept).sum(1) / kept.sum(1).clamp_min(1)
