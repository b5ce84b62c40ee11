"""Train the two CLIP text encoders: a contrastive loss on pictures, MiniLM similarities of names as soft targets."""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ...runtime.storage.directory import NewDirectory
from ...runtime.storage.files import write_whole
from ..data import emoji
from ..data.packages import fetch
from ..loop.cached import Progress, parts, remembered, silent
from ..metrics.nets import CLIP_BPE, Lite0, data_directory, embed_names
from .captions import STYLES, draw_captions
from .dataset import Pictures, on_white


@dataclass(frozen=True)
class TextEncodersSpec:
    """The encoders: width, layers and heads of each, and the prompt length in tokens."""

    data: str
    widths: tuple[int, ...] = (64, 96)
    layers: int = 4
    head: int = 32
    length: int = 24
    temperature: float = 0.05  # of the soft targets
    style_gap: float = 0.1  # subtracted from the similarity for another style


@dataclass(frozen=True)
class _Drawn:
    """The random data of a batch of B pictures, on the processor."""

    chosen: torch.Tensor  # (B,) pictures
    tokens: list[torch.Tensor]  # (2 B, length) for each encoder: a first caption of every picture, then a second
    kept: torch.Tensor  # (B, 1280) bool


class TextEncoders:
    """Trains both encoders together, each with its own projection of frozen Lite0 features."""

    after: tuple[str, ...] = ()

    def __init__(self, spec: TextEncodersSpec, seed: int, progress: Progress = silent) -> None:
        self.spec = spec
        self.pictures = Pictures(Path(spec.data))
        self.features = picture_features(Path(spec.data), self.pictures, progress).to(self.pictures.device)
        device = self.pictures.device
        self.targets = Targets(self.pictures, spec.style_gap, spec.temperature)
        torch.manual_seed(seed)
        self.tokenizers = [make_tokenizer(spec.length, pad) for pad in ("<|endoftext|>", "!")]
        self.encoders = [
            make_text_encoder(width, spec, act) for width, act in zip(spec.widths, ("quick_gelu", "gelu"), strict=True)
        ]
        self.heads = [
            nn.Sequential(nn.LayerNorm(1280), nn.Linear(1280, 512), nn.GELU(), nn.Linear(512, width))
            for width in spec.widths
        ]
        scales = nn.ParameterList([nn.Parameter(torch.tensor(2.5)) for _ in spec.widths])
        self.module: nn.Module = nn.ModuleList([*self.encoders, *self.heads, scales]).to(device)
        self.scales = scales

    def draw(self, batch: int, generator: torch.Generator) -> _Drawn:
        """Draw pictures, two captions of each, and the mask of features."""
        chosen = self.pictures.draw(batch, generator)
        rows = [self.pictures.rows[i] for i in chosen.tolist()]
        captions = draw_captions(rows, 0.0, generator) + draw_captions(rows, 0.0, generator)
        # Feature dropout keeps the small head from memorising training pictures.
        kept = torch.rand(batch, self.features.shape[1], generator=generator) >= 0.2
        return _Drawn(chosen, [tokenize(tokenizer, captions) for tokenizer in self.tokenizers], kept)

    def loss(self, drawn: _Drawn) -> tuple[torch.Tensor, dict[str, float]]:
        """Return both encoders' mean contrastive loss."""
        device = self.features.device
        here = drawn.chosen.to(device)
        targets = self.targets(here)
        total = torch.zeros((), device=device)
        features = self.features[here] * drawn.kept.to(device) / 0.8
        for tokens, encoder, head, scale in zip(drawn.tokens, self.encoders, self.heads, self.scales, strict=True):
            text = encoder(tokens.to(device)).text_embeds
            total = total + contrastive(text, head(features), scale, targets) / len(self.encoders)
        return total, {}

    def grid(self) -> None:
        """Text has no picture to show."""

    def finish(self, out: Path) -> None:
        """Write both encoders, both tokenizers and the retrieval score on held-out names."""
        for suffix, tokenizer, encoder in zip(("", "_2"), self.tokenizers, self.encoders, strict=True):
            with NewDirectory(out / f"tokenizer{suffix}", replace=True) as new:
                save_tokenizer(tokenizer, new.path)
                new.commit()
            with NewDirectory(out / f"text_encoder{suffix}", replace=True) as new:
                encoder.save_pretrained(new.path)
                new.commit()
        scores = {
            split: [self._recall(split, i) for i in range(len(self.encoders))]
            for split in ("held-out name", "held-out combination")
        }
        write_whole(out / "retrieval.json", f"{json.dumps(scores, indent=1)}\n".encode())

    @torch.no_grad()
    def _recall(self, split: str, which: int) -> dict[str, float]:
        """Return R@10 of caption to picture among the pictures of `split`, and the chance level."""
        held = Pictures(Path(self.spec.data), (split,))
        features = picture_features(Path(self.spec.data), held).to(self.features.device)
        seen = F.normalize(self.heads[which].eval()(features), dim=-1)
        ids = tokenize(self.tokenizers[which], [f"{row.name}, {row.style}" for row in held.rows])
        text = F.normalize(self.encoders[which].eval()(ids.to(features.device)).text_embeds, dim=-1)
        best = (text @ seen.T).topk(10).indices
        hits = (best.cpu() == torch.arange(len(held.rows))[:, None]).any(1).float().mean().item()
        return {"recall at 10": round(hits, 4), "chance": round(10 / len(held.rows), 4), "pictures": len(held.rows)}


