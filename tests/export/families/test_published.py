"""Checkpoints in the layouts of published few-step models, exported and drawn without an option.

Each is tiny and random. The pictures are those of the way that the publisher's card plays the model in diffusers, from
the same generator.
"""

import json
import shutil
from dataclasses import dataclass, field

import numpy as np
import pytest

import segue
from segue.export.checks.oracle import load_pipeline
from segue.export.export import export
from segue.runtime.diagnostics.difference import psnr, relative_l2
from support.hub import build_student

pytestmark = pytest.mark.slow
SEED = 43


@dataclass(frozen=True)
class Published:
    """A layout: what differs from SDXL's, what the bundle's defaults must be, and how the card plays the model."""

    scheduler: str = "EulerDiscreteScheduler"  # of the checkpoint
    settings: dict = field(default_factory=dict)
    sampler: str = "euler"
    steps: int = 4
    guidance: float = 0.0
    played: tuple = ()  # the card's scheduler and its settings, if it is not the checkpoint's
    asked: dict = field(default_factory=dict)  # of the call in diffusers


LAYOUTS = {
    "stable-diffusion-xl-base-1.0": Published(steps=30, guidance=5.0),
    "sdxl-turbo": Published(
        "EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, "euler-ancestral", steps=1
    ),
    "sdxl_lightning_4step": Published(played=("EulerDiscreteScheduler", {"timestep_spacing": "trailing"})),
    "sdxl_lightning_1step": Published(
        steps=1, played=("EulerDiscreteScheduler", {"timestep_spacing": "trailing", "prediction_type": "sample"})
    ),
    "dmd2_sdxl_4step": Published(
        sampler="lcm", played=("LCMScheduler", {}), asked={"timesteps": [999, 749, 499, 249]}
    ),
    "Hyper-SDXL-1step-Unet": Published(
        sampler="lcm", steps=1, played=("LCMScheduler", {}), asked={"timesteps": [800]}
    ),
    "lcm-sdxl": Published("LCMScheduler", sampler="lcm", guidance=8.0),
    "a-consistency-trajectory": Published("TCDScheduler", sampler="tcd", asked={"eta": 0.0}),
}  # fmt: skip


def make(name: str, layout: Published, sdxl, root):
    """Write the checkpoint `name` to a directory of that name in `root`: SDXL's with another scheduler and UNet."""
    import diffusers

    made = root / name
    shutil.copytree(sdxl, made)
    (made / "segue.json").unlink()
    path = made / "scheduler/scheduler_config.json"
    base = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
    config = {**base, "timestep_spacing": "leading", "set_alpha_to_one": False, **layout.settings}
    path.write_text(json.dumps({"_class_name": layout.scheduler, **config}))
    path = made / "model_index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"scheduler": ["diffusers", layout.scheduler]}))
    if name == "lcm-sdxl":
        config = diffusers.UNet2DConditionModel.load_config(made / "unet")
        diffusers.UNet2DConditionModel.from_config(config, time_cond_proj_dim=16).save_pretrained(made / "unet")
    return made


def check_picture(bundle, pipeline, **asked):
    """Compare the bundle's own picture with that of diffusers' pipeline, called as its card says."""
    import torch

    with torch.no_grad():
        theirs = {
            output: pipeline(
                "a red heart", generator=torch.Generator().manual_seed(SEED), output_type=output, **asked
            ).images[0]
            for output in ("latent", "pil")
        }  # fmt: skip
    with segue.open(bundle) as model:
        found = model.render(segue.Request("a red heart", seed=SEED, noise="torch"))
    assert relative_l2(found.latents[0], theirs["latent"].numpy()) <= 1e-4
    assert psnr(found.images[0], np.asarray(theirs["pil"])) >= 60


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_sdxl_model_plays_as_its_card_says(name, sdxl_checkpoint, tmp_path):
    import diffusers

    layout = LAYOUTS[name]
    checkpoint = make(name, layout, sdxl_checkpoint, tmp_path)
    notes = []
    made = export(checkpoint, tmp_path / "bundle", parity=False, progress=lambda event: notes.append(event.text))
    assert (made.sampler.kind, made.sampler.steps, made.sampler.guidance) == (
        layout.sampler, layout.steps, layout.guidance,
    )  # fmt: skip
    assert any(f"draws with {layout.steps} step" in note for note in notes)
    pipeline = load_pipeline(checkpoint)
    if layout.played:
        scheduler, settings = layout.played
        pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **settings)
    steps = {} if "timesteps" in layout.asked else {"num_inference_steps": layout.steps}
    check_picture(tmp_path / "bundle", pipeline, guidance_scale=layout.guidance, **steps, **layout.asked)


