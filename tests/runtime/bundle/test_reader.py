import hashlib
import os
import re
import shutil

import onnx
import pytest

import segue
from segue.errors import BundleError, UsageError
from segue.runtime.bundle import reader
from segue.runtime.storage import paths, verified

GRAPH = "transformer/model.onnx"
WEIGHTS = "transformer/weights.safetensors"


def age(path):
    """Make every file look an hour old, past the time in which hashes are not remembered."""
    for file in path.rglob("*"):
        if file.is_file():
            status = file.stat()
            os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns - 3600 * 10**9))


def hashed(path, **options):
    names = []
    reader.read(path, progress=lambda name, done, total: names.append(name), **options)
    return set(names)


def sha(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_opened_bundle_knows_its_directory_manifest_and_digest(tiny_bundle):
    opened = reader.read(str(tiny_bundle))
    assert opened.directory == tiny_bundle.resolve()
    assert opened.manifest.name == "tiny"
    assert opened.digest == sha(tiny_bundle / "bundle.json")
    assert opened.path(GRAPH).is_file()


def test_files_that_the_manifest_does_not_list_are_ignored(tiny_bundle):
    (tiny_bundle / "README.md").write_text("hello")
    (tiny_bundle / "transformer" / "link").symlink_to("/etc")
    assert reader.read(tiny_bundle).manifest.name == "tiny"


def test_weights_are_hashed_once_and_everything_else_each_time(tiny_bundle, content):
    age(tiny_bundle)
    weights = {name for name in content.files if name.endswith(".safetensors")}
    assert hashed(tiny_bundle) == content.files.keys()
    assert hashed(tiny_bundle) == content.files.keys() - weights
    assert hashed(tiny_bundle, verify_all=True) == content.files.keys()


def test_progress_ends_at_the_bytes_of_what_was_hashed(tiny_bundle, content):
    seen = []
    reader.verify(tiny_bundle, lambda name, done, total: seen.append((done, total)))
    total = sum(file.bytes for file in content.files.values())
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)


def test_a_text_that_differs_by_its_line_ends_alone_is_told_so(tiny_bundle, edit):
    directory = edit(lambda table: table.update(prompts="prompts.json"), {"prompts.json": b"{\n}\n"})
    path = directory / "prompts.json"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    with pytest.raises(BundleError, match=r"prompts\.json .*line ends alone: they are CRLF.*core\.autocrlf=false"):
        reader.read(directory)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS])
def test_a_pointer_of_git_lfs_is_named_as_one(tiny_bundle, name):
    (tiny_bundle / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00ff\nsize 12345\n")
    with pytest.raises(BundleError, match=rf"{name} of the bundle .* is a pointer of git-lfs.*git lfs pull"):
        reader.read(tiny_bundle)


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer/tokenizer.json"])
def test_a_file_whose_bytes_changed_since_the_bundle_was_opened_is_told_with_both_hashes(tiny_bundle, content, name):
    opened = reader.read(tiny_bundle)
    opened.check_unchanged(*opened.manifest.files)
    path = tiny_bundle / name
    status, data = path.stat(), bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BundleError, match="was changed since the bundle was opened") as caught:
        opened.check_unchanged(*opened.manifest.files)
    assert {content.files[name].sha256, sha(path)} <= set(re.findall("[0-9a-f]{64}", str(caught.value)))


def link(path):
    os.link(path, path.with_suffix(".second"))


def replace(path):
    shutil.copy(path, path.with_suffix(".copy"))
    path.with_suffix(".copy").replace(path)


@pytest.mark.parametrize("change", [link, replace, lambda path: path.chmod(0o600), lambda path: path.touch()])
@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer/tokenizer.json"])
def test_a_file_with_another_status_and_the_same_bytes_is_hashed_again_once(tiny_bundle, monkeypatch, name, change):
    opened = reader.read(tiny_bundle)
    change(tiny_bundle / name)
    hashed_again = []
    original = reader.hashlib.file_digest
    monkeypatch.setattr(reader.hashlib, "file_digest", lambda f, k: (hashed_again.append(f.name), original(f, k))[1])
    for _ in range(3):
        opened.check_unchanged(*opened.manifest.files)
    assert hashed_again == [str(opened.path(name))]


def test_a_model_draws_on_after_an_installer_made_a_hard_link_and_after_it_removed_that(tiny_bundle, tmp_path):
    with segue.open(tiny_bundle, threads=1) as model:
        os.link(tiny_bundle / WEIGHTS, tmp_path / "second")
        first = model.generate("a red heart", steps=1)
        (tmp_path / "second").unlink()
        model.close()
    with segue.open(tiny_bundle, threads=1) as model:
        assert (model.generate("a red heart", steps=1) == first).all()


