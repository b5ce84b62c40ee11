"""Quality of the emoji autoencoder on held-out pictures: PSNR over alpha > 0, reconstruction KID (Lite0).

    python benchmarks/training/emoji_autoencoder.py bundles/emoji --data runs/data/emoji

The results go to benchmarks/results/emoji_autoencoder.json. The exit code is 1 if the PSNR is below 27 dB or the KID
above 20.
"""

import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from segue.training.loop.networks import pretrained
from segue.training.metrics.nets import Lite0, Lpips
from segue.training.metrics.scores import kid, psnr_on_alpha
from segue.training.pictures.dataset import Pictures

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common


def main() -> int:
    parser = common.make_parser(__doc__, "emoji_autoencoder")
    parser.add_argument("autoencoder", type=Path, help="a directory with vae/")
    parser.add_argument("--data", type=Path, default=Path("runs/data/emoji"))
    options = parser.parse_args()
    vae = pretrained(AutoencoderKL, options.autoencoder / "vae").eval()
    held = Pictures(options.data, ("held-out name", "held-out combination"))
    vae.to(held.device)
    measure = Lpips().to(held.device)
    pixels = held.on_white(torch.arange(len(held.rows)))
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(p).latent_dist.mode()).sample for p in pixels.split(32)]).clamp(
            -1, 1
        )
        lpips = torch.cat([measure(a, b) for a, b in zip(pixels.split(32), decoded.split(32), strict=True)]).mean()
    net = Lite0().to(held.device)
    distance, spread = kid(net.features(pixels), net.features(decoded))
    psnr = psnr_on_alpha(held.rgba, pixels, decoded)
    result = {
        "autoencoder": str(options.autoencoder),
        "pictures": len(held.rows),
        "psnr over alpha > 0 (dB)": round(psnr, 2),
        "reconstruction KID x 1e3": round(distance, 1),
        "its spread over subsets": round(spread, 1),
        "LPIPS": round(lpips.item(), 4),
        "torch": torch.__version__,
        **common.header("torch", "diffusers"),
    }
    common.report(options.out, result)
    return common.exit_code(
        common.Gate("PSNR over alpha > 0 (dB)", psnr, 27, at_least=True),
        common.Gate("reconstruction KID x 1e3", distance, 20),
    )


if __name__ == "__main__":
    sys.exit(main())
