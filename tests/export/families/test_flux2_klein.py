"""FLUX.2-klein: the bundle draws what diffusers' own pipeline draws, from text alone and from reference pictures."""

import dataclasses
import hashlib
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import segue
from segue.engines.ort.engine import OrtEngine
from segue.errors import CheckpointError, UsageError
from segue.export.checkpoint import convert
from segue.export.checkpoint.defaults import find_defaults
from segue.export.checkpoint.read import read, read_part
from segue.export.checks import oracle
from segue.export.checks.oracle import Case
from segue.export.export import export
from segue.export.families.flux2_klein import graphs as klein
from segue.export.families.registry import find
from segue.export.graphs import trace
from segue.runtime.diagnostics.difference import psnr, relative_l2
from segue.runtime.sampling.noise import philox_normal
from support.bf16 import check_bundle

pytestmark = pytest.mark.filterwarnings("ignore::segue.runtime.notices.Notice")
PIPELINE = "Flux2KleinPipeline"
GATE, LATENTS = 60, 1e-4  # dB, relative L2
SHARED = ("text_encoder", "transformer", "vae")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::segue.runtime.bundle.tokens.PromptTruncated")
def test_pictures_from_text_are_those_of_diffusers(klein_bundle):
    cases = [
        Case("a red heart", (128, 128), 1.0, steps=4),
        Case("a sign 'OPEN' 日本", (64, 160), 1.0, steps=9),
        Case("word " * 200, (96, 64), 1.0, sigmas=(1.0, 0.6, 0.2)),  # 36 tokens of the chat's end are cut as well
        Case("", (256, 256), 1.0, steps=1),
    ]
    found = list(oracle.compare(klein_bundle, cases))
    assert len(found) == len(cases)
    assert min(d.psnr for d in found) >= GATE, found
    assert max(d.latents for d in found) <= LATENTS, found


def picture(height, width, seed):
    """Return a smooth picture of random colours."""
    squares = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(squares).resize((width, height), Image.Resampling.BICUBIC))


