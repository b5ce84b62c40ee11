"""A plan as an SVG picture: the memory of each phase and the budget."""

from __future__ import annotations

from html import escape

from ..units import mebibytes
from .pictures import Plan

WIDTH, HEIGHT, LEFT, TOP, FOOT = 760, 240, 64, 28, 92
FAR = 8  # times the peak: a higher line would make the bars flat
LEAST = 0.03  # share of the width: keeps a phase of a millisecond visible
STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#333}rect{fill:#b3261e;opacity:.8}line{stroke:#333}"
    ".budget{stroke-dasharray:6 4}"
)


def timeline(plan: Plan, title: str, memory: int) -> str:
    """Return an SVG with a bar for each phase: its width is the time (with a minimum), its height the peak.

    A line shows the budget, or without one the machine's `memory` in bytes. A line far above the bars is left out.
    """
    line = memory if plan.budget is None else plan.budget
    limit = plan.peak if line > FAR * plan.peak else max(plan.peak, line)
    wide = [max(phase.seconds / plan.seconds if plan.seconds else 0, LEAST) for phase in plan.phases]
    scale = WIDTH / sum(wide)
    height_of = lambda peak: HEIGHT * peak / (1.08 * limit)  # noqa: E731
    parts, left = [], float(LEFT)
    for phase, share in zip(plan.phases, wide, strict=True):
        high, across = height_of(phase.peak), share * scale
        top, middle = TOP + HEIGHT - high, left + across / 2
        words = f"{phase.component}: {mebibytes(phase.peak)} MiB, {phase.calls} calls, {phase.seconds:.2g} s"
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(across - 1, 1):.1f}" height="{high:.1f}">'
            f"<title>{escape(words)}</title></rect>"
            f'<text transform="translate({middle:.1f} {TOP + HEIGHT + 10}) rotate(30)">{escape(phase.component)}</text>'
        )
        left += across
    named = "memory" if plan.budget is None else "budget"
    marks = [(plan.peak, f"{mebibytes(plan.peak)} MiB", "")]
    if line <= FAR * plan.peak:
        marks.append((line, f"{named} {mebibytes(line)} MiB", "budget"))
    for amount, words, kind in marks:
        y = TOP + HEIGHT - height_of(amount)
        parts.append(
            f'<line class="{kind}" x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text x="{LEFT + WIDTH - 4}" y="{y - 4:.1f}" text-anchor="end">{words}</text>'
        )
    box = f"0 0 {LEFT + WIDTH + 60} {TOP + HEIGHT + FOOT}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" role="img"><style>{STYLE}</style>'
        f'<title>{escape(title)}</title><text x="{LEFT}" y="16">{escape(title)}, about {plan.seconds:.2g} s</text>'
        f"{''.join(parts)}"
        f'<line x1="{LEFT}" x2="{LEFT + WIDTH}" y1="{TOP + HEIGHT}" y2="{TOP + HEIGHT}"/></svg>\n'
    )
