from pathlib import Path

import pytest
import torch

from segue.errors import TrainingError
from segue.training.cdm.data.conditions import Conditions
from segue.training.cdm.data.encode import encode_prompts


def test_embeddings_are_those_that_diffusers_hands_to_the_transformer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    from segue.export.checks.oracle import load_pipeline

    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red heart\n\nblue\n")
    told = []
    count = encode_prompts(tiny_checkpoint, "sd3", prompts, tmp_path / "text", lambda *at: told.append(at))
    assert count == 2
    assert told[-1] == (2, 2)
    found = Conditions(tmp_path / "text")
    assert found.prompts == ["a red heart", "blue"]
    states, _, pooled, _ = load_pipeline(tiny_checkpoint).encode_prompt(
        ["a red heart", "blue"], None, None, do_classifier_free_guidance=False, max_sequence_length=3
    )
    rows = found.take([0, 1])
    assert torch.equal(rows["states"], states.bfloat16().float())
    assert torch.equal(rows["pooled"], pooled.bfloat16().float())
    assert rows["states"].shape == (2, 27, 48)  # three zero tokens stand for the absent T5, as segue.json says


def test_what_cannot_be_encoded_is_said(tiny_checkpoint: Path, tmp_path: Path) -> None:
    def encode(checkpoint: Path, family: str, prompts: Path) -> None:
        encode_prompts(checkpoint, family, prompts, tmp_path / "text", lambda *_: None)

    prompts = tmp_path / "prompts.txt"
    with pytest.raises(TrainingError, match=r"prompts\.txt cannot be read.*one prompt a line"):
        encode(tiny_checkpoint, "sd3", prompts)
    prompts.write_text("a\n")
    with pytest.raises(TrainingError, match="one of sd3, longcat-image"):
        encode(tiny_checkpoint, "flux", prompts)
    with pytest.raises(TrainingError, match="diffusers format"):
        encode(tmp_path, "sd3", prompts)
    assert not (tmp_path / "text").exists()
