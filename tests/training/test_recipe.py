from pathlib import Path

import pytest

from segue.errors import TrainingError
from segue.training.loop.recipe_file import fill, find_recipe, read_recipe
from segue.training.loop.run import LoopSpec
from segue.training.recipe import train


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"steps": 1, "batch": 1, "learning_rate": 1e-3, "warm_up": 3}, r"no key 'warm_up'.*Known keys.*warmup"),
        ({"steps": 1, "batch": 1}, r"needs the key 'learning_rate'"),
        ({"steps": "many", "batch": 1, "learning_rate": 1e-3}, r"steps = 'many' must be of type int"),
        ({"steps": True, "batch": 1, "learning_rate": 1e-3}, r"steps = True must be of type int"),
    ],
)
def test_a_wrong_key_is_named_with_what_would_be_right(table: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        fill(LoopSpec, table, "loop")


def test_every_shipped_recipe_has_only_known_keys() -> None:
    from segue.training.cdm.run import checked_spec
    from segue.training.pictures.autoencoder import AutoencoderSpec
    from segue.training.pictures.spec import TeacherSpec
    from segue.training.pictures.text_encoders import TextEncodersSpec
    from segue.training.video.codec import CodecSpec
    from segue.training.video.spec import DetailSpec, MotionSpec
    from segue.training.video.text import VideoTextSpec

    specs = {
        "autoencoder": AutoencoderSpec,
        "text_encoders": TextEncodersSpec,
        "teacher": TeacherSpec,
        "codec": CodecSpec,
        "video_text": VideoTextSpec,
        "motion": MotionSpec,
        "detail": DetailSpec,
        "loop": LoopSpec,
    }
    shipped = sorted(find_recipe("emoji-teacher").parent.glob("*.toml"))
    assert len(shipped) >= 3
    for path in shipped:
        recipe = read_recipe(path)
        if "cdm" in recipe:
            checked_spec({**recipe, "cdm": {**recipe["cdm"], "teacher": "nowhere"}}, world=8)
        for name, table in recipe.items():
            if name != "cdm":
                fill(specs[name], table, name)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(TrainingError, match=r"no recipe 'nothing'.*emoji-teacher"):
        find_recipe("nothing")


def test_a_recipe_without_a_task_says_which_tasks_there_are(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("[loop]\nsteps = 1\nbatch = 1\nlearning_rate = 1e-3\n")
    with pytest.raises(TrainingError, match="exactly one of autoencoder"):
        train(path, tmp_path / "run", lambda *_: None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("loop = 3\n", "'loop' outside a table"),
        ("[loop]\nsteps = 1\nbatch = -1\nlearning_rate = 1e-3\n[teacher]\n", r"batch = -1 must be above 0"),
        ("[loop]\nsteps = 1\nbatch = 1\nlearning_rate = 1e-3\nema = 1.0\n[teacher]\n", r"ema = 1.0 must be in"),
        (
            '[loop]\nsteps = 1\nbatch = 1\nlearning_rate = 1e-3\noptimiser = "adam"\n[teacher]\n',
            r"optimiser = 'adam' must be one of adamw, muon",
        ),
        ("\udcff", "not valid TOML"),
    ],
)
def test_a_recipe_that_cannot_be_run_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(TrainingError, match=message):
        train(path, tmp_path / "run", lambda *_: None)


def test_a_stage_out_of_order_names_what_to_run_first(tmp_path: Path, pictures: Path) -> None:
    path = tmp_path / "early.toml"
    path.write_text(
        f'[autoencoder]\ndata = "{pictures}"\nstart = "{tmp_path}/none"\n'
        "[loop]\nsteps = 1\nbatch = 1\nlearning_rate = 1e-3\n"
    )
    with pytest.raises(TrainingError, match=r"none/vae has no config\.json.*First run the recipes that it starts from"):
        train(path, tmp_path / "run", lambda *_: None)
    assert not (tmp_path / "run").exists()


def test_broken_toml_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_text("[loop\n")
    with pytest.raises(TrainingError, match=r"broken\.toml is not valid TOML.*line 1"):
        read_recipe(path)
