"""SwiftI2V's checkpoint to a bundle: thirteen graphs, two samplers, segments."""

import json
import shutil

import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.export import export
from segue.export.families.registry import find
from segue.export.graphs import trace
from segue.runtime.bundle import reader


def test_every_graph_of_a_video_bundle_matches_pytorch(video_bundle):
    content = reader.read(video_bundle).manifest
    streams = [
        f"{vae}_{half}_{stage}"
        for vae in ("vae", "detail_vae")
        for half in ("encoder", "decoder")
        for stage in ("first", "next")
    ]
    transformers = [f"{name}{step}" for name in ("transformer", "detail_transformer") for step in ("", "_step")]
    assert set(content.components) == {"text_encoder", *transformers, *streams}
    assert len(content.parity) == 2 * len(content.components)
    assert all(result.relative_l2 < 1e-5 for result in content.parity)
    assert content.family == "swifti2v"


def test_a_video_bundle_says_how_it_is_sampled_and_cut(video_bundle, video_checkpoint):
    content = reader.read(video_bundle).manifest
    video, detail = content.video, content.video.detail
    assert (video.frames, video.scale, detail.targets, detail.before, detail.after) == (17, 2, 3, 1, 0)
    assert (video.motion.sampler.steps, video.motion.sampler.guidance, content.sampler.steps) == (3, 2.0, 2)
    assert content.sampler.shift == video.motion.sampler.shift == 5.0
    assert (content.latents.factor, video.motion.factor, content.sizes.multiple) == (16, 8, 32)
    config = json.loads((video_checkpoint / "vae/config.json").read_text())
    assert list(video.motion.mean) == config["latents_mean"]


@pytest.mark.slow
def test_two_experts_make_two_graphs_each_of_its_own_weights(make_video_checkpoint, tmp_path):
    source = make_video_checkpoint(experts=2)
    family = find(read.read_index(source))
    found = read.read(source, (*family.folders, *family.optional))
    graphs = {graph.component: graph for graph in family.graphs({name: p.config for name, p in found.parts.items()})}
    assert {"transformer", "transformer_2"} <= set(graphs)
    assert graphs["transformer_2"].folder == "transformer_2"
    tensors = dict(read.read_part(source, "transformer_2").tensors)
    written = trace.write(graphs["transformer_2"], "fp32", tensors, tmp_path / "transformer_2.onnx")
    assert written.tensors >= set(tensors)


@pytest.fixture
def copy(video_checkpoint, tmp_path):
    shutil.copytree(video_checkpoint, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"detail_vae": [None, None]}, "has no detail_vae"),
        ("model_index.json", {"image_encoder": ["transformers", "CLIPVisionModel"]}, "has an image_encoder"),
        ("transformer/config.json", {"in_channels": 8}, "in_channels 8; the other parts need 12"),
        ("detail_transformer/config.json", {"text_dim": 8}, "text_dim 8; the other parts need 16"),
        ("segue.json", {"guidance": 3.0}, "Stage II runs without guidance"),
        ("segue.json", {"video": {"size": [64]}}, r"size must be \[height, width\], got \[64\]"),
        ("segue.json", {"video": {"frame": 9}}, "unknown key 'frame'"),
        ("segue.json", {"video": {"size": [100, 64]}}, "not multiples of 64"),
    ],
)
def test_a_checkpoint_that_is_no_swifti2v_is_refused(copy, tmp_path, file, change, message):
    path = copy / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        export(copy, tmp_path / "bundle", parity=False)
    assert not (tmp_path / "bundle").exists()
