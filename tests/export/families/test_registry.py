"""LongCat-Image and Stable Diffusion XL: the bundle draws what diffusers' own pipelines draw."""

import json
import shutil

import numpy as np
import onnx_ir as ir
import pytest

from segue.errors import CheckpointError, UsageError
from segue.export.checkpoint import read
from segue.export.checks import oracle
from segue.export.checks.oracle import Case
from segue.export.export import export
from segue.export.families.modules import t5
from segue.export.families.registry import find
from segue.export.graphs import trace
from segue.runtime.pipeline import open_model

GATE = 60  # dB


@pytest.fixture(scope="module")
def t5_checkpoint(make_checkpoint):
    """A Stable Diffusion 3 with its third text encoder."""
    import torch
    from transformers import T5Config, T5EncoderModel

    from segue.training.video.text import make_tokenizer

    root = make_checkpoint(seed=3)
    torch.manual_seed(3)
    tokenizer = make_tokenizer(["a red heart", "beating", "a hare"], 60, 8)
    tokenizer.save_pretrained(root / "tokenizer_3")
    config = T5Config(vocab_size=len(tokenizer), d_model=48, d_kv=8, d_ff=64, num_layers=2, num_heads=4)
    T5EncoderModel(config).save_pretrained(root / "text_encoder_3")
    added = {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", "T5Tokenizer"]}
    for name, more in (("model_index.json", added), ("segue.json", {"t5_tokens": 8})):
        path = root / name
        path.write_text(json.dumps(json.loads(path.read_text()) | more))
    return root


@pytest.fixture(scope="module")
def with_t5(t5_checkpoint, tmp_path_factory):
    """The bundle of `t5_checkpoint`."""
    bundle = tmp_path_factory.mktemp("bundle") / "t5"
    export(t5_checkpoint, bundle)
    return bundle


@pytest.mark.slow
def test_stable_diffusion_3_with_t5_draws_as_diffusers_does(with_t5):
    cases = [
        Case("a red heart", (128, 128), 5.0, steps=3),
        Case("a red heart of a hare that is longer than eight tokens", (64, 96), 1.0, steps=2),
    ]
    check(with_t5, cases)


def check(bundle, cases):
    found = list(oracle.compare(bundle, cases))
    assert len(found) == len(cases)
    assert min(d.psnr for d in found) >= GATE, found
    assert max(d.latents for d in found) < 1e-3, found


@pytest.mark.slow
def test_sdxl_draws_as_diffusers_does(sdxl_bundle):
    cases = [
        Case("a red heart", (128, 128), 1.0, steps=4),
        Case("a red heart", (96, 160), 5.0, steps=3),  # no negative text: zeros stand for it
        Case("a red heart", (64, 64), 2.0, steps=1, negative="re"),
    ]
    check(sdxl_bundle, cases)


@pytest.mark.slow
def test_longcat_draws_as_diffusers_does(longcat_bundle):
    cases = [
        Case("a red heart", (128, 128), 4.5, steps=4),
        Case("a sign 'OPEN' in the caf\u00e9's window", (64, 160), 1.0, steps=3),
        Case("写着“你好”的牌子", (128, 96), 3.0, sigmas=(1.0, 0.6, 0.2), negative="blurred"),
        Case("", (64, 64), 1.0, steps=1),
    ]
    check(longcat_bundle, cases)


def test_an_autoencoder_that_overflows_half_precision_stays_wide(sdxl_checkpoint, tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr("segue.export.export._graphs", lambda *_: {})  # the files are what is looked at
    export(sdxl_checkpoint, tmp_path / "b", precision="fp16", parity=False, progress=lambda e: notes.append(e.text))
    stored = {
        folder: {t.dtype for t in read.read_part(tmp_path / "b", folder).tensors.values()}
        for folder in ("unet", "vae", "text_encoder")
    }
    assert {folder: kinds - {"I64"} for folder, kinds in stored.items()} == {
        "unet": {"F16"}, "vae": {"F32"}, "text_encoder": {"F16"},
    }  # fmt: skip
    assert any("activations overflow fp16" in note for note in notes)


def test_what_t5_adds_up_is_computed_in_float32(t5_checkpoint):
    graph = trace.trace(t5(json.loads((t5_checkpoint / "text_encoder_3/config.json").read_text())), "fp16")
    outputs = [v for v in graph.graph.inputs if v.name.endswith(".wo.weight")]
    assert len(outputs) == 2
    for value in outputs:
        seen = [use.node for use in value.uses()]
        while seen and seen[0].op_type == "Transpose":
            seen = [use.node for use in seen[0].outputs[0].uses()]
        assert [node.op_type for node in seen] == ["Cast"]
        assert seen[0].attributes["to"].as_int() == ir.DataType.FLOAT


@pytest.mark.slow
def test_attention_of_sdxls_unet_is_one_operator(sdxl_bundle):
    graph = ir.load(sdxl_bundle / "unet/model.onnx").graph
    made = [node.op_type for node in graph]
    assert made.count("Attention") == 16  # of eight blocks: one for the picture itself, one for the text
    assert "Softmax" not in made


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_other_spacings_of_sdxls_steps(sdxl_bundle, tmp_path, spacing):
    shutil.copytree(sdxl_bundle, tmp_path / "b")
    path = tmp_path / "b/scheduler/scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"timestep_spacing": spacing}))
    table = json.loads((tmp_path / "b/bundle.json").read_text())
    table["sampler"]["noise"]["spacing"] = spacing
    data = path.read_bytes()
    digest = __import__("hashlib").sha256(data).hexdigest()
    table["files"]["scheduler/scheduler_config.json"] |= {"sha256": digest, "bytes": len(data)}
    (tmp_path / "b/bundle.json").write_text(json.dumps(table))
    check(tmp_path / "b", [Case("a red heart", (64, 64), 1.0, steps=5)])


@pytest.mark.slow
def test_sdxl_takes_steps_and_no_levels(sdxl_bundle):
    with open_model(sdxl_bundle) as model:
        with pytest.raises(UsageError, match="was trained on betas"):
            model.generate("red", sigmas=(1.0, 0.5))
        with pytest.raises(UsageError, match="multiples of 16"):
            model.generate("red", size=72)


@pytest.mark.slow
def test_a_long_prompt_of_longcat_is_cut_with_a_warning(longcat_bundle):
    from segue.runtime.bundle.tokens import PromptTruncated

    with open_model(longcat_bundle) as model, pytest.warns(PromptTruncated, match="longer than 512"):
        image = model.generate("word " * 200, size=64, steps=1)
    assert image.shape == (64, 64, 3)
    assert image.dtype == np.uint8


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("scheduler/scheduler_config.json", {"prediction_type": "noise"}, "prediction_type to 'noise'"),
        ("scheduler/scheduler_config.json", {"use_karras_sigmas": True}, "use_karras_sigmas"),
        ("unet/config.json", {"cross_attention_dim": 32}, "the text encoders give 40"),
        ("segue.json", {"sigmas": [1.0, 0.5], "steps": 2}, "the sigmas .* cannot be used"),
        ("model_index.json", {"scheduler": ["diffusers", "HeunDiscreteScheduler"]}, "HeunDiscreteScheduler"),
    ],
)
def test_an_sdxl_that_the_runtime_does_not_follow_is_refused(sdxl_checkpoint, tmp_path, file, change, why):
    refused(sdxl_checkpoint, tmp_path, file, change, why)


