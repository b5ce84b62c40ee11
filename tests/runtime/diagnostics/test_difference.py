import sys

import numpy as np
import pytest

from segue.errors import MissingDependencyError
from segue.runtime.diagnostics import difference
from segue.runtime.diagnostics.difference import relative_l2

EXPECTED = {"a": np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32), "b": np.ones(4, np.float16)}


def test_the_worst_output_counts_and_relative_l2_is_that_of_the_expected_ones():
    found = {"a": EXPECTED["a"] * np.float32(1.02), "b": EXPECTED["b"] + np.float16(0.5)}
    measured = difference.difference(EXPECTED, found)
    assert measured.relative_l2 == pytest.approx(relative_l2(found["b"], EXPECTED["b"]), rel=1e-5)
    assert measured.maximum == 0.5
    alone = difference.difference({"a": EXPECTED["a"]}, {"a": found["a"]})
    assert alone.relative_l2 == pytest.approx(relative_l2(found["a"], EXPECTED["a"]), rel=1e-4)


def test_equal_arrays_do_not_differ():
    nothing = {"a": np.zeros(3, np.float32)}
    for arrays in (EXPECTED, nothing):
        assert difference.difference(arrays, arrays) == difference.Difference(0.0, 0.0)


@pytest.mark.parametrize("wrong", [np.full(4, np.nan), np.full(4, np.inf), np.ones(5)], ids=["nan", "inf", "shape"])
def test_what_is_no_number_or_has_another_shape_is_the_largest_difference(wrong):
    measured = difference.difference({"b": EXPECTED["b"]}, {"b": wrong})
    assert (measured.relative_l2, measured.maximum) == (sys.float_info.max,) * 2


def test_without_polygraphy_the_error_says_how_to_get_it(monkeypatch):
    difference._polygraphy.cache_clear()
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    with pytest.raises(MissingDependencyError, match="pip install polygraphy"):
        difference.difference(EXPECTED, EXPECTED)
