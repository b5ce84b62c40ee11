"""Fixtures of all tests: tiny checkpoints and their bundles, each made once for all workers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support.shared import once
from support.traces import keep_traces

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # training would take a GPU, where nothing is promised bit for bit

if worker := os.environ.get("PYTEST_XDIST_WORKER"):  # a core for each worker: threads of two would wait for each other
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})

PART = 2**17  # bytes of weights in a part of the fixtures `exported` and `half`
TESTS = Path(__file__).parent
VIDEO = "video_bundle"
WAN = {"wan_i2v_bundle", "wan_ti2v_bundle"}
SLOW = {VIDEO, *WAN}  # these take minutes to export, so all their tests are slow
FIRST = (VIDEO, "exported", "half")  # modules that use the costliest of these fixtures begin first
EARLY = (  # modules that take minutes by themselves
    "docs/test_docs_run.py",
    "runtime/engine_cache/test_build_shipped.py",
    "training/cdm/test_run.py",
)


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep each module on one worker, and start with those that take long, so that both workers end together."""
    used: dict[Path, set[str]] = {}
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if SLOW & names:
            item.add_marker(pytest.mark.slow)
        used.setdefault(item.path, set()).update(names)

    def rank(item: pytest.Item) -> tuple[bool, int, int]:
        """Have one worker begin with the video bundle while the other one makes the bundles of pictures."""
        names = used[item.path]
        place = next((n for n, name in enumerate(FIRST) if name in names), len(FIRST))
        others = sum(name in names for name in FIRST[place + 1 :])
        return item.path.relative_to(TESTS).as_posix() not in EARLY, place, others

    items.sort(key=rank)
    for item in items:
        video = item.get_closest_marker("slow") and VIDEO in used[item.path]  # a second worker would only wait for it
        item.add_marker(pytest.mark.xdist_group(VIDEO if video else item.path.relative_to(TESTS).as_posix()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(ids: list[str]) -> None:
    """Stop if pytest-xdist does not group: each worker would then build every shared fixture of a module again."""
    if ids and "@" not in ids[0]:
        pytest.exit("This pytest-xdist does not group tests with this pytest. Run pip install -e '.[dev]' again.", 3)


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory):
    """Function that builds a tiny SD3 checkpoint in a new directory; takes the keywords of `build_sd3`."""
    from support.checkpoints import build_sd3

    return lambda **options: build_sd3(tmp_path_factory.mktemp("checkpoint"), **options)


@pytest.fixture(scope="session")
def tiny_checkpoint(request):
    """Directory of a tiny random SD3 checkpoint in float32. Do not change it."""
    from support.checkpoints import build_sd3

    return once(request, "tiny", build_sd3)


@pytest.fixture(scope="session")
def make_video_checkpoint(tmp_path_factory):
    """Function that builds a tiny SwiftI2V checkpoint in a new directory; takes the keywords of `build_video`."""
    from support.checkpoints import build_video

    return lambda **options: build_video(tmp_path_factory.mktemp("video"), **options)


@pytest.fixture(scope="session")
def video_checkpoint(request):
    """Directory of a tiny random SwiftI2V checkpoint in float32. Do not change it."""
    from support.checkpoints import build_video

    return once(request, "video", build_video)


@pytest.fixture(scope="session")
def wan_i2v_checkpoint(request):
    """Directory of a tiny random Wan image-to-video checkpoint with two experts. Do not change it."""
    from support.checkpoints import build_wan

    return once(request, "wan-i2v", lambda root: build_wan(root, experts=2))


@pytest.fixture(scope="session")
def wan_ti2v_checkpoint(request):
    """Directory of a tiny random Wan TI2V checkpoint. Do not change it."""
    from support.checkpoints import build_wan

    return once(request, "wan-ti2v", lambda root: build_wan(root, first=True))


@pytest.fixture(scope="session")
def sdxl_checkpoint(request):
    """Directory of a tiny random Stable Diffusion XL checkpoint. Do not change it."""
    from support.checkpoints import build_sdxl

    return once(request, "sdxl", build_sdxl)


@pytest.fixture(scope="session")
def longcat_checkpoint(request):
    """Directory of a tiny random LongCat-Image checkpoint. Do not change it."""
    from support.checkpoints import build_longcat

    return once(request, "longcat", build_longcat)


@pytest.fixture(scope="session")
def klein_checkpoint(request):
    """Directory of a tiny random FLUX.2-klein checkpoint. Do not change it."""
    from support.qwen3 import build_klein

    return once(request, "klein", build_klein)


@pytest.fixture(scope="session")
def zimage_checkpoint(request):
    """Directory of a tiny random Z-Image checkpoint, its transformer and text encoder in shards. Do not change it."""
    from support.zimage import build_zimage

    return once(request, "z-image-turbo", build_zimage)


def bundle_of(request: pytest.FixtureRequest, name: str, checkpoint: Path, bundle: str = "tiny", **options) -> Path:
    """Export a checkpoint, parity checked, into the directory `bundle` of the shared directory `name`; return it."""

    def make(folder: Path) -> None:
        from segue.export.export import export

        keep_traces(request.config)
        folder.mkdir()
        export(checkpoint, folder / bundle, **options)

    return once(request, name, make) / bundle


@pytest.fixture(scope="session")
def exported(tiny_checkpoint, request):
    """Directory of the bundle of `tiny_checkpoint`, also in parts, parity checked. Do not change it."""
    return bundle_of(request, "exported", tiny_checkpoint, part_bytes=PART)


@pytest.fixture(scope="session")
def adaptable(tiny_checkpoint, request):
    """Directory of the bundle of `tiny_checkpoint` that plays LoRA files of rank 6, also in parts. Do not change it."""
    return bundle_of(request, "adaptable", tiny_checkpoint, lora_rank=6, part_bytes=PART)


@pytest.fixture(scope="session")
def half(tiny_checkpoint, request):
    """Directory of the bundle of `tiny_checkpoint` in fp16, also in parts, parity checked. Do not change it."""
    return bundle_of(request, "half", tiny_checkpoint, precision="fp16", part_bytes=PART)


@pytest.fixture(scope="session")
def bf16_bundle(tiny_checkpoint, request):
    """Directory of the bundle of `tiny_checkpoint` in bf16, parity checked. Do not change it."""
    return bundle_of(request, "bf16_bundle", tiny_checkpoint, precision="bf16")


@pytest.fixture(scope="session")
def video_bundle(video_checkpoint, request):
    """Directory of the bundle of `video_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "video_bundle", video_checkpoint)


@pytest.fixture(scope="session")
def wan_i2v_bundle(wan_i2v_checkpoint, request):
    """Directory of the bundle of `wan_i2v_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "wan_i2v_bundle", wan_i2v_checkpoint)


@pytest.fixture(scope="session")
def wan_ti2v_bundle(wan_ti2v_checkpoint, request):
    """Directory of the bundle of `wan_ti2v_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "wan_ti2v_bundle", wan_ti2v_checkpoint)


@pytest.fixture(scope="session")
def sdxl_bundle(sdxl_checkpoint, request):
    """Directory of the bundle of `sdxl_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "sdxl_bundle", sdxl_checkpoint, "sdxl")


@pytest.fixture(scope="session")
def longcat_bundle(longcat_checkpoint, request):
    """Directory of the bundle of `longcat_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "longcat_bundle", longcat_checkpoint, "longcat")


@pytest.fixture(scope="session")
def klein_bundle(klein_checkpoint, request):
    """Directory of the bundle of `klein_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "klein_bundle", klein_checkpoint, "klein")


@pytest.fixture(scope="session")
def zimage_bundle(zimage_checkpoint, request):
    """Directory of the bundle of `zimage_checkpoint`, parity checked. Do not change it."""
    return bundle_of(request, "zimage_bundle", zimage_checkpoint, "z-image-turbo")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A Certificate of "Somebody (Tests)", signed by an authority that nobody knows. Do not change its files."""
    from support.certificates import make_certificate

    return make_certificate(tmp_path_factory.mktemp("certificate"))
