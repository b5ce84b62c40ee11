import pytest
import torch
from diffusers import AutoencoderKLWan

from segue.errors import TrainingError
from segue.training.video.codec import CodecSpec, config_of
from segue.training.video.widening import widen


def codec(kind: str, base: int, decoder_base: int, latents: int = 4) -> AutoencoderKLWan:
    spec = CodecSpec("", kind=kind, base=base, decoder_base=decoder_base, widths=(1, 2, 2, 2), latents=latents)
    torch.manual_seed(0)
    made = AutoencoderKLWan(**config_of(spec)).eval()
    for parameter in made.parameters():  # norms and biases start alike in every channel
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return made


@pytest.mark.parametrize("kind", ["2.1", "2.2"])
@pytest.mark.parametrize(("base", "decoder_base"), [(8, 4), (4, 8), (8, 8)])
@torch.no_grad()
def test_a_codec_twice_as_wide_computes_what_the_narrow_one_does(kind: str, base: int, decoder_base: int) -> None:
    narrow, wide = codec(kind, 4, 4), codec(kind, base, decoder_base)
    widen(narrow, wide, torch.Generator().manual_seed(1))
    video = torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    latents = narrow.encode(video).latent_dist.mode()
    torch.testing.assert_close(wide.encode(video).latent_dist.mode(), latents, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(wide.decode(latents).sample, narrow.decode(latents).sample, rtol=1e-4, atol=1e-4)


def test_the_copies_of_a_channel_learn_apart() -> None:
    wide = codec("2.2", 4, 8)
    widen(codec("2.2", 4, 4), wide, torch.Generator().manual_seed(1))
    wide.decode(torch.randn(1, 4, 2, 2, 2)).sample.square().mean().backward()
    gradient = wide.decoder.up_blocks[0].resnets[0].conv1.weight.grad
    assert gradient is not None
    originals, copies = gradient.chunk(2)
    assert (originals - copies).norm() > 0.1 * originals.norm()


def test_other_widths_are_refused_by_the_layer_that_does_not_fit() -> None:
    with pytest.raises(TrainingError, match=r"encoder.conv_in.weight.*twice as large"):
        widen(codec("2.2", 4, 4), codec("2.2", 12, 4), torch.Generator())
    with pytest.raises(TrainingError, match=r"\(4, 12, 3, 3, 3\) in the recipe"):
        widen(codec("2.1", 4, 4), codec("2.2", 4, 4), torch.Generator())
