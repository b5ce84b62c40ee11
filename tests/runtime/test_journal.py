import json
import os
from pathlib import Path

import numpy as np
import pytest

from segue.errors import OutputError, UsageError
from segue.runtime.journal import open_journal

JOB = {"prompt": "a wave", "seed": 7, "size": (128, 128)}


def array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)


def test_what_was_put_is_there_after_a_crash(tmp_path: Path) -> None:
    first = open_journal(tmp_path / "j", JOB, resume=False)
    first.put("motion", array())
    first.put("segment-0", array(1))
    again = open_journal(tmp_path / "j", JOB, resume=True)
    assert "motion" in again
    assert "segment-1" not in again
    assert np.array_equal(again.get("segment-0"), array(1))
    assert again.get("segment-1") is None


def test_a_last_line_that_was_cut_off_is_no_line(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    journal.put("b", array(1))
    log = tmp_path / "j/done.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    again = open_journal(tmp_path / "j", JOB, resume=True)
    assert np.array_equal(again.get("a"), array())
    assert again.get("b") is None
    again.put("b", array(2))  # behind the cut line
    third = open_journal(tmp_path / "j", JOB, resume=True)
    assert np.array_equal(third.get("a"), array())
    assert np.array_equal(third.get("b"), array(2))


def test_changed_bytes_count_as_not_done(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    file = tmp_path / "j/a.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    again = open_journal(tmp_path / "j", JOB, resume=True)
    assert again.get("a") is None
    assert "a" not in again


def test_a_new_job_takes_the_place_of_an_old_one_but_of_nothing_else(tmp_path: Path) -> None:
    open_journal(tmp_path / "j", JOB, resume=False).put("a", array())
    assert "a" not in open_journal(tmp_path / "j", {**JOB, "seed": 8}, resume=False)
    (tmp_path / "mine").mkdir()
    with pytest.raises(OutputError, match="mine"):
        open_journal(tmp_path / "mine", JOB, resume=False)


def test_a_journal_of_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    open_journal(tmp_path / "j", JOB, resume=False)
    with pytest.raises(UsageError, match=r"its seed is '7', yours is '8'"):
        open_journal(tmp_path / "j", {**JOB, "seed": 8}, resume=True)
    with pytest.raises(UsageError, match="another job: its fps is 'None'"):
        open_journal(tmp_path / "j", {**JOB, "fps": 12}, resume=True)


@pytest.mark.parametrize("content", [None, "{", "[]", "3"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "j").mkdir()
    if content is not None:
        (tmp_path / "j/job.json").write_text(content)
    with pytest.raises(UsageError, match=r"no journal to go on from|another job"):
        open_journal(tmp_path / "j", JOB, resume=True)


@pytest.mark.parametrize("line", ['{"name": "../x", "sha256": "a"}', "[1]", '{"name": 1, "sha256": "a"}', "\x00"])
def test_lines_that_nobody_wrote_are_passed_over(tmp_path: Path, line: str) -> None:
    journal = open_journal(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    with (tmp_path / "j/done.jsonl").open("a") as file:
        file.write(line + "\n")
    again = open_journal(tmp_path / "j", JOB, resume=True)
    assert np.array_equal(again.get("a"), array())
    assert "../x" not in again


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", JOB, resume=False)
    with pytest.raises(ValueError, match="allow_pickle"):
        journal.put("a", np.array([{}], object))


def test_forgotten_arrays_leave_the_disk_and_a_finished_journal_all_of_it(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    journal.forget("a")
    assert sorted(os.listdir(tmp_path / "j")) == ["done.jsonl", "job.json"]
    assert json.loads((tmp_path / "j/job.json").read_text())["size"] == [128, 128]
    journal.remove()
    assert not (tmp_path / "j").exists()
