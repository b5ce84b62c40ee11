"""What a precision costs in pictures or frames is measured at export and stored."""

import numpy as np
import pytest

from segue.errors import ParityError
from segue.export.checks import fidelity
from segue.export.export import export
from segue.runtime.bundle import reader
from segue.runtime.pipeline import open_model
from segue.runtime.planning import memory


def test_pictures_in_fp16_are_compared_with_those_in_fp32(half, exported):
    found = reader.read(half).manifest.fidelity
    assert (found.against, found.pictures, found.gate) == (fidelity.FULL, 2, fidelity.GATES["fp16"])
    assert found.gate <= found.psnr < fidelity.MOST
    assert reader.read(exported).manifest.fidelity is None  # it is in fp32
    listed = [{path.name for path in folder.iterdir()} for folder in (half, exported)]
    # Another worker may check the parity of the shared bundle just now, in a temporary directory inside it
    assert len({frozenset(n for n in names if not n.startswith("tmp")) for names in listed}) == 1


@pytest.mark.slow
def test_a_checkpoint_that_came_in_fp16_is_compared_with_its_weights_in_fp32(make_checkpoint, tmp_path):
    found = export(make_checkpoint(dtype="float16"), tmp_path / "b").fidelity
    assert (found.against, found.gate) == (fidelity.FULL, fidelity.GATES["fp16"])
    assert found.gate <= found.psnr < fidelity.MOST


def test_clips_of_both_stages_are_compared_where_a_bundle_makes_videos(video_bundle):
    seen = []
    assert fidelity.near(video_bundle, video_bundle, ("a dog", "rain"), seen.append) == fidelity.MOST
    assert seen == [0, 1]
    with open_model(video_bundle, threads=1) as model:
        clips = list(fidelity._drawn(model, ("a dog", "rain")))
    assert [len(clip) for clip in clips] == [4 * model.bundle.manifest.video.detail.targets + 1] * 2
    assert not np.array_equal(*clips)


@pytest.mark.slow
def test_pictures_in_bf16_are_those_of_its_twin(bf16_bundle):
    found = reader.verify(bf16_bundle).manifest.fidelity
    assert fidelity.GATES["bf16"] <= found.psnr < 80


@pytest.mark.slow
def test_of_weights_that_came_in_bf16_nothing_is_measured_and_a_note_says_so(make_checkpoint, tmp_path):
    notes, told, source = [], [], make_checkpoint(dtype="bfloat16")
    made = export(source, tmp_path / "b", parity=False, progress=lambda event: told.append(event.text))
    assert told[-1].startswith(
        "text_encoder, text_encoder_2, transformer, vae_decoder: in bf16, which ort-cpu does not"
    )
    assert fidelity.beside_full(source, tmp_path / "b", made, note=notes.append) is None
    assert "the pictures in bf16 are not compared with fp32: the weights came in bf16" in notes[0]


def test_pictures_below_the_gate_are_an_error_that_leaves_nothing(half, exported, monkeypatch):
    before = sorted(path.name for path in half.iterdir())
    monkeypatch.setattr("segue.export.checks.fp32_twin.write_bundle", lambda *arguments: exported)
    monkeypatch.setitem(fidelity.GATES, "fp16", 99.0)
    with pytest.raises(ParityError, match=r"in fp16 have \d\d\.\d dB .* below the gate of 99"):
        fidelity.beside_full(exported, half, reader.read(half).manifest)
    assert sorted(path.name for path in half.iterdir()) == before


def test_without_memory_for_it_nothing_is_compared_and_a_note_says_so(half, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 0)
    notes = []
    assert fidelity.beside_full(half, half, reader.read(half).manifest, note=notes.append) is None
    assert notes == ["the pictures in fp16 are not compared with fp32: not enough memory"]
