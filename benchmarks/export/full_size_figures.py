"""Full-size plans, and their figures beside those that were computed without Segue.

    python benchmarks/full_size_figures.py

Plans SD3-Medium with and without T5, LongCat-Image, and SwiftI2V on Wan 2.2 for an RTX 4090 within several budgets, and
sets tokens, weights, operations and activations of SwiftI2V's plan at 2560 x 1408 px, 81 frames, beside the tables of
design/swifti2v.md, 5.1 to 5.4 (traced there on meta tensors of the reference code). Nothing is run: these are plans.
Writes results/full_size_plans.json.
"""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from segue.errors import BudgetError
from segue.runtime.bundle.manifest import Manifest
from segue.runtime.bundle.reader import read_manifest
from segue.runtime.bundle.segments import SegmentSpec, frame_tokens, latent_frames, window_bound
from segue.runtime.planning.costs import dims_of
from segue.runtime.planning.hardware import published
from segue.runtime.planning.pictures import Plan, Wanted, plan
from segue.runtime.planning.videos import WantedVideo, caches_of, plan_video

RESULTS = Path(__file__).parent / "results/full_size_plans.json"
GIB, SIZE, STEPS = 2**30, (1408, 2560), 4
PICTURES = ("sd3-medium", "sd3-medium-without-t5", "longcat-image")
VIDEOS = ("swifti2v-wan22", "swifti2v-wan22-w8a8")
# Of a VAE's tile, rows and columns in latent pixels; what does not name one is of the whole plane
TILES = {"30x52": (30, 52), "32x32": (32, 32)}
# quantity -> what swifti2v.md has, in the unit of the quantity; of activations its bytes a token
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
    RESULTS.write_text(json.dumps({"planning_cpu_s": round(took, 2), "figures": rows, "plans": plans}, indent=1) + "\n")


def cases(moving: bool) -> list[tuple[str, int]]:
    """Return the machines and budgets in bytes to plan for."""
    budgets = (8, 12, 16, 24) if moving else (6, 8, 12, 24)
    return [*(("rtx4090", budget * GIB) for budget in budgets), *([("h100", 80 * GIB)] if moving else [])]


def planned(name: str, machine: str, budget: int) -> dict[str, Any]:
    """Return a plan as a row, or why there is none."""
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
    """Return the plan of a picture of 1024 x 1024 px in four steps without guidance."""
    return plan(content, Wanted(1024, 1024, STEPS, guided=False), published()[machine], budget)


def video(content: Manifest, machine: str, budget: int | None) -> Plan:
    """Return the plan of a window of 2560 x 1408 px."""
    assert content.video is not None
    return plan_video(content, WantedVideo(*SIZE, content.video.frames), published()[machine], budget)


def figures(content: Manifest) -> dict[str, float]:
    """Return what the plan of SwiftI2V counts, by the names of TABLE."""
    assert content.video is not None
    settings, low = content.video, content.video.motion
    latent = latent_frames(settings.frames)
    roomy = dataclasses.replace(published()["h100"], memory=2**50)
    phases = {
        phase.component: phase for phase in plan_video(content, WantedVideo(*SIZE, settings.frames), roomy, None).phases
    }
    small = [side // settings.scale // low.factor for side in SIZE]
    a_frame = frame_tokens(*(side // content.latents.factor for side in SIZE), content.latents.patch)

    def weights(component: str) -> float:
        spec = content.components[component]
        return sum(content.files[file].bytes for file in spec.weights) / 1e9

    def activations(component: str, tile: tuple[int, int] | None = None, unit: int = 1) -> float:
        """Return the bytes of a call as the plan has them, without its allowance; `unit` pixels of a latent one."""
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
        "tokens, Stage I": latent * frame_tokens(small[0], small[1], low.patch),
        "tokens, a latent frame of Stage II": a_frame,
        "tokens, a window": a_frame * window_bound(SegmentSpec(settings.targets, settings.before, settings.after)),
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
