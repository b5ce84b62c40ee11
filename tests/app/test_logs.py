"""What the server writes about requests and jobs, and what it does not write."""

import logging
import re
import signal

import pytest

from segue.app.logs import Lines, Requests

LINE = re.compile(r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "(.*) HTTP/1\.1" (\d{3}) -')
LONG = "heart " * 200  # more than the tokenizer takes, so that the model warns


def record(message="", args=(), error=None):
    info = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord("segue", logging.INFO, __file__, 1, message, args, info)


@pytest.mark.parametrize("client", ["127.0.0.1:5000", "::1:5000"])
def test_a_request_is_one_line_of_the_common_log_format_without_its_query(client):
    line = Requests().format(record(args=(client, "GET", "/v1/prompts?query=secret", "1.1", 200)))
    assert re.fullmatch(rf'{re.escape(client[:-5])} - - \[.*\] "GET /v1/prompts HTTP/1\.1" 200 -', line)


def test_only_the_verbose_see_a_traceback():
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        told = record("Exception in ASGI application\n", error=error)
    quiet, loud = (Lines(verbose).format(told) for verbose in (False, True))
    assert "a request failed: ZeroDivisionError: by zero. Start the server with --verbose" in quiet
    assert "\n" not in quiet
    assert "Traceback" in loud
    assert "test_logs.py" in loud


@pytest.fixture
def run(start, finished, tmp_path):
    """Function that draws a picture on a server with these options; returns what it wrote to standard error."""

    def made(*options):
        path = tmp_path / "stderr"
        with path.open("w") as stderr, start(tmp_path / "data", "emoji", options=options, stderr=stderr) as both:
            client, process = both
            job = finished(client, client.post("/v1/jobs", json={"prompt": LONG}).json()["id"])
            assert job["state"] == "done"
            client.get("/v1/prompts?query=secret")
            process.send_signal(signal.SIGINT)
            process.wait(60)
        return job, path.read_text()

    return made


def test_a_server_is_quiet_and_no_warning_of_python_appears(run):
    job, told = run()
    assert any("its end was cut" in line for line in job["warnings"])
    assert "Warning" not in told
    assert ".py" not in told
    assert "GET" not in told


def test_verbose_tells_of_each_request_and_each_job(run):
    job, told = run("--verbose")
    told_of = [line.split(" ", 1)[1] for line in told.splitlines() if f"job {job['id']}" in line]
    assert told_of[0] == f"job {job['id']}: accepted, a picture of emoji"
    assert any("its end was cut" in line for line in told_of)
    assert told_of[-2:] == [f"job {job['id']}: running", f"job {job['id']}: done"]
    assert ("POST /v1/jobs", "202") in LINE.findall(told)
    assert "Warning" not in told
    assert "secret" not in told


def test_the_access_log_holds_each_request_and_grows(run, tmp_path):
    path = tmp_path / "access.log"
    for _ in range(2):
        _, told = run("--access-log", str(path))
        assert "GET" not in told
    lines = path.read_text().splitlines()
    assert all(LINE.fullmatch(line) for line in lines), lines
    assert [LINE.fullmatch(line)[1] for line in lines].count("POST /v1/jobs") == 2
    assert "GET /v1/prompts" in path.read_text()
    assert "secret" not in path.read_text()
