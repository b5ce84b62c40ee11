"""Peak memory and time a segment of an animation by its length: neither should grow.

    python benchmarks/animate_memory.py BUNDLE PICTURE

Two videos in processes of their own: the shortest with two segments, and one of 16 times its frames. Prints, and writes
to benchmarks/results/animate_memory.json, both peaks of resident memory and their ratio, and the median time of a
segment with its quartiles in the first and in the second half of the longer video.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

from segue.runtime.bundle.segments import video_frames
from segue.runtime.media.read_image import read_image
from segue.runtime.pipeline import open_model
from segue.runtime.videos.request import AnimationRequest

TIMES = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("picture", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--frames", type=int, help=argparse.SUPPRESS)  # a child process makes this many
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/animate_memory.json")
    options = parser.parse_args()
    if options.frames:
        print(json.dumps(measured(options)))
        return
    with open_model(options.bundle) as model:
        video = model.bundle.manifest.video
        assert video is not None, "this bundle draws pictures"
        shortest = video_frames(2 + video.targets)
    runs = [child(options, frames) for frames in (shortest, TIMES * shortest)]
    seconds = runs[1]["seconds"]
    half = len(seconds) // 2
    results = {
        "bundle": Path(options.bundle).name,
        "frames": [run["frames"] for run in runs],
        "peak resident memory (MB)": [round(run["peak"] / 1e6, 1) for run in runs],
        "ratio of peaks": round(runs[1]["peak"] / runs[0]["peak"], 4),
        "seconds a segment, first half": quartiles(seconds[1:half]),
        "seconds a segment, second half": quartiles(seconds[half:]),
        "threads": options.threads,
        "versions": {name: version(name) for name in ("segue", "onnxruntime")},
    }
    text = json.dumps(results, indent=1)
    print(text)
    options.out.write_text(text + "\n")


def child(options: argparse.Namespace, frames: int) -> dict:
    """Return what a process of its own measures."""
    command = [
        sys.executable, __file__, options.bundle, str(options.picture), "--threads", str(options.threads),
        "--frames", str(frames),
    ]  # fmt: skip
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def measured(options: argparse.Namespace) -> dict:
    """Make the video, keep nothing of it, and return its peak in bytes and the time to each segment."""
    seconds, made = [], 0
    with open_model(options.bundle, options.threads) as model:
        began = time.perf_counter()
        for frames in model.frames(AnimationRequest(read_image(options.picture), frames=options.frames)):
            seconds.append(time.perf_counter() - began)
            made += len(frames)
            began = time.perf_counter()
    return {"frames": made, "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, "seconds": seconds}


def quartiles(seconds: list[float]) -> list[float]:
    """Return the quartiles of some times."""
    return [round(value, 4) for value in statistics.quantiles(seconds, n=4)]


if __name__ == "__main__":
    main()
