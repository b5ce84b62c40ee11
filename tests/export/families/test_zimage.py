"""Z-Image: the bundle draws what diffusers' own pipeline draws."""

import dataclasses
import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest
from safetensors.torch import load_file, save_file

from segue.errors import CheckpointError
from segue.export.checkpoint import headers
from segue.export.checkpoint.defaults import find_defaults
from segue.export.checkpoint.lora.merge import PATCH, Lora, merge
from segue.export.checkpoint.read import read, read_index
from segue.export.checks import oracle
from segue.export.checks.fp16_overflow import first_overflow
from segue.export.checks.oracle import Case, load_pipeline
from segue.export.export import export
from segue.export.families.graph import WEIGHT
from segue.export.families.registry import find
from segue.export.families.zimage.transformer import transformer
from segue.runtime.bundle import reader
from segue.runtime.bundle.shapes import SizeRange, profiles
from segue.runtime.bundle.tokens import load_tokenizer, tokenise
from segue.runtime.diagnostics.difference import relative_l2
from segue.runtime.pipeline import open_model
from segue.runtime.planning.hardware import find_machine
from segue.runtime.planning.pictures import Wanted, unbounded_plan
from segue.runtime.request import Request
from segue.runtime.sampling.noise import torch_normal
from segue.runtime.sampling.schedule import custom_schedule
from support.bf16 import check_bundle
from support.single_files import zimage as original_names

GATE = 60  # dB
LATENTS = 1e-4
AROUND = 19  # tokens of the template: its special tokens are one each, and each other byte is one


def prompt_of(tokens):
    """Return a prompt that has this many tokens in its template."""
    return ("a hat on the snow, " * 40)[: tokens - AROUND]


def check(bundle, cases):
    found = list(oracle.compare(bundle, cases))
    assert len(found) == len(cases)
    assert min(d.psnr for d in found) >= GATE, found
    assert max(d.latents for d in found) < LATENTS, found


@pytest.mark.slow
def test_prompts_of_every_length_draw_as_diffusers_does(zimage_bundle):
    """The model attends to the pads that fill a multiple of 32: below, at and above one, and cut at 512."""
    opened, prompts = reader.read(zimage_bundle), [prompt_of(tokens) for tokens in (63, 64, 65)]
    spec = opened.manifest.tokenizers["tokenizer"]
    tokenizer = load_tokenizer(opened.path(spec.file))
    assert [tokenise(tokenizer, spec, prompt).ids.shape for prompt in prompts] == [(1, 63), (1, 64), (1, 65)]
    check(zimage_bundle, [Case(prompt, (64, 80), 1.0, steps=2) for prompt in (*prompts, "", prompt_of(700))])


@pytest.mark.slow
def test_sizes_steps_and_levels_draw_as_diffusers_does(zimage_bundle):
    """A picture of 128 x 128 px has 64 tokens, two whole groups; the other has 45."""
    cases = [
        Case("a red heart", (128, 128), 0.0, steps=8),
        Case("写着“你好”的牌子, 'OPEN'", (80, 144), 1.0, steps=9),
        Case("a red heart", (80, 144), 1.0, sigmas=(1.0, 0.6, 0.2)),
    ]
    check(zimage_bundle, cases)


@pytest.mark.slow
def test_guidance_by_prompts_of_unequal_lengths_draws_as_diffusers_does(zimage_bundle):
    """Segue's guidance is diffusers' and 1: there the pipeline adds guidance times the difference to the positive."""
    cases = [
        Case("a red heart", (64, 80), 3.5, steps=4, negative="blurred, and much longer than the prompt itself"),
        Case("a red heart", (64, 80), 2.0, steps=3),
        Case("a hat", (64, 80), 2.0, steps=3, negative="a dog"),  # as many tokens as the prompt
    ]
    check(zimage_bundle, cases)


