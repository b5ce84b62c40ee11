"""The forms that a change of a weight takes: pure functions of a file's tensors.

A weight W of shape [out, in, *kernel] is seen as [out, columns], with columns = in x kernel. `rows` are the rows of the
change that one weight of the checkpoint takes, because original layouts hold several weights in one.

| form | change, before the scale |
|---|---|
| LoRA (Hu et al. 2021, section 4.1) | B A |
| LoRA of a convolution, with a middle | sum over r, s of B[o, r] M[r, s, k] A[s, i] |
| LoHa (Hyeon-Woo et al. 2022, "FedPara", section 2) | (w1a w1b) * (w2a w2b) |
| LoKr (Yeh et al. 2024, "Navigating Text-To-Image Customization", section 3.2) | kron(w1, w2) |
| full difference | diff |

DoRA (Liu et al. 2024, section 4.1) then keeps the direction and sets the norm: m (W + D) / |W + D|.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]
Get = Callable[[str], np.ndarray]  # a part of the change, float32

LORA, MIDDLE, DIFF = frozenset({"down", "up"}), frozenset({"down", "up", "mid"}), frozenset({"diff"})
LOHA = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
LOHA_TUCKER = LOHA | {"hada_t1", "hada_t2"}
W1 = (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
W2 = (frozenset({"lokr_w2"}), frozenset({"lokr_w2_a", "lokr_w2_b"}), frozenset({"lokr_w2_a", "lokr_w2_b", "lokr_t2"}))
LOKR = frozenset(first | second for first in W1 for second in W2)
FORMS = frozenset({LORA, MIDDLE, DIFF, LOHA, LOHA_TUCKER}) | LOKR


@dataclass(frozen=True)
class Size:
    """What a change covers: rows, columns, and the rank that alpha is divided by (None: alpha does not count)."""

    rows: int
    columns: int
    rank: int | None


def size(shapes: Mapping[str, Shape], tail: Shape) -> Size:
    """Return the size of a change whose parts have these shapes, for a weight [out, *tail].

    `shapes` has the keys of one of `FORMS`. Raises ValueError, with the reason, if the parts do not fit each other.
    """
    kind = frozenset(shapes)
    if any(len(shape) < (1 if name == "diff" else 2) for name, shape in shapes.items()):
        raise ValueError("a part has too few dimensions")
    if kind == DIFF:
        shape = shapes["diff"]
        _require(_trim(shape[1:]) == _trim(tail), "the difference")
        return Size(shape[0], math.prod(shape[1:]), None)
    if kind == LORA:
        down, up = shapes["down"], shapes["up"]
        _require(up[1] == down[0] and _trim(down[1:]) == _trim(tail) and not _trim(up[2:]), "the two halves")
        return Size(up[0], math.prod(down[1:]), down[0])
    if kind == MIDDLE:
        down, mid, up = shapes["down"], shapes["mid"], shapes["up"]
        _require(
            mid[:2] == (up[1], down[0]) and not _trim(up[2:]) and not _trim(down[2:])
            and _trim((down[1], *mid[2:])) == _trim(tail), "the halves and the middle",
        )  # fmt: skip
        return Size(up[0], down[1] * math.prod(mid[2:]), down[0])
    if kind in (LOHA, LOHA_TUCKER):
        first, second = (_hadamard(shapes, n) for n in (1, 2))
        _require(first[:2] == second[:2], "the two products")
        return Size(first[0], first[1], first[2])
    (a, b), (p, q, kernel) = shapes_of_factors(shapes, tail)
    ranks = [shapes[name][0] for name in ("lokr_w2_b", "lokr_w1_b") if name in shapes]
    return Size(a * p, b * q * kernel, ranks[0] if ranks else None)


def delta(get: Get, shapes: Mapping[str, Shape], tail: Shape, rows: np.ndarray | slice) -> np.ndarray:
    """Return the given rows of the change, float32 [rows, columns]; `size` has accepted the shapes."""
    kind = frozenset(shapes)
    if kind == DIFF:
        return _flat(get("diff"))[rows]
    if kind == LORA:
        up, down = get("up").reshape(shapes["up"][:2]), _flat(get("down"))
        return up[rows] @ down
    if kind == MIDDLE:
        up, down = (get(part).reshape(shapes[part][:2]) for part in ("up", "down"))
        return _tucker(get("mid"), up[rows].T, down)
    if kind in (LOHA, LOHA_TUCKER):
        return _product(get, shapes, 1, rows) * _product(get, shapes, 2, rows)
    (a, b), (p, q, k) = shapes_of_factors(shapes, tail)
    first = (get("lokr_w1") if "lokr_w1" in shapes else get("lokr_w1_a") @ get("lokr_w1_b")).reshape(a, b)
    second = _second_factor(get, shapes).reshape(p, q, k)
    place = np.arange(a * p)[rows]
    return (first[place // p][:, :, None, None] * second[place % p][:, None]).reshape(len(place), b * q * k)


def shapes_of_factors(shapes: Mapping[str, Shape], tail: Shape) -> tuple[tuple[int, int], tuple[int, int, int]]:
    """Return LoKr's w1 as (a, b) and w2 as (p, q, kernel); raises ValueError if they do not fit the weight."""
    if "lokr_w1" in shapes:
        first = shapes["lokr_w1"]
        _require(not _trim(first[2:]), "the first factor")
    else:
        first = (shapes["lokr_w1_a"][0], shapes["lokr_w1_b"][1])
        _require(_joined(shapes["lokr_w1_a"], shapes["lokr_w1_b"]), "the first factor")
    kernel = math.prod(tail[1:])
    if "lokr_w2" in shapes:
        p, columns = shapes["lokr_w2"][0], math.prod(shapes["lokr_w2"][1:])
    elif "lokr_t2" in shapes:
        core, left, right = (shapes[n] for n in ("lokr_t2", "lokr_w2_a", "lokr_w2_b"))
        _require(core[:2] == (left[0], right[0]), "the second factor")
        p, columns = left[1], right[1] * math.prod(core[2:])
    else:
        _require(_joined(shapes["lokr_w2_a"], shapes["lokr_w2_b"]), "the second factor")
        p, columns = shapes["lokr_w2_a"][0], shapes["lokr_w2_b"][1]
    _require(columns % kernel == 0, "the second factor")
    return (first[0], first[1]), (p, columns // kernel, kernel)


def by_input(magnitude: Shape, rows: int, tail: Shape, always_output: bool) -> bool:
    """Return whether a DoRA magnitude of this shape belongs to the inputs of a weight [rows, *tail].

    kohya's `dora_scale` is [out, 1, ...] or [1, in, 1, ...]; peft's vector always belongs to the outputs. Raises
    ValueError for another shape.
    """
    count = math.prod(magnitude)
    if count == rows and (always_output or _trim(magnitude) == _trim((rows,))):
        return False
    if not always_output and tail and _trim(magnitude) == _trim((1, tail[0])):
        return True
    raise ValueError("the magnitude does not fit the weight")


def decomposed(weight: np.ndarray, magnitude: np.ndarray, square: np.ndarray) -> np.ndarray:
    """Return magnitude * weight / norm, where `square` is the norm squared; a norm of 0 leaves zeros."""
    norm = np.sqrt(square)
    return weight * (magnitude / np.where(norm == 0, 1, norm)).astype(np.float32)


def _hadamard(shapes: Mapping[str, Shape], n: int) -> tuple[int, int, int]:
    left, right = shapes[f"hada_w{n}_a"], shapes[f"hada_w{n}_b"]
    if (core := shapes.get(f"hada_t{n}")) is None:
        _require(_joined(left, right), f"product {n}")
        return left[0], right[1], right[0]
    _require(core[:2] == (left[0], right[0]), f"product {n}")
    return left[1], right[1] * math.prod(core[2:]), right[0]


def _product(get: Get, shapes: Mapping[str, Shape], n: int, rows: np.ndarray | slice) -> np.ndarray:
    left, right = get(f"hada_w{n}_a"), get(f"hada_w{n}_b")
    if f"hada_t{n}" not in shapes:
        return left[rows] @ right
    return _tucker(get(f"hada_t{n}"), left[:, rows], right)


def _second_factor(get: Get, shapes: Mapping[str, Shape]) -> np.ndarray:
    if "lokr_w2" in shapes:
        return get("lokr_w2")
    left, right = get("lokr_w2_a"), get("lokr_w2_b")
    return _tucker(get("lokr_t2"), left, right) if "lokr_t2" in shapes else left @ right


def _tucker(core: np.ndarray, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return [out, in x kernel] of a core [r, s, *kernel], a left [r, out] and a right [s, in]."""
    kernel = math.prod(core.shape[2:])
    inner = np.einsum("rsk,si->rik", core.reshape(*core.shape[:2], kernel), right, optimize=True)
    return left.T @ _flat(inner)


def _joined(left: Shape, right: Shape) -> bool:
    return len(left) == len(right) == 2 and left[1] == right[0]


def _flat(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[0], math.prod(array.shape[1:]))


def _trim(shape: Shape) -> Shape:
    """Return the shape without the ones at its end."""
    while shape and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _require(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"the shapes of {what} do not fit")
