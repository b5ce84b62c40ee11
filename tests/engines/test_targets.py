import sys

import pytest

from segue.engines.targets import TARGETS, find_target, load
from segue.errors import MissingDependencyError, UsageError


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match=r"'cuda'.*ort-cpu, ort-cuda, ort-tensorrt, ort-rtx, tensorrt-rtx, tensorrt"):
        find_target("cuda")


def test_a_package_that_is_absent_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"needs tensorrt, which is not installed.*\[tensorrt\]"):
        load(TARGETS["tensorrt"])


def test_a_package_that_breaks_says_why(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvonnxparser.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"cannot be imported \(libnvonnxparser"):
        load(TARGETS["tensorrt"])
