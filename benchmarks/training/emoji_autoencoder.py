"""Quality of the emoji autoencoder on held-out pictures: PSNR over alpha > 0, reconstruction KID (Lite0).

python benchmarks/emoji_autoencoder.py bundles/emoji --data runs/data/emoji

Ends with 1 below 27 dB or above a KID of 20.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL

from segue.training.loop.networks import pretrained
from segue.training.metrics.nets import Lite0, Lpips
from segue.training.metrics.scores import kid, psnr_on_alpha
from segue.training.pictures.dataset import Pictures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("autoencoder", type=Path, help="a directory with vae/")
    parser.add_argument("--data", type=Path, default=Path("runs/data/emoji"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/emoji_autoencoder.json")
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
    }
    print(json.dumps(result, indent=1))
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    passed = psnr >= 27 and distance <= 20
    print("within the gates" if passed else "OUTSIDE the gates")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
