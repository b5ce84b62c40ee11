"""How much memory a process may still take."""

import pytest

from segue.runtime.planning import memory


@pytest.fixture
def group(tmp_path):
    """Function that writes the files of one cgroup below tmp_path."""

    def write(name, limit, current, cache=0):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        stat = f"anon 1\ninactive_file {cache}\nactive_file 0"
        for file, text in (("max", limit), ("current", current), ("stat", stat)):
            (tmp_path / name / f"memory.{file}").write_text(f"{text}\n")

    (tmp_path / "own").write_text("0::/slice/unit\n")
    return write


def test_the_tightest_cgroup_above_the_process_counts(group, tmp_path):
    group("slice/unit", "max", 10)
    group("slice", 5000, 3500)
    assert memory.available(tmp_path, tmp_path / "own") == 1500


def test_the_page_cache_counts_as_free(group, tmp_path):
    group("slice/unit", 5000, 5000, cache=3000)
    assert memory.available(tmp_path, tmp_path / "own") == 3000


def test_without_cgroups_the_machines_free_memory_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: type("V", (), {"available": 7})())
    assert memory.available(tmp_path, tmp_path / "absent") == 7


def test_cgroups_of_version_1_count_too(tmp_path):
    (tmp_path / "own").write_text("4:memory:/unit\n1:cpu:/\n0::/\n")
    (tmp_path / "memory/unit").mkdir(parents=True)
    stat = "cache 100\ntotal_inactive_file 100\ntotal_active_file 0"
    for file, text in (("limit_in_bytes", 5000), ("usage_in_bytes", 4000), ("stat", stat)):
        (tmp_path / "memory/unit" / f"memory.{file}").write_text(f"{text}\n")
    assert memory.available(tmp_path, tmp_path / "own") == 1100


def test_limits_of_the_process_count_too(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "limits", lambda: {"RLIMIT_AS": 9, "RLIMIT_DATA": 8})
    assert memory.available(tmp_path, tmp_path / "absent") == 8
