"""Restore the checkpoint that a bundle was made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import BundleError
from ..runtime import manifest
from ..runtime.directory import NewDirectory
from . import precision


def unpack(bundle: Path, out: Path, progress: Callable[[str, int, int], None] = lambda file, done, total: None) -> None:
    """Write the diffusers checkpoint inside the bundle directory `bundle` to the new directory `out`.

    The files have the bytes that export took, or converted, checked by their sha256. `progress` is told the file, and
    bytes done and in all. Raises BundleError for a bundle that is absent, damaged or altered, OutputError for `out`.
    """
    where = str(bundle / manifest.FILE_NAME)
    try:
        with open(where, "rb") as stream:
            data = stream.read(manifest.MAX_BYTES + 1)
    except OSError:
        raise BundleError(f"{bundle} is no bundle: it has no {manifest.FILE_NAME}. Name a bundle directory.") from None
    if len(data) > manifest.MAX_BYTES:
        raise BundleError(f"{where} is larger than {manifest.MAX_BYTES} bytes. Export the bundle again.")
    files = {path: f for path, f in manifest.parse(data, where).files.items() if f.origin}
    total = sum(f.bytes for f in files.values())
    done = 0
    with NewDirectory(out) as new:
        for path, file in files.items():

            def count(n: int, path: str = path) -> None:
                nonlocal done
                done += n
                progress(path, done, total)

            source, target = bundle / path, new.path / path
            if not source.resolve().is_relative_to(bundle.resolve()) or not source.is_file():
                raise BundleError(f"{source} is missing or leads out of the bundle. Fetch the bundle again.")
            target.parent.mkdir(parents=True, exist_ok=True)
            found = precision.place(source, target, count)
            if found != file.sha256:
                raise BundleError(
                    f"{source} was altered: its sha256 is {found}, and the bundle was made with {file.sha256}. "
                    "Fetch the bundle again."
                )
        new.commit()
