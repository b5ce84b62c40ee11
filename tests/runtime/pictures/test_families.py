"""What a family feeds to its denoiser besides the prompt."""

import numpy as np
import pytest

from segue.runtime.pictures.families import reference_tokens


@pytest.mark.parametrize("sides", [[(3, 5)], [(3, 5), (2, 4), (1, 1)]])
def test_the_tokens_of_references_and_their_places_are_those_of_diffusers(sides):
    import torch
    from diffusers import Flux2KleinPipeline

    rng = np.random.default_rng(0)
    encoded = [rng.standard_normal((1, 8, *side), dtype=np.float32) for side in sides]
    found = reference_tokens(encoded, 8)
    theirs = [torch.from_numpy(one) for one in encoded]
    tokens = torch.cat([Flux2KleinPipeline._pack_latents(one) for one in theirs], 1)
    places = Flux2KleinPipeline._prepare_image_ids(theirs)
    assert np.array_equal(found["reference"], tokens.numpy())
    assert np.array_equal(found["places"], places.numpy())
    assert found["reference"].dtype == found["places"].dtype == np.float32


def test_without_references_there_are_no_tokens():
    found = reference_tokens((), 8)
    assert {name: array.shape for name, array in found.items()} == {"reference": (1, 0, 8), "places": (1, 0, 4)}
