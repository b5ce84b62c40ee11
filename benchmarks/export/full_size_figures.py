"""Plans of full-size models, and their figures compared with figures that were computed without Segue.

    python benchmarks/export/full_size_figures.py

The script plans SD3-Medium with and without T5, LongCat-Image, and SwiftI2V on Wan 2.2 for an RTX 4090 within several
budgets. For SwiftI2V at 2560 x 1408 px and 81 frames it compares tokens, weights, operations and activations with
`TABLE`. The figures of `TABLE` were traced on meta tensors of the reference code. No model runs: these are plans. The
results go to benchmarks/results/full_size_plans.json.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from pathlib import Path
from typing import Any

from segue.errors import BudgetError
from segue.runtime.bundle.manifest import Manifest
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.bundle.segments import latent_frames
from segue.runtime.planning.costs import dims_of
from segue.runtime.planning.hardware import published
from segue.runtime.planning.pictures import Plan, Wanted, plan
from segue.runtime.planning.videos import WantedVideo, caches_of, plan_video

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

GIB, SIZE, STEPS = 2**30, (1408, 2560), 4
PICTURES = ("sd3-medium", "sd3-medium-without-t5", "longcat-image")
VIDEOS = ("swifti2v-wan22", "swifti2v-wan22-w8a8")
# Rows and columns of a VAE's tile in latent pixels; a figure that names no tile is of the whole plane
TILES = {"30x52": (30, 52), "32x32": (32, 32)}
# quantity -> figure of the reference code, in the unit that the quantity names
TABLE: dict[str, float] = {
    "tokens, Stage I": 18480, "tokens, a latent frame of Stage II": 3520, "tokens, a window": 17600,
    "weights, text encoder, GB": 11.4, "weights, a Stage I expert, GB": 28.58, "weights, Stage II, GB": 10.00,
    "weights, Stage I VAE encoder, GB": 0.11, "weights, Stage I VAE decoder, GB": 0.15,
    "weights, Stage II VAE encoder, GB": 0.30, "weights, Stage II VAE decoder, GB": 1.11,
    "TF, Stage I, a call": 731.5, "TF, Stage I VAE encode": 92, "TF, Stage I VAE decode": 155,
    "TF, Stage II VAE encode": 1023, "TF, Stage II, a window of 4": 198.6, "TF, Stage II, a window of 5": 270.9,
    "TF, Stage II, a step of all windows": 1752, "TF, Stage II VAE decode": 5386,
    "GiB, Stage I VAE encode": 1.6, "GiB, Stage I VAE decode": 2.2, "GiB, Stage II VAE encode": 15.3,
    "GiB, Stage II VAE decode": 37.8, "GiB, Stage II VAE encode, tile 30x52": 1.7,
    "GiB, Stage II VAE decode, tile 30x52": 4.2, "GiB, Stage II VAE decode, tile 32x32": 2.75,
    "GiB, caches of Stage II VAE decode": 12.0, "GB, Stage I, a call": 0.075e-3 * 18480,
    "GB, a window": 0.17e-3 * 17600,
}  # fmt: skip


def main() -> None:
    options = common.make_parser(__doc__, "full_size_plans").parse_args()
    content = read_manifest(VIDEOS[0])
    found, rows = figures(content), []
    for name, table in TABLE.items():
        ratio = round(found[name] / table, 3)
        rows.append({"figure": name, "table": round(table, 4), "plan": round(found[name], 4), "ratio": ratio})
        print(f"{name:40} {table:10.5g} {found[name]:10.5g} {ratio:6.3f}")
    plans = [
        planned(name, machine, budget) for name in (*PICTURES, *VIDEOS) for machine, budget in cases(name in VIDEOS)
    ]
    began = time.process_time()
    video(content, "rtx4090", 24 * GIB)
    took = time.process_time() - began
    print(f"planning {VIDEOS[0]} takes {took:.2f} s of one processor's time")
    results = {"planning_cpu_s": round(took, 2), "figures": rows, "plans": plans}
    common.write(options.out, results | common.header("segue"))


def cases(moving: bool) -> list[tuple[str, int]]:
    """Return the machines and budgets in bytes to plan for."""
    budgets = (8, 12, 16, 24) if moving else (6, 8, 12, 24)
    return [*(("rtx4090", budget * GIB) for budget in budgets), *([("h100", 80 * GIB)] if moving else [])]


def planned(name: str, machine: str, budget: int) -> dict[str, Any]:
    """Return a plan as a row, or the reason if no plan fits."""
    content = read_manifest(name)
    row: dict[str, Any] = {"model": name, "machine": machine, "budget_GiB": budget // GIB}
    try:
        made = video(content, machine, budget) if content.video else picture(content, machine, budget)
    except BudgetError as error:
        print(row, error)
        return row | {"refused": str(error)}
    tiling = made.tiling and [made.tiling.side, made.tiling.columns, made.tiling.overlap]
    row |= {
        "peak_GiB": round(made.peak / GIB, 2), "seconds": round(made.seconds, 1), "streamed": sorted(made.streamed),
        "keep": made.keep, "tiles": tiling,
        "phases": {p.component: [p.calls, round(p.peak / GIB, 2), round(p.seconds, 2)] for p in made.phases},
    }  # fmt: skip
    print({key: value for key, value in row.items() if key != "phases"})
    return row


def picture(content: Manifest, machine: str, budget: int) -> Plan:
    """Return the plan of a 1024 x 1024 px picture in four steps without guidance."""
    return plan(content, Wanted(1024, 1024, STEPS, guided=False), published()[machine], budget)


def video(content: Manifest, machine: str, budget: int | None) -> Plan:
    """Return the plan of a window of 2560 x 1408 px."""
    assert content.video is not None
    return plan_video(content, WantedVideo(*SIZE, content.video.frames), published()[machine], budget)


def tokens(factor: int, patch: int) -> int:
    """Return the tokens of one latent frame; a latent pixel is `factor` x `factor` pixels."""
    height, width = (side // factor // patch for side in SIZE)
    return height * width


def figures(content: Manifest) -> dict[str, float]:
    """Return the figures of SwiftI2V's plan, by the names of TABLE."""
    assert content.video is not None
    settings, low = content.video, content.video.motion
    latent = latent_frames(settings.frames)
    roomy = dataclasses.replace(published()["h100"], memory=2**50)
    phases = {
        phase.component: phase for phase in plan_video(content, WantedVideo(*SIZE, settings.frames), roomy, None).phases
    }
    a_frame = tokens(content.latents.factor, content.latents.patch)
    window_frames = 1 + settings.before + settings.targets + settings.after  # the longest window

    def weights(component: str) -> float:
        spec = content.components[component]
        return sum(content.files[file].bytes for file in spec.weights) / 1e9

    def activations(component: str, tile: tuple[int, int] | None = None, unit: int = 1) -> float:
        """Return the planned bytes of a call without its allowance; a latent pixel is `unit` pixels of the input."""
        spec, dims = content.components[component], dims_of(content, component, *SIZE) | {"batch": 1}
        assert spec.cost is not None
        if tile is not None:
            dims |= {"height": unit * tile[0], "width": unit * tile[1]}
        return spec.cost.activations.at(dims) + caches_of(spec, component, dims)

    def window(frames: int) -> float:
        spec = content.components["detail_transformer"]
        assert spec.cost is not None
        return spec.cost.flops.at(dims_of(content, "detail_transformer", *SIZE) | {"batch": 1, "frames": frames}) / 1e12

    def together(vae: str) -> float:
        return sum(phases[f"{vae}_{stage}"].flops for stage in ("first", "next")) / 1e12

    stage_one, detail = phases["transformer"], phases["detail_transformer"]
    caches = caches_of(
        content.components["detail_vae_decoder_next"], "detail_vae_decoder_next",
        dims_of(content, "detail_vae_decoder_next", *SIZE),
    )  # fmt: skip
    unit = content.latents.factor
    found = {
        "tokens, Stage I": latent * tokens(settings.scale * low.factor, low.patch),
        "tokens, a latent frame of Stage II": a_frame,
        "tokens, a window": a_frame * window_frames,
        "weights, text encoder, GB": weights("text_encoder"),
        "weights, a Stage I expert, GB": weights("transformer"),
        "weights, Stage II, GB": weights("detail_transformer"),
        "TF, Stage I, a call": stage_one.flops / stage_one.calls / 1e12,
        "TF, Stage II, a window of 4": window(4),
        "TF, Stage II, a window of 5": window(5),
        "TF, Stage II, a step of all windows": detail.flops / content.sampler.steps / 1e12,
        "GiB, caches of Stage II VAE decode": caches / GIB,
        "GB, Stage I, a call": activations("transformer") / 1e9,
        "GB, a window": activations("detail_transformer") / 1e9,
    }
    for title, folder in (("Stage I VAE", "vae"), ("Stage II VAE", "detail_vae")):
        for half, verb in (("encoder", "encode"), ("decoder", "decode")):
            name = f"{folder}_{half}"
            found[f"weights, {title} {half}, GB"] = weights(f"{name}_next")
            found[f"TF, {title} {verb}"] = together(name)
            found[f"GiB, {title} {verb}"] = activations(f"{name}_next") / GIB
            for tile, sides in TILES.items():
                factor = unit if half == "encoder" else 1
                found[f"GiB, {title} {verb}, tile {tile}"] = activations(f"{name}_next", sides, factor) / GIB
    return found


if __name__ == "__main__":
    main()
