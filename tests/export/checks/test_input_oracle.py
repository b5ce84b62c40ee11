"""Pictures that begin with a given one, compared with diffusers' pipelines at equal noise.

diffusers' own decoding in its inpainting pipelines is not compared, because it forgets SD3's shift: the latents of both
are decoded by the checkpoint's autoencoder.
"""

import dataclasses

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import segue
from segue.export.checks.oracle import load_pipeline
from segue.export.families.schedulers import noise_prediction, read_scheduler
from segue.runtime.bundle.reader import read
from segue.runtime.diagnostics.difference import psnr, relative_l2
from segue.runtime.pipeline import Model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::segue.runtime.notices.Notice")]
SEED, STEPS, GUIDANCE, PROMPT = 11, 5, 3.0, "a red heart"
STRENGTHS = (0.3, 0.6, 1.0)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SAMPLERS = {
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "lcm": ("LCMScheduler", {}),
}
HEIGHT, WIDTH = 96, 128


def picture():
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([rows * 2, columns, 255 - rows], -1).astype(np.uint8)


def hole():
    """Return a mask whose edges are those of latent pixels: diffusers asks one pixel of each square."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[16:64, 24:96] = 255
    return mask


def inputs(strength, masked):
    """Return the arguments of a request, and those of a pipeline."""
    mine = {"image": picture(), "strength": strength} | ({"mask": hole()} if masked else {})
    theirs = {"image": Image.fromarray(picture()), "strength": strength}
    return mine, theirs | ({"mask_image": Image.fromarray(hole())} if masked else {})


def check(model, pipeline, found, latents, masked):
    """Compare latents, and the pictures that the checkpoint's own autoencoder makes of both."""
    config = pipeline.vae.config
    with torch.no_grad():
        scaled = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
        pixels = pipeline.vae.decode(scaled, return_dict=False)[0]
    drawn = np.asarray(pipeline.image_processor.postprocess(pixels, output_type="pil")[0])
    expected = np.where(hole()[..., None] > 0, drawn, picture()) if masked else drawn
    assert relative_l2(found.latents, latents.numpy()) <= 1e-4
    assert psnr(found.images[0], expected) >= 60


def asked(model, **given):
    request = segue.Request(
        PROMPT, seed=SEED, noise="torch", steps=STEPS, guidance=GUIDANCE, size=(HEIGHT, WIDTH), **given
    )
    return model.render(request)


@pytest.fixture(scope="module")
def flow(exported):
    base = load_pipeline(exported)
    base.transformer.register_to_config(in_channels=16)  # diffusers' inpainting refuses 8, and uses this no further
    with segue.open(exported) as model:
        yield model, base


@pytest.fixture(scope="module")
def noisy(sdxl_bundle):
    return read(sdxl_bundle), load_pipeline(sdxl_bundle)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("masked", [False, True], ids=["image-to-image", "inpainting"])
def test_stable_diffusion_3_begins_as_its_pipelines_do(flow, masked, strength):
    model, base = flow
    kind = diffusers.StableDiffusion3InpaintPipeline if masked else diffusers.StableDiffusion3Img2ImgPipeline
    mine, theirs = inputs(strength, masked)
    latents = run(kind, base, theirs, negative_prompt="", max_sequence_length=model.bundle.manifest.t5_tokens)
    check(model, base, asked(model, **mine), latents, masked)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("masked", [False, True], ids=["image-to-image", "inpainting"])
def test_stable_diffusion_xl_begins_as_its_pipelines_do(noisy, masked, strength, sampler):
    opened, base = noisy
    name, config = SAMPLERS[sampler]
    row, settings = read_scheduler(BETAS | config, name)
    base.register_modules(scheduler=getattr(diffusers, name)(**BETAS, **config))
    content = opened.manifest
    played = dataclasses.replace(content.sampler, kind=row.sampler, noise=noise_prediction(settings))
    kind = diffusers.StableDiffusionXLInpaintPipeline if masked else diffusers.StableDiffusionXLImg2ImgPipeline
    mine, theirs = inputs(strength, masked)
    latents = run(kind, base, theirs)
    changed = dataclasses.replace(opened, manifest=dataclasses.replace(content, sampler=played))
    with Model(changed) as model:
        check(model, base, asked(model, **mine), latents, masked)


def run(kind, base, given, **options):
    """Return the latents of diffusers' pipeline of class `kind` over the parts of `base`."""
    pipeline = kind(**base.components)
    pipeline.set_progress_bar_config(disable=True)
    with torch.no_grad():
        return pipeline(
            prompt=PROMPT, height=HEIGHT, width=WIDTH, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(SEED), output_type="latent", **given, **options,
        ).images  # fmt: skip


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("masked", [False, True], ids=["image-to-image", "inpainting"])
def test_longcat_begins_by_the_formula_of_flow_matching(longcat_bundle, masked, strength, monkeypatch):
    """diffusers has no such pipelines for it, so its own pipeline gets latents that were mixed here."""
    pipeline = load_pipeline(longcat_bundle)
    config, generator = pipeline.vae.config, torch.Generator().manual_seed(SEED)
    pixels = torch.from_numpy(picture()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        clean = pipeline.vae.encode(pixels).latent_dist.sample(generator)
    clean = (clean - config.shift_factor) * config.scaling_factor
    noise = torch.randn(clean.shape, generator=generator)
    first = int(max(STEPS - STEPS * strength, 0))
    levels = np.linspace(1, 1 / STEPS, STEPS)[first:]

    def packed(latents):
        return pipeline._pack_latents(latents, *latents.shape)

    mask = torch.from_numpy(hole()[::8, ::8] / 255).float().expand(clean.shape)
    step = pipeline.scheduler.step

    def blended(*given, **options):
        (latents,) = step(*given, **options)
        if not masked:
            return (latents,)
        level = pipeline.scheduler.sigmas[pipeline.scheduler.step_index]
        kept = packed((1 - level) * clean + level * noise)
        return ((1 - packed(mask)) * kept + packed(mask) * latents,)

    monkeypatch.setattr(pipeline.scheduler, "step", blended)
    begin = noise
    if not (masked and strength == 1):  # the shift depends on the number of tokens, so the scheduler tells the level
        pipeline.scheduler.set_timesteps(sigmas=levels.tolist(), mu=mu_of(pipeline))
        level = pipeline.scheduler.sigmas[0]
        begin = (1 - level) * clean + level * noise
    with torch.no_grad():
        made = pipeline(
            PROMPT, negative_prompt="", height=HEIGHT, width=WIDTH, sigmas=levels.tolist(),
            num_inference_steps=len(levels), guidance_scale=GUIDANCE, latents=packed(begin), output_type="latent",
            enable_prompt_rewrite=False,
        ).images  # fmt: skip
    latents = pipeline._unpack_latents(made, HEIGHT, WIDTH, 8)
    with segue.open(longcat_bundle) as model:
        check(model, pipeline, asked(model, **inputs(strength, masked)[0]), latents, masked)


def mu_of(pipeline):
    """Return the shift's exponent for the number of tokens, as diffusers' LongCatImagePipeline computes it."""
    from diffusers.pipelines.longcat_image.pipeline_longcat_image import calculate_shift

    config = pipeline.scheduler.config
    return calculate_shift(
        HEIGHT * WIDTH // 16**2, config.base_image_seq_len, config.max_image_seq_len, config.base_shift,
        config.max_shift,
    )  # fmt: skip