@pytest.mark.slow
@pytest.mark.parametrize("sides", [[(128, 96)], [(96, 160), (70, 85)]])  # the last one is cropped to 64 x 80
def test_pictures_from_references_are_those_of_diffusers(klein_bundle, sides):
    import torch

    references = [picture(*side, seed) for seed, side in enumerate(sides)]
    pipeline = oracle.load_pipeline(klein_bundle)
    with segue.open(klein_bundle) as model, torch.no_grad():
        for (height, width), steps in (((128, 96), None), ((64, 160), 2)):
            noise = philox_normal((16, height // 16, width // 16), 3, image=0)[None]
            request = segue.Request(
                "a red heart", size=(height, width), steps=steps, latents=noise, references=references
            )
            ours = model.render(request)
            plain = model.render(dataclasses.replace(request, references=()))
            latents = pipeline(
                prompt="a red heart", image=[Image.fromarray(one) for one in references], height=height, width=width,
                num_inference_steps=steps or 4, guidance_scale=1.0, latents=torch.from_numpy(noise.copy()),
                output_type="latent",
            ).images  # fmt: skip
            decoded = pipeline.vae.decode(latents, return_dict=False)[0]
            drawn = np.asarray(pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
            assert relative_l2(ours.latents, oracle._normalised(pipeline, latents).numpy()) <= LATENTS
            assert psnr(ours.images[0], drawn) >= GATE
            assert relative_l2(plain.latents, ours.latents) > 1e-3  # the references are seen


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
def test_a_hole_is_filled_as_by_diffusers_inpainting(klein_bundle, strength):
    import diffusers
    import torch

    image, mask = picture(128, 96, 5), np.zeros((128, 96), np.uint8)
    mask[32:96, 16:64] = 255
    pipeline = oracle.load_pipeline(klein_bundle)
    filling = diffusers.Flux2KleinInpaintPipeline(**pipeline.components, is_distilled=True)
    filling.set_progress_bar_config(disable=True)
    with segue.open(klein_bundle) as model, torch.no_grad():
        request = segue.Request(
            "a red heart", seed=4, size=(128, 96), noise="torch", image=image, mask=mask, strength=strength
        )
        ours = model.render(request)
        latents = filling(
            prompt="a red heart", image=Image.fromarray(image), mask_image=Image.fromarray(mask), strength=strength,
            height=128, width=96, num_inference_steps=4, guidance_scale=1.0, output_type="latent",
            generator=torch.Generator().manual_seed(4),
        ).images  # fmt: skip
        decoded = pipeline.vae.decode(latents, return_dict=False)[0]
    drawn = np.asarray(pipeline.image_processor.postprocess(decoded, output_type="pil")[0])
    assert relative_l2(ours.latents, oracle._normalised(pipeline, latents).numpy()) <= LATENTS
    assert np.array_equal(ours.images[0][mask == 0], image[mask == 0])
    assert psnr(ours.images[0][mask > 0], drawn[mask > 0]) >= GATE


@pytest.mark.slow
def test_a_base_model_is_guided_as_in_diffusers(klein_bundle, tmp_path):
    bundle = tmp_path / "base"
    shutil.copytree(klein_bundle, bundle)
    index = bundle / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"is_distilled": False}))
    table = json.loads((bundle / "bundle.json").read_text())
    table["sampler"]["guidable"] = True
    data = index.read_bytes()
    table["files"]["model_index.json"] |= {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    (bundle / "bundle.json").write_text(json.dumps(table))
    (found,) = oracle.compare(bundle, [Case("a red heart", (64, 96), 4.0, steps=3)])
    assert found.psnr >= GATE
    assert found.latents <= LATENTS


@pytest.mark.slow
def test_a_distilled_model_takes_no_guidance_and_a_bounded_number_of_references(klein_bundle):
    with segue.open(klein_bundle) as model:
        with pytest.raises(UsageError, match="guidance is 3, and klein was distilled without guidance"):
            model.generate("red", guidance=3)
        with pytest.raises(UsageError, match="klein takes at most 4 reference pictures"):
            model.generate("red", references=[picture(64, 64, 0)] * 5)


@pytest.mark.slow
def test_reference_pictures_cost_memory_and_time_in_a_plan(klein_bundle):
    with segue.open(klein_bundle) as model:
        plans = [model.plan(segue.Request("red", references=[picture(512, 512, 0)] * n)) for n in (0, 1, 2)]
    peaks, seconds = [plan.peak for plan in plans], [plan.seconds for plan in plans]
    assert peaks == sorted(set(peaks))
    assert seconds == sorted(set(seconds))


@pytest.mark.slow
def test_half_precision_takes_states_beyond_its_range_and_exact_timesteps(klein_checkpoint, tmp_path):
    import torch

    folder = tmp_path / "transformer"
    shutil.copytree(klein_checkpoint / "transformer", folder)
    file = "diffusion_pytorch_model.safetensors"
    (folder / file).unlink()
    convert.convert(klein_checkpoint / "transformer" / file, folder / file, "fp16")
    graph = klein.transformer(json.loads((folder / "config.json").read_text()))
    trace.write(graph, "fp16", read_part(tmp_path, "transformer").tensors, folder / "model.onnx")
    model = graph.wrap(graph.load(str(folder)).eval())
    feed = graph.feed(np.random.default_rng(0), graph.trials[0])
    feed["encoder_hidden_states"][:, 3] *= 1e5
    feed["timestep"][:] = 967.5  # a thousandth of it lies between two numbers of float16, 967.3 and 967.8
    with OrtEngine(folder / "model.onnx") as engine, torch.no_grad():
        made = engine.run(feed)["velocity"]
        wanted = model(*(torch.from_numpy(array) for array in feed.values()))
    assert np.isfinite(made).all()
    assert relative_l2(made.astype(np.float32), wanted.numpy()) <= 2e-3  # 4e-3 with a rounded timestep


@pytest.mark.slow
def test_a_bundle_in_half_precision_is_near_the_checkpoint(klein_checkpoint, klein_bundle, tmp_path):
    made = export(klein_checkpoint, tmp_path / "b", precision="fp16")
    assert {component.precision for component in made.components.values()} == {"fp16"}
    assert made.islands == {}
    assert made.fidelity.psnr >= made.fidelity.gate == 35
    assert {result.component for result in made.parity} == set(made.components)
    request = segue.Request("a red heart", size=(128, 96), seed=2, references=[picture(96, 96, 1)])
    drawn = []
    for bundle in (klein_bundle, tmp_path / "b"):
        with segue.open(bundle) as model:
            drawn.append(model.render(request).images[0])
    assert psnr(drawn[1], drawn[0]) >= 45


@pytest.mark.slow
def test_a_bundle_of_bf16_weights_is_as_near_to_fp32_as_diffusers_in_bf16(klein_checkpoint, tmp_path):
    ours, theirs = check_bundle(klein_checkpoint, tmp_path, prompt="a red heart", size=(96, 64), steps=4)
    assert ours >= max(theirs - 1, 40)


def facts_of(root):
    """Return what an export reads of the checkpoint at `root`."""
    family = find({"_class_name": PIPELINE})
    found = read(root, family.folders)
    settings = find_defaults(found, family.row, (), None, {}).settings
    return family.facts(dataclasses.replace(found, settings=settings))


def changed(checkpoint, root, file, change):
    """Return a copy of `checkpoint` at `root` with other values in one of its files; None removes one."""
    shutil.copytree(checkpoint, root)
    table = json.loads((root / file).read_text()) | change
    (root / file).write_text(json.dumps({key: value for key, value in table.items() if value is not None}))
    return root


def test_the_facts_of_a_distilled_checkpoint(klein_checkpoint):
    found = facts_of(klein_checkpoint)
    assert (found.sampler.steps, found.sampler.guidance, found.sampler.guidable) == (4, 1.0, False)
    assert found.sampler.token_shift is None
    assert found.sampler.step_shift.most == 4300
    assert (found.latents.channels, found.latents.factor, found.latents.patch) == (16, 16, 1)
    assert (found.sizes.default, found.sizes.minimum, found.sizes.maximum) == ((256, 256), 64, 256)


def test_guidance_asked_for_a_distilled_checkpoint_is_refused(klein_checkpoint, tmp_path):
    assert facts_of(changed(klein_checkpoint, tmp_path / "0", "segue.json", {"guidance": 0})).sampler.guidance == 1.0
    with pytest.raises(CheckpointError, match=r"guidance is 4, but model_index\.json sets is_distilled"):
        facts_of(changed(klein_checkpoint, tmp_path / "4", "segue.json", {"guidance": 4.0}))


@pytest.mark.parametrize("stated", [False, None])
def test_a_base_checkpoint_takes_guidance(klein_checkpoint, tmp_path, stated):
    found = facts_of(changed(klein_checkpoint, tmp_path / "c", "model_index.json", {"is_distilled": stated})).sampler
    assert found.guidable
    if stated is False:
        assert (found.steps, found.guidance) == (50, 4.0)


def test_a_scheduler_without_dynamic_shift_keeps_its_own(klein_checkpoint, tmp_path):
    file = "scheduler/scheduler_config.json"
    found = facts_of(changed(klein_checkpoint, tmp_path / "c", file, {"use_dynamic_shifting": False})).sampler
    assert (found.shift, found.step_shift, found.token_shift) == (3.0, None, None)


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("vae/config.json", {"patch_size": [1, 1]}, "vae/config.json sets patch_size"),
        ("vae/config.json", {"latent_channels": 8}, "the autoencoder gives 32"),
        ("vae/config.json", {"scaling_factor": 0.5}, "vae/config.json sets scaling_factor"),
        ("transformer/config.json", {"patch_size": 2}, "transformer/config.json sets patch_size"),
        ("transformer/config.json", {"in_channels": 8}, "has in_channels 8; the autoencoder gives 16"),
        ("transformer/config.json", {"out_channels": 8}, "has out_channels 8; the autoencoder gives 16"),
        ("transformer/config.json", {"joint_attention_dim": 32}, "gives 48"),
        ("transformer/config.json", {"a_setting_of_tomorrow": 1}, "sets a_setting_of_tomorrow"),
        ("text_encoder/config.json", {"num_hidden_layers": 27, "layer_types": None}, "has num_hidden_layers 27"),
        ("scheduler/scheduler_config.json", {"time_shift_type": "linear"}, "time_shift_type to 'linear'"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 0.1}, "shift_terminal"),
        ("model_index.json", {"text_encoder": ["transformers", "Qwen3Model"]}, "Qwen3Model"),
    ],
)
def test_a_checkpoint_that_would_be_drawn_wrong_is_refused(klein_checkpoint, tmp_path, file, change, why):
    root = changed(klein_checkpoint, tmp_path / "c", file, change)
    with pytest.raises(CheckpointError, match=why):
        export(root, tmp_path / "b", parity=False)


