import sys
import types

import pytest

from segue.engines.targets import TARGETS, find_target, load
from segue.errors import MissingDependencyError, UsageError


def test_an_unknown_target_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="'cuda'") as refused:
        find_target("cuda")
    assert all(name in str(refused.value) for name in TARGETS)
    assert {"ort-cpu", "ort-cuda", "ort-tensorrt", "ort-rtx", "tensorrt-rtx", "tensorrt"} <= set(TARGETS)


def test_a_package_that_is_absent_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(MissingDependencyError, match=r"needs tensorrt, which is not installed.*\[tensorrt\]"):
        load(TARGETS["tensorrt"])


@pytest.mark.parametrize(
    ("version", "enough"), [("10.13.3.9", False), ("10.14.1.48.post1", True), ("11.4.0.106", True)]
)
def test_a_tensorrt_that_knows_no_attention_is_refused(monkeypatch, version, enough):
    module = types.ModuleType("tensorrt")
    module.__version__ = version
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    if enough:
        assert load(TARGETS["tensorrt"]) is module
    else:
        with pytest.raises(MissingDependencyError, match=r"needs tensorrt 10\.14 or newer, got 10\.13\.3\.9"):
            load(TARGETS["tensorrt"])


def test_a_package_that_breaks_says_why(monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvonnxparser.so.11: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingDependencyError, match=r"cannot be imported \(libnvonnxparser"):
        load(TARGETS["tensorrt"])
