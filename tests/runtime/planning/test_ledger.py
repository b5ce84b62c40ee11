"""What was taken of memory is known, and what is not there is refused before it is asked for."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import segue
from segue.errors import BudgetError
from segue.runtime.planning import memory
from segue.runtime.planning.ledger import Ledger

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are set as Linux has them")


def test_a_component_is_entered_with_what_it_took():
    ledger, held = Ledger(), []
    with ledger.entry("transformer"):
        held.append(np.ones(32 * 2**20, np.uint8))
    assert ledger.loaded["transformer"] == pytest.approx(32 * 2**20, rel=0.1)
    assert ledger.used > 28 * 2**20


def test_the_error_of_lacking_memory_names_what_was_taken_and_what_was_planned():
    ledger = Ledger()
    assert "(not planned)" in str(ledger.ran_out("transformer"))
    ledger.require(5 * 2**20)
    ledger.loaded = {"vae_decoder": 3 * 2**20}
    told = str(ledger.ran_out("transformer"))
    assert "memory ran out in transformer" in told
    assert "planned: 5 MiB" in told
    assert "vae_decoder 3" in told


@pytest.mark.parametrize("budget", [None, "400MiB"])
def test_a_request_that_the_machine_has_no_room_for_is_refused_before_anything_is_loaded(budget, monkeypatch):
    with segue.open("emoji", budget=budget) as model:
        monkeypatch.setattr(memory, "available", lambda: 50 * 2**20)
        with pytest.raises(BudgetError, match=r"this process has only.*Set a budget of \d+MiB"):
            model.pictures(segue.Request("a red heart"))
        assert model.ledger.loaded == {}
        monkeypatch.undo()
        model.generate("a red heart")
        assert model.ledger.used > 0


# With a number of blocks of 64 KiB, the process has no more than that from the second segment on. The kernel's limit
# alone leaves what the heap holds free, which may be enough for the rest of the clip.
ANIMATED = """
import hashlib, json, sys
import numpy as np
import segue
from segue.engines import process

image = (np.indices((128, 128, 3)).sum(0) * 5 % 256).astype(np.uint8)
request, (journal, resume, left) = segue.AnimationRequest(image, "a wink", frames=25, size=64), json.loads(sys.argv[1])
made, frames = hashlib.sha256(), 0

def limited(event):
    if left is not None and event.stage == "detail" and event.done == 2 and not taken:
        process.limit_data(2**20)
        try:
            while True:
                taken.append(bytearray(2**16))
        except MemoryError:
            del taken[-left:]

taken, told = [], {}
with segue.open("emoji-motion", threads=2) as model:
    try:
        for new in model.frames(request, journal=journal, resume=resume, on_event=limited):
            frames += len(new)
            made.update(new.tobytes())
    except segue.BudgetError as error:
        taken.clear()
        told["error"] = str(error)
print(json.dumps(told | {"frames": frames, "sha256": made.hexdigest()}))
"""


def animated(*asked):
    run = subprocess.run([sys.executable, "-c", ANIMATED, json.dumps(asked)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@linux
def test_memory_that_runs_out_in_the_middle_is_an_error_and_the_journal_goes_on(tmp_path):
    stopped = animated(str(tmp_path / "journal"), False, 4)
    assert "memory ran out in" in stopped["error"]
    assert 0 < stopped["frames"] < 25
    assert animated(str(tmp_path / "journal"), True, None) == animated(None, False, None)


@linux
@pytest.mark.parametrize("limit", ["-v", "-d"])
def test_a_limit_below_the_plan_is_told_by_the_command_line(limit, tmp_path):
    command = (
        f"ulimit {limit} 250000 && exec {sys.executable} -m segue render emoji heart --threads 1 -o {tmp_path}/x.png"
    )
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.returncode == BudgetError.exit_code, run.stderr
    assert "Set a budget" in run.stderr
    assert not (tmp_path / "x.png").exists()


@pytest.fixture
def cgroup():
    """A cgroup of version 1 or 2 in which a process may take 150 MiB, as the file that takes its number."""
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    place, most = None, None
    for _, controllers, name in own:
        if "memory" in controllers.split(","):
            place, most = Path("/sys/fs/cgroup/memory") / name.lstrip("/") / "segue-test", "memory.limit_in_bytes"
    place, most = place or Path("/sys/fs/cgroup/segue-test"), most or "memory.max"
    try:
        place.mkdir()
        (place / most).write_text(str(150 * 2**20))
    except OSError as error:
        if place.is_dir():
            place.rmdir()
        pytest.skip(f"no cgroup can be made here: {error}")
    yield place / "cgroup.procs"
    place.rmdir()


@linux
def test_a_cgroup_below_the_plan_ends_in_the_error_and_not_in_a_kill(cgroup, tmp_path):
    command = f"echo $$ > {cgroup} && exec {sys.executable} -m segue render emoji heart --threads 1 "
    command += f"-o {tmp_path}/heart.png"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert run.returncode == BudgetError.exit_code, run.stderr
    advice = re.search(r"Set a budget of (\d+MiB)", run.stderr)[1]
    subprocess.run(["bash", "-c", f"{command} --budget {advice}"], check=True)
    assert (tmp_path / "heart.png").is_file()
