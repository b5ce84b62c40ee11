"""What a request is warned of, and what it is not."""

import dataclasses
import warnings

import numpy as np
import pytest
from skimage import data

import segue
from segue.errors import UsageError
from segue.runtime.bundle import prompts as p
from segue.runtime.bundle import reader
from segue.runtime.media.read_image import fitted
from segue.runtime.notices import is_photograph, notices, silent
from segue.runtime.plan_prepared import prepare_any
from segue.runtime.videos.request import prepare as prepare_video

NAMES = p.Prompts(
    (p.Name("red heart", "❤", ("love",), True), p.Name("pizza", "🍕", (), True), p.Name("racing car", "🏎", (), True)),
    ("noto",), False,
)  # fmt: skip


def told(content, request, names=NAMES):
    return notices(content, prepare_any(content, request, names), names)


@pytest.fixture
def student(content):
    """The manifest of a student without guidance that was trained at 32x32 and 32x48 pixels."""
    return dataclasses.replace(
        content,
        sampler=dataclasses.replace(content.sampler, guidance=1.0),
        sizes=dataclasses.replace(content.sizes, trained=((32, 32), (48, 32))),
    )


@pytest.mark.parametrize(
    "request_",
    [
        {"prompt": "a red heart"},
        {"prompt": "❤️, noto", "size": (48, 32)},
        {"prompt": ["pizza", "🍕"], "guidance": 1},
    ],
)
def test_a_request_that_suits_the_bundle_is_met_in_silence(student, request_):
    assert told(student, segue.Request(**request_)) == ()


def test_another_size_names_the_trained_ones(student):
    assert told(student, segue.Request("pizza", size=64)) == (
        "tiny was trained at 32x32, 32x48, so pictures of 64x64 show faults. Use a trained size.",
    )


def test_a_bundle_that_states_no_trained_size_says_so(content):
    (found,) = told(content, segue.Request("pizza", size=(16, 64)))
    assert found.startswith("tiny is made for 32x32 and states no other trained size, so pictures of 64x16 may show")


def test_guidance_on_a_student_without_guidance_is_told(student, content):
    (found,) = told(student, segue.Request("pizza", guidance=7))
    assert "made to draw without guidance, so guidance 7 spoils its pictures. Leave guidance out." in found
    assert told(content, segue.Request("pizza", guidance=7)) == ()


def test_a_negative_prompt_without_guidance_is_told(student, content):
    (found,) = told(student, segue.Request("pizza", negative="car"))
    assert found == "guidance is 1, so the negative prompt has no effect. Leave it out."
    (found,) = told(content, segue.Request("pizza", negative="car", guidance=0.5))
    assert found.endswith("Use a guidance above 1.")


def test_a_prompt_like_no_name_gets_the_nearest_names(content):
    (found,) = told(content, segue.Request("car"))
    assert found == "tiny does not know 'car', so expect a wrong result. The nearest names are: racing car."
    (found,) = told(content, segue.Request("红心"))
    assert found.endswith("'红心', so expect a wrong result. Some of its names are: red heart, pizza, racing car.")
    (found,) = told(content, segue.Request(""))
    assert found.startswith("the prompt is empty, so tiny draws anything. Some of its names are: red heart")


def test_without_a_list_of_names_every_prompt_passes(content):
    assert told(content, segue.Request(["", "car", "红心"]), None) == ()


def test_many_unknown_prompts_make_few_lines(content):
    found = told(content, segue.Request([f"thing{n}" for n in range(9)] + ["pizza"], count=2))
    assert len(found) == 4
    assert found[-1] == "6 more prompts are unknown to tiny."


def test_a_long_prompt_is_shown_in_part(content):
    (found,) = told(content, segue.Request("lorem " * 1000))
    assert "lorem lo" in found
    assert len(found) < 250


def test_emoji_in_a_prompt_are_drawn_by_their_names_and_recorded_as_they_came(named):
    with segue.open(named, threads=1) as model:
        made = model.render(segue.Request(["a 🍕", "a pizza"], seed=3, size=16))
        prepared = model.prepare(segue.Request("❤️", negative="🍕"))
    assert (prepared.prompts, prepared.negative, prepared.asked) == (("red heart",), "pizza", ("❤️",))
    assert np.array_equal(made.images[0], made.images[1])
    assert (made.metadata[0]["prompt"], made.metadata[0]["spelled"]) == ("a 🍕", "a pizza")
    assert made.metadata[1]["prompt"] == "a pizza"
    assert "spelled" not in made.metadata[1]


def test_a_prompt_whose_names_are_too_long_is_refused(named):
    with segue.open(named, threads=1) as model, pytest.raises(UsageError, match="prompt must have at most 100000"):
        model.prepare(segue.Request("🍕" * 50_000))


