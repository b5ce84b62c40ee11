"""The family of a Wan checkpoint by its content, its facts, and refusals that name the real cause."""

import json
import shutil

import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint import read
from segue.export.checkpoint.read import Checkpoint, Settings, VideoSettings
from segue.export.export import export
from segue.export.families.registry import find


@pytest.fixture
def copy(video_checkpoint, tmp_path):
    """A checkpoint of both stages as others publish it: without a segue.json."""
    shutil.copytree(video_checkpoint, tmp_path / "wan")
    (tmp_path / "wan/segue.json").unlink()
    return tmp_path / "wan"


def refusal(root, tmp_path):
    with pytest.raises(CheckpointError) as caught:
        export(root, tmp_path / "bundle")
    text = str(caught.value)
    assert "guidance" not in text
    assert "etch the" not in text
    return text


def test_a_stage_two_without_its_transformer_is_told_so(copy, tmp_path):
    index = json.loads((copy / "model_index.json").read_text())
    del index["detail_transformer"]
    (copy / "model_index.json").write_text(json.dumps(index))
    assert refusal(copy, tmp_path).startswith(
        "The checkpoint has no detail_transformer, so its Stage II is not whole. Train a Stage II"
    )


def test_a_stage_two_that_was_never_widened_is_told_so(copy, tmp_path):
    path = copy / "detail_transformer/config.json"
    config = json.loads(path.read_text())
    assert config["in_channels"] == 12
    path.write_text(json.dumps(config | {"in_channels": 6}))
    assert "in_channels 6, as a plain Wan transformer has. Stage II needs 12" in refusal(copy, tmp_path)


NONE, SOME = [None, None], ["diffusers", "WanTransformer3DModel"]


@pytest.mark.parametrize(
    ("index", "family"),
    [
        ({"_class_name": "WanImageToVideoPipeline", "detail_transformer": SOME, "expand_timesteps": True}, "swifti2v"),
        ({"_class_name": "WanImageToVideoPipeline", "expand_timesteps": True}, "wan-ti2v"),
        ({"_class_name": "WanPipeline", "expand_timesteps": True}, "wan-ti2v"),
        ({"_class_name": "WanImageToVideoPipeline", "detail_transformer": NONE}, "wan-i2v"),
        ({"_class_name": "WanImageToVideoPipeline", "expand_timesteps": False, "transformer_2": SOME}, "wan-i2v"),
        ({"_class_name": "StableDiffusion3Pipeline"}, "sd3"),
    ],
)
def test_the_content_of_the_index_chooses_the_family(index, family):
    assert find(index).name == family


def test_text_to_video_without_timesteps_of_frames_is_told_what_is_exported():
    with pytest.raises(CheckpointError, match=r"of 'WanPipeline'.*it exports Wan 2.2 TI2V.*expand_timesteps"):
        find({"_class_name": "WanPipeline", "expand_timesteps": False})


def facts_of(root, settings: Settings | None = None, **parts):
    """Return the facts of a checkpoint with other settings and other config keys of its folders."""
    index = read.read_index(root)
    family = find(index)
    found = read.read(root, (*family.folders, *family.optional))
    for name, config in parts.items():
        found.parts[name].config.update(config)
    return family.facts(found if settings is None else Checkpoint(root, index, found.parts, settings, ()))


def test_the_windows_of_one_stage_are_those_of_wans_repository(wan_i2v_checkpoint, wan_ti2v_checkpoint, tmp_path):
    plain = Settings(steps=4, guidance=1.0)
    small = {"rope_max_seq_len": 1024}
    both = {"transformer": small, "transformer_2": small}
    i2v = facts_of(wan_i2v_checkpoint, plain, **both)
    assert (i2v.video.frames, i2v.video.fps, i2v.sizes.default, i2v.sizes.multiple) == (81, 16.0, (480, 832), 16)
    assert (i2v.video.given, i2v.video.detail, i2v.video.scale) == ("mask", None, 1)
    assert i2v.video.motion.boundary == 0.875
    ti2v = facts_of(wan_ti2v_checkpoint, plain, transformer=small)
    assert (ti2v.video.frames, ti2v.video.fps, ti2v.sizes.default, ti2v.sizes.multiple) == (121, 24.0, (704, 1280), 32)
    assert ti2v.video.given == "first"
    assert ti2v.sampler == ti2v.video.motion.sampler
    assert ti2v.sampler.grid == "diffusers"
    own = facts_of(wan_ti2v_checkpoint)
    assert (own.video.frames, own.sizes.default, own.sampler.guidance) == (9, (96, 64), 2.0)


