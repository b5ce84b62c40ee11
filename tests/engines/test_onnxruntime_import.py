import os
import subprocess
import sys

PROGRAM = """
from segue.engines import arena
from segue.engines.onnxruntime_import import onnxruntime
module = onnxruntime()
arena.share(module, module.SessionOptions())
arena.shrink(module)
"""


def test_no_telemetry_is_kept_in_the_users_home(tmp_path):
    told = {
        name: value for name, value in os.environ.items() if name not in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    }
    subprocess.run([sys.executable, "-c", PROGRAM], env=told | {"HOME": str(tmp_path)}, check=True)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