@pytest.mark.parametrize(
    ("file", "change", "why"),
    [
        ("scheduler/scheduler_config.json", {"time_shift_type": "linear"}, "time_shift_type to 'linear'"),
        ("transformer/config.json", {"in_channels": 8}, "need 16"),
        ("transformer/config.json", {"joint_attention_dim": 48}, "gives 32"),
        ("model_index.json", {"text_encoder": ["transformers", "T5EncoderModel"]}, "T5EncoderModel"),
    ],
)
def test_a_longcat_that_the_runtime_does_not_follow_is_refused(longcat_checkpoint, tmp_path, file, change, why):
    refused(longcat_checkpoint, tmp_path, file, change, why)


def test_an_sdxl_whose_config_is_older_than_a_setting_has_the_default_of_its_class(sdxl_checkpoint, tmp_path):
    shutil.copytree(sdxl_checkpoint, tmp_path / "c")
    path = tmp_path / "c/unet/config.json"
    config = json.loads(path.read_text())
    del config["attention_type"]  # as in stabilityai/stable-diffusion-xl-base-1.0
    path.write_text(json.dumps(config))
    family = find({"_class_name": "StableDiffusionXLPipeline"})
    family.facts(read.read(tmp_path / "c", family.folders))
    config["attention_type"] = "gated"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="attention_type to 'gated'"):
        family.facts(read.read(tmp_path / "c", family.folders))


def refused(checkpoint, tmp_path, file, change, why):
    shutil.copytree(checkpoint, tmp_path / "c")
    path = tmp_path / "c" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=why):
        export(tmp_path / "c", tmp_path / "b", parity=False)
