"""Ablations of SwiftI2V's Stage II on a small network: each variant has several training seeds and the same clips.

    python benchmarks/training/swifti2v_ablations.py runs/emoji-motion/checkpoint --codec runs/emoji-detail-codec

A variant changes keys of one recipe and nothing else. "one shot" makes all latent frames of the window in one segment.
The script draws held-out clips from their first frame in four steps. It draws each clip twice: along its own motion,
scaled down, and along that of Stage I. Each run trains, is measured, and leaves its scores below --directory. A
repeated command skips the runs that have scores, so it continues where it stopped. The results are the mean over seeds
with its 95 % interval, and the same for the difference from the whole method, seed by seed. They go to
benchmarks/results/swifti2v_ablations.json.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from segue.runtime.bundle.segments import SegmentSpec
from segue.runtime.sampling.schedule import custom_schedule
from segue.runtime.videos.stage_one import DETAIL_NOISE, MOTION_NOISE
from segue.training.evaluation.measures import lpips
from segue.training.evaluation.video_model import Noise
from segue.training.evaluation.videos import HELD_OUT, MADE, TRUE, measured
from segue.training.loop.device import plain_attention, training_device
from segue.training.loop.recipe_file import fill
from segue.training.video.clips.dataset import Clips, pixels, scaled
from segue.training.video.clips.latents import FrozenCodec
from segue.training.video.clips.places import places
from segue.training.video.clips.references import MotionModel, spliced
from segue.training.video.detail import Detail
from segue.training.video.spec import DetailSpec
from segue.training.video.windows import generate

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common
from benchmarks.training.ablation import WHOLE, compared, done_once, options_of

VARIANTS: dict[str, dict[str, Any]] = {
    WHOLE: {},
    "no neighbours": {"before": 0},
    "no image latent": {"image": False},
    "one-way attention": {"both_ways": False},
    "clean reference": {"reference": "autoencoded"},
    "resampled reference": {"reference": "resampled"},
    "a third resampled": {"resampled": 0.33},
    "one neighbour after": {"after": 1},
    "noise on neighbours": {"corrupted": 0.1},
    "one shot": {"targets": 8, "before": 0},
}
LEVELS = [1.0, 0.75, 0.5, 0.25]


def main() -> None:
    parser = common.make_parser(__doc__, "swifti2v_ablations")
    parser.add_argument("motion", type=Path, help="Stage I's checkpoint")
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path("runs/emoji-clip-text"))
    parser.add_argument("--data", type=Path, default=Path("runs/data/emoji-clips"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clips", type=int, default=48, help="held-out clips to measure")
    parser.add_argument("--train", type=int, default=600, help="clips to train on, drawn from all")
    options = options_of(parser, "swifti2v_ablations", list(VARIANTS), seeds=3)
    prepare(options)
    training_clips(options)
    results = compared(options, scored) | {"steps": options.steps, "batch": options.batch, "clips": options.clips}
    common.report(options.out, results)


def training_clips(options: argparse.Namespace) -> Path:
    """Return a directory with links to all held-out clips and to `--train` of the others, drawn balanced."""
    out = options.directory / f"clips-{options.train}"
    if not out.exists():
        content = json.loads((options.data / "clips.json").read_text())
        found = Clips(options.data)
        drawn = torch.multinomial(found.weights, options.train, generator=torch.Generator().manual_seed(0))
        kept = {found.rows[i].hexcode for i in drawn.tolist()}
        content["clips"] = [c for c in content["clips"] if c["split"] != "train" or c["hexcode"] in kept]
        out.mkdir()
        for clip in content["clips"]:
            name = f"{clip['hexcode']}.safetensors"
            (out / name).symlink_to((options.data / name).resolve())
        (out / "clips.json").write_text(json.dumps(content))
    return out


def prepare(options: argparse.Namespace) -> None:
    """Make the references of the held-out clips once: along their own motion and along Stage I's."""
    out = options.directory / "held-out.safetensors"
    if out.exists():
        return
    device, stage = training_device(), stage_of(options.motion)
    clips, codec = Clips(options.data, HELD_OUT), FrozenCodec(options.codec, device)
    model = MotionModel(options.motion, stage["text_tokens"], device)
    where = places(clips, 1)
    chosen = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[: options.clips]
    kept: dict[str, list[torch.Tensor]] = {"frames": [], TRUE: [], MADE: []}
    for batch in chosen.split(8):
        truth = where.videos(clips, batch, stage["frames"])
        frames = ((truth.cpu() + 1) * 127.5).round().byte().movedim(1, -1)
        low, image = scaled(truth, stage["scale"]), truth[:, :, 0]
        captions = where.names(clips, batch)
        grey = torch.cat([low[:, :, :1], torch.zeros_like(low[:, :, 1:])], 2)
        given = model.codec.encode(grey)
        steps = stage["motion_steps"]
        schedule = custom_schedule([1 - i / steps for i in range(steps)], 5.0, 1000)
        levels = torch.from_numpy(schedule.sigmas).to(given)[:, None].expand(-1, len(batch))
        noise = Noise(0, batch.tolist())(tuple(given.shape[1:]), MOTION_NOISE).to(given)
        made = model.denoise(noise, given, captions, levels, stage["motion_guidance"])
        kept["frames"].append(frames)
        kept[TRUE].append(codec.encode(spliced(low, image)).cpu())
        kept[MADE].append(codec.encode(spliced(model.codec.decode(made).clamp(-1, 1), image)).cpu())
    save_file({name: torch.cat(parts).contiguous() for name, parts in kept.items()}, out)
    names = where.names(clips, chosen)
    (options.directory / "held-out.json").write_text(json.dumps({"numbers": chosen.tolist(), "names": names}))


