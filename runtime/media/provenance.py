"""The origin of a picture or video: its metadata, and a C2PA manifest signed with the user's certificate.

The manifest (C2PA 2.2) states that a trained model made the file (`c2pa.created`, IPTC's trainedAlgorithmicMedia) and
holds the same facts as the metadata. If pictures were given, they are ingredients, and the file is a composite: made
from one to begin with (`c2pa.opened`, then `c2pa.edited`), or from references (`c2pa.created`). A later change of the
file breaks its signature. It needs the c2pa extra.
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
from .formats import FORMATS, encode_picture, find_comment
from .formats import MIME as PICTURES
from .png import KEY, encode_png, find_metadata

MIME = {".png": "image/png", ".mp4": "video/mp4"}
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
MADE_BY_MODEL, COMPOSITE = f"{SOURCE}trainedAlgorithmicMedia", f"{SOURCE}compositeWithTrainedAlgorithmicMedia"
ASSERTION = "io.segue.request"
ALGORITHMS = ("es256", "es384", "es512", "ps256", "ps384", "ps512", "ed25519")


@dataclass(frozen=True)
class Certificate:
    """The means to sign files: a PEM chain (the signer's certificate first), its PKCS#8 key, and the algorithm.

    `timestamps` is the URL of an RFC 3161 authority, for signatures that outlive the certificate; None uses none.
    """

    chain: Path
    key: Path
    algorithm: str = "es256"
    timestamps: str | None = None

    def __post_init__(self) -> None:
        """Raise UsageError for an unknown algorithm or an absent file."""
        if self.algorithm not in ALGORITHMS:
            raise UsageError(
                f"the algorithm must be one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}.", "Choose one."
            )
        for path in (self.chain, self.key):
            if not path.is_file():
                raise UsageError(f"{path} is not a file.", "Name a PEM chain and its key.")


def signed(
    data: bytes, kind: str, certificate: Certificate, metadata: Mapping[str, Any] | None,
    described: Mapping[str, Any] | None = None,
) -> bytes:  # fmt: skip
    """Return the file `data` of MIME type `kind` with a signed manifest that holds `metadata`.

    `described` is the metadata that a file without them would have: the manifest tells only the number of pictures that
    were given. Raises UsageError if the certificate or key cannot sign, MissingDependencyError without c2pa.
    """
    c2pa = _c2pa()
    actions, ingredients = _origin(described or metadata or {}, metadata is not None)
    assertions: list[dict[str, Any]] = [{"label": "c2pa.actions", "data": {"actions": actions}}]
    if metadata is not None:
        assertions.append({"label": ASSERTION, "data": dict(metadata)})
    claim = {
        "claim_generator_info": [{"name": "segue", "version": _version()}], "assertions": assertions,
        "ingredients": ingredients,
    }  # fmt: skip
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
            f"{certificate.chain} and {certificate.key} cannot sign: {error}.",
            "Name a PEM chain for C2PA (digital signature, a leaf that is not an authority) and its PKCS#8 key.",
        ) from None
    return made.getvalue()


def _origin(described: Mapping[str, Any], tell: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the actions and the ingredients of a file by its description; `tell` the hashes of the pictures given."""
    given = [("image", "parentOf", described["image_sha256"])] if "image_sha256" in described else []
    hashes = described.get("references_sha256", ())
    given += [(f"reference {number}", "inputTo", found) for number, found in enumerate(hashes, 1)]
    ingredients = [
        {"title": name, "label": name, "instance_id": name, "relationship": relation}
        | ({"description": f"sha256 of its pixels: {found}"} if tell else {})
        for name, relation, found in given
    ]
    source, named = COMPOSITE if given else MADE_BY_MODEL, [name for name, *_ in given]
    actions: list[dict[str, Any]] = [{"action": "c2pa.created", "digitalSourceType": source}]
    if "image" in named:
        named.remove("image")
        opened = {"action": "c2pa.opened", "parameters": {"ingredientIds": ["image"]}}
        actions = [opened, {"action": "c2pa.edited", "digitalSourceType": source}]
    if named:
        actions[-1]["parameters"] = {"ingredientIds": named}
    return actions, ingredients


def write_picture(
    path: Path, image: Any, metadata: Mapping[str, Any] | None, certificate: Certificate | None, quality: int = 100,
    described: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Write a PNG, JPEG or WebP file, as its name ends, whole or not at all; sign it if there is a certificate.

    `metadata` None adds no metadata. `quality`, 0 to 100, is that of JPEG and WebP. `described` is that of `signed`.
    Raises the errors of `formats.encode_picture` and `signed`, and OutputError.
    """
    kind = FORMATS[path.suffix.lower()]
    data = encode_picture(image, kind, metadata, quality)
    if certificate is not None:
        data = signed(data, PICTURES[kind], certificate, metadata, described)
    with writing(path):
        write_whole(path, data)


def check_certificate(certificate: Certificate) -> None:
    """Raise the errors of `signed`, by signing a picture of one pixel."""
    signed(encode_png(np.zeros((1, 1, 3), np.uint8), None), MIME[".png"], certificate, None)


def sign_file(
    path: Path, certificate: Certificate, metadata: Mapping[str, Any] | None,
    described: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    """Put a signed manifest into the PNG or MP4 file at `path`; the arguments are those of `signed`."""
    kind = MIME.get(path.suffix.lower())
    if kind is None:
        raise UsageError(f"{path} cannot be signed: only {', '.join(MIME)} files can.", "Choose one of them.")
    data = signed(path.read_bytes(), kind, certificate, metadata, described)
    with writing(path):
        write_whole(path, data)


def read_file(path: Path) -> dict[str, Any]:
    """Return the "metadata" and the "signature" of a picture or an MP4 file; either is None if absent.

    "signature" has "signer", "issuer", "valid" (the file is unchanged since it was signed; None without c2pa-python)
    and "why" (the codes of the failures). It does not say whether to trust the certificate. Raises UsageError for any
    other file.
    """
    ending = path.suffix.lower()
    kind = PICTURES[FORMATS[ending]] if ending in FORMATS else MIME.get(ending)
    if not path.is_file():
        raise UsageError(f"{path} does not exist, or is not a file.", "Name a file that Segue wrote.")
    if kind is None:
        known = ", ".join((*FORMATS, ".mp4"))
        raise UsageError(f"{path} is not a file that holds metadata: {known}.", "Name such a file.")
    metadata = (_of_video if kind == MIME[".mp4"] else find_metadata if ending == ".png" else find_comment)(path)
    return {"metadata": metadata, "signature": _signature(path, kind)}


def _of_video(path: Path) -> dict[str, Any] | None:
    import av

    try:
        with av.open(str(path)) as container:
            text = container.metadata.get("comment", "")
    except (av.FFmpegError, OSError) as error:
        raise UsageError(f"{path} is not a readable MP4: {error}.", "Name a video that Segue wrote.") from None
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
    except MissingDependencyError as error:  # the metadata can still be read
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
            "signatures need c2pa-python, which is not installed.", "Run, in a clone of Segue: pip install '.[c2pa]'"
        ) from None
    return c2pa


def _version() -> str:
    import importlib.metadata

    return importlib.metadata.version("segue")
