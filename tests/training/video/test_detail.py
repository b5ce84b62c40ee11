import dataclasses
import json
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan

from segue.errors import TrainingError
from segue.export.checkpoint import read
from segue.export.families.registry import find
from segue.export.families.wan.segment import SegmentTransformer
from segue.runtime.bundle.segments import segment
from segue.training.loop.networks import pretrained
from segue.training.loop.run import step_generator
from segue.training.recipe import train
from segue.training.video.detail import Detail
from segue.training.video.spec import DetailSpec

RECIPE = """
[detail]
data = "{clips}"
codec = "{parts}"
text = "{parts}"
motion = "{motion}"
frames = 17
layers = 1
heads = 2
head = 12
feed_forward = 24
length = 8

[loop]
steps = {steps}
batch = 2
learning_rate = 1e-3
warmup = 1
save_every = 2
grid_every = 2
"""


@pytest.fixture
def spec(clips: Path, detail_parts: Path, motion: Path) -> DetailSpec:
    places = {"data": clips, "codec": detail_parts, "text": detail_parts, "motion": motion}
    sizes = {"frames": 17, "layers": 1, "heads": 2, "head": 12, "feed_forward": 24, "length": 8}
    return DetailSpec(**{name: str(place) for name, place in places.items()}, **sizes)


def trained(spec: DetailSpec) -> Detail:
    """Return a training whose network is random, so that all it sees has an effect."""
    training = Detail(spec, 0)
    with torch.no_grad():
        for p in training.transformer.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    return training


@pytest.mark.slow
def test_what_is_trained_is_a_checkpoint_with_its_segments(clips, detail_parts, motion, tmp_path: Path) -> None:
    losses: list[float] = []
    for steps in (2, 4):
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(clips=clips, parts=detail_parts, motion=motion, steps=steps))
        train(path, tmp_path / "run", lambda step, steps, figures: losses.append(figures["loss"]))
    assert len(losses) == 4
    assert (tmp_path / "run/grid-00000004.png").is_file()
    made = tmp_path / "run/checkpoint"
    said = json.loads((made / "segue.json").read_text())["video"]
    assert (said["targets"], said["before"], said["after"], said["scale"], said["size"]) == (3, 1, 0, 4, [128, 128])
    family = find(read.read_index(made))
    found = read.read(made, family.folders)
    family.check(found.index)
    assert family.facts(found).video.frames == 17
    model = SegmentTransformer.from_pretrained(made / "detail_transformer")
    assert model.config.in_channels == 12
    assert model.config.out_channels == 6
    again = DetailSpec(str(clips), str(detail_parts), str(detail_parts), str(motion), 17, start=str(made), length=8)
    onward = Detail(again, 0).transformer.state_dict()
    assert all(torch.equal(onward[name], tensor.float()) for name, tensor in model.state_dict().items())


def test_segments_of_every_kind_are_drawn_and_only_targets_are_learned(spec: DetailSpec) -> None:
    training = trained(spec)
    drawn = [training.draw(2, step_generator(0, step)) for step in range(12)]
    assert {one.index for one in drawn} == {0, 1}
    one = next(one for one in drawn if one.index == 1)
    targets = list(segment(1, 5, spec.segments).targets)
    loss, _ = training.loss(one)
    clean = one.clean.clone()
    clean[:, :, targets] += 1.0  # what is to be learned, and the noisy frames with it
    assert training.loss(dataclasses.replace(one, clean=clean))[0] != loss
    others = one.clean.clone()
    others[:, :, 1:3] += 1.0  # frames that this segment does not see
    assert training.loss(dataclasses.replace(one, clean=others, seen=others))[0] == loss


def test_a_share_of_the_references_is_only_resampled(spec: DetailSpec) -> None:
    some = Detail(dataclasses.replace(spec, resampled=0.5), 0)
    drawn = some.draw(64, step_generator(0, 0))
    ways = [
        [len((part == one).flatten(1).all(1).nonzero()) > 0 for one in drawn.reference.half()]
        for part in (some.reference, some.resampled)
    ]
    assert all(one != other for one, other in zip(*ways, strict=True))
    assert 16 < sum(ways[1]) < 48


def test_only_neighbours_are_corrupted_and_only_as_context(spec: DetailSpec) -> None:
    training = trained(dataclasses.replace(spec, corrupted=0.5))
    drawn = training.draw(16, step_generator(0, 3))
    assert torch.equal(drawn.seen[:, :, 0], drawn.clean[:, :, 0])
    changed = (drawn.seen != drawn.clean).flatten(1).any(1)
    assert 2 < changed.sum() < 14


@pytest.mark.parametrize("both_ways", [True, False])
def test_a_clean_frame_sees_noisy_ones_unless_that_is_switched_off(spec: DetailSpec, both_ways: bool) -> None:
    training = trained(dataclasses.replace(spec, both_ways=both_ways))
    one = next(d for d in (training.draw(2, step_generator(0, s)) for s in range(12)) if d.index == 1)
    seen: list[torch.Tensor] = []
    training.transformer.blocks[-1].register_forward_hook(lambda module, given, made: seen.append(made))
    training.loss(one)
    training.loss(dataclasses.replace(one, noise=one.noise + 1))
    tokens = 16 * 2  # of the image latent and one neighbour
    clean_moved = (seen[1][:, :tokens] - seen[0][:, :tokens]).abs().max() > 1e-4
    assert (seen[1][:, tokens:] - seen[0][:, tokens:]).abs().max() > 1e-3
    assert bool(clean_moved) == both_ways


def test_without_the_image_latent_the_window_is_a_frame_shorter(spec: DetailSpec) -> None:
    training = trained(dataclasses.replace(spec, image=False))
    one = training.draw(2, step_generator(0, 0))
    seen: list[torch.Tensor] = []
    training.transformer.blocks[-1].register_forward_hook(lambda module, given, made: seen.append(made))
    training.loss(one)
    assert seen[0].shape[1] == 16 * (len(segment(one.index, 5, spec.segments).frames) - 1)


def test_the_checkpoint_gets_a_decoder_that_was_trained_alone_and_no_other_one(
    spec: DetailSpec, tmp_path: Path
) -> None:
    vae = pretrained(AutoencoderKLWan, Path(spec.codec) / "vae")
    with torch.no_grad():
        vae.decoder.conv_out.bias += 1
    vae.save_pretrained(tmp_path / "decoder/vae")
    training = Detail(dataclasses.replace(spec, decoder=str(tmp_path / "decoder")), 0)
    training.finish(tmp_path / "out")
    made = pretrained(AutoencoderKLWan, tmp_path / "out/checkpoint/detail_vae")
    torch.testing.assert_close(made.decoder.conv_out.bias, vae.decoder.conv_out.bias, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        vae.encoder.conv_in.bias += 1
    vae.save_pretrained(tmp_path / "decoder/vae")
    with pytest.raises(TrainingError, match="differs from the encoder of"):
        training.finish(tmp_path / "out")
