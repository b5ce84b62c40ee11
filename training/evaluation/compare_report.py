"""The report of a comparison: one self-contained page and one JSON file."""

from __future__ import annotations

import html
import io
import json
from pathlib import Path

import numpy as np
import torch

from .compare import CompareSpec, Comparison, Side, rows_of
from .report import STYLE, encoded_picture, made_by, table_of

SHOWN = 24  # number of prompts with pictures in the page


def write_compare_report(found: Comparison, spec: CompareSpec, folder: Path) -> None:
    """Write report.html and report.json to `folder`."""
    table = {
        "verdict": found.verdict,
        "spec": spec.facts(),
        "gap": found.gap,
        "sides": [
            {
                "name": side.name,
                "figures": side.figures,
                "seconds": None if side.seconds is None else [round(value, 4) for value in side.seconds.tolist()],
            }
            for side in found.sides
        ],
        **made_by("cpu"),
    }
    (folder / "report.json").write_text(json.dumps(table, indent=1) + "\n")
    (folder / "report.html").write_text(_page(found, spec), encoding="utf-8")


def _page(found: Comparison, spec: CompareSpec) -> str:
    first, second = (side.name for side in found.sides)
    rows = [dict(zip(("what", first, second), row, strict=True)) for row in rows_of(found)]
    shown = []
    for number, prompt in enumerate(spec.prompts[:SHOWN]):
        pictures = "".join(_picture(side.images[number]) for side in found.sides)
        words = html.escape(prompt)
        shown.append(f"<figure><figcaption>{words}</figcaption><div class='pair'>{pictures}</div></figure>")
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<title>Segue: {html.escape(first)} and {html.escape(second)}</title>
<style>{STYLE}.pair{{display:grid;grid-template-columns:1fr 1fr;gap:1em}}</style>
<h1>{html.escape(first)} and {html.escape(second)}</h1><p><strong>{html.escape(found.verdict)}</strong></p>
<p>{html.escape(_drawn(found, spec))}</p>
{table_of(rows)}<h2>Time of a picture</h2>{_times(found, spec.budget)}
<h2>Pictures</h2><p>Left {html.escape(first)}, right {html.escape(second)}.</p>{"".join(shown)}</html>
"""


def _drawn(found: Comparison, spec: CompareSpec) -> str:
    first, second = found.sides
    drawn = f"{len(spec.prompts)} prompts, {spec.seeds} pictures each"
    if spec.inputs:
        drawn += ", all from the same input pictures"
    if second.seconds is None:
        return f"{drawn} by {first.name} on this machine ({spec.target}); {second.name} holds one for each prompt."
    return f"{drawn}, both sides in turn on this machine ({spec.target})."


def _picture(images: np.ndarray) -> str:
    row = torch.from_numpy(images).permute(3, 1, 0, 2).reshape(3, images.shape[1], -1).float() / 255
    return f"<img alt='' src='data:image/png;base64,{encoded_picture(row)}'>"


def _times(found: Comparison, budget: float) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axes = figure.subplots()
    for side in found.sides:
        if side.seconds is not None:
            times = sorted(1000 * side.seconds)
            axes.step(times, [(n + 1) / len(times) for n in range(len(times))], where="post", label=side.name)
    axes.axvline(1000 * budget, color="black", linestyle="--", label="budget")
    axes.set_xlim(left=0, right=1.1 * max(1000 * budget, *(1000 * _slowest(side) for side in found.sides)))
    axes.set_xlabel("ms")
    axes.set_ylabel("share of pictures within")
    axes.legend()
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def _slowest(side: Side) -> float:
    return 0.0 if side.seconds is None else float(side.seconds.max())
