import io
import pickle

import numpy as np
import pytest
import torch

from segue.errors import TrainingError
from segue.training.metrics import nets, scores


def test_only_arrays_are_unpickled() -> None:
    tree = {
        "Conv_0": {"kernel": np.arange(24.0, dtype=np.float32).reshape(1, 2, 3, 4), "bias": np.zeros(4, np.float32)}
    }
    tensors = nets._flat(nets._ArraysOnly(io.BytesIO(pickle.dumps(tree))).load())
    assert tensors["Conv_0.kernel"].shape == (4, 3, 1, 2)
    assert tensors["Conv_0.kernel"][1, 2, 0, 1] == tree["Conv_0"]["kernel"][0, 1, 2, 1]
    with pytest.raises(TrainingError, match=r"posix\.system|nt\.system|os\.system"):
        nets._ArraysOnly(io.BytesIO(b"cposix\nsystem\n(S'true'\ntR.")).load()


def test_kid_is_near_zero_for_one_distribution_and_large_for_two() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 300, 32, generator=generator)
    same, _ = scores.kid(a, b, subset_size=200)
    other, _ = scores.kid(a, b + 1, subset_size=200)
    assert abs(same) < 60
    assert other > 1000


def test_kid_of_pairs_is_not_below_that_of_equal_distributions() -> None:
    pictures = torch.randn(120, 32, generator=torch.Generator().manual_seed(0))
    assert scores.kid(pictures, pictures, subset_size=100) == pytest.approx((0, 0), abs=1e-6)
    one_by_one = [scores.kid(pictures, pictures.roll(1, 0))[0], scores.kid(pictures.roll(1, 0), pictures)[0]]
    assert one_by_one[0] == pytest.approx(one_by_one[1], abs=1e-3)


def test_kid_has_no_spread_where_one_subset_is_all() -> None:
    a, b = torch.randn(2, 50, 32, generator=torch.Generator().manual_seed(0))
    distance, spread = scores.kid(a, b)
    assert distance == scores.kid(a, b, subsets=7)[0]
    assert spread == 0


def test_kid_refuses_sets_whose_rows_cannot_be_paired() -> None:
    pictures = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="got 10 and 20"):
        scores.kid(pictures[:10], pictures)
    with pytest.raises(ValueError, match="got 20 and 10"):
        scores.kid(pictures, pictures[:10])


def test_the_retriever_finds_names_that_the_features_tell_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(100, 16, generator=generator), dim=-1)
    features = embeddings @ torch.randn(16, 1280, generator=generator)
    retriever = scores.fit_retriever(features, embeddings, ridge=1e-3)
    names = [f"name {i}" for i in range(100)]
    assert scores.recall_at_10(retriever, features, embeddings, names) > 0.95
    shuffled = features[torch.randperm(100, generator=generator)]
    assert scores.recall_at_10(retriever, shuffled, embeddings, names) < 0.3


def test_psnr_counts_only_what_is_not_transparent() -> None:
    rgba = torch.zeros(1, 4, 4, 4, dtype=torch.uint8)
    rgba[0, :2, :, 3] = 255
    pixels = torch.zeros(1, 3, 4, 4)
    decoded = pixels.clone()
    decoded[:, :, 2:] = 1.0  # wrong only where it is transparent
    decoded[:, :, :2] = 0.2  # 0.1 of the unit range
    assert scores.psnr_on_alpha(rgba, pixels, decoded) == pytest.approx(20.0, abs=1e-4)
