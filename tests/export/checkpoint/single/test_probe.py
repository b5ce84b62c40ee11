"""Row numbers in place of weights: which results of a conversion are byte ranges of the file."""

import numpy as np
import pytest
import torch

from segue.export.checkpoint import headers
from segue.export.checkpoint.single.probe import MOST_ROWS, compute, probe
from segue.runtime.storage.safetensors import read_tensor

SHAPES = {"w": (6, 4), "square": (3, 3), "conv": (4, 2, 1, 1), "kernel": (4, 2, 3, 3), "bias": (6,), "scalar": ()}


@pytest.fixture
def weights(tmp_path):
    """Path, tensors and arrays of a file."""
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(shape).astype("float32") for name, shape in SHAPES.items()}
    path = tmp_path / "w.safetensors"
    head = headers.encode([(name, "F32", a.shape, a.nbytes) for name, a in arrays.items()])
    path.write_bytes(head + b"".join(a.tobytes() for a in arrays.values()))
    return path, headers.read(path, path.name), arrays


@pytest.mark.parametrize(
    ("change", "plain"),
    [
        (lambda s: s["w"], True),
        (lambda s: s["w"][2:5], True),
        (lambda s: torch.chunk(s["w"], 3, dim=0)[1], True),
        (lambda s: torch.cat([s["w"]]), True),
        (lambda s: s["bias"][3:], True),
        (lambda s: s["conv"][:, :, 0, 0], True),
        (lambda s: s["kernel"][1:], True),
        (lambda s: s["scalar"], True),
        (lambda s: torch.cat(s["w"].chunk(2)[::-1]), False),
        (lambda s: s["w"][[0, 2, 4]], False),
        (lambda s: s["w"].T.contiguous(), False),
        (lambda s: s["square"].T.contiguous(), False),
        (lambda s: torch.cat([s["w"], s["w"][:1]]), False),
        (lambda s: torch.cat([s["conv"][:, :, 0, 0], s["conv"][:, :, 0, 0]]), False),
        (lambda s: s["kernel"].permute(0, 2, 3, 1).contiguous(), False),
        (lambda s: torch.eye(3), False),
    ],
)
def test_runs_of_rows_are_byte_ranges_and_all_else_is_computed(weights, change, plain):
    path, tensors, arrays = weights
    found = probe(tensors, lambda state: {"made": change(state)})
    expected = change({name: torch.from_numpy(array.copy()) for name, array in arrays.items()}).numpy()
    assert ("made" in found.ranges) is plain
    if plain:
        got = read_tensor(path, found.ranges["made"])
    else:

        def load(name):
            return torch.from_numpy(read_tensor(path, tensors[name]).copy())

        got = compute("made", found, tensors, lambda state: {"made": change(state)}, load).numpy()
        assert found.computed["made"] == expected.shape
    np.testing.assert_array_equal(got, expected)


def test_only_the_tensors_that_a_result_is_made_of_are_read(weights):
    path, tensors, _ = weights
    read = []

    def convert(state):
        return {"swapped": torch.cat(state["w"].chunk(2)[::-1]), "same": state["kernel"], "missing": None}

    def load(name):
        read.append(name)
        return torch.from_numpy(read_tensor(path, tensors[name]).copy())

    found = probe(tensors, convert)
    assert found.ranges.keys() == {"same"}
    assert found.sources == {"swapped": ("w",)}
    compute("swapped", found, tensors, convert, load)
    assert read == ["w"]


def test_a_header_with_more_rows_than_any_model_takes_no_memory():
    endless = headers.Tensor("w", "w.safetensors", 8, 0, "F16", (2**40, 0))
    with pytest.raises(ValueError, match=f"above the limit of {MOST_ROWS}"):
        probe({"w": endless}, dict)
