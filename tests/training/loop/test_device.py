"""Precision follows what the processor can do."""

import sys

import pytest
import torch

from segue.errors import TrainingError
from segue.training.loop import device
from segue.training.loop.device import fast_dtype, mixed_precision, plain_attention


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


def test_attention_on_a_processor_is_plain_products_for_the_time_of_the_block() -> None:
    def operations() -> set[str]:
        with torch.profiler.profile() as profile:
            torch.nn.functional.scaled_dot_product_attention(*torch.ones(3, 1, 1, 4, 8))
        return {event.key for event in profile.key_averages()}

    fused = "aten::_scaled_dot_product_flash_attention_for_cpu"
    with plain_attention(torch.device("cpu")):
        assert fused not in operations()
    assert fused in operations()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
