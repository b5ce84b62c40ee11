"""Open a bundle. Segue checks the path and the sha256 of each file before it parses that file.

A symbolic link below the bundle's directory is refused, because ONNX Runtime refuses links that leave the directory,
and because a link's target may change unnoticed. Hard links are allowed: they look like the original, and installers
such as uv make them.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath

from ...errors import BundleError, UsageError
from ..storage import external_data, git, verified
from . import bundle_json, manifest

Progress = Callable[[str, int, int], None]  # the current file, bytes hashed, bytes in total

_CHUNK = 2**20
_ATTEMPTS = 3  # to hash a file that another program touches meanwhile


@dataclass(frozen=True)
class Bundle:
    """An opened, verified bundle: its real directory, its manifest, and the sha256 of its bundle.json (hex).

    `keys` identifies each file as it was when it was last verified (see `verified.key`).
    """

    directory: Path
    manifest: manifest.Manifest
    digest: str
    keys: dict[str, str]

    def path(self, name: str) -> Path:
        """Return the path of the file `name` of the manifest."""
        return self.directory / name

    def check_unchanged(self, *names: str) -> None:
        """Raise BundleError if the bytes of these files of the manifest have changed since they were verified.

        Call it right before a file is read again, which may be long after the bundle was opened. A file whose status
        changed is hashed again, once. A new hard link, other permissions or a copy change the status, not the bytes.
        """
        for name in names:
            try:
                known = verified.key(os.lstat(self.path(name)), self.manifest.files[name].sha256) == self.keys[name]
            except OSError:
                known = False
            if not known:
                _check_again(self, name)


def shipped() -> dict[str, Path]:
    """Return the bundles that are installed with Segue, by name."""
    from importlib.resources import files

    root = Path(str(files("segue.bundles")))
    return {entry.parent.name: entry.parent for entry in sorted(root.glob(f"*/{manifest.FILE_NAME}"))}


def plans() -> dict[str, Path]:
    """Return the directories of models that ship only as a plan (a bundle.json without its files), by name."""
    from importlib.resources import files

    root = Path(str(files("segue.bundles"))) / "plans"
    return {entry.parent.name: entry.parent for entry in sorted(root.glob(f"*/{manifest.FILE_NAME}"))}


def resolve(name_or_path: str | os.PathLike[str], planned: bool = False) -> Path:
    """Return the directory of a bundle, given the name of a shipped one or a path; with `planned` also of a plan.

    A shipped name always means the shipped bundle: write `./emoji` for a directory of that name. Raises UsageError for
    an unknown name, BundleError for a directory that is not a bundle.
    """
    known = shipped() | (plans() if planned else {})
    if isinstance(name_or_path, str) and name_or_path in known:
        return known[name_or_path]
    path = Path(name_or_path)
    if (path / manifest.FILE_NAME).is_file():
        return path
    if path.is_dir():
        raise BundleError(
            f"the directory {path} has no {manifest.FILE_NAME}, so it is not a Segue bundle.",
            f"If it is a checkpoint, export it: segue export '{path}' -o BUNDLE",
        )
    if name_or_path in plans():
        raise UsageError(
            f"{name_or_path!r} ships only as a plan, without weights, for segue plan.",
            "Export its checkpoint with segue export, and name that bundle.",
        )
    asked, names = os.fspath(name_or_path), ", ".join(known) or "none are installed"
    meant = get_close_matches(asked, known, 1)
    raise UsageError(
        f"there is no bundle {asked!r}: it is neither a directory nor a shipped bundle{' or plan' if planned else ''} "
        f"({names}).",
        f"{f'Did you mean {meant[0]}? ' if meant else ''}Name one of these, or a directory made by segue export. "
        "segue list shows them all.",
    )


def read(name_or_path: str | os.PathLike[str], verify_all: bool = False, progress: Progress | None = None) -> Bundle:
    """Open a bundle and verify it.

    Each open checks bundle.json, every path, the size of every file, the sha256 of each file that is not a weight
    file, and the targets of each graph's external data. A weight file is hashed once and then remembered (see
    `verified`); `verify_all` always hashes it. `progress(file, done, total)` reports bytes hashed and in total. Files
    that the manifest does not list are ignored. Raises BundleError, or UsageError for an unknown name.
    """
    directory, data = _manifest_of(name_or_path)
    content = bundle_json.parse(data, str(directory / manifest.FILE_NAME))
    statuses = {name: _place(directory, content, name) for name in content.files}
    keys = {name: verified.key(status, content.files[name].sha256) for name, status in statuses.items()}
    bundle = Bundle(directory, content, hashlib.sha256(data).hexdigest(), keys)
    _check_files(bundle, statuses, verify_all, progress)
    return bundle


def read_manifest(name_or_path: str | os.PathLike[str]) -> manifest.Manifest:
    """Return the manifest of a bundle or of a plan (`plans`); the other files may be absent. Raises as `read` does."""
    here = (Path(name_or_path) / manifest.FILE_NAME).is_file()
    directory, data = _manifest_of(name_or_path, planned=not here)
    return bundle_json.parse(data, str(directory / manifest.FILE_NAME))


def _manifest_of(name_or_path: str | os.PathLike[str], planned: bool = False) -> tuple[Path, bytes]:
    try:
        directory = resolve(name_or_path, planned).resolve(strict=True)
        return directory, b"".join(_chunks(directory / manifest.FILE_NAME, manifest.MAX_BYTES))
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(
            f"the bundle {os.fspath(name_or_path)!r} cannot be read: {error}.",
            "Check that the directory is readable.",
        ) from None


def verify(name_or_path: str | os.PathLike[str], progress: Progress | None = None) -> Bundle:
    """Open a bundle and hash every file, even remembered ones; raises as `read` does."""
    return read(name_or_path, verify_all=True, progress=progress)


def _place(directory: Path, content: manifest.Manifest, name: str) -> os.stat_result:
    path = directory / name
    try:
        status = os.lstat(path)
        plain = path.resolve(strict=True) == path
    except FileNotFoundError:
        raise BundleError(
            f"the file {name} (sha256 {content.files[name].sha256}) is missing from the bundle {directory}.",
            "Fetch or export the bundle again.",
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise BundleError(f"{path} cannot be read: {error}.", "Check its permissions.") from None
    if not plain or not stat.S_ISREG(status.st_mode):
        raise BundleError(
            f"{path} is a link, lies behind a link, or is not a regular file. Links may leave the bundle's directory.",
            f"Copy the bundle without links: cp -RL '{directory}' COPY",
        )
    return status


def _check_files(
    bundle: Bundle, statuses: Mapping[str, os.stat_result], verify_all: bool, progress: Progress | None
) -> None:
    components = bundle.manifest.components.values()
    weights = {name for component in components for name in component.weights}
    graphs = {name for component in components for name in component.graphs}
    remembered = set() if verify_all else set(verified.load())
    due = [
        name
        for name, key in bundle.keys.items()
        if name in graphs
        or name not in weights
        or key not in remembered
        or statuses[name].st_size != bundle.manifest.files[name].bytes
    ]
    total, done, fresh = sum(statuses[name].st_size for name in due), 0, []

    for name in due:
        path = bundle.path(name)
        digest, parts = hashlib.sha256(), []
        try:
            for chunk in _chunks(path, external_data.MAX_BYTES if name in graphs else None):
                digest.update(chunk)
                done += len(chunk)
                if name in graphs:
                    parts.append(chunk)
                if progress is not None:
                    progress(name, done, total)
            bundle.check_unchanged(name)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
        _check_digest(bundle, name, digest.hexdigest(), statuses[name].st_size)
        for component in components:
            if name in component.graphs:  # the hashed bytes, without reading the file again
                _check_graph(bundle, component, name, b"".join(parts))
        if name in weights:
            fresh.append((statuses[name], digest.hexdigest()))
    verified.remember(fresh)


def _check_again(bundle: Bundle, name: str) -> None:
    """Hash a file whose status changed. Remember its new status if it has the bytes that bundle.json names."""
    path, expected = bundle.path(name), bundle.manifest.files[name].sha256
    for _ in range(_ATTEMPTS):
        status = _place(bundle.directory, bundle.manifest, name)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            settled = verified.key(os.lstat(path), found) == verified.key(status, found)
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}.", "Check its permissions.") from None
        if found != expected:
            raise BundleError(
                f"{path} was changed since the bundle was opened: its sha256 is {found}, {manifest.FILE_NAME} says "
                f"{expected}.",
                "Fetch or export the bundle again.",
            )
        if settled:
            bundle.keys[name] = verified.key(status, expected)
            verified.remember([(status, expected)])
            return
    raise BundleError(f"another program keeps changing {path}.", "Wait until it has finished, and try again.")


def _check_digest(bundle: Bundle, name: str, found: str, size: int) -> None:
    expected = bundle.manifest.files[name]
    if found != expected.sha256:
        if why := git.explain(bundle.path(name), expected.sha256):
            raise BundleError(f"the file {name} of the bundle {bundle.directory} {why[0]}.", why[1])
        raise BundleError(
            f"the file {name} of the bundle {bundle.directory} was altered: its sha256 is {found}, "
            f"{manifest.FILE_NAME} says {expected.sha256}.",
            "Fetch or export the bundle again.",
        )
    if size != expected.bytes:
        raise BundleError(
            f"the file {name} of the bundle {bundle.directory} has {size} bytes, {manifest.FILE_NAME} "
            f"says {expected.bytes} (its sha256 {found} agrees).",
            "Export the bundle again.",
        )


def _check_graph(bundle: Bundle, component: manifest.Component, graph: str, data: bytes) -> None:
    where = f"{graph} in {bundle.directory}"
    if not graph.endswith(".onnx"):
        raise BundleError(f"{where} is not an .onnx file.", "Export the bundle again.")
    folder = PurePosixPath(graph).parent
    for reference in external_data.external_data(data, where):
        target = os.path.normpath(folder / reference.location).replace(os.sep, "/")
        if ".." in PurePosixPath(reference.location).parts or target not in component.weights:
            raise BundleError(
                f"{where} reads its tensor {reference.tensor!r} from {reference.location!r}, which leaves its "
                f"directory or is not among the component's weights ({', '.join(component.weights) or 'none'}).",
                "Do not use this bundle; export it again.",
            )
        size = bundle.manifest.files[target].bytes
        end = size if reference.length is None else reference.offset + reference.length
        if reference.offset > size or end > size:
            raise BundleError(
                f"{where} reads its tensor {reference.tensor!r} from bytes {reference.offset} to {end} of {target}, "
                f"which has {size}.",
                "Export the bundle again.",
            )


def _chunks(path: Path, limit: int | None) -> Iterator[bytes]:
    """Yield the file in chunks; raises BundleError as soon as it has more than `limit` bytes."""
    read = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            read += len(chunk)
            if limit is not None and read > limit:
                raise BundleError(f"{path} is above the limit of {limit} bytes.", "Export the bundle again.")
            yield chunk
