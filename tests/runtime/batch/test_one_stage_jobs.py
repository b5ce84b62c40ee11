"""Jobs for videos of one stage: a last picture beside the first, and text without a picture."""

import json

import numpy as np
import pytest
from PIL import Image

from segue.errors import UsageError
from segue.runtime.batch.job_file import read_jobs
from segue.runtime.batch.jobs import make, packed
from segue.runtime.bundle.reader import read
from segue.runtime.pipeline import open_model


@pytest.fixture
def written(tmp_path):
    def write(*lines):
        path = tmp_path / "jobs.jsonl"
        path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
        return path

    for name, shade in (("a.png", 0), ("b.png", 200)):
        Image.fromarray(np.full((40, 40, 3), shade, np.uint8)).save(tmp_path / name)
    return write


def test_a_last_picture_is_packed_and_part_of_the_key(wan_i2v_bundle, written, tmp_path):
    bundle = read(wan_i2v_bundle)
    lines = ({"image": "a.png", "frames": 5}, {"image": "a.png", "last": "b.png", "frames": 5})
    plain, ended = read_jobs(written(*lines), bundle.manifest, bundle.digest)
    assert plain.key != ended.key
    assert "last" not in plain.arguments
    assert packed(ended).arguments["last"] == (tmp_path / "b.png").read_bytes()
    with open_model(wan_i2v_bundle, threads=1) as model:
        assert make(model, packed(ended)).metadata["last_sha256"] is not None
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(tmp_path / "b.png")
    with pytest.raises(UsageError, match=r"b\.png was changed while the batch ran"):
        packed(ended)


def test_jobs_of_text_alone_and_a_list_of_prompts_make_videos(wan_ti2v_bundle, written):
    bundle = read(wan_ti2v_bundle)
    (job,) = read_jobs(written({"prompt": "dog", "frames": 5}), bundle.manifest, bundle.digest)
    assert not job.files
    listed = read_jobs(written("a dog\n", "a red heart\n"), bundle.manifest, bundle.digest)
    assert [one.arguments for one in listed] == [{"prompt": "a dog"}, {"prompt": "a red heart"}]
    with open_model(wan_ti2v_bundle, threads=1) as model:
        made = make(model, packed(job))
    assert made.metadata["image_sha256"] is None
    assert made.ending == ".mp4"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "dog"}, "image is missing: the path of a picture"),
        ({"image": "a.png", "last": 3}, "last must be the path of a picture"),
    ],
)
def test_a_bundle_that_needs_a_picture_says_so(wan_i2v_bundle, written, line, message):
    bundle = read(wan_i2v_bundle)
    with pytest.raises(UsageError, match=message):
        read_jobs(written(line), bundle.manifest, bundle.digest)
