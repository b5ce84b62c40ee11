import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segue.errors import UsageError
from segue.runtime.sampling import noise


# Random123's kat_vectors for philox4x32 with 10 rounds
@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter, key, block):
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, block)]
    assert noise.philox(np.array([words[0]], np.uint32), tuple(words[1])).tolist() == [words[2]]


def test_the_bits_of_the_noise_never_change():
    found = noise.philox_normal((6,), seed=7, image=1, stream=2).view(np.uint32)
    assert " ".join(f"{word:08x}" for word in found) == "3e6b2eb8 bf99ad93 bf9bfa7b 3ed2d393 3fd30666 bee07f35"


def test_every_value_is_the_quantile_of_its_own_word():
    values = noise.philox_normal((3, 5), seed=2**40 + 9, image=3).reshape(-1)
    for j, value in enumerate(values):
        block = noise.philox(np.array([[j // 4, 0, 3, 0]], np.uint32), (9, 2**8))[0]
        exact = statistics.NormalDist().inv_cdf((int(block[j % 4]) + 0.5) / 2**32)
        assert value == pytest.approx(exact, rel=1e-6)


def test_the_quantile_agrees_with_the_standard_library_over_its_whole_range():
    p = np.concatenate([np.linspace(2**-33, 1 - 2**-33, 5001), 2.0 ** -np.arange(1, 50), 1 - 2.0 ** -np.arange(2, 50)])
    exact = np.array([statistics.NormalDist().inv_cdf(x) for x in p])
    assert np.abs(noise.normal_quantile(p) - exact).max() < 4e-15


def test_the_logarithm_is_exact_to_the_last_bits():
    x = 10.0 ** np.linspace(-300, 300, 10000)
    assert np.abs(noise.natural_log(x) / np.log(x) - 1).max() < 4e-16


def test_the_noise_is_standard_normal():
    values = np.sort(noise.philox_normal((500_000,), seed=11).astype(np.float64))
    assert abs(values.mean()) < 4 / math.sqrt(len(values))
    assert abs(values.var() - 1) < 4 * math.sqrt(2 / len(values))
    assert abs((values**3).mean()) < 4 * math.sqrt(15 / len(values))
    assert abs((values**4).mean() - 3) < 4 * math.sqrt(96 / len(values))
    cdf = np.array([statistics.NormalDist().cdf(v) for v in values[::50]])
    distance = np.abs(cdf - np.arange(0, len(values), 50) / len(values)).max()
    assert distance < 1.95 / math.sqrt(len(values))  # Kolmogorov-Smirnov at the 0.1 % level


def test_seeds_images_and_streams_are_independent_and_longer_noise_extends_shorter():
    base = noise.philox_normal((4096,), seed=5)
    others = [
        noise.philox_normal((4096,), seed=6),
        noise.philox_normal((4096,), seed=5 + 2**32),
        noise.philox_normal((4096,), seed=5, image=1),
        noise.philox_normal((4096,), seed=5, stream=1),
    ]
    for other in others:
        assert abs(np.corrcoef(base, other)[0, 1]) < 0.07
    assert np.array_equal(noise.philox_normal((4097,), seed=5)[:4096], base)


@pytest.mark.parametrize("count", [1, 2, 5, 15, 16, 17, 31, 32, 100, 4096, 4099])
@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, 2**40 + 3, 2**63])
def test_the_torch_option_reproduces_torch(count, seed):
    theirs = torch.randn(count, generator=torch.Generator().manual_seed(seed)).numpy()
    ours = noise.torch_normal((count,), seed)
    assert ours.dtype == np.float32
    assert (np.abs(ours - theirs) <= 4 * np.spacing(np.abs(theirs))).all()


@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 5, 7), (2, 7)])
def test_the_torch_option_goes_on_like_the_generator(shape):
    generator = torch.Generator().manual_seed(11)
    for earlier in range(4):
        theirs = torch.randn(shape, generator=generator).numpy()
        assert np.allclose(noise.torch_normal(shape, 11, [shape] * earlier), theirs, rtol=0, atol=2e-6)


def test_the_torch_option_keeps_the_shape_of_a_latent_block():
    theirs = torch.randn((2, 16, 16, 24), generator=torch.Generator().manual_seed(3)).numpy()
    assert np.allclose(noise.torch_normal((2, 16, 16, 24), 3), theirs, rtol=0, atol=2e-6)


@pytest.mark.parametrize("seed", [-1, 2**64, 1.0, "7", None, True])
def test_seeds_outside_64_bits_are_refused(seed):
    for draw in (noise.philox_normal, noise.torch_normal):
        with pytest.raises(UsageError, match="seed must be"):
            draw((4,), seed)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_any_seed_gives_finite_noise(seed, image):
    assert np.isfinite(noise.philox_normal((16,), seed, image)).all()


def test_seeds_at_random_differ_and_are_short_enough_to_type():
    seeds = [noise.random_seed() for _ in range(200)]
    assert len(set(seeds)) > 190
    assert all(0 <= seed < 2**32 for seed in seeds)
