"""The pipeline against diffusers' own scheduler, guidance and image processor, around the same graphs."""

import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.image_processor import VaeImageProcessor

import segue
from segue.errors import BundleError, BusyError, Cancelled, UsageError
from segue.runtime.bundle import tokens


@pytest.fixture
def model(tiny_bundle):
    with segue.open(tiny_bundle, threads=1) as opened:
        yield opened


def reference(bundle, prompt, negative, latents, guidance, steps=None, sigmas=None):
    """Render as StableDiffusion3Pipeline.__call__ does, all pictures in one batch; returns latents and pictures."""
    content = segue.open(bundle).bundle.manifest
    sessions = {
        name: onnxruntime.InferenceSession(bundle / component.graph) for name, component in content.components.items()
    }

    def run(name, **feeds):
        wanted = {s.name: {"tensor(float16)": torch.float16}.get(s.type) for s in sessions[name].get_inputs()}
        arrays = {k: v.to(wanted[k] or v.dtype).numpy() for k, v in feeds.items()}
        return [torch.from_numpy(out) for out in sessions[name].run(None, arrays)]

    def encode(words):
        hidden, pooled = [], []
        for name, tokenizer in (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2")):
            spec = content.tokenizers[tokenizer]
            ids = tokens.tokenise(tokens.load_tokenizer(bundle / spec.file), spec, words).ids
            states, projected = run(name, input_ids=torch.from_numpy(ids).repeat(len(latents), 1))
            hidden.append(states)
            pooled.append(projected)
        clip = torch.nn.functional.pad(torch.cat(hidden, -1), (0, 20 - 16))
        return torch.cat([clip, torch.zeros(len(latents), 3, 20, dtype=clip.dtype)], -2), torch.cat(pooled, -1)

    sequence, pooled = encode(prompt)
    if guidance > 1:
        below = encode(negative)
        sequence, pooled = torch.cat([below[0], sequence]), torch.cat([below[1], pooled])
    scheduler = FlowMatchEulerDiscreteScheduler(shift=content.sampler.shift)
    scheduler.set_timesteps(steps, sigmas=sigmas)
    x = torch.from_numpy(latents)
    for t in scheduler.timesteps:
        batch = torch.cat([x] * 2) if guidance > 1 else x
        (velocity,) = run(
            "transformer",
            hidden_states=batch,
            encoder_hidden_states=sequence,
            pooled_projections=pooled,
            timestep=t.expand(len(batch)),
        )
        velocity = velocity.float()
        if guidance > 1:
            without, with_text = velocity.chunk(2)
            velocity = without + guidance * (with_text - without)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    (pixels,) = run("vae_decoder", latents=x / content.latents.scaling + content.latents.shift)
    pictures = VaeImageProcessor().postprocess(pixels, output_type="np")
    return x.numpy(), VaeImageProcessor.numpy_to_pil(pictures)


@pytest.mark.parametrize("tiny_bundle", ["float32", "float16"], indirect=True)
@pytest.mark.parametrize(
    "options",
    [
        {"guidance": 5.0, "steps": 6},
        {"guidance": 1.0, "steps": 1},
        {"guidance": 0.0, "steps": 3},
        {"guidance": 2.5, "sigmas": [1.0, 0.7, 0.31]},
    ],
)
def test_latents_and_pictures_are_those_of_diffusers(tiny_bundle, options):
    start = torch.randn((2, 4, 2, 6), generator=torch.Generator().manual_seed(4)).numpy()
    with segue.open(tiny_bundle, threads=1) as model:
        request = segue.Request("a red heart", "blue", size=(16, 48), count=2, latents=start, **options)
        found = model.render(request)
    latents, pictures = reference(tiny_bundle, "a red heart", "blue", start, **options)
    assert np.linalg.norm(found.latents - latents) <= 1e-5 * np.linalg.norm(latents)
    assert np.abs(found.images.astype(int) - np.stack(pictures)).max() <= 1
    assert np.std(found.images) > 10


def test_one_picture_is_height_width_colours_and_several_are_a_stack(model):
    one = model.generate("a red heart", seed=7, size=(16, 32))
    assert (one.shape, one.dtype) == ((16, 32, 3), np.uint8)
    assert model.generate("a red heart", count=2, size=(16, 32)).shape == (2, 16, 32, 3)
    assert model.generate(["a cat", "a dog"], size=(16, 32)).shape == (2, 16, 32, 3)
    assert model.generate(["a cat"], size=(16, 32)).shape == (1, 16, 32, 3)


def test_pictures_come_one_by_one_as_render_gives_them_together(model):
    request = segue.Request(["a cat", "a dog"], seed=3, count=2, size=(16, 32))
    seen = []
    pictures = model.pictures(request, on_step=lambda done, total, x: seen.append(done))
    assert seen == []
    first = next(pictures)
    assert seen == [1, 2, 3, 4]
    assert (first.image.shape, first.latents.shape) == ((16, 32, 3), (4, 2, 4))
    rest = list(pictures)
    together = model.render(request)
    assert together.latents.dtype == np.float32
    for i, picture in enumerate([first, *rest]):
        assert np.array_equal(picture.image, together.images[i])
        assert np.array_equal(picture.latents, together.latents[i])
        assert picture.metadata == together.metadata[i]


def test_a_request_for_pictures_is_checked_at_once(model):
    with pytest.raises(UsageError, match=r"steps must be .*, got 0"):
        model.pictures(segue.Request("a cat", steps=0))


def test_a_second_call_while_one_runs_is_refused_and_later_ones_are_not(model):
    with pytest.raises(BusyError, match="busy with another call"):
        model.generate("a cat", on_step=lambda *step: model.generate("a dog"))
    pictures = model.pictures(segue.Request("a cat", count=2))
    next(pictures)
    with pytest.raises(BusyError, match="busy with another call"):
        model.generate("a dog")
    pictures.close()
    model.generate("a dog")


def test_closing_ends_what_is_under_way(model):
    pictures = model.pictures(segue.Request("a cat", count=2))
    next(pictures)
    model.close()
    with pytest.raises(UsageError, match="was closed"):
        next(pictures)


@pytest.mark.parametrize("name", ["model.onnx", "weights.safetensors"])
def test_a_component_that_changed_since_the_bundle_was_opened_is_not_loaded(tiny_bundle, model, name):
    path = tiny_bundle / "transformer" / name
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b"\0")
    with pytest.raises(BundleError, match="was changed since the bundle was opened"):
        model.generate("a cat")