@pytest.mark.parametrize("name", ["sdxl-turbo", "lcm-sdxl"])
def test_several_pictures_of_a_sampler_with_noise_are_those_of_one_call_in_diffusers(name, sdxl_checkpoint, tmp_path):
    import torch

    checkpoint = make(name, LAYOUTS[name], sdxl_checkpoint, tmp_path)
    export(checkpoint, tmp_path / "bundle", parity=False)
    with torch.no_grad():
        theirs = load_pipeline(checkpoint)(
            "a red heart", num_inference_steps=3, guidance_scale=LAYOUTS[name].guidance, num_images_per_prompt=2,
            generator=torch.Generator().manual_seed(SEED), output_type="latent",
        ).images  # fmt: skip
    with segue.open(tmp_path / "bundle") as model:
        found = model.render(segue.Request("a red heart", seed=SEED, noise="torch", count=2, steps=3))
        again = model.render(segue.Request("a red heart", seed=5, count=2, steps=3))
        alone = model.render(segue.Request("a red heart", seed=5, count=1, steps=3))
    assert relative_l2(found.latents, theirs.numpy()) <= 1e-4
    assert np.array_equal(again.latents[:1], alone.latents)  # picture 0 does not depend on the count


@pytest.mark.parametrize(
    ("name", "dual", "steps", "guidance"),
    [
        ("stable-diffusion-3.5-medium", (0,), 28, 7.0),
        ("stable-diffusion-3.5-large", (), 28, 7.0),
        ("stable-diffusion-3.5-large-turbo", (), 4, 0.0),
    ],
)
def test_stable_diffusion_3_5_plays_as_its_pipeline(name, dual, steps, guidance, tiny_checkpoint, tmp_path):
    from diffusers import SD3Transformer2DModel

    checkpoint = tmp_path / name
    shutil.copytree(tiny_checkpoint, checkpoint)
    (checkpoint / "segue.json").unlink()
    config = SD3Transformer2DModel.load_config(checkpoint / "transformer")
    model = SD3Transformer2DModel.from_config(
        config, qk_norm="rms_norm", dual_attention_layers=dual, pos_embed_max_size=48
    )
    model.save_pretrained(checkpoint / "transformer")
    made = export(checkpoint, tmp_path / "bundle", parity=False)
    assert (made.sampler.steps, made.sampler.guidance) == (steps, guidance)
    assert made.sizes.maximum == 256  # twice the side that it was made for; its table reaches 768
    pipeline = load_pipeline(checkpoint)
    check_picture(tmp_path / "bundle", pipeline, num_inference_steps=steps, guidance_scale=guidance)


def test_the_student_of_the_authors_of_cdm_plays_its_own_four_steps(tmp_path):

    checkpoint = build_student(tmp_path / "student")
    notes = []
    made = export(
        checkpoint, tmp_path / "bundle", precision="fp32", parity=False, progress=lambda event: notes.append(event.text)
    )
    assert (made.sampler.steps, made.sampler.guidance) == (4, 1.0)
    assert made.sampler.sigmas == (1.0, 0.75, 0.5, 0.25)
    assert "draws with 4 steps, guidance 1, sigmas 1, 0.75, 0.5, 0.25: from student_pipeline_meta.json" in notes
    assert not (tmp_path / "bundle/student_pipeline_meta.json").exists()
    pipeline = load_pipeline(checkpoint)
    check_picture(tmp_path / "bundle", pipeline, sigmas=[1.0, 0.75, 0.5, 0.25], guidance_scale=1.0)


def test_longcat_takes_its_own_steps_and_guidance(longcat_checkpoint, tmp_path):
    checkpoint = tmp_path / "LongCat-Image"
    shutil.copytree(longcat_checkpoint, checkpoint)
    (checkpoint / "segue.json").write_text('{"maximum_size": 256}')
    made = export(checkpoint, tmp_path / "bundle", parity=False)
    assert (made.sampler.steps, made.sampler.guidance) == (50, 4.5)
    (checkpoint / "student_pipeline_meta.json").write_text('{"custom_sigmas": [1.0, 0.75, 0.5, 0.25, 0.0]}')
    made = export(checkpoint, tmp_path / "student", parity=False)
    assert (made.sampler.steps, made.sampler.guidance, made.sampler.sigmas) == (4, 1.0, (1.0, 0.75, 0.5, 0.25))