@pytest.mark.slow
def test_several_pictures_of_a_request_draw_as_diffusers_does(zimage_bundle):
    import torch

    prompts, (height, width), seed = ["a red heart", "a much longer prompt about a red heart"], (64, 96), 7
    pipeline = load_pipeline(zimage_bundle)
    with torch.no_grad():  # the pipeline writes its template into the list that it is given
        made = pipeline(
            list(prompts), height=height, width=width, num_inference_steps=3, guidance_scale=0.0,
            num_images_per_prompt=2, latents=torch.from_numpy(torch_normal((4, 4, height // 8, width // 8), seed)),
        ).images  # fmt: skip
    with open_model(zimage_bundle) as model:
        ours = model.generate(prompts, count=2, size=(height, width), steps=3, seed=seed, noise="torch")
    assert ours.shape == (4, height, width, 3)
    for one, other in zip(ours, made, strict=True):
        assert oracle.psnr(one, np.asarray(other)) >= GATE


@pytest.mark.slow
def test_a_bundle_in_half_precision_is_near_the_checkpoint(zimage_checkpoint, tmp_path):
    notes = []
    made = export(zimage_checkpoint, tmp_path / "b", precision="fp16", progress=lambda event: notes.append(event.text))
    assert {component.precision for component in made.components.values()} == {"fp16"}
    assert made.islands == {}
    assert made.fidelity.psnr >= made.fidelity.gate, notes
    assert {result.component for result in made.parity} == set(made.components)


@pytest.mark.slow
def test_a_bundle_of_bf16_weights_is_as_near_to_fp32_as_diffusers_in_bf16(zimage_checkpoint, tmp_path):
    ours, theirs = check_bundle(zimage_checkpoint, tmp_path, prompt="a red heart", size=(64, 96), steps=8)
    assert ours >= max(theirs - 1, 40)


@pytest.mark.slow
def test_a_guided_request_is_planned_and_built_for_one_prompt_a_call(zimage_bundle):
    content = reader.read(zimage_bundle).manifest
    machine = find_machine("rtx4090")
    made = unbounded_plan(content, Wanted(128, 128, 8, guided=True), machine)
    assert not made.together
    assert {phase.component: phase.calls for phase in made.phases}["transformer"] == 16
    content = dataclasses.replace(content, sampler=dataclasses.replace(content.sampler, guidance=6.0))
    (profile,) = profiles(content, [SizeRange(*[(128, 128)] * 3)], guided=True)["transformer"]
    assert [shape[0] for shape in profile["hidden_states"]] == [1, 1, 1]
    assert [shape[1] for shape in profile["encoder_hidden_states"]] == [AROUND, AROUND + 64, 512]


@pytest.mark.slow
def test_shards_of_the_checkpoint_are_used_where_they_lie(zimage_bundle, zimage_checkpoint):
    content = reader.read(zimage_bundle).manifest
    for folder, stem in (("transformer", "diffusion_pytorch_model"), ("text_encoder", "model")):
        index = json.loads((zimage_checkpoint / folder / f"{stem}.safetensors.index.json").read_text())
        shards = {f"{folder}/{name}" for name in index["weight_map"].values()}
        assert len(shards) > 1
        assert set(content.components[folder].weights) <= shards
        assert all((zimage_bundle / shard).read_bytes() == (zimage_checkpoint / shard).read_bytes() for shard in shards)


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("masked", [False, True], ids=["image-to-image", "inpainting"])
@pytest.mark.filterwarnings("ignore::segue.runtime.notices.Notice")
def test_a_picture_to_begin_with_is_taken_as_diffusers_takes_it(zimage_bundle, masked, strength):
    """The hole has the edges of latent pixels: diffusers asks one pixel of each square."""
    import diffusers
    import torch
    from PIL import Image

    rows, columns = np.mgrid[0:64, 0:96]
    given, mask = np.stack([rows * 3, columns * 2, rows + columns], -1).astype(np.uint8), np.zeros((64, 96), np.uint8)
    mask[16:40, 24:80] = 255
    kind = diffusers.ZImageInpaintPipeline if masked else diffusers.ZImageImg2ImgPipeline
    pipeline = kind(**load_pipeline(zimage_bundle).components)
    theirs = {"mask_image": Image.fromarray(mask)} if masked else {}
    mine = {"mask": mask} if masked else {}
    with torch.no_grad():
        latents = pipeline(
            "a red heart", image=Image.fromarray(given), strength=strength, height=64, width=96, guidance_scale=0.0,
            num_inference_steps=8, generator=torch.Generator().manual_seed(5), output_type="latent", **theirs,
        ).images  # fmt: skip
        config = pipeline.vae.config
        pixels = pipeline.vae.decode(latents / config.scaling_factor + config.shift_factor, return_dict=False)[0]
    drawn = np.asarray(pipeline.image_processor.postprocess(pixels, output_type="pil")[0])
    with open_model(zimage_bundle) as model:
        ours = model.render(
            Request(
                "a red heart", image=given, strength=strength, size=(64, 96), steps=8, seed=5, noise="torch", **mine
            )
        )
    assert relative_l2(ours.latents, latents.numpy()) <= LATENTS
    # diffusers gives the pixels outside the mask as the autoencoder does, and Segue unchanged
    expected = np.where(mask[..., None] > 0, drawn, given) if masked else drawn
    assert oracle.psnr(ours.images[0], expected) >= GATE


@pytest.mark.parametrize("steps", [1, 8, 9])
def test_the_levels_are_those_of_diffusers_to_the_bit(steps):
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas

    theirs = FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(sigmas=get_default_z_image_sigmas(steps), mu=1.0)
    ours = custom_schedule(np.linspace(1, 1 / steps, steps), 3.0, 1000)
    np.testing.assert_array_equal(ours.sigmas, theirs.sigmas.numpy())
    np.testing.assert_array_equal(ours.timesteps, theirs.timesteps.numpy())


@pytest.mark.slow
def test_the_bundle_holds_the_template_and_eight_steps_without_guidance(zimage_bundle):
    content = reader.read(zimage_bundle).manifest
    assert (content.sampler.steps, content.sampler.guidance, content.sampler.shift) == (8, 0.0, 3.0)
    template = content.tokenizers["tokenizer"].template
    assert (template.before, template.after) == ("<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n")
    assert template.tokens == AROUND
    assert [spec.name for spec in content.components["text_encoder"].inputs] == ["input_ids"]
    graph = ir.load(zimage_bundle / "transformer/model.onnx").graph
    made = [node.op_type for node in graph]
    assert made.count("Attention") == 4  # two layers, and a refiner of the picture and of the text
    assert "Softmax" not in made


@pytest.mark.parametrize(
    ("name", "steps", "guidance"),
    [("Tongyi-MAI/Z-Image-Turbo", 8, 0.0), ("Z-Image", 50, 6.0), ("z_image_turbo", 8, 0.0), ("my-model", 8, 0.0)],
)
def test_the_name_of_a_published_model_gives_its_steps(zimage_checkpoint, name, steps, guidance):
    family = find(read_index(zimage_checkpoint))
    found = find_defaults(read(zimage_checkpoint, family.folders), family.row, [name], None, {})
    assert (found.settings.steps, found.settings.guidance) == (steps, guidance)


def test_the_places_of_the_model_bound_the_sizes(zimage_checkpoint, tmp_path):
    """32 places of 16 px are 512 px, whatever segue.json allows."""
    made = changed(zimage_checkpoint, tmp_path, "segue.json", {"maximum_size": 4096})
    family = find({"_class_name": "ZImagePipeline"})
    found = read(made, family.folders)
    assert family.facts(found).sizes.maximum == 512
    assert family.facts(found).sizes.default == (512, 512)


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("transformer/config.json", {"in_channels": 8}, "in_channels 8; the autoencoder has 4"),
        ("transformer/config.json", {"cap_feat_dim": 48}, "cap_feat_dim 48; the text encoder gives 32"),
        ("transformer/config.json", {"siglip_feat_dim": 16}, "sets siglip_feat_dim"),
        ("transformer/config.json", {"all_patch_size": [4]}, r"all_patch_size \[4\]"),
        ("transformer/config.json", {"axes_lens": [513, 32, 32]}, r"axes_lens \[513, 32, 32\]"),
        ("transformer/config.json", {"axes_lens": [600, 32]}, r"axes_lens \[600, 32\]"),
        ("transformer/config.json", {"a_setting_of_tomorrow": 1}, "sets a_setting_of_tomorrow"),
        ("transformer/config.json", {"axes_dims": [8, 8, 4]}, "does not make a model"),
        ("text_encoder/config.json", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "rope_type"),
        ("scheduler/scheduler_config.json", {"use_dynamic_shifting": True}, "sets use_dynamic_shifting"),
        ("scheduler/scheduler_config.json", {"shift_terminal": 0.1}, "sets shift_terminal"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "sets use_karras_sigmas"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
    ],
)
def test_what_changes_a_picture_and_is_not_read_is_refused_by_its_name(zimage_checkpoint, tmp_path, file, change, why):
    made = changed(zimage_checkpoint, tmp_path, file, change)
    with pytest.raises(CheckpointError, match=why):
        export(made, tmp_path / "b", parity=False)
    assert not (tmp_path / "b").exists()


def changed(checkpoint, folder, file, change):
    """Return a copy of a checkpoint with a changed JSON file."""
    made = folder / "checkpoint"
    shutil.copytree(checkpoint, made)
    path = made / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return made


def heavy(folder, scale, **sizes):
    """Save a random transformer of one layer whose feed-forward weights have a heavy tail; return it and its graph."""
    import torch
    from diffusers import ZImageTransformer2DModel

    torch.manual_seed(0)
    model = ZImageTransformer2DModel(
        **{"in_channels": 4, "dim": 256, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32} | sizes, n_layers=1,
        n_refiner_layers=0,
    ).eval()  # fmt: skip
    rng = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "feed_forward.w1" in name or "feed_forward.w3" in name:  # Student's t with one degree of freedom
            over, under = (torch.randn(weight.shape, generator=rng) for _ in range(2))
            weight.data = scale * over / under.abs().clamp(min=1e-3) / weight.shape[1] ** 0.5
    model.save_pretrained(folder)
    return model, transformer(dict(model.config))


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        pytest.param(
            {"dim": 3840, "n_heads": 30, "n_kv_heads": 30, "cap_feat_dim": 2560, "in_channels": 16},
            marks=pytest.mark.slow,
            id="published widths",
        ),
    ],
)
def test_products_beyond_half_precision_do_not_overflow_before_a_norm(tmp_path, sizes):
    """As with the published weights, diffusers' own class gives NaN in fp16 here."""
    import torch

    model, graph = heavy(tmp_path, 5.0, **sizes)
    feed = graph.feed(np.random.default_rng(0), {"batch": 1, "height": 8, "width": 8, "text": 20})
    given = {name: torch.from_numpy(array) for name, array in feed.items()}

    def theirs(dtype):
        pictures = list(given["hidden_states"][:, :, None].to(dtype))
        texts = list(given["encoder_hidden_states"].to(dtype))
        with torch.inference_mode():
            made = model.to(dtype)(pictures, 1 - given["timestep"] / 1000, texts, return_dict=False)[0]
        return -torch.stack(made)[:, :, 0].float().numpy()

    full = theirs(torch.float32)
    assert not np.isfinite(theirs(torch.float16)).all()
    half = graph.wrap(graph.narrow(graph.load(str(tmp_path)).eval()))
    with torch.inference_mode():
        ours = half(*(given[port.name].half() if port.dtype == WEIGHT else given[port.name] for port in graph.inputs))
    assert relative_l2(ours.float().numpy(), full) < 2e-3
    assert first_overflow(graph, tmp_path) == ""