def test_the_same_request_gives_the_same_bytes_in_another_process_state(tiny_bundle, model):
    first = model.generate("a cat", seed=3)
    assert np.array_equal(first, model.generate("a cat", seed=3))
    with segue.open(tiny_bundle, threads=1) as other:
        other.generate("a dog", seed=8)
        assert np.array_equal(first, other.generate("a cat", seed=3))
    assert not np.array_equal(first, model.generate("a cat", seed=4))
    assert not np.array_equal(first, model.generate("a dog", seed=3))


def test_a_pictures_bytes_do_not_depend_on_what_is_rendered_beside_it(model):
    many = model.generate(["a cat", "the moon"], seed=3, count=3)
    assert np.array_equal(many[3], model.generate("the moon", seed=3))
    assert np.array_equal(many[4:5], model.generate("the moon", seed=3, count=2)[1:])


def test_negative_words_matter_only_with_guidance(model):
    options = {"seed": 3, "guidance": 4.0}
    assert not np.array_equal(model.generate("a cat", **options), model.generate("a cat", negative="dog", **options))
    options["guidance"] = 1.0
    with pytest.warns(UserWarning, match="guidance is 1, so the negative prompt has no effect") as caught:
        with_it = model.generate("a cat", negative="dog", **options)
    assert caught[0].filename == __file__
    assert np.array_equal(model.generate("a cat", **options), with_it)


