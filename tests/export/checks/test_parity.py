"""Kinds of components that the tiny checkpoint does not hold, each compared with PyTorch by itself."""

import json
import shutil

import pytest

from segue.export.checkpoint import read
from segue.export.checks import parity
from segue.export.families.modules import text_encoder
from segue.export.families.sd3 import graphs
from segue.export.graphs import trace
from segue.runtime.bundle.manifest import Component


@pytest.fixture
def compare(tmp_path, tiny_checkpoint):
    """Function that puts a model's folder into a copy of the checkpoint, exports that component and compares it."""

    def run(folder, make_graph, save=None, config=None):
        root = tmp_path / "checkpoint"
        shutil.copytree(tiny_checkpoint, root)
        if save:
            save(root / folder)
        if config:
            path = root / folder / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | config))
        part = read.read_part(root, folder)
        graph = make_graph(part.config)
        kind = read.precision(part)
        written = trace.write(graph, kind, part.tensors, root / folder / graph.file)
        component = Component(f"{folder}/{graph.file}", written.files, kind, written.parameters, graph.opset, (), ())
        return parity.check(root, {graph.component: component})

    return run


def test_a_text_encoder_of_the_old_end_token_agrees(compare):
    # Stable Diffusion 3's own config.json files have eos_token_id 2, at which transformers looks for the highest id.
    results = compare("text_encoder", lambda c: text_encoder("text_encoder", c), config={"eos_token_id": 2})
    assert [r.relative_l2 < 1e-5 for r in results] == [True, True]


@pytest.mark.slow
def test_a_transformer_of_stable_diffusion_3_5_agrees(compare, tiny_checkpoint):
    from diffusers import SD3Transformer2DModel

    def save(folder):
        config = SD3Transformer2DModel.load_config(folder)
        model = SD3Transformer2DModel.from_config(config, qk_norm="rms_norm", dual_attention_layers=(0,))
        model.save_pretrained(folder)

    results = compare("transformer", graphs.transformer, save)
    assert [r.relative_l2 < 1e-5 for r in results] == [True, True]


@pytest.mark.slow
def test_bfloat16_is_checked_through_its_fp32_twin_and_says_so(compare):
    import torch
    from transformers import CLIPTextModelWithProjection

    def save(folder):
        CLIPTextModelWithProjection.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)

    results = compare("text_encoder", lambda c: text_encoder("text_encoder", c), save)
    assert [r.relative_l2 < 1e-5 and r.note == parity.TWIN for r in results] == [True, True]
