import dataclasses

import numpy as np
import pytest

import segue
from segue.errors import UsageError
from segue.runtime.request import Request, prepare
from segue.runtime.sampling import noise


def test_what_is_left_out_takes_the_bundles_defaults(content):
    ready = prepare(Request("a cat"), content)
    assert (ready.height, ready.width, ready.schedule.steps, ready.guidance, ready.guided) == (32, 32, 4, 5.0, True)
    assert ready.initial(0).shape == (1, 4, 4, 4)
    assert ready.initial(0).dtype == np.float32


@pytest.mark.parametrize(
    ("size", "nearest"),
    [
        (30, "32x32"),
        ((30, 41), "48x32"),
        ((16, 80), "64x16"),
        (0, "16x16"),
        (-5, "16x16"),
        (10**9, "64x64"),
        ((40, 32), r"32x48\.$"),
    ],
)
def test_a_size_that_is_not_possible_names_the_nearest_that_is(content, size, nearest):
    with pytest.raises(UsageError, match=f"Try {nearest}"):
        prepare(Request("", size=size), content)


@pytest.mark.parametrize("size", [(32,), (32, 32, 3), "32", 32.0, (32, None), True])
def test_a_size_that_is_no_size_is_refused(content, size):
    with pytest.raises(UsageError, match="size must be "):
        prepare(Request("", size=size), content)


@pytest.mark.parametrize(("size", "expected"), [(16, (16, 16)), ((48, 64), (48, 64)), ([64, 16], (64, 16))])
def test_sizes_within_range_are_taken(content, size, expected):
    ready = prepare(Request("", size=size), content)
    assert (ready.height, ready.width) == expected
    assert ready.initial(0).shape[2:] == (expected[0] // 8, expected[1] // 8)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be .*, got 0"),
        ({"steps": -3}, "steps must be .*, got -3"),
        ({"steps": 2.5}, "steps must be .*, got 2.5"),
        ({"steps": 1001}, "steps must be .*, got 1001"),
        ({"guidance": -1}, "guidance must be .*, got -1"),
        ({"guidance": float("nan")}, "guidance must be .*, got nan"),
        ({"guidance": float("inf")}, "guidance must be .*, got inf"),
        ({"guidance": "5"}, "guidance must be .*, got '5'"),
        ({"seed": -1}, "seed must be .*, got -1"),
        ({"seed": 2**64}, "seed must be .*, got 18446744073709551616"),
        ({"count": 0}, "count must be .*, got 0"),
        ({"count": 10**6}, "count must be .*, got 1000000"),
        ({"noise": "cuda"}, "noise must be one of philox, torch, got 'cuda'"),
        ({"sigmas": [0.5, 1.0]}, "strictly decrease"),
        ({"sigmas": [1.0, 0.5], "steps": 3}, "there are 2 sigmas. Leave steps out"),
        ({"latents": np.zeros((1, 4, 4, 5))}, r"latents must be finite float32 of shape \[1, 4, 4, 4\]"),
        ({"latents": np.zeros((1, 4, 4, 4), int)}, "got int64"),
        ({"latents": np.full((1, 4, 4, 4), np.nan)}, "NaN or infinity"),
        ({"negative": None}, "negative must be a string, got None"),
    ],
)
def test_requests_that_cannot_be_met_are_refused(content, options, said):
    with pytest.raises(UsageError, match=said):
        prepare(Request("a cat", **options), content)


@pytest.mark.parametrize("prompt", [[], [3], None, 7, b"cat"])
def test_prompts_that_are_no_text_are_refused(content, prompt):
    with pytest.raises(UsageError, match="prompt must be a string"):
        prepare(Request(prompt), content)


@pytest.mark.parametrize("text", ["a \ud800", "x" * 100_001])
def test_texts_that_are_no_unicode_or_without_measure_are_refused(content, text):
    for options in ({"prompt": text}, {"prompt": ["a", text]}, {"prompt": "a", "negative": text}):
        with pytest.raises(UsageError, match=r"must be valid Unicode|must have at most 100000 characters"):
            prepare(Request(**options), content)


def test_picture_i_of_a_seed_starts_from_the_same_noise_whatever_the_count(content):
    many = prepare(Request("a", seed=9, count=4), content)
    few = prepare(Request("a", seed=9, count=2), content)
    assert all(np.array_equal(many.initial(i), few.initial(i)) for i in range(2))
    assert not np.array_equal(many.initial(0), many.initial(1))


def test_the_noise_of_many_large_pictures_is_not_drawn_beforehand(content, monkeypatch):
    monkeypatch.setattr(noise, "philox_normal", lambda *args, **options: pytest.fail("drawn"))
    prepare(Request("a", size=64, count=4096), content)


def test_each_prompt_of_a_list_starts_from_the_noise_it_would_have_alone(content):
    ready = prepare(Request(["a", "b"], seed=9, count=2), content)
    alone = prepare(Request("b", seed=9, count=2), content)
    assert ready.prompts == ("a", "a", "b", "b")
    assert all(np.array_equal(ready.initial(2 + i), alone.initial(i)) for i in range(2))


def test_torch_noise_is_one_block_for_the_whole_request(content):
    ready = prepare(Request("a", seed=9, count=3, noise="torch"), content)
    assert np.array_equal(np.concatenate([ready.initial(i) for i in range(3)]), noise.torch_normal((3, 4, 4, 4), 9))


def test_custom_sigmas_set_the_steps(content):
    ready = prepare(Request("a", sigmas=[1.0, 0.5, 0.2]), content)
    assert ready.schedule.steps == 3
    assert ready.sigmas == (1.0, 0.5, 0.2)


def test_a_students_own_sigmas_are_its_default_grid_at_its_own_steps_alone(content):
    levels = (1.0, 0.75, 0.5, 0.25)
    own = dataclasses.replace(content.sampler, steps=4, guidance=1.0, sigmas=levels)
    student = dataclasses.replace(content, sampler=own)
    expected = prepare(Request("a", sigmas=levels), content).schedule
    for steps in (None, 4):
        ready = prepare(Request("a", steps=steps), student)
        assert np.array_equal(ready.schedule.sigmas, expected.sigmas)
        assert not ready.guided
    five = prepare(Request("a", steps=5), student)
    assert np.array_equal(five.schedule.sigmas, prepare(Request("a", steps=5), content).schedule.sigmas)


def test_what_is_no_request_is_refused(exported):
    with (
        segue.open(exported) as model,
        pytest.raises(UsageError, match=r"must be a segue.Request, got 'a red heart'. Give segue.Request"),
    ):
        model.render("a red heart")


def test_a_request_without_a_seed_gets_one_at_random(content):
    seeds = {prepare(Request("a cat", seed=None), content).seed for _ in range(5)}
    assert len(seeds) == 5
    assert max(seeds) < 2**32


def test_more_prompts_than_a_request_holds_are_refused_by_their_number(content):
    with pytest.raises(UsageError, match=r"a request has at most 4096 prompts, got 4097\. Send several"):
        prepare(Request(["x"] * 4097), content)
