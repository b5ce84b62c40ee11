import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from segue.errors import BundleError
from segue.runtime.bundle import manifest
from segue.runtime.bundle import tokens as text
from segue.runtime.pictures.families import join_states


@pytest.fixture
def tokenizer(tiny_bundle):
    return text.load_tokenizer(tiny_bundle / "tokenizer" / "tokenizer.json")


SPEC = manifest.Tokenizer("tokenizer/tokenizer.json", 8, 2)


def test_a_short_prompt_is_padded_with_the_pad_token(tokenizer):
    tokens = text.tokenise(tokenizer, SPEC, "A red heart")
    assert tokens.ids.dtype == np.int64
    assert tokens.ids.tolist() == [[0, 3, 4, 7, 1, 2, 2, 2]]
    assert tokens.cut == ""


def test_the_empty_prompt_is_allowed(tokenizer):
    assert text.tokenise(tokenizer, SPEC, "").ids.tolist() == [[0, 1, 2, 2, 2, 2, 2, 2]]


def test_a_prompt_that_just_fits_is_whole(tokenizer):
    assert text.tokenise(tokenizer, SPEC, "a a a a a a").cut == ""


def test_a_long_prompt_loses_its_end_but_not_its_end_token_and_the_cut_part_is_named(tokenizer):
    tokens = text.tokenise(tokenizer, SPEC, "a red Cat on a green Moon  on the DOG")
    assert tokens.ids.tolist() == [[0, 3, 4, 9, 11, 3, 5, 1]]
    assert tokens.cut == "Moon  on the DOG"


def test_truncation_is_that_of_the_tokenizers_library(tiny_bundle, tokenizer):
    theirs = Tokenizer.from_file(str(tiny_bundle / "tokenizer" / "tokenizer.json"))
    theirs.enable_truncation(SPEC.length)
    theirs.enable_padding(length=SPEC.length, pad_id=SPEC.pad_id, pad_token="!")
    for words in range(20):
        prompt = " ".join(["red", "cat"] * words)
        assert text.tokenise(tokenizer, SPEC, prompt).ids.tolist() == [theirs.encode(prompt).ids]


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_tokens_of_a_clip_tokenizer_are_those_of_transformers(tmp_path, pad):
    letters = sorted(bytes_to_unicode().values())
    merges = [("h", "e"), ("a", "r"), ("he", "ar"), ("hear", "t</w>"), ("r", "e"), ("re", "d</w>")]
    words = [*letters, *(c + "</w>" for c in letters), *(a + b for a, b in merges), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(words)}
    theirs = CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad, model_max_length=24)
    theirs.save_pretrained(tmp_path)
    ours = text.load_tokenizer(tmp_path / "tokenizer.json")
    spec = manifest.Tokenizer("tokenizer.json", 24, theirs.pad_token_id)
    for prompt in (
        "",
        "A RED  heart!!! don't",
        "日本 émoji 😀 " * 4,
        "red " * 40,
        "tab\tline\n",
        "<|endoftext|> red",
        "x" * 99,
    ):
        expected = theirs([prompt], padding="max_length", max_length=24, truncation=True).input_ids
        assert text.tokenise(ours, spec, prompt).ids.tolist() == expected, prompt


def test_padding_and_truncation_stored_in_the_file_do_not_apply(tiny_bundle, tokenizer):
    stored = Tokenizer.from_file(str(tiny_bundle / "tokenizer" / "tokenizer.json"))
    stored.enable_truncation(3)
    stored.enable_padding(length=30, pad_id=9)
    stored.save(str(tiny_bundle / "stored.json"))
    loaded = text.load_tokenizer(tiny_bundle / "stored.json")
    expected = text.tokenise(tokenizer, SPEC, "a red heart").ids
    assert np.array_equal(text.tokenise(loaded, SPEC, "a red heart").ids, expected)


def test_a_file_that_is_no_tokenizer_is_a_bundle_error(tmp_path):
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizers file"):
        text.load_tokenizer(tmp_path / "t.json")


@given(st.integers(0, 9), st.integers(0, 4), st.sampled_from([np.float16, np.float32]))
def test_the_conditioning_is_put_together_as_diffusers_does(spare, t5_tokens, dtype):
    rng = np.random.default_rng(spare)
    hidden = [rng.standard_normal((1, 7, width)).astype(dtype) for width in (4, 6)]
    joint = 10 + spare
    clip = torch.cat([torch.from_numpy(h) for h in hidden], dim=-1)
    clip = torch.nn.functional.pad(clip, (0, joint - clip.shape[-1]))
    sequence = torch.cat([clip, torch.zeros(1, t5_tokens, joint, dtype=clip.dtype)], dim=-2)
    found = join_states(hidden, joint, t5_tokens)
    assert np.array_equal(found, sequence.numpy())
    assert found.dtype == dtype


def test_encoders_wider_than_the_transformer_are_refused():
    with pytest.raises(BundleError, match="give 10 features per token, but the denoiser takes only 9"):
        join_states([np.zeros((1, 2, 10))], 9, 0)


@pytest.mark.parametrize(
    "prompt",
    [
        "", "plain", "say 'hello' loudly", 'a sign "OPEN"', "it's \u2018caf\u00e9\u2019 and \u201cbar\u201d",
        "'start' and end 'end'", "'' empty ''", "one ' alone", "'a' 'b'", "写着“你好”的牌子",
    ],
)  # fmt: skip
def test_quotations_are_found_as_longcats_pipeline_finds_them(prompt):
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import split_quotation

    assert list(text.quotations(prompt)) == split_quotation(prompt)


def test_two_words_with_apostrophes_stay_what_they_are():
    """diffusers 0.42.1 turns the first of them into the second."""
    assert list(text.quotations("it's John's 'bar'")) == [("it's John's ", False), ("'bar'", True)]


def test_a_template_stands_around_the_padding(tokenizer):
    spec = manifest.Tokenizer("t", 6, 0, manifest.Template("the", "moon on"))
    found = text.tokenise(tokenizer, spec, "red heart")
    plain = {
        word: tokenizer.encode(word, add_special_tokens=False).ids for word in ("the", "red", "heart", "moon", "on")
    }
    words = [*plain["red"], *plain["heart"]]
    assert found.ids.tolist() == [[*plain["the"], *words, 0, 0, 0, 0, *plain["moon"], *plain["on"]]]
    assert found.mask.tolist() == [[1, 1, 1, 0, 0, 0, 0, 1, 1]]
    assert found.inner == slice(1, 7)
    assert found.cut == ""


def test_a_prompt_too_long_for_its_template_is_cut_and_says_what(tokenizer):
    spec = manifest.Tokenizer("t", 2, 0, manifest.Template("the", "moon"))
    found = text.tokenise(tokenizer, spec, "red heart 'cat'")
    assert found.ids.shape == (1, 4)
    assert found.cut.endswith("'cat'")
