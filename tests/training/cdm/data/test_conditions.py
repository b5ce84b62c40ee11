from pathlib import Path

import pytest
import torch

from segue.errors import OutputError, TrainingError
from segue.training.cdm.data.conditions import Conditions, permuted, write_conditions


def test_every_row_is_its_prompts_embedding_in_bf16(conditions: Path, encode, prompts) -> None:
    found = Conditions(conditions)
    assert len(found) == len(prompts)
    rows = found.take([6, 0, 3, 3])
    for name, tensor in encode([prompts[i] for i in (6, 0, 3, 3)]).items():
        assert rows[name].dtype == torch.float32
        assert rows[name].equal(tensor.bfloat16().float())
    empty = found.empty(3)
    assert empty["states"].shape == (3, 5, 24)
    assert empty["pooled"][2].equal(encode([""])["pooled"][0].bfloat16().float())


def test_a_pass_over_the_prompts_repeats_none_and_passes_differ() -> None:
    laps = [[permuted(50, 1, lap * 50 + i) for i in range(50)] for lap in range(3)]
    assert all(sorted(lap) == list(range(50)) for lap in laps)
    assert laps[0] != laps[1] != laps[2]
    assert permuted(50, 1, 57) == laps[1][7]
    assert [permuted(50, 2, i) for i in range(50)] != laps[0]


def test_embeddings_are_written_whole_or_not_at_all(tmp_path: Path, encode, prompts) -> None:
    def broken(names: list[str]) -> dict[str, torch.Tensor]:
        if "prompt 4" in names:
            raise RuntimeError("no memory")
        return encode(names)

    with pytest.raises(RuntimeError):
        write_conditions(tmp_path / "text", prompts, broken, rows=2)
    assert not (tmp_path / "text").exists()
    write_conditions(tmp_path / "text", prompts, encode)
    with pytest.raises(OutputError, match="exists already"):
        write_conditions(tmp_path / "text", prompts, encode)
    with pytest.raises(TrainingError, match="no prompt"):
        write_conditions(tmp_path / "other", [], encode)


def test_a_directory_without_embeddings_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="segue encode"):
        Conditions(tmp_path)
