"""Log a run: the loss curve as JSON lines, TensorBoard, sample grids."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import torch

from ...runtime.storage.files import write_whole


class Log:
    """The log of a run in `out`, from step `first` on. Opening it drops the lines of later steps."""

    def __init__(self, out: Path, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._out = out
        path = out / "losses.jsonl"
        if path.exists():
            # A killed run may leave half a line at the end. Whole lines end with a line feed.
            whole = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
            write_whole(path, "".join(line for line in whole if json.loads(line)["step"] < first).encode())
        self._file = path.open("a")
        self._writer = SummaryWriter(out / "tensorboard", purge_step=first)

    def write(self, step: int, figures: dict[str, float]) -> None:
        """Add one step to the loss curve."""
        self._file.write(json.dumps({"step": step, **figures}) + "\n")
        self._file.flush()

    def plot(self, step: int, figures: dict[str, float]) -> None:
        """Add figures to TensorBoard."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def show(self, done: int, grid: torch.Tensor) -> None:
        """Write the sample grid (3, H, W) in [0, 1] of step `done`."""
        from PIL import Image

        self._writer.add_image("samples", grid, done - 1)
        pixels = (grid.permute(1, 2, 0) * 255).round().clamp(0, 255).byte().cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        write_whole(self._out / f"grid-{done:08d}.png", file.getvalue())

    def keep(self) -> None:
        """Flush the curve to disk, so that a saved state never outlives it."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files."""
        self._writer.close()
        self._file.close()
