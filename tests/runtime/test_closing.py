"""Closing frees everything: measured in a process of its own, whose memory is nobody else's."""

import json
import statistics
import subprocess
import sys

import pytest

PROGRAM = """
import json, psutil, segue, onnxruntime
held = lambda: psutil.Process().memory_info().rss
told = {"idle": held(), "open": [], "closed": []}
for _ in range(6):
    with segue.open("emoji", threads=1) as model, segue.ModelQueue(model) as queue:
        queue.submit(segue.Request("a red heart")).result()
        told["open"].append(held())
    told["closed"].append(held())
print(json.dumps(told))
"""


@pytest.mark.parametrize("how", ["", "sys.exit(3)", "raise ValueError"])
def test_a_program_may_end_while_its_queue_works(how):
    program = f"""
import sys, segue, threading
begun = threading.Event()
queue = segue.ModelQueue(segue.open("emoji"))
queue.submit(segue.Request("a red heart", steps=500), on_step=lambda *_: begun.set())
begun.wait()
{how}
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == {"": 0, "sys.exit(3)": 3, "raise ValueError": 1}[how], run.stderr
    assert "terminate called" not in run.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other allocators give back when they like")
def test_a_closed_model_leaves_nothing_behind():
    run = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    told = json.loads(run.stdout)
    taken = max(told["open"]) - told["idle"]
    assert told["closed"][-1] - told["idle"] < 0.3 * taken, told  # what is left are libraries that are loaded on use
    early, late = (statistics.median(held) for held in (told["closed"][:3], told["closed"][3:]))
    assert late - early < 8 * 2**20, told  # one that was kept would be 80 MB a round; the heap's ends come and go by 8
