"""The graphs of Wan's families of one stage: which there are, and that each gives what PyTorch gives."""

import pytest

from segue.runtime.bundle import reader

HALVES = [f"vae_{half}_{stage}" for half in ("encoder", "decoder") for stage in ("first", "next")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fixture", "components"),
    [
        ("wan_i2v_bundle", {"transformer_2", *HALVES}),
        ("wan_ti2v_bundle", set(HALVES) - {"vae_encoder_next"}),  # its encoder sees one frame only
    ],
)
def test_every_graph_matches_pytorch(request, fixture, components):
    content = reader.read(request.getfixturevalue(fixture)).manifest
    assert set(content.components) == {"text_encoder", "transformer", "transformer_step"} | components
    assert len(content.parity) == 2 * len(content.components)
    assert all(result.relative_l2 < 1e-5 for result in content.parity)


def test_a_picture_is_a_latent_frame_or_more_channels(wan_i2v_bundle, wan_ti2v_bundle):
    masked, given = (reader.read_manifest(bundle) for bundle in (wan_i2v_bundle, wan_ti2v_bundle))
    inputs = [{spec.name: spec for spec in of.components["transformer"].inputs} for of in (masked, given)]
    assert set(inputs[0]) == {"latents", "timestep", "text"}
    assert set(inputs[1]) == {"latents", "timesteps", "text", "positions"}
    assert inputs[0]["latents"].shape[1] == 2 * masked.latents.channels + 4
    assert inputs[1]["latents"].shape[1] == given.latents.channels
