"""Where a picture or video comes from: what its metadata says, and a C2PA manifest signed with the user's certificate.

The manifest (C2PA 2.2) says that a trained model made the file (`c2pa.created`, IPTC's trainedAlgorithmicMedia) and
holds the same facts as the metadata; whoever changes the file afterwards breaks its signature. It needs the c2pa extra.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import MissingDependencyError, UsageError
from ..storage.files import write_whole, writing
from .png import KEY, encode_png, find_metadata

MIME = {".png": "image/png", ".mp4": "video/mp4"}
MADE_BY_MODEL = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
ASSERTION = "io.segue.request"
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")


@dataclass(frozen=True)
class Certificate:
    """What files are signed with: a PEM chain, the signer's own certificate first, its PKCS#8 key, and the algorithm.

    `timestamps` is the address of an RFC 3161 authority, for signatures that outlive the certificate; None asks nobody.
    """

    chain: Path
    key: Path
    algorithm: str = "es256"
    timestamps: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError where it cannot sign."""
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"the algorithm {self.algorithm!r} is none of {', '.join(ALGORITHMS)}. Choose one.")
        for path in (self.chain, self.key):
            if not path.is_file():
                raise UsageError(f"{path} is no file. Name a PEM chain and its key.")


def signed(data: bytes, kind: str, certificate: Certificate, told: Mapping[str, Any] | None) -> bytes:
    """Return the file `data` of MIME type `kind` with a signed manifest that holds `told`.

    Raises UsageError where the certificate or key does not serve, MissingDependencyError without c2pa.
    """
    c2pa = _c2pa()
    assertions = [
        {
            "label": "c2pa.actions",
            "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": MADE_BY_MODEL}]},
        }
    ]
    if told is not None:
        assertions.append({"label": ASSERTION, "data": dict(told)})
    claim = {"claim_generator_info": [{"name": "segue", "version": _version()}], "assertions": assertions}
    source, made = io.BytesIO(data), io.BytesIO()
    try:
        info = c2pa.C2paSignerInfo(
            alg=certificate.algorithm.encode(), sign_cert=certificate.chain.read_bytes(),
            private_key=certificate.key.read_bytes(),
            ta_url=None if certificate.timestamps is None else certificate.timestamps.encode(),
        )  # fmt: skip
        with c2pa.Signer.from_info(info) as signer, c2pa.Builder(json.dumps(claim)) as builder:
            builder.sign(signer, kind, source, made)
    except (c2pa.C2paError, OSError, ValueError) as error:
        raise UsageError(
            f"{certificate.chain} and {certificate.key} cannot sign: {error}. They must be a PEM chain for C2PA "
            "(digital signature, a leaf that is no authority) and its PKCS#8 key."
        ) from None
    return made.getvalue()


def write_picture(path: Path, image: Any, told: Mapping[str, Any] | None, certificate: Certificate | None) -> None:
    """Write a PNG file as `image.write_png` does, signed where there is a certificate; `told` None leaves it bare."""
    data = encode_png(image, told)
    if certificate is not None:
        data = signed(data, MIME[".png"], certificate, told)
    with writing(path):
        write_whole(path, data)


def check_certificate(certificate: Certificate) -> None:
    """Raise what `signed` does, by signing a picture of one pixel."""
    signed(encode_png(np.zeros((1, 1, 3), np.uint8), None), MIME[".png"], certificate, None)


def sign_file(path: Path, certificate: Certificate, told: Mapping[str, Any] | None) -> None:
    """Put a signed manifest into the PNG or MP4 file at `path`."""
    kind = MIME.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} cannot be signed: only {', '.join(MIME)} files can. Choose one of them.")
    data = signed(path.read_bytes(), kind, certificate, told)
    with writing(path):
        write_whole(path, data)


def read_file(path: Path) -> dict[str, Any]:
    """Return what a PNG or MP4 file says of itself: "metadata" as written, and "signature"; either None if absent.

    "signature" has "signer", "issuer", "valid" (whether the file is as it was signed; None where c2pa-python is not
    there to tell) and "why" (the codes of what is wrong). Whether the certificate is to be trusted is not judged.
    Raises UsageError for what is no such file.
    """
    kind = MIME.get(path.suffix.lower())
    if not path.is_file():
        raise UsageError(f"{path} is not there, or no file. Name a file that Segue wrote.")
    if kind is None:
        raise UsageError(f"{path} is no {' or '.join(MIME)} file: others say nothing of how they were made. Name one.")
    metadata = find_metadata(path) if kind == MIME[".png"] else _of_video(path)
    return {"metadata": metadata, "signature": _signature(path, kind)}


def _of_video(path: Path) -> dict[str, Any] | None:
    import av

    try:
        with av.open(str(path)) as container:
            text = container.metadata.get("comment", "")
    except (av.FFmpegError, OSError) as error:
        raise UsageError(f"{path} is no readable MP4: {error}. Name a video that Segue wrote.") from None
    try:
        table = json.loads(text)[KEY]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return table if isinstance(table, dict) else None


def _signature(path: Path, kind: str) -> dict[str, Any] | None:
    data = path.read_bytes()
    if b"jumb" not in data or b"c2pa" not in data:  # a manifest is a box of JUMBF
        return None
    try:
        c2pa = _c2pa()
    except MissingDependencyError as error:  # the metadata can be told all the same
        return {"signer": None, "issuer": None, "valid": None, "why": [str(error)]}
    try:
        with c2pa.Reader(kind, io.BytesIO(data)) as reader:
            found = json.loads(reader.json())
    except c2pa.C2paError as error:
        if "ManifestNotFound" in type(error).__name__ or "ManifestNotFound" in str(error):
            return None
        return {"signer": None, "issuer": None, "valid": False, "why": [str(error)]}
    info = found["manifests"][found["active_manifest"]].get("signature_info", {})
    failures = found.get("validation_results", {}).get("activeManifest", {}).get("failure", [])
    wrong = [one["code"] for one in failures if one["code"] != "signingCredential.untrusted"]
    return {"signer": info.get("common_name"), "issuer": info.get("issuer"), "valid": not wrong, "why": wrong}


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError:
        raise MissingDependencyError(
            "signatures need c2pa-python, which is not installed. Run, in a clone of Segue: pip install '.[c2pa]'"
        ) from None
    return c2pa


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("segue")