def test_progress_counts_over_all_pictures_and_shows_latents_that_cannot_be_written(model):
    seen = []
    model.generate("a cat", count=2, steps=3, on_step=lambda done, total, x: seen.append((done, total, x.shape, x)))
    assert [entry[:3] for entry in seen] == [(i, 6, (1, 4, 4, 4)) for i in range(1, 7)]
    with pytest.raises(ValueError, match="read-only"):
        seen[0][3][0] = 0


def test_cancelling_stops_before_the_next_network_call(model):
    seen = []
    with pytest.raises(Cancelled):
        model.generate("a cat", steps=9, on_step=lambda *step: seen.append(step), cancel=lambda: len(seen) == 2)
    assert len(seen) == 2
    assert model.generate("a cat").shape == (32, 32, 3)


def test_an_error_in_the_callers_callback_reaches_the_caller(model):
    def fail(*step):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        model.generate("a cat", on_step=fail)


def test_a_prompt_that_is_cut_warns_once_and_names_the_part(model):
    long = "a red cat on a green moon on the dog"
    with pytest.warns(segue.PromptTruncated, match="longer than 8 tokens.*'moon on the dog'") as caught:
        model.generate(long, count=2)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", segue.PromptTruncated)
        warnings.simplefilter("ignore", UserWarning, append=True)
        model.generate("a cat", negative=long, guidance=1.0)
    with pytest.warns(segue.PromptTruncated):
        model.generate("a cat", negative=long)


def test_the_empty_prompt_renders(model):
    assert model.generate("").shape == (32, 32, 3)


def test_metadata_is_enough_to_render_a_picture_again(model):
    result = model.render(segue.Request(["a cat", "a dog"], seed=2**63, count=2, sigmas=[1.0, 0.4], size=(16, 32)))
    facts = result.metadata[3]
    again = model.generate(
        facts["prompt"],
        negative=facts["negative"],
        seed=facts["seed"],
        guidance=facts["guidance"],
        size=tuple(facts["size"]),
        count=facts["count"],
        sigmas=facts["sigmas"],
        noise=facts["noise"],
    )
    assert np.array_equal(again[facts["index"]], result.images[3])
    assert facts["bundle_sha256"] == model.bundle.digest
    assert facts["segue"] == segue.__version__


def test_a_closed_model_says_so(tiny_bundle):
    model = segue.open(tiny_bundle)
    model.close()
    model.close()
    with pytest.raises(UsageError, match="was closed"):
        model.generate("a cat")


@pytest.mark.parametrize("threads", [0, 257, 10**9, 1.5])
def test_a_number_of_threads_out_of_measure_is_refused_when_opening(tiny_bundle, threads):
    with pytest.raises(UsageError, match=f"threads must be from 1 to 256, got {threads}"):
        segue.open(tiny_bundle, threads=threads)


def test_hashing_is_told_when_a_bundle_is_opened(tiny_bundle):
    seen = []
    segue.open(tiny_bundle, progress=lambda file, done, total: seen.append((done, total))).close()
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.update(family="wan"), "family 'wan'"),
        (lambda t: t["sampler"].update(kind="ddim"), "sampler 'ddim'"),
        (lambda t: t["components"].pop("vae_decoder"), "lacks vae_decoder"),
        (lambda t: t["tokenizers"].pop("tokenizer_2"), "lacks tokenizer_2"),
        (lambda t: t["components"]["transformer"].update(precision="bf16"), "bf16"),
        (lambda t: t["components"]["transformer"]["inputs"].clear(), "no input encoder_hidden_states"),
    ],
)
def test_a_bundle_that_this_segue_cannot_render_is_refused_when_opened(edit, change, said):
    with pytest.raises(BundleError, match=said):
        segue.open(edit(change))
