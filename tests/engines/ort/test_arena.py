"""The shared arena, in processes of their own: it is the process's."""

import json
import subprocess
import sys

import onnx
import pytest

from segue.engines.ort import arena

PROGRAM = """
import json, numpy, onnx, psutil
from onnx import helper
from pathlib import Path
from segue.engines.ort.engine import OrtEngine

info = helper.make_tensor_value_info
nodes = [helper.make_node("Add", ["x", "x"], ["y"]), helper.make_node("ReduceSum", ["y"], ["z"])]
graph = helper.make_graph(nodes, "large", [info("x", 1, ["n"])], [info("z", 1, [1])])
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), "large.onnx")
held = lambda: psutil.Process().memory_info().rss
engines = [OrtEngine(Path("large.onnx"), threads=1) for _ in range(4)]
x = numpy.ones(2**24, "f4")
told = [held()]
for engine in engines:
    assert engine.run({"x": x})["z"] == 2**25
    told.append(held())
for size in range(2**22, 2**24, 2**21):
    engines[0].run({"x": x[:size]})
engines[0].run({"x": x})
told.append(held())
engines.pop().close()
print(json.dumps([value / 2**20 for value in [*told, held()]]))
"""


def test_the_arenas_key_is_a_model_that_onnx_takes():
    onnx.checker.check_model(onnx.load_from_string(arena._identity()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count resident memory otherwise")
def test_engines_share_their_memory_and_a_closed_one_gives_it_back(tmp_path):
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    before, first, *others, grown, closed = json.loads(run.stdout)
    assert first - before > 60, "the array of 64 MiB should have been made"
    assert max(others) - first < 8, "four engines held more than one of them needs"
    assert grown - first < 16, "calls of growing size left something each"
    assert closed - before < 16, "what nobody uses is still held"
