"""Normal noise with the same bits on every platform, and a stand-in for torch's CPU generator.

**philox** (the default). The bits come from Philox 4x32-10 (Salmon et al. 2011, "Parallel Random Numbers: As Easy as
1, 2, 3"). The key is the seed's two 32-bit halves, low first. Word `j` of a stream is word `j % 4` of the block with
counter `(j // 4, stream, image, 0)`. A word `x` means the probability `(x + 1/2) / 2**32`, and the value is its normal
quantile. Wichura's algorithm AS 241 (PPND16, 1988) computes it in float64, and it is rounded to float32. The tails need
a logarithm, and libraries disagree on its last bit. This module therefore computes it with `+ - * /` and `sqrt`, which
IEEE 754 rounds in only one way. Values lie within ±6.34.

**torch**. The values of `torch.randn(shape, generator=torch.Generator().manual_seed(seed))` in float32 on a CPU. The
Mersenne Twister words are the same, and the values agree within 4 units in the last place. Torch does not round its
vectorised logarithm and cosine correctly, and they differ between processors.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence

import numpy as np

from ...errors import UsageError
from ..units import is_whole

SEED_LIMIT = 2**64
RANDOM_LIMIT = 2**32  # of seeds drawn at random: short enough to type again
INITIAL = 0  # stream of the initial latents; step i of a sampler draws stream i + 1
POSTERIOR = 2**31  # stream of an input picture's latents, beyond the streams of all steps

_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: np.ndarray, key: tuple[int, int], rounds: int = 10) -> np.ndarray:
    """Return the Philox 4x32 blocks of `counter`, uint32 [n, 4], under `key`, two 32-bit words, as uint32 [n, 4]."""
    c0, c1, c2, c3 = counter.astype(np.uint64).T
    k0, k1 = key
    for _ in range(rounds):
        a, b = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ np.uint64(k0), b & _LOW, (a >> _HALF) ^ c3 ^ np.uint64(k1), a & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def philox_normal(shape: Sequence[int], seed: int, image: int = 0, stream: int = INITIAL) -> np.ndarray:
    """Return standard normal noise, float32 of `shape`, the same on every platform.

    `seed` is in [0, 2**64). `image` and `stream`, in [0, 2**32), give independent noise for one seed. Raises
    UsageError.
    """
    seed = check_seed(seed)
    count = math.prod(shape)
    blocks = -(-count // 4)
    if blocks > 2**32:
        raise UsageError(f"noise of shape {list(shape)} has more than 2**34 values. Choose a smaller size.")
    counter = np.zeros((blocks, 4), np.uint32)
    counter[:, 0] = np.arange(blocks, dtype=np.uint32)
    counter[:, 1], counter[:, 2] = stream, image
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32)).reshape(-1)[:count]
    return normal_quantile((words + 0.5) * 2.0**-32).astype(np.float32).reshape(shape)


def normal_quantile(probability: np.ndarray) -> np.ndarray:
    """Return the standard normal quantiles of probabilities in (0, 1), both float64 (AS 241, relative error 1e-15)."""
    q = probability - 0.5
    central = np.abs(q) <= 0.425
    made, inner, outer = np.empty_like(q), q[central], q[~central]
    made[central] = inner * _ratio(0.180625 - inner * inner, _A, _B)
    given = probability[~central]
    r = np.sqrt(-natural_log(np.where(outer < 0, given, 1.0 - given)))
    far = r > 5.0
    size = _ratio(r - 1.6, _C, _D)
    size[far] = _ratio(r[far] - 5.0, _E, _F)
    made[~central] = np.where(outer < 0, -size, size)
    return made


def natural_log(x: np.ndarray) -> np.ndarray:
    """Return the logarithm of positive, normal float64 values by exactly rounded operations (error 1e-15)."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < math.sqrt(0.5)
    mantissa = np.where(low, mantissa * 2, mantissa)
    exponent = np.where(low, exponent - 1, exponent)
    # log m = 2 artanh z; |z| < 0.172, so 11 terms of the series reach float64's precision
    z = (mantissa - 1.0) / (mantissa + 1.0)
    square = z * z
    total = np.full_like(z, 1.0 / 21.0)
    for odd in range(19, 0, -2):
        total = total * square + 1.0 / odd
    return exponent * _LN2_HIGH + (exponent * _LN2_LOW + 2.0 * z * total)


