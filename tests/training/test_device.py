"""Precision follows what the processor can do."""

import sys

import pytest
import torch

from segue.errors import TrainingError
from segue.training import device
from segue.training.device import fast_dtype, mixed_precision


@pytest.fixture
def capability(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    known: dict[str, bool] = {}
    monkeypatch.setattr(device.torch.cpu, "get_capabilities", lambda: known)
    fast_dtype.cache_clear()
    yield known
    fast_dtype.cache_clear()


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_a_processor_that_multiplies_bf16_trains_in_it(capability, name):
    capability[name] = True
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_any_other_processor_trains_in_fp32(capability):
    capability["avx512_bf16"] = False
    with mixed_precision(torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_a_missing_compiler_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(TrainingError, match=r"no-such-compiler, which is not installed.*take compile out"):
        device.check_compiler()
    monkeypatch.setenv("CXX", sys.executable)
    device.check_compiler()
