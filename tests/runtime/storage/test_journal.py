import json
import os
from pathlib import Path

import numpy as np
import pytest

from segue.errors import OutputError, UsageError
from segue.runtime.storage.journal import Journal, open_journal

JOB = {"prompt": "a wave", "seed": 7, "size": (128, 128)}


_held: list[Journal] = []


def opened(folder: Path, job: dict, resume: bool) -> Journal:
    """Open a journal as the next process would, when the one before has ended."""
    while _held:
        _held.pop().close()
    _held.append(open_journal(folder, job, resume))
    return _held[-1]


def array(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32)


def test_what_was_put_is_there_after_a_crash(tmp_path: Path) -> None:
    first = opened(tmp_path / "j", JOB, resume=False)
    first.put("motion", array())
    first.put("segment-0", array(1))
    again = opened(tmp_path / "j", JOB, resume=True)
    assert "motion" in again
    assert "segment-1" not in again
    assert np.array_equal(again.get("segment-0"), array(1))
    assert again.get("segment-1") is None


def test_a_last_line_that_was_cut_off_is_no_line(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    journal.put("b", array(1))
    log = tmp_path / "j/done.jsonl"
    log.write_bytes(log.read_bytes()[:-20])
    again = opened(tmp_path / "j", JOB, resume=True)
    assert np.array_equal(again.get("a"), array())
    assert again.get("b") is None
    again.put("b", array(2))  # behind the cut line
    third = opened(tmp_path / "j", JOB, resume=True)
    assert np.array_equal(third.get("a"), array())
    assert np.array_equal(third.get("b"), array(2))


def test_changed_bytes_count_as_not_done(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    file = tmp_path / "j/a.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    again = opened(tmp_path / "j", JOB, resume=True)
    assert again.get("a") is None
    assert "a" not in again


def test_a_new_job_takes_the_place_of_an_old_one_but_of_nothing_else(tmp_path: Path) -> None:
    opened(tmp_path / "j", JOB, resume=False).put("a", array())
    assert "a" not in opened(tmp_path / "j", {**JOB, "seed": 8}, resume=False)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("keep me")
    with pytest.raises(UsageError, match=r"'notes\.txt', which no journal has"):
        opened(tmp_path / "mine", JOB, resume=False)
    assert (tmp_path / "mine/notes.txt").read_text() == "keep me"
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="file"):
        opened(tmp_path / "file", JOB, resume=False)


def test_a_journal_that_was_begun_and_no_more_is_begun_again(tmp_path: Path) -> None:
    (tmp_path / "j").mkdir()
    (tmp_path / "j/lock").touch()
    opened(tmp_path / "j", JOB, resume=False).put("a", array())


def test_two_never_have_one_journal(tmp_path: Path) -> None:
    first = opened(tmp_path / "j", JOB, resume=False)
    for resume in (False, True):
        with pytest.raises(UsageError, match="is in use"):
            open_journal(tmp_path / "j", JOB, resume)
    first.put("a", array())
    assert "a" in opened(tmp_path / "j", JOB, resume=True)


def test_a_journal_of_another_job_is_refused_with_what_differs(tmp_path: Path) -> None:
    opened(tmp_path / "j", JOB, resume=False)
    with pytest.raises(UsageError, match=r"its seed is '7', yours is '8'"):
        opened(tmp_path / "j", {**JOB, "seed": 8}, resume=True)
    with pytest.raises(UsageError, match="another job: its fps is 'None'"):
        opened(tmp_path / "j", {**JOB, "fps": 12}, resume=True)


@pytest.mark.parametrize("content", [None, "{", "[]", "3"])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: str | None) -> None:
    (tmp_path / "j").mkdir()
    if content is not None:
        (tmp_path / "j/job.json").write_text(content)
    with pytest.raises(UsageError, match=r"no journal to resume|another job"):
        opened(tmp_path / "j", JOB, resume=True)


@pytest.mark.parametrize("line", ['{"name": "../x", "sha256": "a"}', "[1]", '{"name": 1, "sha256": "a"}', "\x00"])
def test_lines_that_nobody_wrote_are_passed_over(tmp_path: Path, line: str) -> None:
    journal = opened(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    with (tmp_path / "j/done.jsonl").open("a") as file:
        file.write(line + "\n")
    again = opened(tmp_path / "j", JOB, resume=True)
    assert np.array_equal(again.get("a"), array())
    assert "../x" not in again


def test_a_pickle_is_never_loaded(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j", JOB, resume=False)
    with pytest.raises(ValueError, match="allow_pickle"):
        journal.put("a", np.array([{}], object))


def test_forgotten_arrays_leave_the_disk(tmp_path: Path) -> None:
    journal = opened(tmp_path / "j", JOB, resume=False)
    journal.put("a", array())
    journal.forget("a")
    assert sorted(os.listdir(tmp_path / "j")) == ["done.jsonl", "job.json", "lock"]
    assert json.loads((tmp_path / "j/job.json").read_text())["size"] == [128, 128]
