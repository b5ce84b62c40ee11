"""The shared arena, in processes of their own: it is the process's."""

import json
import subprocess
import sys

import onnx
import pytest

from segue.engines import arena

PROGRAM = """
import json, resource, sys, numpy, onnx, psutil
from onnx import TensorProto, helper
from pathlib import Path
from segue.engines.ort import OrtEngine

info = helper.make_tensor_value_info
nodes = [helper.make_node("Expand", ["x", "shape"], ["y"]), helper.make_node("ReduceSum", ["y"], ["z"])]
given = [info("x", 1, [1]), info("shape", TensorProto.INT64, [1])]
graph = helper.make_graph(nodes, "large", given, [info("z", 1, [1])])
onnx.save(helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)]), "large.onnx")
held = lambda: psutil.Process().memory_info().rss
engines = [OrtEngine(Path("large.onnx"), threads=1) for _ in range(4)]
feeds = {"x": numpy.ones(1, "f4"), "shape": numpy.array([2**24])}
told = [held()]
for engine in engines:
    assert engine.run(feeds)["z"] == 2**24
    told.append(held())
engines.pop().close()
print(json.dumps([value / 2**20 for value in [*told, held()]]))
"""


def test_the_arenas_key_is_a_model_that_onnx_takes():
    onnx.checker.check_model(onnx.load_from_string(arena._identity()))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems count resident memory otherwise")
def test_engines_share_their_memory_and_a_closed_one_gives_it_back(tmp_path):
    run = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=True)
    before, first, *others, closed = json.loads(run.stdout)
    assert first - before > 60, "the array of 64 MiB should have been made"
    assert max(others) - first < 8, "four engines held more than one of them needs"
    assert closed - before < 16, "what nobody uses is still held"
