"""What a conversion costs in pictures is measured at export and stored."""

import pytest

from segue.errors import ParityError
from segue.export import fidelity, memory
from segue.export.export import export
from segue.runtime import bundle


def test_pictures_in_fp16_are_compared_with_those_in_fp32(half, exported):
    found = bundle.read(half).manifest.fidelity
    assert (found.against, found.pictures, found.gate) == (fidelity.FULL, 2, fidelity.GATES["fp16"])
    assert found.gate <= found.psnr < fidelity.MOST
    assert bundle.read(exported).manifest.fidelity is None  # as it came: nothing was converted
    assert sorted(path.name for path in half.iterdir()) == sorted({*(p.name for p in exported.iterdir())})


def test_pictures_in_bf16_are_those_of_its_twin(tiny_checkpoint, tmp_path):
    found = export(tiny_checkpoint, tmp_path / "b", precision="bf16").fidelity
    assert fidelity.GATES["bf16"] <= found.psnr < 80
    bundle.verify(tmp_path / "b")


def test_pictures_below_the_gate_are_an_error_that_leaves_nothing(half, exported, monkeypatch):
    before = sorted(path.name for path in half.iterdir())
    monkeypatch.setattr("segue.export.export.export", lambda source, out, **rest: out.symlink_to(exported))
    monkeypatch.setitem(fidelity.GATES, "fp16", 99.0)
    with pytest.raises(ParityError, match=r"in fp16 are at \d\d\.\d dB .* below the gate of 99"):
        fidelity.beside_full(exported, half, bundle.read(half).manifest, "fp16", ())
    assert sorted(path.name for path in half.iterdir()) == before


def test_without_memory_for_it_nothing_is_compared(half, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 0)
    assert fidelity.beside_full(half, half, bundle.read(half).manifest, "fp16", ()) is None
