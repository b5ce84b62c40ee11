"""Quality of the emoji bundle, rendered by Segue's runtime at its default 28 steps and guidance.

    python benchmarks/emoji_quality.py emoji-teacher --data runs/data/emoji

On class-balanced prompts of each split it reports the KID (EfficientNet-Lite0, x 1e3) against the real pictures of the
same prompts, and the LPIPS to the nearest training picture (memorisation); for 3-D prompts the R@10 of the
Lite0-to-MiniLM retriever, among the names of that split. Beside each stands what real pictures get. Draws
docs/emoji-seen.png and docs/emoji-held-out.png, 24 prompts each. Ends with 1 where on training names the KID is above
60 or R@10 below 0.7 of that of real pictures.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import segue
from segue.training.loop.device import training_device
from segue.training.metrics.nets import Lite0, embed_names
from segue.training.metrics.scores import fit_retriever, kid, nearest_lpips, recall_at_10
from segue.training.pictures.captions import plain_caption
from segue.training.pictures.dataset import Pictures
from segue.training.pictures.text_encoders import picture_features

HELD = ("held-out name", "held-out combination")
ROOT = Path(__file__).parent.parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("--data", type=Path, default=ROOT / "runs/data/emoji")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/emoji_quality.json")
    parser.add_argument("--grids", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    net = Lite0().to(training_device())
    results: dict[str, object] = {
        "prompts": options.prompts,
        "versions": {n: version(n) for n in ("torch", "onnxruntime")},
    }
    train = Pictures(options.data)
    train_features = picture_features(options.data, train)
    with ExitStack() as opened:
        # Two calls of one thread each make more pictures than one call of two threads.
        models = [opened.enter_context(segue.open(options.bundle, threads=1)) for _ in range(os.cpu_count() or 1)]
        manifest = models[0].bundle.manifest
        results["bundle"] = {
            "name": manifest.name,
            "revision": manifest.provenance.revision,
            "steps": manifest.sampler.steps,
            "guidance": manifest.sampler.guidance,
        }
        seen = chosen_of(train, options.prompts)
        made, seconds = rendered(models, train, seen)
        results["seconds a picture"] = seconds / len(seen)
        seen_scores = score(net, train_features[seen], made, train, train_features)
        results["training names"] = seen_scores
        half = torch.randperm(len(train.rows), generator=torch.Generator().manual_seed(2))[:1000]
        halves = kid(train_features[half[:500]], train_features[half[500:]])
        results["KID of two halves of 1,000 real pictures"] = halves[0]
        find = Retrieval(train, train_features)
        seen_found = find.scores(net, models, train, train_features, options.prompts)
        results["retrieval of training names"] = seen_found
        for split in HELD:
            held = Pictures(options.data, (split,))
            every = chosen_of(held, min(options.prompts, len(held.rows)))
            made_held, _ = rendered(models, held, every)
            all_features = picture_features(options.data, held)
            held_features = all_features[every]
            results[split] = score(net, held_features, made_held, train, train_features)
            results[f"{split}: nearest LPIPS of the real pictures"] = nearest(
                held.on_white(every).cpu(), held_features, train, train_features
            )
            results[f"retrieval of {split}s"] = find.scores(net, models, held, all_features, options.prompts)
            if split == HELD[0]:
                save_grid(made_held, held, every, options.grids / "emoji-held-out.png")
        save_grid(made, train, seen, options.grids / "emoji-seen.png")
    text = json.dumps(rounded(results), indent=1)
    print(text)
    options.out.write_text(text + "\n")
    passed = seen_scores["KID x 1e3"] <= 60 and seen_found["ratio"] >= 0.7
    print("within the gates" if passed else "OUTSIDE the gates")
    return 0 if passed else 1


def chosen_of(pictures: Pictures, count: int, style: str | None = None) -> torch.Tensor:
    """Return `count` distinct pictures, drawn class-balanced with a fixed seed."""
    weights = pictures.weights.clone()
    if style is not None:
        weights *= torch.tensor([row.style == style for row in pictures.rows])
    return torch.multinomial(weights, count, generator=torch.Generator().manual_seed(1))


def rendered(models: list[segue.Model], pictures: Pictures, indices: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return what the bundle renders for the plain captions, each with its own seed, and the seconds taken."""

    def part(which: int) -> list[np.ndarray]:
        mine = list(enumerate(indices.tolist()))[which :: len(models)]
        return [models[which].generate(plain_caption(pictures.rows[i]), seed=n) for n, i in mine]

    started = time.perf_counter()
    with ThreadPoolExecutor(len(models)) as pool:
        parts = list(pool.map(part, range(len(models))))
    images = [parts[n % len(models)][n // len(models)] for n in range(len(indices))]
    seconds = time.perf_counter() - started
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 127.5 - 1, seconds


def score(net: Lite0, real: torch.Tensor, made: torch.Tensor, train: Pictures, train_features: torch.Tensor) -> dict:
    """Return KID and the memorisation score of rendered pictures."""
    made_features = net.features(made)
    distance, spread = kid(real, made_features)
    return {
        "pictures": len(made),
        "KID x 1e3": distance,
        # Subsets of 500 drawn from fewer than 500 pictures are all the same one.
        "its spread over subsets": spread if len(made) > 500 else "n/a",
        "LPIPS to the nearest training picture (median of 200)": nearest(made, made_features, train, train_features),
    }


def nearest(made: torch.Tensor, made_features: torch.Tensor, train: Pictures, train_features: torch.Tensor) -> float:
    """Return the median LPIPS of up to 200 pictures to their nearest training picture."""
    return nearest_lpips(made[:200], made_features[:200], train.on_white, train_features).median().item()


class Retrieval:
    """R@10 of picture to name for 3-D prompts; the retriever has seen the other two styles of training names only."""

    def __init__(self, train: Pictures, features: torch.Tensor) -> None:
        names = embed_names([row.name for row in train.rows])
        others = torch.tensor([row.style != "3d" for row in train.rows])
        self.retriever = fit_retriever(features[others], names[others])

    def scores(
        self, net: Lite0, models: list[segue.Model], pictures: Pictures, features: torch.Tensor, count: int
    ) -> dict:
        """Return R@10 of up to `count` rendered and of the real pictures, among their own names, and their ratio."""
        chosen = chosen_of(pictures, min(count, sum(row.style == "3d" for row in pictures.rows)), "3d")
        made, _ = rendered(models, pictures, chosen)
        wanted = [pictures.rows[i].name for i in chosen.tolist()]
        embeddings = embed_names(wanted)
        real = recall_at_10(self.retriever, features[chosen], embeddings, wanted)
        found = recall_at_10(self.retriever, net.features(made), embeddings, wanted)
        return {
            "names": len(set(wanted)),
            "rendered": found,
            "real": real,
            "ratio": found / real,
        }


def rounded(value: Any) -> Any:
    """Return figures with three digits behind the point; the gates have seen all of them."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def save_grid(made: torch.Tensor, pictures: Pictures, chosen: torch.Tensor, path: Path) -> None:
    """Write the first 24 rendered pictures as four rows of six, and their prompts beside it as text."""
    tiles = [((p + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy() for p in made[:24]]
    rows = [np.concatenate(tiles[i : i + 6], axis=1) for i in range(0, 24, 6)]
    Image.fromarray(np.concatenate(rows)).save(path)
    captions = [plain_caption(pictures.rows[i]) for i in chosen[:24].tolist()]
    lines = [" | ".join(captions[i : i + 6]) for i in range(0, 24, 6)]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