def stage_of(motion: Path) -> dict[str, Any]:
    """Return the video settings of Stage I's checkpoint."""
    return json.loads((motion / "segue.json").read_text())["video"]


def scored(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Return the scores of one run."""
    recipe = recipe_of(options, variant, seed)
    return done_once(
        options, variant, seed, recipe, lambda checkpoint: measure(options, recipe["detail"], checkpoint, seed)
    )


def recipe_of(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a variant; variants differ only in their own keys and the seed."""
    return {
        "detail": {
            "data": str(training_clips(options)),
            "windows": 1,
            "codec": str(options.codec),
            "text": str(options.text),
            "motion": str(options.motion),
            "layers": 4,
            "heads": 3,
            "head": 48,
            "feed_forward": 576,
            **VARIANTS[variant],
        },
        "loop": {
            "steps": options.steps,
            "batch": options.batch,
            "optimiser": "muon",
            "learning_rate": 1.5e-3,
            "warmup": options.steps // 10,
            "decay": options.steps * 3 // 4,
            "ema": 0.995,
            "save_every": max(options.steps // 4, 1),
            "grid_every": 2 * options.steps,
            "seed": seed,
        },
    }


def measure(options: argparse.Namespace, table: dict[str, Any], checkpoint: Path, seed: int) -> dict[str, float]:
    """Return the scores of a Stage II; every run gets the same noise."""
    task = Detail(fill(DetailSpec, table, "detail"), seed)
    task.transformer.load_state_dict(
        {
            name: tensor.float()
            for file in sorted((checkpoint / "detail_transformer").glob("*.safetensors"))
            for name, tensor in load_file(file).items()
        }
    )
    device, spec = training_device(), task.spec
    codec = FrozenCodec(options.codec, device)
    held = load_file(options.directory / "held-out.safetensors")
    clips = json.loads((options.directory / "held-out.json").read_text())
    schedule = custom_schedule(LEVELS, spec.shift, 1000)
    seams = SegmentSpec(3, 1, 0)  # the same for all variants, so that one shot is the control
    found: dict[str, list[float]] = {}
    with torch.no_grad(), plain_attention(device):
        for motion in (TRUE, MADE):
            for rows in torch.arange(len(clips["names"])).split(8):
                reference = held[motion][rows].to(device)
                text = task.text([clips["names"][i] for i in rows])
                noise = Noise(0, [clips["numbers"][i] for i in rows])(tuple(reference.shape[1:]), DETAIL_NOISE).to(
                    device
                )
                made = generate(
                    lambda given, text=text: task.velocity(given, text), reference[:, :, :1], reference, noise,
                    spec.segments, schedule, spec.image,
                )  # fmt: skip
                videos = codec.decode(made).clamp(-1, 1).cpu().transpose(1, 2)
                truth = pixels(held["frames"][rows]).transpose(1, 2)
                far = lpips(videos[:, 1:].flatten(0, 1), truth[:, 1:].flatten(0, 1)).unflatten(0, (len(rows), -1))
                for video, true, distances in zip(videos, truth, far.tolist(), strict=True):
                    for name, value in measured(video, true, distances, seams, motion == TRUE).items():
                        found.setdefault(f"{name}, {motion}", []).append(value)
    parameters = sum(p.numel() for p in task.transformer.parameters())
    return {name: float(np.mean(values)) for name, values in found.items()} | {"parameters": parameters}


if __name__ == "__main__":
    main()
