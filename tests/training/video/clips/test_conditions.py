"""SwiftI2V's stages in a distillation: what is encoded, what the networks see, and what is written."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from segue.errors import TrainingError
from segue.export.checkpoint import read as checkpoints
from segue.export.families.registry import find
from segue.export.families.swifti2v.facts import FOLDERS
from segue.runtime.bundle.segments import segment
from segue.training.cdm.data.conditions import open_kinds
from segue.training.cdm.families import FAMILIES
from segue.training.cdm.networks import load_teacher
from segue.training.loop import device
from segue.training.recipe import train
from segue.training.video.clips.conditions import encode_clips
from segue.training.video.motion import Motion
from segue.training.video.spec import DetailSpec, MotionSpec
from segue.training.video.windows import window

FRAMES = 25  # of the checkpoint: seven latent frames, so two whole segments
SIZES = {"frames": FRAMES, "layers": 1, "heads": 2, "head": 12, "feed_forward": 24, "length": 8}


@pytest.fixture(autouse=True, scope="module")
def fp32():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "fast_dtype", lambda _: torch.float32)
        yield


@pytest.fixture(scope="module")
def encoded(both, clips, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("encoded")
    for family in ("swifti2v-motion", "swifti2v-detail"):
        assert encode_clips(both, family, clips, folder / family, lambda done, total: None) == 4
    return folder


@torch.no_grad()
def test_stage_one_is_called_as_in_its_own_training(both, clips, parts, encoded):
    (kind,) = open_kinds(encoded / "swifti2v-motion")
    assert kind.shape == (4, 7, 4, 4)
    training = Motion(MotionSpec(str(clips), str(both), str(both), start=str(both), varied=True, **SIZES), 0)
    names = training.windows.places.names(training.clips, torch.arange(4))
    assert kind.prompts == names
    given = kind.take([1, 2])
    latents, level = torch.randn(2, *kind.shape), torch.tensor([1.0, 0.4])
    expected = training._velocity(latents, level, training.images[[1, 2]].float(), training.text(names[1:3]))
    family = FAMILIES["swifti2v-motion"]
    network = load_teacher(both, family)
    found = family.velocity(network, latents, level, given)
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)  # conditions are kept in bf16
    assert not torch.allclose(family.velocity(network, latents, level, given | {"image": 0 * given["image"]}), found)
    assert set(given | kind.empty(2)) == {"states", "image"}


@torch.no_grad()
def test_stage_two_sees_the_window_of_each_segment(both, clips, encoded):
    kinds = open_kinds(encoded / "swifti2v-detail")
    assert [kind.shape for kind in kinds] == [(6, 3, 8, 8), (6, 3, 8, 8)]
    family = FAMILIES["swifti2v-detail"]
    network = load_teacher(both, family)
    spec = DetailSpec(str(clips), str(both), str(both), str(both), **SIZES)
    for index, kind in enumerate(kinds):
        given = kind.take([0, 3])
        part = segment(index, 7, spec.segments)
        assert given["positions"].tolist() == [list(part.frames)] * 2
        assert given["context"].shape[2] == part.noisy.start
        targets, level = torch.randn(2, *kind.shape), torch.tensor([0.9, 0.2])
        clean, reference = torch.zeros(2, 6, 7, 8, 8), torch.zeros(2, 6, 7, 8, 8)
        clean[:, :, [0, *part.before]] = given["context"]
        reference[:, :, list(part.reference)] = given["reference"]
        seen = window(part, clean, targets, reference, level)
        expected = network(seen.latents, seen.timesteps, given["states"], seen.positions)[:, :, seen.noisy]
        found = family.velocity(network, targets, level, given)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


RECIPE = """
[cdm]
family = "{family}"
teacher = "{teacher}"
conditions = "{conditions}"
size = [{frames}, {side}, {side}]
tokens = 8
fake_learning_rate = 1e-3
[cdm.schedule]
longest = 3
fixed = [1.0, 0.75, 0.5]
shift = 5.0
[loop]
steps = {steps}
batch = 2
learning_rate = 1e-3
warmup = 1
save_every = 2
"""


@pytest.mark.parametrize(("family", "frames", "side"), [("swifti2v-motion", FRAMES, 32), ("swifti2v-detail", 12, 128)])
def test_a_stage_is_distilled_and_written_beside_the_other(both, encoded, tmp_path: Path, family, frames, side):
    path, figures = tmp_path / "recipe.toml", []
    for steps in (2, 6):  # the second goes on from the first
        path.write_text(
            RECIPE.format(
                family=family, teacher=both, conditions=encoded / family, frames=frames, side=side, steps=steps
            )
        )
        train(path, tmp_path / "run", lambda step, steps, found: figures.append(found))
    assert len(figures) == 6
    assert {"ca", "dm", "cdm"} <= set(figures[-1])
    out = tmp_path / "run/checkpoint"
    facts = find(checkpoints.read_index(out)).facts(checkpoints.read(out, FOLDERS))
    sampler = facts.video.motion.sampler if family == "swifti2v-motion" else facts.sampler
    other = facts.sampler if family == "swifti2v-motion" else facts.video.motion.sampler
    assert (sampler.steps, sampler.guidance, sampler.sigmas) == (3, 1.0, (1.0, 0.75, 0.5))
    assert other.steps != 3
    weights = {
        name: [load_teacher(where, FAMILIES[name]).state_dict() for where in (both, out)]
        for name in ("swifti2v-motion", "swifti2v-detail")
    }
    for name, (before, after) in weights.items():
        assert any(not before[key].equal(after[key]) for key in before) == (name == family)


def test_conditions_of_the_other_stage_are_refused(both, encoded, tmp_path: Path):
    path = tmp_path / "recipe.toml"
    family, conditions = "swifti2v-detail", encoded / "swifti2v-motion"
    path.write_text(RECIPE.format(family=family, teacher=both, conditions=conditions, frames=12, side=128, steps=2))
    with pytest.raises(TrainingError, match="the transformer takes"):
        train(path, tmp_path / "run", lambda *_: None)


def test_a_second_expert_is_refused(both, tmp_path: Path):
    shutil.copytree(both, tmp_path / "two")
    shutil.copytree(both / "transformer", tmp_path / "two/transformer_2")
    with pytest.raises(TrainingError, match="two experts"):
        load_teacher(tmp_path / "two", FAMILIES["swifti2v-motion"])


def test_a_checkpoint_without_videos_is_refused(clips, tmp_path: Path):
    (tmp_path / "segue.json").write_text(json.dumps({"steps": 4}))
    with pytest.raises(TrainingError, match="has no video settings"):
        encode_clips(tmp_path, "swifti2v-motion", clips, tmp_path / "out", lambda done, total: None)