@pytest.mark.parametrize(
    "key", ["scale", "targets", "before", "after", "motion_steps", "motion_guidance", "motion_sigmas"]
)
def test_a_key_of_two_stages_is_refused_by_name(wan_ti2v_checkpoint, tmp_path, key):
    video = VideoSettings(**{key: (1.0,) if key == "motion_sigmas" else 2})
    with pytest.raises(CheckpointError, match=f"segue.json sets {key} of a video, which belongs to two stages"):
        facts_of(wan_ti2v_checkpoint, Settings(steps=4, guidance=1.0, video=video))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transformer": {"in_channels": 8}}, "transformer/config.json has in_channels 8; the other parts need 12"),
        ({"transformer_2": {"out_channels": 8}}, "transformer_2/config.json has out_channels 8"),
        ({"transformer": {"text_dim": 8}}, "text_dim 8; the other parts need 16"),
        ({"transformer_2": {"rope_max_seq_len": 2}}, "rope_max_seq_len 2, below the 3 latent frames of a window"),
    ],
)
def test_parts_that_do_not_fit_are_refused(wan_i2v_checkpoint, tmp_path, change, message):
    with pytest.raises(CheckpointError, match=message):
        facts_of(wan_i2v_checkpoint, **change)


def test_weights_for_pictures_through_clip_are_refused_and_their_widths_alone_are_not(wan_ti2v_checkpoint, tmp_path):
    widths = {"image_dim": 1280, "added_kv_proj_dim": 48}  # a published copy of TI2V-5B's config states such widths
    assert facts_of(wan_ti2v_checkpoint, transformer=widths).video.given == "first"
    index = read.read_index(wan_ti2v_checkpoint)
    found = read.read(wan_ti2v_checkpoint, find(index).folders)
    configs = {name: part.config for name, part in found.parts.items()}
    configs["transformer"] = configs["transformer"] | widths
    (graph,) = (graph for graph in find(index).graphs(configs) if graph.component == "transformer")
    names = dict(graph.build().named_parameters())
    assert names
    assert not [name for name in names if "add_k_proj" in name or "image_embedder" in name]
    tensors = found.parts["transformer"].tensors
    tensors["blocks.0.attn2.add_k_proj.weight"] = next(iter(tensors.values()))
    with pytest.raises(CheckpointError, match=r"has the weight 'blocks.0.attn2.add_k_proj.weight'.*as Wan 2.1 does"):
        find(index).facts(found)


def test_a_teacher_with_unipc_is_told_that_its_steps_are_eulers(wan_i2v_checkpoint, tmp_path):
    shutil.copytree(wan_i2v_checkpoint, tmp_path / "c", symlinks=True)
    index = json.loads((tmp_path / "c/model_index.json").read_text())
    index["scheduler"] = ["diffusers", "UniPCMultistepScheduler"]
    (tmp_path / "c/model_index.json").write_text(json.dumps(index))
    config = {"flow_shift": 5.0, "prediction_type": "flow_prediction", "use_flow_sigmas": True}
    (tmp_path / "c/scheduler/scheduler_config.json").write_text(json.dumps(config))
    teacher = facts_of(tmp_path / "c", Settings(steps=40, guidance=3.5, video=VideoSettings(frames=9)))
    assert teacher.sampler.grid == "unipc"
    assert len(teacher.notes) == 1
    assert "Segue takes Euler steps at its levels" in teacher.notes[0]
    student = facts_of(tmp_path / "c", Settings(steps=4, guidance=1.0, video=VideoSettings(frames=9)))
    assert student.notes == ()