def test_an_older_key_of_the_autoencoder_that_changes_nothing_is_taken(klein_checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("segue.export.export._graphs", lambda *_: {})
    root = changed(klein_checkpoint, tmp_path / "c", "vae/config.json", {"force_upcast": True})
    assert export(root, tmp_path / "b", parity=False).family == "flux2-klein"


def test_a_text_encoder_that_overflows_half_precision_stays_wide(klein_checkpoint, tmp_path, monkeypatch):
    """Huge weights on a few channels, as of real Qwen3, whose residual stream passes 65504."""
    from safetensors.numpy import load_file, save_file

    shutil.copytree(klein_checkpoint, tmp_path / "c")
    path = tmp_path / "c/text_encoder/model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("down_proj.weight"):
            tensor[3] *= 1e4
        if name.endswith("up_proj.weight"):
            tensor *= 300
    save_file(tensors, path, {"format": "pt"})
    monkeypatch.setattr("segue.export.export._graphs", lambda *_: {})  # the islands are what is looked at
    monkeypatch.setattr("segue.export.export.with_footprints", lambda path, content, note: content)
    monkeypatch.setattr("segue.export.export._parity", lambda *_: ())
    monkeypatch.setattr("segue.export.export.fidelity.beside_full", lambda *_, **__: None)
    made = export(tmp_path / "c", tmp_path / "b", precision="fp16")
    assert made.islands.keys() == {"text_encoder"}
    assert "layers." in made.islands["text_encoder"]