class Targets:
    """Similarity of pictures, from MiniLM's embeddings of their names and from their styles."""

    def __init__(self, pictures: Pictures, gap: float, temperature: float) -> None:
        names = sorted({row.name for row in pictures.rows})
        place = {name: i for i, name in enumerate(names)}
        self.names = embed_names(names).to(pictures.device)
        self.name_of = torch.tensor([place[row.name] for row in pictures.rows], device=pictures.device)
        self.style_of = torch.tensor([STYLES.index(row.style) for row in pictures.rows], device=pictures.device)
        self.gap, self.temperature = gap, temperature

    def __call__(self, here: torch.Tensor) -> torch.Tensor:
        """Return the soft targets (B, B) of the pictures `here` (B,)."""
        return soft_targets(self.names[self.name_of[here]], self.style_of[here], self.gap, self.temperature)


def soft_targets(names: torch.Tensor, styles: torch.Tensor, gap: float, temperature: float) -> torch.Tensor:
    """Return the similarity (B, B) of a batch's pictures, rows of sum 1, from unit embeddings of names and styles."""
    apart = gap * (styles[:, None] != styles[None]).float()
    return ((names @ names.T - apart) / temperature).softmax(-1)


def contrastive(text: torch.Tensor, seen: torch.Tensor, scale: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the mean loss over captions to pictures, pictures to captions and captions to captions.

    `text` (2 B, W) holds embeddings of a first caption for every picture, then of a second. `seen` (B, W): pictures.
    """
    first, second = F.normalize(text, dim=-1).chunk(2)
    seen, factor = F.normalize(seen, dim=-1), scale.exp().clamp(max=100.0)
    pairs = ((first, seen), (seen, first), (first, second))
    return torch.stack([F.cross_entropy(factor * a @ b.T, targets) for a, b in pairs]).mean()


def picture_features(folder: Path, pictures: Pictures, progress: Progress = silent) -> torch.Tensor:
    """Return Lite0 features (N, 1280) of `pictures`, cached beside the data."""
    rows, rgba = emoji.load(folder)

    def measure() -> dict[str, torch.Tensor]:
        net = Lite0().to(pictures.device)
        indices = parts(len(rgba), "features of pictures", progress)
        return {
            "features": torch.cat([net.features(on_white(torch.from_numpy(rgba[part.numpy()]))) for part in indices])
        }

    features = remembered(folder / "lite0.safetensors", [folder / "emoji.json"], measure)["features"]
    place = {(row.style, row.hexcode): i for i, row in enumerate(rows)}
    return features[torch.tensor([place[row.style, row.hexcode] for row in pictures.rows])]


def make_text_encoder(width: int, spec: TextEncodersSpec, activation: str) -> Any:
    """Return a CLIPTextModelWithProjection of `width` with SD3's activation for that encoder."""
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=spec.layers,
        num_attention_heads=width // spec.head,
        max_position_embeddings=spec.length,
        projection_dim=width,
        hidden_act=activation,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    return CLIPTextModelWithProjection(config).train()


def make_tokenizer(length: int, pad: str) -> Any:
    """Return CLIP's byte-pair tokenizer with `model_max_length` = `length`. SD3's second one pads with "!"."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    path = fetch(CLIP_BPE, data_directory()) / "open_clip/bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.decompress(path.read_bytes()).decode().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : 49152 - 256 - 2 + 1]]
    symbols = list(bytes_to_unicode().values())
    vocabulary = [*symbols, *(f"{s}</w>" for s in symbols), *("".join(m) for m in merges)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        pad_token=pad,
        model_max_length=length,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer in SD3's published files: vocab.json, merges.txt, tokenizer_config.json."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    vocabulary = json.dumps(model["vocab"], ensure_ascii=False, separators=(",", ":"))
    (folder / "vocab.json").write_text(vocabulary, encoding="utf-8")
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()


def tokenize(tokenizer: Any, captions: list[str]) -> torch.Tensor:
    """Return token ids (B, length) int64, padded and cut like SD3's pipeline."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids
