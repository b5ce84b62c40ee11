"""Read the external-data references of an ONNX file from the protobuf wire format, before any ONNX parser runs.

A `TensorProto` may name a file, an offset and a length; ONNX Runtime opens that file while it loads the graph. This
reader visits only the tensors of a model: initialisers, sparse ones, and tensors in attributes, subgraphs, functions
and training graphs. It is bounded: nesting is limited, every length must fit into its message, and payloads without
tensors are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...errors import BundleError

MAX_DEPTH = 100  # protobuf's own limit
MAX_BYTES = 2**28  # a graph without its weights has a few MB

# The fields whose messages may contain tensors: {message: {field: (kind, may repeat)}}
_MESSAGES: dict[str, dict[int, tuple[str, bool]]] = {
    "Model": {7: ("Graph", False), 20: ("Training", True), 25: ("Function", True)},
    "Training": {1: ("Graph", False), 2: ("Graph", False)},
    "Function": {7: ("Node", True), 11: ("Attribute", True)},
    "Graph": {1: ("Node", True), 5: ("Tensor", True), 15: ("Sparse", True)},
    "Node": {5: ("Attribute", True)},
    "Attribute": {
        5: ("Tensor", False),
        6: ("Graph", False),
        10: ("Tensor", True),
        11: ("Graph", True),
        22: ("Sparse", False),
        23: ("Sparse", True),
    },
    "Sparse": {1: ("Tensor", False), 2: ("Tensor", False)},
}
_TENSOR_NAME, _TENSOR_ENTRIES, _TENSOR_LOCATION, _EXTERNAL = 8, 13, 14, 1
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class ExternalData:
    """One tensor's reference: its name, the file as written, and the bytes [offset, offset + length) of that file.

    `length` None means up to the end of the file.
    """

    tensor: str
    location: str
    offset: int
    length: int | None


def external_data(model: bytes, where: str) -> list[ExternalData]:
    """Return every external-data reference of the serialised ModelProto `model`; `where` names it in messages.

    Raises BundleError for a malformed file, and for a tensor whose reference is incomplete or ambiguous.
    """
    if len(model) > MAX_BYTES:
        raise _refuse(
            where, f"it has {len(model)} bytes, above the limit of {MAX_BYTES} for a graph without its weights"
        )
    found: list[ExternalData] = []
    pending = [("Model", 0, len(model), 0)]
    while pending:
        kind, start, end, depth = pending.pop()
        if depth > MAX_DEPTH:
            raise _refuse(where, f"it nests more than {MAX_DEPTH} messages")
        if kind == "Tensor":
            reference = _tensor(model, start, end, where)
            if reference is not None:
                found.append(reference)
            continue
        nested, seen = _MESSAGES[kind], set()
        for field, wire, first, last in _fields(model, start, end, where):
            if field not in nested:
                continue
            child, repeats = nested[field]
            # A parser merges repeated occurrences of a single field, so each one could look harmless
            if wire != _BYTES or (field in seen and not repeats):
                raise _refuse(where, f"field {field} of a {kind} message has a wrong type or occurs twice")
            seen.add(field)
            pending.append((child, first, last, depth + 1))
    return found[::-1]


def _tensor(model: bytes, start: int, end: int, where: str) -> ExternalData | None:
    name, external, entries = "", False, {}
    for field, wire, first, last in _fields(model, start, end, where):
        if field == _TENSOR_NAME and wire == _BYTES:
            name = model[first:last].decode("utf-8", "replace")
        elif field == _TENSOR_LOCATION and wire == _VARINT:
            external = external or _varint(model, first, last, where)[0] == _EXTERNAL
        elif field == _TENSOR_ENTRIES:
            if wire != _BYTES:
                raise _refuse(where, f"the external data of tensor {name!r} has a wrong type")
            key, value = _entry(model, first, last, where)
            if key in entries:
                raise _refuse(where, f"tensor {name!r} names its external {key} twice")
            entries[key] = value
    if not external and not entries:
        return None
    if not entries.get("location"):
        raise _refuse(where, f"tensor {name!r} is external but names no file")
    length = _number(entries["length"], name, where) if "length" in entries else None
    return ExternalData(name, entries["location"], _number(entries.get("offset", "0"), name, where), length)


def _entry(model: bytes, start: int, end: int, where: str) -> tuple[str, str]:
    parts = {1: "", 2: ""}
    for field, wire, first, last in _fields(model, start, end, where):
        if field in parts:
            if wire != _BYTES or parts[field]:
                raise _refuse(where, "an external-data entry is malformed")
            try:
                parts[field] = model[first:last].decode("utf-8")
            except UnicodeDecodeError:
                raise _refuse(where, "an external-data entry is not UTF-8") from None
    return parts[1], parts[2]


def _number(text: str, name: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise _refuse(where, f"tensor {name!r} has the external offset or length {text[:40]!r}")
    return int(text)


def _fields(model: bytes, start: int, end: int, where: str) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field, wire type, first byte, end) of the payload of each field in model[start:end]."""
    at = start
    while at < end:
        tag, at = _varint(model, at, end, where)
        field, wire = tag >> 3, tag & 7
        first = at
        if wire == _BYTES:
            length, first = _varint(model, at, end, where)
            at = first + length
        elif wire == _VARINT:
            _, at = _varint(model, at, end, where)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        else:
            raise _refuse(where, f"byte {first} has the wire type {wire}")
        if not 0 < field < 2**29 or at > end:
            raise _refuse(where, f"the field at byte {first} is cut short or has no valid number")
        yield field, wire, first, at


def _varint(model: bytes, at: int, end: int, where: str) -> tuple[int, int]:
    if at < end and model[at] < 0x80:  # nearly all have one byte, and a large graph has a million
        return model[at], at + 1
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            raise _refuse(where, f"a number is cut short at byte {at}")
        byte = model[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise _refuse(where, f"a number at byte {at} is too long")


def _refuse(where: str, reason: str) -> BundleError:
    return BundleError(f"{where} is not a safe ONNX file: {reason}.", "Do not use this bundle; export it again.")