def torch_normal(shape: Sequence[int], seed: int, earlier: Iterable[Sequence[int]] = ()) -> np.ndarray:
    """Return the float32 values of `torch.randn` on a CPU for a generator with this seed, within 4 ulp.

    `seed` is in [0, 2**64); torch uses its low 32 bits. `earlier` holds the shapes of the calls before this one. A
    shape of fewer than 16 values among them must have an even number of values. Raises UsageError.
    """
    seed = check_seed(seed)
    count = math.prod(shape)
    stream = np.random.RandomState(seed & 0xFFFFFFFF)
    for drawn in map(math.prod, earlier):
        # torch draws one word a value, and the last 16 values again if their number is not a multiple of 16
        stream.randint(0, 2**32, 2 * drawn if drawn < 16 else drawn + (16 if drawn % 16 else 0), np.uint32)
    words = stream.randint(0, 2**32, max(count + 16, 32), np.uint32)
    if count < 16:
        return _torch_few(words, count).reshape(shape)
    values = np.empty(count, np.float32)
    whole = count // 16 * 16
    values[:whole] = _torch_blocks(words[:whole])
    if whole < count:
        values[-16:] = _torch_blocks(words[count : count + 16])
    return values.reshape(shape)


def check_seed(seed: int) -> int:
    """Return `seed`; raises UsageError unless it is a whole number in [0, 2**64)."""
    if not is_whole(seed) or not 0 <= seed < SEED_LIMIT:
        raise UsageError(f"seed must be a whole number from 0 to 2**64 - 1, got {seed!r}.")
    return int(seed)


def random_seed() -> int:
    """Return a seed drawn at random, 0 to 2**32 - 1, for a request that names none."""
    return secrets.randbelow(RANDOM_LIMIT)


def _torch_blocks(words: np.ndarray) -> np.ndarray:
    """Box–Muller in float32, like ATen's normal_fill: of 16 uniforms the first 8 give radii, the others angles."""
    uniform = ((words & np.uint32(0xFFFFFF)).astype(np.float32) * np.float32(2.0**-24)).reshape(-1, 2, 8)
    # The angle is rounded to float32 before its cosine; the rest is exact to that rounding
    angle = (np.float32(2 * math.pi) * uniform[:, 1]).astype(np.float64)
    log = np.log((np.float32(1) - uniform[:, 0]).astype(np.float64)).astype(np.float32)
    radius = np.sqrt(np.float32(-2) * log)
    pair = [radius * np.cos(angle).astype(np.float32), radius * np.sin(angle).astype(np.float32)]
    return np.stack(pair, axis=1).reshape(-1)


def _torch_few(words: np.ndarray, count: int) -> np.ndarray:
    """Box–Muller in float64, like ATen's normal_distribution for fewer than 16 values: pairs, cosine first."""
    wide = (words[0::2].astype(np.uint64) << _HALF) | words[1::2]
    uniform = (wide & np.uint64(2**53 - 1)).astype(np.float64) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log1p(-uniform[1::2])), 2 * math.pi * uniform[0::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return pairs.reshape(-1)[:count].astype(np.float32)


def _ratio(x: np.ndarray, above: tuple[float, ...], below: tuple[float, ...]) -> np.ndarray:
    return _horner(x, above) / _horner(x, below)


def _horner(x: np.ndarray, coefficients: tuple[float, ...]) -> np.ndarray:
    total = np.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


# ln 2 in two parts, as fdlibm splits it: an exponent times the first is exact
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
# The coefficients of AS 241, PPND16
# fmt: off
_A = (3.3871328727963666080e0, 1.3314166789178437745e2, 1.9715909503065514427e3, 1.3731693765509461125e4,
      4.5921953931549871457e4, 6.7265770927008700853e4, 3.3430575583588128105e4, 2.5090809287301226727e3)
_B = (1.0, 4.2313330701600911252e1, 6.8718700749205790830e2, 5.3941960214247511077e3,
      2.1213794301586595867e4, 3.9307895800092710610e4, 2.8729085735721942674e4, 5.2264952788528545610e3)
_C = (1.42343711074968357734e0, 4.63033784615654529590e0, 5.76949722146069140550e0, 3.64784832476320460504e0,
      1.27045825245236838258e0, 2.41780725177450611770e-1, 2.27238449892691845833e-2, 7.74545014278341407640e-4)
_D = (1.0, 2.05319162663775882187e0, 1.67638483018380384940e0, 6.89767334985100004550e-1,
      1.48103976427480074590e-1, 1.51986665636164571966e-2, 5.47593808499534494600e-4, 1.05075007164441684324e-9)
_E = (6.65790464350110377720e0, 5.46378491116411436990e0, 1.78482653991729133580e0, 2.96560571828504891230e-1,
      2.65321895265761230930e-2, 1.24266094738807843860e-3, 2.71155556874348757815e-5, 2.01033439929228813265e-7)
_F = (1.0, 5.99832206555887937690e-1, 1.36929880922735805310e-1, 1.48753612908506148525e-2,
      7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7, 2.04426310338993978564e-15)
# fmt: on
