"""Limits of a process are seen, set, and met with an error instead of an end."""

import subprocess
import sys

import pytest

from segue.engines import process

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's accounts are Linux's")

LIMITED = """
from segue.engines import process
assert process.limits() == {}
process.limit_data(64 * 2**20)
assert 32 * 2**20 < process.limits()["RLIMIT_DATA"] <= 64 * 2**20
process.limit_data(256 * 2**20)  # no lower limit is lifted
assert process.limits()["RLIMIT_DATA"] <= 64 * 2**20
few = bytearray(16 * 2**20)
try:
    bytearray(128 * 2**20)
except MemoryError as error:
    assert process.ran_out(error)
else:
    raise SystemExit("it was given")
"""


def test_the_kernel_refuses_what_is_beyond_the_limit():
    run = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_what_a_process_holds_is_no_more_than_it_held_at_most():
    assert 0 < process.resident() <= process.peak_resident()


@pytest.mark.parametrize(
    ("text", "so"),
    [
        ("std::bad_alloc", True),
        ("bfc_arena.cc:359 Failed to allocate memory for requested buffer of size 37748736", True),
        ("CUDA failure 2: out of memory", True),
        ("libfoo.so: cannot map zero-fill pages", True),
        ("Invalid Feed Input Name:x", False),
    ],
)
def test_words_of_backends_tell_that_memory_ran_out(text, so):
    assert process.ran_out(RuntimeError(text)) is so
