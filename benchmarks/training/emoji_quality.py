"""Quality of the emoji bundle, rendered by Segue's runtime at its default 28 steps and guidance.

    python benchmarks/training/emoji_quality.py emoji-teacher --data runs/data/emoji

The prompts of each split are class-balanced. The script reports these figures, and the figure that real pictures get:

- the KID (EfficientNet-Lite0, x 1e3) compared with the real pictures of the same prompts;
- the LPIPS to the nearest training picture (memorisation);
- for 3-D prompts, the R@10 of the Lite0-to-MiniLM retriever, among the names of the split.

The results go to benchmarks/results/emoji_quality.json. The script draws emoji-seen.png and emoji-held-out.png in
docs/images/, 24 prompts each. The exit code is 1 if, on training names, the KID is above 60 or R@10 is below 0.7 of
that of real pictures.
"""

import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
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

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

HELD = ("held-out name", "held-out combination")


def main() -> int:
    parser = common.make_parser(__doc__, "emoji_quality")
    parser.add_argument("bundle")
    parser.add_argument("--data", type=Path, default=common.ROOT / "runs/data/emoji")
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--grids", type=Path, default=common.IMAGES)
    options = parser.parse_args()
    net = Lite0().to(training_device())
    results: dict[str, object] = {"prompts": options.prompts}
    train = Pictures(options.data)
    train_features = picture_features(options.data, train)
    with ExitStack() as opened:
        # Two calls with one thread each make more pictures than one call with two threads.
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
    common.report(options.out, rounded(results) | common.header("torch", "onnxruntime"))
    return common.exit_code(
        common.Gate("KID x 1e3 on training names", seen_scores["KID x 1e3"], 60),
        common.Gate("R@10 on training names / that of real pictures", seen_found["ratio"], 0.7, at_least=True),
    )


def chosen_of(pictures: Pictures, count: int, style: str | None = None) -> torch.Tensor:
    """Return `count` distinct pictures, drawn class-balanced with a fixed seed."""
    weights = pictures.weights.clone()
    if style is not None:
        weights *= torch.tensor([row.style == style for row in pictures.rows])
    return torch.multinomial(weights, count, generator=torch.Generator().manual_seed(1))


def rendered(models: list[segue.Model], pictures: Pictures, indices: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return the pictures of the plain captions, each with its own seed, and the seconds taken."""

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
        # All subsets of 500 are the same one if there are no more pictures.
        "its spread over subsets": spread if len(made) > 500 else "n/a",
        "LPIPS to the nearest training picture (median of 200)": nearest(made, made_features, train, train_features),
    }


def nearest(made: torch.Tensor, made_features: torch.Tensor, train: Pictures, train_features: torch.Tensor) -> float:
    """Return the median LPIPS of up to 200 pictures to their nearest training picture."""
    return nearest_lpips(made[:200], made_features[:200], train.on_white, train_features).median().item()


class Retrieval:
    """R@10 of picture to name for 3-D prompts; the retriever has seen only the other two styles of training names."""

    def __init__(self, train: Pictures, features: torch.Tensor) -> None:
        names = embed_names([row.name for row in train.rows])
        others = torch.tensor([row.style != "3d" for row in train.rows])
        self.retriever = fit_retriever(features[others], names[others])

    def scores(
        self, net: Lite0, models: list[segue.Model], pictures: Pictures, features: torch.Tensor, count: int
    ) -> dict:
        """Return R@10 of up to `count` rendered and real pictures, among their own names, and the ratio."""
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
    """Return figures rounded to three digits; the gates see unrounded figures."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    return round(value, 3) if isinstance(value, float) else value


def save_grid(made: torch.Tensor, pictures: Pictures, chosen: torch.Tensor, path: Path) -> None:
    """Write the first 24 rendered pictures as four rows of six, and their prompts as text beside the file."""
    tiles = [((p + 1) * 127.5).round().clamp(0, 255).byte().permute(1, 2, 0).numpy() for p in made[:24]]
    rows = [np.concatenate(tiles[i : i + 6], axis=1) for i in range(0, 24, 6)]
    Image.fromarray(np.concatenate(rows)).save(path)
    captions = [plain_caption(pictures.rows[i]) for i in chosen[:24].tolist()]
    lines = [" | ".join(captions[i : i + 6]) for i in range(0, 24, 6)]
    path.with_suffix(".txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    sys.exit(main())