@pytest.fixture
def named(edit):
    """The tiny bundle with a list of names."""
    return edit(lambda table: table.update(prompts="prompts.json"), {"prompts.json": p.dump(NAMES)})


def test_a_model_warns_where_it_was_called_and_tells_without_drawing(named):
    with segue.open(named, threads=1) as model:
        assert model.notices(segue.Request("car")) == model.notices(model.prepare(segue.Request("car")))
        for draw in (model.generate, lambda text, **_: model.render(segue.Request(text, size=32, steps=1))):
            with pytest.warns(segue.Notice, match="does not know 'car'") as caught:
                draw("car", size=32, steps=1)
            assert [w.filename for w in caught] == [__file__]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.generate("pizza", size=32, steps=1)
            with silent():
                model.generate("car", size=32, steps=1)


def test_a_model_describes_itself(named):
    with segue.open(named, threads=1) as model:
        assert repr(model) == "<segue.Model 'tiny': pictures of 32x32 in 4 steps, ort-cpu>"
        assert (model.name, model.sizes, model.steps) == ("tiny", ((32, 32),), 4)
        assert model.prompts == NAMES


@pytest.mark.parametrize(
    ("given", "trained", "expected"),
    [
        ((64, 32), True, "32x64 and the video 128x128, so 50% of the picture is cut off, above and below. Crop the"),
        ((64, 128), True, "128x64 and the video 128x128, so 50% of the picture is cut off, left and right. Crop the"),
        ((256, 64), False, "above and below. A size nearer to its shape is 64x256."),
        ((64, 192), False, "left and right. A size nearer to its shape is 192x64."),
        ((128, 128), True, None),
        ((100, 101), False, None),
    ],
)
def test_a_picture_that_is_cropped_to_another_shape_is_told(given, trained, expected):
    content = reader.read_manifest("emoji-motion")
    if not trained:
        content = dataclasses.replace(content, sizes=dataclasses.replace(content.sizes, trained=()))
    image = np.full((*given, 3), 255, np.uint8)
    found = notices(content, prepare_video(segue.AnimationRequest(image), content), None)
    assert found == () if expected is None else expected in " ".join(found)


GIVEN = np.full((128, 128, 3), 255, np.uint8)
WHITE = np.full((128, 128), 255, np.uint8)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"strength": 0.6}, None),
        ({"mask": WHITE}, None),
        (
            {"strength": 0.2},
            "strength 0.2 leaves 1 of 4 steps, so the picture hardly changes. Raise strength, or",
        ),
        (
            {"strength": 0.2, "steps": 1},
            "at strength 0.2 1 step runs, from noise alone, so little of the picture",
        ),
        (
            {"strength": 0.8},
            "at strength 0.8 all 4 steps run, from noise alone, so little of the picture",
        ),
        ({"strength": 1.0}, "Use at most 0.75."),
        ({"sigmas": (0.5, 0.25)}, None),
        ({"mask": 0 * WHITE}, "the mask is black, so nothing is redrawn. Make white what is to change."),
        ({"image": GIVEN[:64]}, "the given picture is 128x64 and the drawn one 128x128, so 50% of the picture is cut"),
        ({"image": fitted(data.astronaut(), 128, 128)}, "looks like a photograph, but emoji was trained without"),
    ],
)
def test_a_picture_to_begin_with_is_told_of_if_it_disappoints(wanted, expected):
    content = reader.read_manifest("emoji")
    found = told(content, segue.Request("pizza", **{"image": GIVEN} | wanted))
    assert len(found) == (0 if expected is None else 1)
    assert expected is None or expected in found[0]


def prepared(image, side=128):
    return fitted(image, side, side).astype(np.float32) / np.float32(127.5) - 1


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "camera", "rocket", "cat"])
@pytest.mark.parametrize("side", [64, 128, 320])
def test_a_photograph_is_found(name, side):
    image = getattr(data, name)()
    image = image if image.ndim == 3 else image[..., None].repeat(3, -1)
    assert is_photograph(prepared(image, side))


@pytest.mark.parametrize("colours", [((255, 255, 255), (230, 30, 40)), ((20, 20, 30), (250, 210, 60))])
def test_a_drawing_on_a_plain_background_is_no_photograph(colours):
    rows, columns = np.indices((128, 128))
    shade = np.clip(1 - np.hypot(rows - 50, columns - 50) / 90, 0, 1)[..., None]  # a ball with a highlight
    ball = np.array(colours[1]) * (0.4 + 0.6 * shade)
    image = np.where(np.hypot(rows - 64, columns - 64)[..., None] < 50, ball, np.array(colours[0])).astype(np.uint8)
    assert not is_photograph(prepared(image))
    assert not is_photograph(prepared(image, 64))
