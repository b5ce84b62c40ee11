"""The graph of Qwen3 gives the states that transformers gives, from the files of either class."""

import json

import numpy as np
import pytest
import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

from segue.engines.ort.engine import OrtEngine
from segue.errors import CheckpointError
from segue.export.checkpoint.read import read_part
from segue.export.checks.fp16_overflow import first_overflow
from segue.export.families.qwen3 import text_encoder
from segue.export.graphs import trace
from segue.runtime.diagnostics.difference import relative_l2

LAYERS = 3


def saved(root, of=Qwen3Model, **changed):
    """Write a random Qwen3 into the folder text_encoder, and return it with its config.json."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 90, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64,
    }  # fmt: skip
    model = of(Qwen3Config(**sizes | changed)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    model.save_pretrained(root / "text_encoder")
    return model, json.loads((root / "text_encoder/config.json").read_text())


@pytest.mark.parametrize(
    ("of", "taken", "masked"), [(Qwen3ForCausalLM, (0, 1, 2), True), (Qwen3Model, (LAYERS - 1,), False)]
)
def test_the_states_are_those_of_transformers(tmp_path, of, taken, masked):
    model, config = saved(tmp_path, of)
    graph = text_encoder(config, taken, masked)
    tensors = read_part(tmp_path, "text_encoder").tensors
    path = tmp_path / "text_encoder/model.onnx"
    made = trace.write(graph, "fp32", tensors, path)
    assert not any(f"layers.{LAYERS - 1}." in name for name in made.tensors)  # its state is not taken
    rng = np.random.default_rng(0)
    with OrtEngine(path) as engine, torch.no_grad():
        for sizes in graph.trials:
            feeds = graph.feed(rng, sizes)
            given = {name: torch.from_numpy(array) for name, array in feeds.items()}
            states = model(**given, output_hidden_states=True).hidden_states
            wanted = torch.cat([states[number] for number in taken], -1).numpy()
            assert masked == ("attention_mask" in feeds)
            assert relative_l2(engine.run(feeds)["states"], wanted) <= 1e-5


def test_without_a_mask_the_states_of_a_prompt_are_those_before_its_padding(tmp_path):
    model, config = saved(tmp_path)
    graph = text_encoder(config, (LAYERS - 1,), masked=False)
    ids = torch.randint(90, (1, 24))
    mask = (torch.arange(24) < 11).long()[None]
    with torch.no_grad():
        padded = model(ids, attention_mask=mask, output_hidden_states=True).hidden_states[-2]
        alone = graph.wrap(graph.load(str(tmp_path / "text_encoder")).eval())(ids[:, :11])
    assert relative_l2(alone.numpy(), padded[:, :11].numpy()) <= 1e-5


@pytest.mark.parametrize(
    ("changed", "taken", "said"),
    [
        ({}, (1, LAYERS), "num_hidden_layers 3"),
        ({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}}, (1,), "rope_type 'linear'"),
        ({"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}, (1,), "sliding_attention"),
    ],
)
def test_an_attention_or_a_state_that_the_graph_lacks_is_refused(tmp_path, changed, taken, said):
    _, config = saved(tmp_path, **changed)
    with pytest.raises(CheckpointError, match=said):
        text_encoder(config, taken, masked=True)


def test_a_residual_stream_beyond_half_precision_is_found(tmp_path):
    """Real ones grow by a few huge weights of the feed-forward layers, on a few channels."""
    model, config = saved(tmp_path)
    graph = text_encoder(config, (1, 2), masked=True)
    assert first_overflow(graph, tmp_path / "text_encoder") == ""
    rng = torch.Generator().manual_seed(1)
    for layer in model.layers:  # a heavy tail: Student's t with one degree of freedom
        weight = layer.mlp.down_proj.weight
        normal = [torch.randn(weight.shape, generator=rng) for _ in range(2)]
        weight.data += 300 * normal[0] / normal[1].abs().clamp(min=0.1)
        assert weight.abs().max() < 65504  # it is what the layers add up that overflows
        layer.mlp.up_proj.weight.data *= 300
    model.save_pretrained(tmp_path / "text_encoder")
    assert first_overflow(graph, tmp_path / "text_encoder").startswith("layers.")
