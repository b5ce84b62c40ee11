"""Find a checkpoint's list of names, which its bundle carries."""

from __future__ import annotations

from ...errors import CheckpointError
from ...runtime.bundle import prompts
from ...runtime.bundle.limits import MAX_PROMPTS
from .headers import reading
from .read import Checkpoint


def list_of_names(found: Checkpoint) -> str:
    """Return the file with the names that a checkpoint can draw, empty if it has none.

    Raises CheckpointError for a file of that name that holds something else.
    """
    if prompts.FILE_NAME not in found.files:
        return ""
    path = found.root / prompts.FILE_NAME
    with reading(found.root):
        data = path.read_bytes()
    try:
        if len(data) > MAX_PROMPTS:
            raise ValueError(f"it has {len(data)} bytes, above the limit of {MAX_PROMPTS}")
        prompts.parse(data)
    except ValueError as error:
        raise CheckpointError(
            f"{path} is not a list of names: {error}. Correct it, or rename it if it belongs to another program."
        ) from None
    return prompts.FILE_NAME
