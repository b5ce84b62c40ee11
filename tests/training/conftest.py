"""Fixtures of the trainings: eight plain pictures, and stand-ins for the networks that measure."""

from pathlib import Path

import pytest

from support.pictures import Distance, Features, write_pictures


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("data"))


@pytest.fixture
def features() -> type[Features]:
    return Features


@pytest.fixture
def distance() -> type[Distance]:
    return Distance
