"""The server's files are for its user only, also in directories that were there before."""

import os

import pytest

from segue.app.private import prepare_folder
from segue.errors import UsageError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has no modes")


def mode(path):
    return path.stat().st_mode & 0o777


@pytest.fixture(autouse=True)
def usual():
    """The mask of most systems: files are readable by everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def test_a_new_directory_is_closed_with_all_that_it_holds(tmp_path):
    folder = tmp_path / "of" / "mine"
    prepare_folder(folder)
    assert (mode(folder), mode(folder / "jobs")) == (0o700, 0o700)
    assert [mode(folder / name) for name in ("jobs.sqlite", "lock")] == [0o600, 0o600]
    assert mode(tmp_path / "of") == 0o755


def test_in_a_directory_of_other_people_only_the_contents_are_closed(tmp_path):
    tmp_path.chmod(0o777)
    (tmp_path / "jobs").mkdir(mode=0o755)
    for name in ("jobs.sqlite", "jobs.sqlite-wal", "jobs.sqlite-shm", "lock", "notes.txt"):
        (tmp_path / name).touch(0o644)
    prepare_folder(tmp_path)
    assert mode(tmp_path) == 0o777
    assert mode(tmp_path / "jobs") == 0o700
    assert {mode(tmp_path / f"jobs.sqlite{end}") for end in ("", "-wal", "-shm")} == {0o600}
    assert mode(tmp_path / "notes.txt") == 0o644


def test_the_server_s_own_directory_of_an_earlier_version_is_closed(tmp_path):
    tmp_path.chmod(0o755)
    prepare_folder(tmp_path, owned=True)
    assert mode(tmp_path) == 0o700


def test_what_another_user_owns_is_refused(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    with pytest.raises(UsageError, match=r"jobs belongs to another user, who could read .* with --data\."):
        prepare_folder(tmp_path)


def test_every_file_of_a_running_server_is_closed(start, finished, tmp_path):
    folder = tmp_path / "data"
    log = tmp_path / "access.log"
    with start(folder, "emoji", options=["--access-log", str(log)]) as (client, _):
        job = client.post("/v1/jobs", json={"prompt": "pizza"}).json()
        assert finished(client, job["id"])["state"] == "done"
        files = [path for path in (folder, *folder.rglob("*"), log)]
        assert {path.name for path in files} >= {"jobs.sqlite-wal", "picture-1.png", "access.log", job["id"]}
        assert {(path.is_dir(), mode(path)) for path in files} == {(True, 0o700), (False, 0o600)}
