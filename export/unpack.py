"""Restore the checkpoint inside a bundle."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from ..errors import BundleError
from ..runtime.bundle.families import family_of
from ..runtime.bundle.manifest import Manifest
from ..runtime.bundle.reader import read
from ..runtime.storage.directory import NewDirectory
from .checkpoint import convert
from .checkpoint.headers import reading
from .checkpoint.read import Settings


def note_of(content: Manifest) -> str:
    """Return which argument diffusers needs to draw what Segue draws, as a sentence; empty if its default fits.

    No file of a checkpoint can say this: diffusers 0.42.1 takes the number of T5's tokens only from the call.
    """
    if not family_of(content).zero_tokens or content.t5_tokens == Settings.t5_tokens:
        return ""
    return (
        f"diffusers draws the same pictures if you call it with max_sequence_length={content.t5_tokens}. Its default "
        f"is {Settings.t5_tokens} tokens of T5, also where T5 is absent."
    )


def unpack(bundle: Path, out: Path, progress: Callable[[str, int, int], None] = lambda file, done, total: None) -> str:
    """Write the diffusers checkpoint inside the bundle directory `bundle` to the new directory `out`.

    Returns `note_of` the bundle, or how to export a single file again.

    The bundle is opened and verified as for rendering. The files have the bytes that export copied or converted; their
    sha256 is checked again during the copy. `progress` gets the file, the bytes done and the total. Raises UsageError
    and BundleError as runtime.bundle.reader.read does, OutputError for `out`.
    """
    opened = read(bundle)
    files = {path: f for path, f in opened.manifest.files.items() if f.origin}
    if not files:
        raise BundleError(
            f"the bundle {opened.manifest.name!r} was quantized and holds no checkpoint. Unpack the bundle that it "
            "was made from."
        )
    total = sum(f.bytes for f in files.values())
    done = 0
    with NewDirectory(out) as new:
        for path, file in files.items():

            def count(n: int, path: str = path) -> None:
                nonlocal done
                done += n
                progress(path, done, total)

            source, target = opened.path(path), new.path / path
            target.parent.mkdir(parents=True, exist_ok=True)
            with reading(source, BundleError):
                found = convert.place(source, target, count)
            if found != file.sha256:
                raise BundleError(
                    f"{source} changed while it was unpacked: its sha256 is {found}, and bundle.json has "
                    f"{file.sha256}. Fetch the bundle again."
                )
        new.commit()
    single = opened.manifest.provenance.single_file
    if single:
        again = f"segue export {shlex.quote(str(out / single))} --base {shlex.quote(str(out))} -o BUNDLE"
        return f"The weights lie in the single file {single}, as it came. To export it again: {again}"
    return note_of(opened.manifest)
