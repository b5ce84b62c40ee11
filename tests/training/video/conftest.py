"""Fixtures of the video trainings: little clips, and random parts and stages of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import clips as made


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory of three clips of a square that moves right; the last one is held out."""
    return made.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with random parts of a tiny video model: `vae/`, `text_encoder/`, `tokenizer/`."""
    return made.write_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def detail_parts(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`parts` with Stage II's autoencoder in place of Stage I's."""
    return made.write_detail_parts(tmp_path_factory.mktemp("detail") / "parts", parts)


@pytest.fixture(scope="session")
def motion(clips: Path, parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a random Stage I."""
    return made.train_motion(tmp_path_factory.mktemp("motion"), clips, parts)


@pytest.fixture(scope="session")
def both(clips: Path, parts: Path, detail_parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of both stages, random, of 25 frames: seven latent ones, so two whole segments."""
    return made.train_both(tmp_path_factory.mktemp("both"), clips, parts, detail_parts)