def test_products_far_beyond_half_precision_are_found(tmp_path):
    _, graph = heavy(tmp_path, 40.0)
    assert first_overflow(graph, tmp_path).startswith("layers.0.feed_forward")


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_a_lora_of_the_original_layout_with_fused_matrices_is_merged(zimage_checkpoint, tmp_path, prefix):
    """diffusers has no converter for such a file, but one for a whole checkpoint of that layout."""
    import torch
    from diffusers import ZImageTransformer2DModel
    from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers as convert

    state = ZImageTransformer2DModel.from_pretrained(zimage_checkpoint / "transformer").state_dict()
    original = original_names(state)
    torch.manual_seed(0)
    changed, lora = dict(original), {}
    for module in (
        "layers.1.attention.qkv",
        "context_refiner.0.attention.out",
        "x_embedder",
        "layers.0.feed_forward.w2",
    ):
        weight = original[f"{module}.weight"]
        up, down = torch.randn(weight.shape[0], 2), torch.randn(2, weight.shape[1])
        changed[f"{module}.weight"] = weight + 0.5 * up @ down
        name = prefix + (module if prefix.endswith(".") else module.replace(".", "_"))
        lora |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}
    save_file(lora, tmp_path / "lora.safetensors")
    (tmp_path / "transformer").mkdir()
    save_file(state, tmp_path / "transformer/w.safetensors")
    tables = {"transformer": headers.read(tmp_path / "transformer/w.safetensors", "transformer/w.safetensors")}
    merge([Lora(tmp_path / "lora.safetensors", 0.5)], tables, {"transformer": "fp32"}, tmp_path)
    found, expected = state | load_file(tmp_path / "transformer" / PATCH), convert(changed)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=2e-5), name
