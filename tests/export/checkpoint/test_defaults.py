"""What decides how a bundle draws: what is asked, then what the checkpoint says, then its name."""

import dataclasses
import json

import pytest

from segue.errors import CheckpointError
from segue.export.checkpoint.defaults import AS_STATED, Asked, find_defaults
from segue.export.checkpoint.read import STUDENT, Checkpoint, Settings
from segue.runtime.bundle.families import FAMILIES

SDXL = FAMILIES["sdxl"]
DMD2 = (999, 749, 499, 249)


def found(root, name, asked=AS_STATED):
    checkpoint = Checkpoint(root, {}, {}, Settings(), ())
    return find_defaults(checkpoint, SDXL, [name], None, dataclasses.asdict(asked))


@pytest.mark.parametrize(
    ("asked", "steps", "timesteps", "reason"),
    [
        (Asked(), 4, DMD2, "as the card of"),
        (Asked(steps=4), 4, DMD2, "as asked"),
        (Asked(steps=8), 8, (), "as asked"),
    ],
)
def test_the_steps_that_are_asked_for_are_taken_whatever_the_name_says(tmp_path, asked, steps, timesteps, reason):
    made = found(tmp_path, "dmd2_sdxl_4step_unet", asked)
    assert (made.settings.steps, made.settings.timesteps) == (steps, timesteps)
    assert made.settings.sampler == "lcm"
    assert reason in made.reason


def test_levels_and_steps_of_one_source_must_agree(tmp_path):
    with pytest.raises(CheckpointError, match="2 sigmas and 3 steps are given as asked"):
        found(tmp_path, "x", Asked(steps=3, sigmas=(1.0, 0.5)))


@pytest.mark.parametrize("name", ["sdxl-turbo", "sd_xl_turbo_1.0_fp16", "stabilityai/sdxl-turbo"])
def test_sdxl_turbo_is_drawn_in_one_step_from_pure_noise_whatever_the_scheduler_of_its_base(tmp_path, name):
    settings = found(tmp_path, name).settings
    assert (settings.sampler, settings.spacing, settings.steps) == ("euler-ancestral", "trailing", 1)


@pytest.mark.parametrize("sigmas", [[1.5, 0.5], [0.5, 0.5], [], [float("nan")], [10**400], [True], "1"])
def test_levels_of_the_authors_of_cdm_that_are_none_are_refused(tmp_path, sigmas):
    (tmp_path / STUDENT).write_text(json.dumps({"custom_sigmas": sigmas}))
    with pytest.raises(CheckpointError, match="must decrease within"):
        found(tmp_path, "x")


def test_a_card_hints_at_few_steps_only_where_nothing_else_says_so(tmp_path):
    (tmp_path / "README.md").write_text("A few-step model.")
    assert "few-step" in found(tmp_path, "x").hint
    assert found(tmp_path, "x", Asked(steps=2)).hint == ""
