"""Fixtures of distillation: a tiny teacher, its text embeddings, and the program of one process of a run."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest
import torch

from segue.training.cdm.data.conditions import write_conditions
from segue.training.loop import device
from support import cdm, cdm_worker


@pytest.fixture(autouse=True, scope="module")
def fp32():
    """Compute in fp32 on every machine: these tests compare small numbers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "fast_dtype", lambda _: torch.float32)
        yield


@pytest.fixture(scope="session")
def encode():
    return cdm.embed


@pytest.fixture(scope="session")
def prompts() -> tuple[str, ...]:
    return cdm.PROMPTS


@pytest.fixture(scope="session")
def worker() -> ModuleType:
    return cdm_worker


@pytest.fixture(scope="session")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return cdm.write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def conditions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text") / "conditions"
    write_conditions(folder, cdm.PROMPTS, cdm.embed, rows=3, batch=2)
    return folder