def test_a_linked_weight_file_is_remembered_with_its_new_status(tiny_bundle, tmp_path):
    age(tiny_bundle)
    opened = reader.read(tiny_bundle)
    os.link(tiny_bundle / WEIGHTS, tmp_path / "second")
    opened.check_unchanged(WEIGHTS)
    assert WEIGHTS not in hashed(tiny_bundle)


def test_a_file_that_became_a_link_or_vanished_is_refused(tiny_bundle, tmp_path):
    opened = reader.read(tiny_bundle)
    (tiny_bundle / WEIGHTS).rename(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is missing from the bundle"):
        opened.check_unchanged(WEIGHTS)
    (tiny_bundle / WEIGHTS).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="is a link"):
        opened.check_unchanged(WEIGHTS)


def test_a_file_that_keeps_changing_while_it_is_hashed_is_refused(tiny_bundle, monkeypatch):
    opened = reader.read(tiny_bundle)
    original = reader.hashlib.file_digest

    def disturbed(file, kind):
        os.utime(file.name, ns=(0, next(times)))
        return original(file, kind)

    times = iter(range(1, 100))
    (tiny_bundle / WEIGHTS).touch()
    monkeypatch.setattr(reader.hashlib, "file_digest", disturbed)
    with pytest.raises(BundleError, match="another program keeps changing"):
        opened.check_unchanged(WEIGHTS)


def test_a_graph_is_read_once_so_that_what_is_checked_is_what_was_hashed(tiny_bundle, monkeypatch):
    opened = []
    original = reader.Path.open
    monkeypatch.setattr(reader.Path, "open", lambda self, *a: (opened.append(self.name), original(self, *a))[1])
    reader.read(tiny_bundle)
    assert opened.count("decoder.onnx") == 1


def test_a_graph_that_another_component_calls_its_weights_is_never_taken_from_memory(tiny_bundle, edit):
    path = edit(lambda table: table["components"]["vae_decoder"].update(weights=[GRAPH, "vae/weights.safetensors"]))
    age(path)
    reader.read(path)
    assert GRAPH in hashed(path)


def test_a_weight_file_that_just_changed_is_not_remembered(tiny_bundle, content):
    assert hashed(tiny_bundle) == hashed(tiny_bundle) == content.files.keys()


@pytest.mark.parametrize("junk", [b"", b"{", b"[1, 2]", b'{"a": 1}', b"\xff" * 100, b"[" * 100_000])
def test_a_corrupt_cache_means_hashing_and_is_mended(tiny_bundle, content, cache, junk):
    age(tiny_bundle)
    cache.mkdir(parents=True)
    (cache / "verified.json").write_bytes(junk)
    assert hashed(tiny_bundle) == content.files.keys()
    assert WEIGHTS not in hashed(tiny_bundle)


def test_an_unusable_cache_directory_is_no_obstacle(tiny_bundle, content, cache):
    age(tiny_bundle)
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("a file where the directory should be")
    assert hashed(tiny_bundle) == hashed(tiny_bundle) == content.files.keys()


def test_the_cache_keeps_the_newest_entries_only(tiny_bundle, monkeypatch):
    monkeypatch.setattr(verified, "LIMIT", 2)
    age(tiny_bundle)
    reader.read(tiny_bundle)
    assert len(verified.load()) == 2


@pytest.mark.parametrize("name", [GRAPH, WEIGHTS, "tokenizer/tokenizer.json"])
def test_an_altered_file_is_named_with_both_hashes(tiny_bundle, content, name):
    age(tiny_bundle)
    reader.read(tiny_bundle)
    path = tiny_bundle / name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        reader.read(tiny_bundle)
    for part in (name, content.files[name].sha256, sha(path)):
        assert part in str(caught.value)


def test_verify_finds_a_change_that_kept_size_and_time(tiny_bundle):
    age(tiny_bundle)
    reader.read(tiny_bundle)
    path = tiny_bundle / WEIGHTS
    status = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BundleError, match="was altered"):
        reader.verify(tiny_bundle)


def test_a_missing_file_is_named_with_its_hash(tiny_bundle, content):
    (tiny_bundle / WEIGHTS).unlink()
    with pytest.raises(BundleError, match=content.files[WEIGHTS].sha256) as caught:
        reader.read(tiny_bundle)
    assert WEIGHTS in str(caught.value)


def test_a_wrong_size_in_the_manifest_is_refused(edit):
    def grow(table):
        table["files"][WEIGHTS]["bytes"] += 1

    with pytest.raises(BundleError, match=r"bytes, bundle\.json says"):
        reader.read(edit(grow))


def test_a_link_to_a_file_is_refused(tiny_bundle):
    path = tiny_bundle / WEIGHTS
    path.rename(tiny_bundle / "elsewhere")
    path.symlink_to("../elsewhere")
    with pytest.raises(BundleError, match=r"is a link.*cp -RL"):
        reader.read(tiny_bundle)


