"""The report of an evaluation: one JSON file and one self-contained HTML page."""

from __future__ import annotations

import base64
import dataclasses
import html
import io
import json
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..pictures.sampling import tiled
from .evaluate import EvalSpec, Evaluation, table
from .measures import Interval
from .videos import SHOWN, VideoEvalSpec, VideoEvaluation

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border-bottom:1px solid #ccc;padding:.3em .8em;text-align:left}
img,svg{max-width:100%;height:auto}figure{margin:1.5em 0}figcaption{color:#555}"""
VERSIONS = ("segue", "torch", "diffusers", "torchmetrics")


def write_report(evaluation: Evaluation, spec: EvalSpec, compared: dict[str, Any], folder: Path) -> None:
    """Write report.json and report.html to `folder`. `compared` gives the paths of "students" and "teacher"."""
    (folder / "report.json").write_text(json.dumps(content(evaluation, spec, compared), indent=1) + "\n")
    (folder / "report.html").write_text(_page(evaluation, spec, compared), encoding="utf-8")


def write_video_report(evaluation: VideoEvaluation, spec: VideoEvalSpec, models: dict[str, str], folder: Path) -> None:
    """Write report.json and report.html of a video evaluation to `folder`. `models` gives each model's path."""
    (folder / "report.json").write_text(json.dumps(video_content(evaluation, spec, models), indent=1) + "\n")
    strips = "".join(
        f"<figure><img alt='' src='data:image/png;base64,{encoded_picture(_strips(videos))}'>"
        f"<figcaption>{html.escape(way)}</figcaption></figure>"
        for way, videos in evaluation.sheets.items()
    )
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Segue: videos from a first frame</title>
<style>{STYLE}</style><h1>Videos from a first frame</h1>
<p>Models {html.escape(", ".join(models.values()))}. {len(evaluation.clips)} held-out clips, {spec.seeds} seeds.
Means over clips and seeds, ± half of the 95 % interval over seeds; frames after the first.</p>
<h2>All clips</h2>{table_of(table(evaluation.figures))}
<h2>The half of the clips that moves most</h2>{table_of(table(evaluation.most))}
<h2>Every eighth frame</h2><p>{html.escape(" | ".join(evaluation.clips[:SHOWN]))}</p>{strips}</html>
"""
    (folder / "report.html").write_text(page, encoding="utf-8")


def video_content(evaluation: VideoEvaluation, spec: VideoEvalSpec, models: dict[str, str]) -> dict[str, Any]:
    """Return a video evaluation as JSON types."""
    return {
        "models": models,
        "spec": dataclasses.asdict(spec),
        "clips": evaluation.clips,
        **made_by(evaluation.device),
        "figures": _numbers(evaluation.figures),
        "figures of the half of the clips that moves most": _numbers(evaluation.most),
    }


def _strips(videos: Tensor) -> Tensor:
    """Return a picture in [0, 1] with every eighth frame of clips (N, 3, F, H, W) in [-1, 1], a row for each clip."""
    rows = [torch.cat(list(video[:, ::8].transpose(0, 1)), -1) for video in videos]
    return (torch.cat(rows, -2) / 2 + 0.5).clamp(0, 1)


def table_of(rows: list[dict[str, Any]]) -> str:
    """Return rows as an HTML table. The rows' keys are its columns."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    head = "".join(f"<th>{html.escape(column)}</th>" for column in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(str(row.get(column, '')))}</td>" for column in columns) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def made_by(device: str) -> dict[str, Any]:
    """Return device, versions and machine for a JSON report."""
    return {
        "device": device,
        "versions": {name: version(name) for name in VERSIONS},
        "machine": platform.processor() or platform.machine(),
    }


def content(evaluation: Evaluation, spec: EvalSpec, compared: dict[str, Any]) -> dict[str, Any]:
    """Return the evaluation as JSON types."""
    return {
        **compared,
        "spec": dataclasses.asdict(spec),
        "prompts drawn": evaluation.prompts,
        "precision": evaluation.precision,
        **made_by(evaluation.device),
        "figures": _numbers(evaluation.figures),
        "ladders": {name: _numbers(rungs) for name, rungs in evaluation.ladders.items()},
        "classifier's accuracy on real pictures": evaluation.classifier_on_real,
    }


def _numbers(figures: dict[Any, dict[str, Interval]]) -> dict[Any, dict[str, dict[str, float | None]]]:
    return {
        name: {measure: dataclasses.asdict(value) for measure, value in found.items()}
        for name, found in figures.items()
    }


def _page(evaluation: Evaluation, spec: EvalSpec, compared: dict[str, Any]) -> str:
    figures = "".join(
        f"<figure><img alt='' src='data:image/png;base64,{encoded_picture(tiled(grid))}'>"
        f"<figcaption>{html.escape(name)}</figcaption></figure>"
        for name, grid in evaluation.grids.items()
    )
    captions = html.escape(" | ".join(evaluation.captions))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>Segue: students and teacher</title>
<style>{STYLE}</style><h1>Students and teacher</h1>
<p>Students {html.escape(", ".join(compared["students"].values()))}, teacher {html.escape(compared["teacher"])}.
{evaluation.prompts} prompts, {spec.seeds} seeds, the same noise for every way of drawing.
Means over seeds, ± half of the 95 % interval.
The classifier knows {evaluation.classifier_on_real:.1%} of real pictures that were not in its fit.</p>
{table_of(table(evaluation.figures))}
<h2>Calls of the network</h2>{_ladder_plot(evaluation)}
<h2>Pictures</h2><p>{captions}</p>{figures}</html>
"""


def _ladder_plot(evaluation: Evaluation) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, measure in zip(figure.subplots(1, 2), ("KID x 1e3", "accuracy"), strict=True):
        for name, rungs in evaluation.ladders.items():
            found = [rung[measure] for rung in rungs.values()]
            half = [value.half or 0.0 for value in found]
            axes.errorbar(list(rungs), [value.mean for value in found], half, marker="o", capsize=3, label=name)
        axes.set_xlabel("calls of a student's network")
        axes.set_ylabel(measure)
        axes.legend()
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()[file.getvalue().index("<svg") :]


def encoded_picture(picture: Tensor) -> str:
    """Return a picture (3, H, W) in [0, 1] as a PNG in base64."""
    from PIL import Image

    pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()
