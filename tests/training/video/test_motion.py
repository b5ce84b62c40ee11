import json
from pathlib import Path

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanTransformer3DModel

from segue.errors import TrainingError
from segue.training.loop.networks import pretrained
from segue.training.loop.run import step_generator
from segue.training.recipe import train
from segue.training.video.motion import Motion
from segue.training.video.spec import MotionSpec

RECIPE = """
[motion]
data = "{clips}"
codec = "{parts}"
text = "{parts}"
frames = 9
layers = 1
heads = 2
head = 12
feed_forward = 24
length = 8
{more}

[loop]
steps = {steps}
batch = 2
learning_rate = 1e-3
warmup = 1
save_every = 2
grid_every = 2
"""


def quiet(step: int, steps: int, figures: dict[str, float]) -> None:
    pass


def run(clips: Path, parts: Path, out: Path, steps: int = 2, more: str = "") -> Path:
    recipe = out.with_suffix(".toml")
    recipe.write_text(RECIPE.format(clips=clips, parts=parts, steps=steps, more=more))
    train(recipe, out, quiet)
    return out / "checkpoint"


def test_what_is_trained_is_a_checkpoint_of_wans_pipeline(clips: Path, parts: Path, tmp_path: Path) -> None:
    made = run(clips, parts, tmp_path / "run")
    assert (tmp_path / "run/grid-00000002.png").is_file()
    assert json.loads((made / "segue.json").read_text())["video"]["frames"] == 9
    pipeline = WanImageToVideoPipeline.from_pretrained(made, torch_dtype=torch.float32)
    assert pipeline.transformer.config.in_channels == 2 * 4 + 4
    assert pipeline.scheduler.config.shift == 5.0
    assert pipeline.tokenizer("red square").input_ids[-1] == 1


def test_lora_trains_an_adapter_alone_and_is_merged_into_what_is_written(clips, parts, tmp_path: Path) -> None:
    base = run(clips, parts, tmp_path / "base")
    with torch.no_grad():  # else the last layer is still zero, and nothing before it learns
        model = pretrained(WanTransformer3DModel, base / "transformer")
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        model.save_pretrained(base / "transformer")
    made = run(clips, parts, tmp_path / "lora", 4, f'start = "{base}"\nrank = 2')
    before, after = (pretrained(WanTransformer3DModel, c / "transformer").state_dict() for c in (base, made))
    assert before.keys() == after.keys()
    moved = {name for name in after if (after[name] - before[name]).norm() > 2e-3 * before[name].norm()}
    assert moved
    assert all(name.rsplit(".", 1)[0].endswith(("to_q", "to_k", "to_v", "to_out.0")) for name in moved)


def test_the_network_sees_the_mask_and_the_image_beside_the_noisy_latents(clips: Path, parts: Path) -> None:
    spec = MotionSpec(
        str(clips), str(parts), str(parts), frames=9, layers=1, heads=2, head=12, feed_forward=24, length=8
    )
    training = Motion(spec, 0)
    drawn = training.draw(3, step_generator(0, 1))
    seen: list[torch.Tensor] = []
    training.forward = lambda given, timestep, text, return_dict: (seen.extend([given, timestep]), [given[:, :4]])[1]
    training.loss(drawn)
    mixed = torch.lerp(drawn.latents, drawn.noise, drawn.sigma.view(-1, 1, 1, 1, 1))
    assert torch.allclose(seen[0][:, :4], mixed)
    assert seen[0][:, 4:8, 0].eq(1).all()
    assert seen[0][:, 4:8, 1:].eq(0).all()
    assert torch.equal(seen[0][:, 8:], drawn.image)
    assert torch.allclose(seen[1], 1000 * drawn.sigma)


def test_lora_without_a_model_to_adapt_is_refused() -> None:
    with pytest.raises(TrainingError, match="Name its checkpoint as start"):
        MotionSpec("", "", "", rank=4)
