"""Peak memory and time per segment of a short and of a long animation: neither should grow with the length.

    python benchmarks/runtime/animate_memory.py BUNDLE PICTURE

The script makes two videos, each in its own process. The first one is the shortest video with two segments, or of a
bundle of one stage a whole window. The second one has 16 times its frames. The results are both peaks of resident
memory, their ratio, and the quartiles of the seconds per segment in each half of the longer video. They go to
benchmarks/results/animate_memory.json. For a bundle of one stage, name another file:
--out benchmarks/results/one_stage_memory.json.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

from segue.runtime.bundle.segments import video_frames
from segue.runtime.media.read_image import read_image
from segue.runtime.pipeline import open_model
from segue.runtime.videos.request import AnimationRequest

sys.path.append(str(Path(__file__).parents[2]))
from benchmarks import common

TIMES = 16


def main() -> None:
    parser = common.make_parser(__doc__, "animate_memory")
    parser.add_argument("bundle")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--size", type=int, help="pixels of both sides (default: the bundle's)")
    parser.add_argument("--budget", help="such as 400MiB (default: none)")
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)  # only for the child process
    options = parser.parse_args()
    if options.frames:
        print(json.dumps(measured(options)))
        return
    with open_model(options.bundle) as model:
        video = model.bundle.manifest.video
        assert video is not None, "this bundle draws pictures"
        shortest = video.frames if video.detail is None else video_frames(2 + video.detail.targets)
    given = (options.bundle, options.picture, "--threads", options.threads)
    for name in ("size", "budget"):
        given += (f"--{name}", value) if (value := getattr(options, name)) else ()
    runs = [common.child(__file__, *given, "--frames", frames) for frames in (shortest, TIMES * shortest)]
    seconds = runs[1]["seconds"]
    half = len(seconds) // 2
    results = {
        "bundle": Path(options.bundle).name,
        "frames": [run["frames"] for run in runs],
        "pixels": options.size or "the bundle's default",
        "peak resident memory (MB)": [round(run["peak"] / 1e6, 1) for run in runs],
        "ratio of peaks": round(runs[1]["peak"] / runs[0]["peak"], 4),
        "seconds a segment, first half": common.quartiles(seconds[1:half], 4),
        "seconds a segment, second half": common.quartiles(seconds[half:], 4),
        "threads": options.threads,
        "budget": options.budget,
        **common.header("segue", "onnxruntime"),
    }
    common.report(options.out, results)


def measured(options: argparse.Namespace) -> dict:
    """Make the video without keeping it; return the peak in bytes and the seconds of each segment."""
    seconds, made = [], 0
    with open_model(options.bundle, options.threads, budget=options.budget) as model:
        began = time.perf_counter()
        request = AnimationRequest(read_image(options.picture), frames=options.frames, size=options.size)
        for frames in model.frames(request):
            seconds.append(time.perf_counter() - began)
            made += len(frames)
            began = time.perf_counter()
    return {"frames": made, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "seconds": seconds}


if __name__ == "__main__":
    main()
