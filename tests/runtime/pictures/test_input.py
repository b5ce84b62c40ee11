"""A request that begins with a picture: its checks, its mask, its first step and its noise."""

import dataclasses

import numpy as np
import pytest

from segue.errors import UsageError
from segue.runtime.bundle.families import draws_posterior, family_of, takes_picture
from segue.runtime.input_picture import MAX_REFERENCE, references_of
from segue.runtime.pipeline import open_model
from segue.runtime.request import Request, prepare
from segue.runtime.sampling import noise
from segue.runtime.sampling.recurrence import Schedule, Space, sample
from segue.runtime.sampling.schedule import custom_schedule, first_step

pytestmark = pytest.mark.filterwarnings("ignore::segue.runtime.notices.Notice")
SIDE = 128


def picture(height=SIDE, width=SIDE):
    """Return a picture with other values in each pixel."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8)


def hole(height=SIDE, width=SIDE):
    """Return a mask whose edges lie between latent pixels."""
    mask = np.zeros((height, width), np.uint8)
    mask[34:90, 18:80] = 255
    return mask


@pytest.fixture(scope="module")
def model():
    with open_model("emoji") as opened:
        yield opened


@pytest.mark.parametrize(
    ("strength", "steps", "flow", "betas"), [(0.3, 5, 3, 4), (0.6, 4, 1, 2), (1.0, 4, 0, 0), (0.5, 4, 2, 2)]
)
def test_strength_leaves_out_the_steps_that_diffusers_leaves_out(strength, steps, flow, betas):
    sigmas = custom_schedule(np.linspace(1, 1 / steps, steps), 1.0, 1000)
    assert first_step(sigmas, strength) == flow
    assert first_step(dataclasses.replace(sigmas, space=Space.PRESERVING), strength) == betas


def test_a_strength_that_leaves_no_step_is_refused():
    sigmas = dataclasses.replace(custom_schedule([1.0, 0.5], 1.0, 1000), space=Space.EXPLODING)
    with pytest.raises(UsageError, match=r"0\.4 leaves none of 2 steps"):
        first_step(sigmas, 0.4)


def test_a_run_from_the_middle_ends_like_the_whole_run():
    def network(latents, timestep):
        return np.tanh(latents) * np.float32(timestep / 1000)

    seen = []
    schedule = custom_schedule([1.0, 0.7, 0.4, 0.2], 3.0, 1000)
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    whole = sample(network, latents, schedule, lambda step, now: seen.append(now))
    assert np.array_equal(sample(network, seen[1], schedule.after(2)), whole)


@pytest.mark.parametrize("space", Space)
def test_the_last_level_is_the_picture_itself(space):
    schedule = dataclasses.replace(custom_schedule([1.0, 0.5], 1.0, 1000), space=space)
    clean, drawn = (np.full((1, 1, 2, 2), value, np.float32) for value in (0.25, 3.0))
    assert np.array_equal(schedule.mixed(2, clean, drawn), clean)
    half = {Space.FLOW: 1.625, Space.EXPLODING: 1.75, Space.PRESERVING: 1.75 / np.sqrt(1.25)}[space]
    assert np.allclose(schedule.mixed(1, clean, drawn), half)


def test_what_the_mask_keeps_has_the_pixels_of_the_picture(model):
    image, mask = picture(), hole()
    drawn = model.generate("a red heart", image=image, mask=mask)
    assert np.array_equal(drawn[mask == 0], image[mask == 0])
    assert not np.array_equal(drawn[mask > 0], image[mask > 0])


def test_feather_mixes_both_pictures_at_the_edge_only(model):
    image, mask = picture(), hole()
    hard = model.prepare(Request("a red heart", image=image, mask=mask)).start.mask
    soft = model.prepare(Request("a red heart", image=image, mask=mask, feather=2)).start.mask
    assert set(np.unique(hard)) == {0, 1}
    assert 0.3 < soft[34, 48] < 0.7  # the first masked row
    assert soft[62, 48] > 0.999
    assert soft[0, 127] == 0


def test_a_latent_pixel_is_redrawn_if_any_of_its_pixels_is(model):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[9, 9] = 255
    prepared = model.prepare(Request("a red heart", image=picture(), mask=mask))
    factor = model.bundle.manifest.latents.factor
    found = prepared.start.latent_mask(factor)
    assert found.shape == (1, 1, SIDE // factor, SIDE // factor)
    assert found.sum() == found[0, 0, 9 // factor, 9 // factor] == 1


def test_strength_and_steps_are_counted_in_the_plan_and_in_progress(model):
    told = []
    request = Request("a red heart", image=picture(), strength=0.5, steps=4)
    (made,) = model.pictures(request, on_step=lambda done, total, latents: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    assert made.metadata["strength"] == 0.5
    assert len(made.metadata["image_sha256"]) == 64
    calls = {phase.component: phase.calls for phase in model.plan(request).phases}
    assert calls["transformer"] == 2
    assert calls["vae_encoder"] == 1


def test_sigmas_below_one_say_where_a_picture_begins(model):
    request = Request("a red heart", image=picture(), sigmas=(0.6, 0.3))
    assert model.prepare(request).steps == 2
    weak, strong = (model.generate("a red heart", image=picture(), sigmas=(s, s / 2)) for s in (0.05, 0.9))
    far = [np.abs(made.astype(int) - picture()).mean() for made in (weak, strong)]
    assert far[0] < far[1]


def test_the_latents_of_a_picture_are_the_same_for_each_picture_of_a_request(model):
    both = model.render(Request("a red heart", image=picture(), count=2)).images
    alone = model.render(Request("a red heart", image=picture())).images
    assert np.array_equal(both[0], alone[0])
    assert not np.array_equal(both[0], both[1])


def test_torchs_generator_draws_the_picture_first(model):
    prepared = model.prepare(Request("a red heart", image=picture(), noise="torch", seed=3))
    shape = (1, *prepared.shape)
    assert np.array_equal(prepared.posterior(), noise.torch_normal(shape, 3))
    assert np.array_equal(prepared.initial(0), noise.torch_normal(shape, 3, [shape]))


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"strength": 0.5}, "strength was given without a picture"),
        ({"mask": hole()}, "mask was given without a picture"),
        ({"image": picture(), "strength": 0}, "above 0 and at most 1, got 0"),
        ({"image": picture(), "strength": True}, "above 0 and at most 1, got True"),
        ({"image": picture(), "mask": hole(96)}, r"mask must be uint8 \[128, 128\]"),
        ({"image": picture(), "feather": 3}, "Give mask too"),
        ({"image": picture().astype(np.float32)}, r"image must be uint8 \[height, width, 3\], got float32"),
        ({"references": [picture()]}, "1 reference picture was given, and emoji takes no reference pictures"),
        ({"references": picture()}, "references must be a list of pictures, got ndarray"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(model, wanted, told):
    with pytest.raises(UsageError, match=told):
        model.prepare(Request("a red heart", **wanted))


def test_a_bundle_without_an_encoder_refuses_a_picture(model):
    content = model.bundle.manifest
    assert takes_picture(content)
    assert draws_posterior(content)
    bare = dataclasses.replace(content, components={n: c for n, c in content.components.items() if n != "vae_encoder"})
    assert not takes_picture(bare)
    with pytest.raises(UsageError, match="has no encoder"):
        prepare(Request("a red heart", image=picture()), bare)


def test_a_reference_is_cut_to_multiples_and_scaled_to_a_megapixel():
    found = references_of([picture(70, 100), picture(2000, 1500)], 2, 16, "b")
    assert [one.shape for one in found] == [(64, 96, 3), (1168, 880, 3)]
    assert found[1].shape[0] * found[1].shape[1] <= MAX_REFERENCE
    assert np.array_equal(found[0], picture(70, 100)[3:67, 2:98])
    with pytest.raises(UsageError, match="too small"):
        references_of([picture(10, 100)], 2, 16, "b")


def test_the_picture_under_a_mask_counts_as_a_reference(model):
    content = dataclasses.replace(model.bundle.manifest, family="flux2-klein")
    most = family_of(content).references
    masked = {"image": picture(), "mask": hole()}
    fits = prepare(Request("a red heart", references=[picture()] * (most - 1), **masked), content)
    assert len(fits.references) == most
    with pytest.raises(UsageError, match=f"takes at most {most - 1} reference pictures beside a mask"):
        prepare(Request("a red heart", references=[picture()] * most, **masked), content)
    assert len(prepare(Request("a red heart", references=[picture()] * most), content).references) == most


def test_a_schedule_of_second_order_begins_with_a_step_of_first_order():
    two = np.array([2.0, 3.0], np.float32)
    past = (np.array([0, 0.5], np.float32), two, two)
    schedule = Schedule(np.array([1, 0.5, 0], np.float32), two, two, two, two, past=past)
    later = schedule.after(1)
    assert later.past is not None
    assert later.past[0].tolist() == [0]
    assert (later.keep[0], later.move[0]) == (4.5, 4.5)
