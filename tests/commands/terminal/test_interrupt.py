"""Ctrl-C while the main thread is in one long call of native code, which no Python code can interrupt."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from segue.commands.terminal.interrupt import stopping

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX's way of pressing Ctrl-C")

PROGRAM = """
import hashlib, sys
from segue.commands.console import Output

show = Output("--json" in sys.argv)
with show.stoppable() as stop:
    print("begun", flush=True)
    while True:
        hashlib.pbkdf2_hmac("sha256", b"", b"", int(sys.argv[1]))
        print("the call has ended", file=sys.stderr, flush=True)
        if stop():
            break
sys.exit(130)
"""


@pytest.fixture(autouse=True)
def usual():
    """Ctrl-C as Python finds it in a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def started(rounds, *options):
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(rounds), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background shell ignores it
    )
    assert process.stdout.readline() == "begun\n"
    return process


@posix
def test_an_answer_comes_before_the_call_ends_and_no_other_call_begins():
    process = started(5_000_000)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert said.splitlines() == [
        "Stopping after this step … Press Ctrl-C again to stop at once.",
        "the call has ended",
    ]
    assert process.returncode == 130


@posix
def test_a_second_press_ends_the_program_within_the_call():
    process = started(200_000_000, "--json")
    process.send_signal(signal.SIGINT)
    assert "Stopping after this step" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    told, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "Stopped.\n"
    assert [json.loads(line)["event"] for line in told.splitlines()] == ["stopping", "error"]
    assert json.loads(told.splitlines()[-1])["kind"] == "Cancelled"


@posix
def test_presses_between_two_calls_stop_and_then_interrupt():
    told, asked = [], []

    def press_twice():
        with stopping(lambda: told.append("told"), lambda: told.append("ended")) as stop:
            asked.append(stop())
            signal.raise_signal(signal.SIGINT)
            asked.append(stop())
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        press_twice()
    assert asked == [False, True]
    assert told == ["told"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_program_that_ignores_or_handles_ctrl_c_keeps_its_way():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopping(lambda: None, lambda: None) as stop:
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
            assert not stop()
    finally:
        signal.signal(signal.SIGINT, before)


def test_outside_the_main_thread_nothing_is_changed():
    found = []

    def work():
        with stopping(lambda: None, lambda: None) as stop:
            found.append((stop(), signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(False, before)]
