"""A contact sheet of held-out clips: the input, Stage I, SwiftI2V and the truth, every eighth frame.

    python benchmarks/training/swifti2v_sheet.py runs/emoji-detail/checkpoint

The script writes docs/images/emoji-motion.png, and the clips' names to emoji-motion.txt beside it.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from segue.training.evaluation.video_model import Noise, VideoModel
from segue.training.evaluation.videos import HELD_OUT
from segue.training.loop.device import training_device
from segue.training.video.clips.dataset import Clips, scaled
from segue.training.video.clips.places import places

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

CLIPS, SIDE, STEP = 12, 72, 8


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint with both stages, or a bundle")
    parser.add_argument("--data", type=Path, default=Path("runs/data/emoji-clips"))
    parser.add_argument("--out", type=Path, default=common.IMAGES / "emoji-motion.png")
    options = parser.parse_args()
    model, clips = VideoModel(options.model, training_device()), Clips(options.data, HELD_OUT)
    frames, scale = model.settings.frames, model.settings.scale
    where = places(clips, 1)
    chosen = torch.randperm(len(where), generator=torch.Generator().manual_seed(0))[:CLIPS]
    truth, names = where.videos(clips, chosen, frames).cpu(), where.names(clips, chosen)
    image, noise = truth[:, :, 0], Noise(0, chosen.tolist())
    low = model.low(scaled(image[:, :, None], scale)[:, :, 0].to(model.device), names, noise)
    high = model.high(low, image.to(model.device), names, noise)
    rows = [
        torch.cat([strip(truth[i, :, :1]), *(strip(video[i, :, STEP::STEP].cpu()) for video in (low, high, truth))], -1)
        for i in range(len(names))
    ]
    sheet = (torch.cat(rows, -2) / 2 + 0.5).clamp(0, 1)
    Image.fromarray((sheet * 255).round().byte().permute(1, 2, 0).numpy()).save(options.out, optimize=True)
    words = f"input | Stage I | SwiftI2V | truth, every {STEP}th frame\n"
    options.out.with_suffix(".txt").write_text(words + "\n".join(names) + "\n")
    print(options.out)


def strip(video: Tensor) -> Tensor:
    """Return frames (3, F, H, W) side by side, SIDE pixels each, with a white line after the last."""
    small = torch.nn.functional.interpolate(video.transpose(0, 1), (SIDE, SIDE), mode="bilinear", antialias=True)
    row = torch.cat(list(small), -1)
    return torch.cat([row, torch.ones(3, SIDE, 6)], -1)


if __name__ == "__main__":
    main()