def test_a_linked_folder_is_refused(tiny_bundle, tmp_path):
    shutil.move(tiny_bundle / "transformer", tmp_path / "outside")
    (tiny_bundle / "transformer").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="lies behind a link"):
        reader.read(tiny_bundle)


def test_a_bundle_reached_through_a_link_opens(tiny_bundle, tmp_path):
    (tmp_path / "link").symlink_to(tiny_bundle)
    assert reader.read(tmp_path / "link").directory == tiny_bundle.resolve()


def test_hard_links_as_installers_make_them_open(tiny_bundle, tmp_path):
    os.link(tiny_bundle / WEIGHTS, tmp_path / "second")
    assert reader.read(tiny_bundle).manifest.name == "tiny"


def test_a_pipe_is_refused_without_waiting_for_it(tiny_bundle):
    (tiny_bundle / WEIGHTS).unlink()
    os.mkfifo(tiny_bundle / WEIGHTS)
    with pytest.raises(BundleError, match="not a regular file"):
        reader.read(tiny_bundle)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"location": "../vae/weights.safetensors"}, "leaves its directory"),
        ({"location": "/etc/passwd"}, "leaves its directory"),
        ({"location": "x/../weights.safetensors"}, "leaves its directory"),
        ({"location": "model.onnx"}, "not among the component's weights"),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "not among the component's weights"),
        ({"offset": str(10**6)}, "which has"),
        ({"length": str(10**6)}, "which has"),
        ({"length": "-1"}, "not a safe ONNX file"),
    ],
)
def test_external_data_that_points_elsewhere_is_refused_before_it_is_loaded(tiny_bundle, edit, entries, said):
    model = onnx.load(tiny_bundle / GRAPH, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = entries.get(entry.key, entry.value)
    with pytest.raises(BundleError, match=said):
        reader.read(edit(files={GRAPH: model.SerializeToString()}))


def test_a_graph_that_is_not_protobuf_is_refused(edit):
    with pytest.raises(BundleError, match=r"model\.onnx in .* is not a safe ONNX file"):
        reader.read(edit(files={GRAPH: b"\xff" * 64}))


def test_a_graph_of_another_format_is_refused(edit, tiny_bundle):
    def rename(table):
        table["components"]["transformer"]["graph"] = "transformer/model.ort"

    with pytest.raises(BundleError, match=r"not an \.onnx file"):
        reader.read(edit(rename, {"transformer/model.ort": (tiny_bundle / GRAPH).read_bytes()}))


def test_an_unknown_name_lists_the_known_ones(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "shipped", lambda: {"emoji": tiny_bundle})
    with pytest.raises(UsageError, match=r"there is no bundle 'emojy'.*\(emoji\)"):
        reader.resolve("emojy")


def test_an_unknown_plan_lists_the_plans_as_well():
    with pytest.raises(UsageError, match=r"bundle or plan \(emoji, .*sd3-medium.*Did you mean sd3-medium\?"):
        reader.read_manifest("sd3-medum")
    with pytest.raises(UsageError, match=r"nor a shipped bundle \(emoji, emoji-motion, emoji-teacher\)"):
        reader.resolve("sd3-medum")


def test_a_path_that_does_not_exist_is_not_called_a_directory():
    with pytest.raises(UsageError, match="there is no bundle '/nonexistent'"):
        reader.resolve("/nonexistent")


def test_a_shipped_name_wins_over_a_directory_unless_it_is_written_as_a_path(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(reader, "shipped", lambda: {"emoji": tiny_bundle})
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_bundle, tmp_path / "emoji")
    assert reader.resolve("emoji") == tiny_bundle
    assert reader.read("./emoji").directory == (tmp_path / "emoji").resolve()


def test_shipped_bundles_are_the_directories_of_the_package_that_hold_a_manifest():
    assert "emoji" in reader.shipped()
    for name, path in reader.shipped().items():
        assert reader.resolve(name) == path
        assert (path / "bundle.json").is_file()


def test_a_directory_that_is_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(BundleError, match=r"has no bundle\.json.*segue export"):
        reader.resolve(tmp_path)


def test_a_huge_manifest_is_refused_before_all_of_it_is_read(tiny_bundle):
    with (tiny_bundle / "bundle.json").open("r+b") as file:
        file.truncate(2**30)
    with pytest.raises(BundleError, match="above the limit"):
        reader.read(tiny_bundle)


def test_the_cache_follows_the_platform(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/paths/are/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    assert paths.cache_directory() == tmp_path / ".cache" / "segue"
    monkeypatch.setattr("sys.platform", "darwin")
    assert paths.cache_directory() == tmp_path / "Library" / "Caches" / "segue"
