"""Ablations of SwiftI2V's Stage II on a small network: every variant with several training seeds, on the same clips.

    python benchmarks/swifti2v_ablations.py runs/emoji-motion/checkpoint --codec runs/emoji-detail-codec

A variant changes keys of one recipe and nothing else; "one shot" makes all latent frames of the window in one segment.
MemoryUse-out clips are drawn from their first frame, once along the clip's own motion scaled down and once along that of
Stage I, in four steps. Each run trains, is measured, and leaves its scores below --directory: what is there already is
not done again, so the command goes on where it was stopped. Prints and writes to
benchmarks/results/swifti2v_ablations.json the mean over seeds with its 95 % interval, and the same of the difference
to the whole method, seed by seed.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation import WHOLE, compared, done_once, options_of, report
from safetensors.torch import load_file, save_file

from segue.runtime.bundle.segments import SegmentSpec
from segue.runtime.sampling.schedule import custom_schedule
from segue.runtime.videos.render import DETAIL_NOISE, MOTION_NOISE
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("motion", type=Path, help="Stage I's checkpoint")
    parser.add_argument("--codec", type=Path, required=True)
    parser.add_argument("--text", type=Path, default=Path("runs/emoji-clip-text"))
    parser.add_argument("--data", type=Path, default=Path("runs/data/emoji-clips"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--clips", type=int, default=48, help="held-out ones that are measured")
    parser.add_argument("--train", type=int, default=600, help="clips to train on, drawn from all")
    options = options_of(parser, "swifti2v_ablations", list(VARIANTS), seeds=3)
    prepare(options)
    some(options)
    results = compared(options, scored) | {"steps": options.steps, "batch": options.batch, "clips": options.clips}
    report(options, results)


def some(options: argparse.Namespace) -> Path:
    """Return a directory with all held-out clips and `--train` of the others, drawn balanced, as links."""
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
    """Make the held-out clips' references once: along their own motion, and along that of Stage I."""
    out = options.directory / "held-out.safetensors"
    if out.exists():
        return
    device, said = training_device(), stage_of(options.motion)
    clips, codec = Clips(options.data, HELD_OUT), FrozenCodec(options.codec, device)
    model = MotionModel(options.motion, said["text_tokens"], device)
    where = places(clips, 1)
    chosen = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[: options.clips]
    kept: dict[str, list[torch.Tensor]] = {"frames": [], TRUE: [], MADE: []}
    for batch in chosen.split(8):
        truth = where.videos(clips, batch, said["frames"])
        frames = ((truth.cpu() + 1) * 127.5).round().byte().movedim(1, -1)
        low, image = scaled(truth, said["scale"]), truth[:, :, 0]
        captions = where.names(clips, batch)
        grey = torch.cat([low[:, :, :1], torch.zeros_like(low[:, :, 1:])], 2)
        given = model.codec.encode(grey)
        schedule = custom_schedule([1 - i / said["motion_steps"] for i in range(said["motion_steps"])], 5.0, 1000)
        levels = torch.from_numpy(schedule.sigmas).to(given)[:, None].expand(-1, len(batch))
        noise = Noise(0, batch.tolist())(tuple(given.shape[1:]), MOTION_NOISE).to(given)
        made = model.denoise(noise, given, captions, levels, said["motion_guidance"])
        kept["frames"].append(frames)
        kept[TRUE].append(codec.encode(spliced(low, image)).cpu())
        kept[MADE].append(codec.encode(spliced(model.codec.decode(made).clamp(-1, 1), image)).cpu())
    save_file({name: torch.cat(parts).contiguous() for name, parts in kept.items()}, out)
    names = where.names(clips, chosen)
    (options.directory / "held-out.json").write_text(json.dumps({"numbers": chosen.tolist(), "names": names}))


def stage_of(motion: Path) -> dict[str, Any]:
    """Return what Stage I's checkpoint says of its videos."""
    return json.loads((motion / "segue.json").read_text())["video"]


def scored(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Return the scores of one run."""
    recipe = recipe_of(options, variant, seed)
    return done_once(
        options, variant, seed, recipe, lambda checkpoint: measure(options, recipe["detail"], checkpoint, seed)
    )


def recipe_of(options: argparse.Namespace, variant: str, seed: int) -> dict[str, Any]:
    """Return the recipe of a variant; all share everything but the variant's keys and the seed."""
    return {
        "detail": {
            "data": str(some(options)),
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
    """Return the scores of a Stage II on the noise that every other one gets."""
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
    said = json.loads((options.directory / "held-out.json").read_text())
    schedule = custom_schedule(LEVELS, spec.shift, 1000)
    seams = SegmentSpec(3, 1, 0)  # of all alike, so that those of one shot are the control
    found: dict[str, list[float]] = {}
    with torch.no_grad(), plain_attention(device):
        for way in (TRUE, MADE):
            for rows in torch.arange(len(said["names"])).split(8):
                reference = held[way][rows].to(device)
                text = task.text([said["names"][i] for i in rows])
                noise = Noise(0, [said["numbers"][i] for i in rows])(tuple(reference.shape[1:]), DETAIL_NOISE).to(
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
                    for name, value in measured(video, true, distances, seams, way == TRUE).items():
                        found.setdefault(f"{name}, {way}", []).append(value)
    parameters = sum(p.numel() for p in task.transformer.parameters())
    return {name: float(np.mean(values)) for name, values in found.items()} | {"parameters": parameters}


if __name__ == "__main__":
    main()
