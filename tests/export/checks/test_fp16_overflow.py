"""Parts that overflow float16 are found before they are converted, and stay in float32."""

import json
import shutil

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from segue.errors import ParityError
from segue.export.checks import fp16_overflow
from segue.export.checks.fp16_overflow import overflowing
from segue.export.export import export
from segue.runtime.pipeline import open_model
from segue.runtime.planning import memory


@pytest.fixture(scope="module")
def loud(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with a decoder whose first layer reaches beyond 65504; a norm brings it back."""
    root = tmp_path_factory.mktemp("loud") / "checkpoint"
    shutil.copytree(tiny_checkpoint, root)
    file = root / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    weight = tensors["decoder.conv_in.weight"]
    weight *= 6e4 / weight.abs().max()
    save_file(tensors, file, {"format": "pt"})
    return root


@pytest.mark.slow
def test_the_layer_that_overflows_is_named(loud, tiny_checkpoint):
    parameters = {"vae": 10**6, "transformer": 10**6, "text_encoder": 10**6}
    found, left = overflowing(loud, parameters)
    assert set(found) == {"vae"}
    assert found["vae"].startswith("decoder.conv_in gives values beyond")
    assert left == set()
    assert overflowing(tiny_checkpoint, parameters) == ({}, set())
    assert overflowing(loud, {"transformer": 10**6}) == ({}, set())


def test_a_part_without_memory_for_the_check_is_told(loud):
    assert overflowing(loud, {"vae": 2 * memory.available()}) == ({}, {"vae"})


def test_a_check_that_fails_says_how_to_go_on_without_it(loud, tmp_path, monkeypatch):
    def fail(source, parameters, single):
        raise ParityError("The check of graphs itself failed: no such kernel. Report it.")

    monkeypatch.setattr(fp16_overflow, "overflowing", fail)
    with pytest.raises(ParityError, match=r"the check for fp16 overflow failed.*no such kernel.*--no-parity"):
        export(loud, tmp_path / "b", precision="fp16")


@pytest.mark.slow
def test_a_bundle_in_fp16_keeps_that_part_in_fp32_and_says_so(loud, tmp_path):
    told = []
    made = export(loud, tmp_path / "b", precision="fp16", progress=lambda event: told.append(event.text))
    assert set(made.islands) == {"vae"}
    assert {name: c.precision for name, c in made.components.items() if "vae" in name} == {
        "vae_decoder": "fp32",
        "vae_encoder": "fp32",
    }
    assert made.components["transformer"].precision == "fp16"
    assert json.loads((tmp_path / "b/bundle.json").read_text())["islands"] == made.islands
    assert any("vae is written in fp32: decoder.conv_in" in text for text in told)
    with open_model(tmp_path / "b") as model:
        assert np.isfinite(model.generate("a red heart", steps=1, size=64)).all()


def test_what_is_in_fp16_already_is_not_looked_at(half, tmp_path, monkeypatch):
    monkeypatch.setattr(fp16_overflow, "overflowing", lambda *given: pytest.fail(f"looked at {given}"))

    class Passed(Exception):
        """The check is behind us, and the graphs would be next."""

    def stop(*given):
        raise Passed

    monkeypatch.setattr("segue.export.export._graphs", stop)
    with pytest.raises(Passed):
        export(half, tmp_path / "b", precision="fp16")
