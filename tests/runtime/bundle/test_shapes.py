import dataclasses

import pytest

from segue.errors import UsageError
from segue.runtime.bundle import reader
from segue.runtime.bundle.manifest import Template
from segue.runtime.bundle.shapes import SizeRange, default_range, profiles


def test_every_input_of_every_component_gets_three_shapes(exported):
    content = reader.read(exported).manifest
    made = profiles(content, [default_range(content)])
    assert made.keys() == content.components.keys()
    for name, component in content.components.items():
        (profile,) = made[name]
        assert profile.keys() == {spec.name for spec in component.inputs}
        for spec in component.inputs:
            for shape in profile[spec.name]:
                assert len(shape) == len(spec.shape)
                assert all(have == want for have, want in zip(shape, spec.shape, strict=True) if isinstance(want, int))


def test_sizes_are_counted_in_latent_pixels_and_guidance_makes_two_calls(exported):
    content = reader.read(exported).manifest
    (profile,) = profiles(content, [SizeRange((64, 64), (96, 64), (128, 128))])["transformer"]
    assert profile["hidden_states"] == ((1, 8, 8, 8), (2, 8, 12, 8), (2, 8, 16, 16))
    assert [shape[1] for shape in profile["encoder_hidden_states"]] == [27] * 3  # 24 of CLIP, 3 for the absent T5


def test_a_bundle_without_guidance_gets_a_batch_of_one_unless_room_for_guidance_is_asked_for():
    content = reader.read("emoji").manifest
    assert content.sampler.guidance == 1
    sizes = [SizeRange(*[(128, 128)] * 3)]
    for guided, largest in ((False, 1), (True, 2)):
        made = profiles(content, sizes, guided)
        for name, of in (("transformer", "hidden_states"), ("transformer_step", "made")):
            assert [shape[0] for shape in made[name][0][of]] == [1, 1, largest]


@pytest.mark.parametrize(
    ("padding", "length", "text"),
    [("prompt", (29, 29, 29), (27, 27, 27)), ("end", (24, 24, 24), (27, 27, 27)), ("none", (5, 24, 24), (8, 27, 27))],
)
def test_the_padding_of_a_template_sets_the_tokens_of_encoder_and_denoiser(exported, padding, length, text):
    content = reader.read(exported).manifest
    one = dataclasses.replace(content.tokenizers["tokenizer"], template=Template("a", "b", 5, padding))
    content = dataclasses.replace(content, tokenizers={"tokenizer": one})
    made = profiles(content, [default_range(content)])
    assert tuple(shape[1] for shape in made["text_encoder"][0]["input_ids"]) == length
    assert tuple(shape[1] for shape in made["transformer"][0]["encoder_hidden_states"]) == text


def test_a_model_that_takes_no_guidance_has_a_batch_of_one(exported):
    content = reader.read(exported).manifest
    content = dataclasses.replace(content, sampler=dataclasses.replace(content.sampler, guidable=False))
    made = profiles(content, [default_range(content)], guided=True)
    assert [shape[0] for shape in made["transformer"][0]["hidden_states"]] == [1, 1, 1]


def test_each_size_is_a_profile_and_equal_ones_are_one(exported):
    content = reader.read(exported).manifest
    made = profiles(content, [SizeRange(*[(side, side)] * 3) for side in (64, 128)])
    assert [len(made[name]) for name in ("text_encoder", "transformer", "vae_decoder")] == [1, 2, 2]


def test_videos_have_their_windows_and_caches_the_sides_of_their_levels(video_bundle):
    content = reader.read(video_bundle).manifest
    made = profiles(content, [SizeRange(*[(128, 64)] * 3)])
    (motion,), (detail,) = made["transformer"], made["detail_transformer"]
    assert motion["latents"] == ((1, 12, 5, 8, 4), (2, 12, 5, 8, 4), (2, 12, 5, 8, 4))
    assert [shape[2] for shape in detail["latents"]] == [3, 4, 4]  # windows of 1 + 0 + 3 and 1 + 1 + 1 latent frames
    (codec,) = made["detail_vae_decoder_next"]
    sides = {name: shapes[0][-2:] for name, shapes in codec.items()}
    assert sides["latents"] == (8, 4)
    assert {side[0] for side in sides.values()} == {8, 16, 32, 64}


def test_a_size_that_the_bundle_cannot_draw_is_refused(exported):
    content = reader.read(exported).manifest
    with pytest.raises(UsageError, match="not 100"):
        profiles(content, [SizeRange(*[(100, 100)] * 3)])


def test_sizes_out_of_order_are_refused():
    with pytest.raises(UsageError, match="not in order"):
        SizeRange((64, 64), (32, 64), (64, 64))
