"""The miniature's Stage I alone, made as docs/guide/videos.md shows, plays as a video of one stage."""

import re
from pathlib import Path

import numpy as np
import pytest

import segue
from segue.export.export import export
from segue.runtime.diagnostics.difference import relative_l2
from segue.runtime.pipeline import open_model
from segue.runtime.videos.request import AnimationRequest
from support.traces import keep_traces

PAGE = Path(segue.__file__).parent / "docs/guide/videos.md"
SIDE = 32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, request):
    """The bundle of the checkpoint that the page's program writes."""
    folder = tmp_path_factory.mktemp("stage-one")
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(compile(program, str(PAGE), "exec"), {})
    keep_traces(request.config)
    export(folder / "small-motion", folder / "bundle", parity=False)
    return folder / "bundle"


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    image = np.full((SIDE, SIDE, 3), 255, np.uint8)
    image[8:26, 6:24] = (220, 30, 40)
    return image


@pytest.mark.slow
def test_stage_one_of_the_miniature_makes_the_same_motion_alone(bundle, picture, tmp_path):
    small = AnimationRequest(picture, "waving hand", frames=37, seed=3)
    with open_model(bundle, threads=1) as model:
        assert model.bundle.manifest.family == "wan-i2v"
        assert model.bundle.manifest.video.detail is None
        pieces = list(model.frames(small, journal=tmp_path / "one"))
    frames = np.concatenate(pieces)
    assert [len(piece) for piece in pieces] == [1, *[4] * 9]
    assert frames.shape == (37, SIDE, SIDE, 3)
    assert np.abs(frames[0].astype(float) - picture).mean() < 20  # the picture, through the autoencoder
    assert np.abs(np.diff(frames.astype(float), axis=0)).mean() > 0.2  # it moves
    large = AnimationRequest(picture.repeat(4, 0).repeat(4, 1), "waving hand", frames=33, seed=3)
    with open_model("emoji-motion", threads=1) as model:
        next(model.frames(large, journal=tmp_path / "two"))
    latents = [np.load(tmp_path / name / "motion-0.npy") for name in ("one", "two")]
    assert relative_l2(*latents) < 1e-4
