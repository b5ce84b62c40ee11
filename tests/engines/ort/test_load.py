import os
import subprocess
import sys

import pytest

DOCTOR = "from segue.runtime.diagnostics.doctor import examine; examine()"  # it looks for every target
PROGRAM = """
from segue.engines.ort import arena
from segue.engines.ort.load import onnxruntime
module = onnxruntime()
arena.share(module, module.SessionOptions())
arena.shrink(module)
"""


@pytest.mark.parametrize("program", [PROGRAM, DOCTOR], ids=["a session", "doctor"])
def test_no_telemetry_is_kept_in_the_users_home(tmp_path, program):
    told = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run([sys.executable, "-c", program], env=told | {"HOME": str(tmp_path)}, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
