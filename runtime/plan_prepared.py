"""Plan a prepared request, of pictures or of a video, on the machine that runs it."""

from __future__ import annotations

from .bundle.manifest import Manifest
from .planning.hardware import Machine
from .planning.pictures import Plan, Wanted, plan, unbounded_plan
from .planning.videos import WantedVideo, plan_video, unbounded_video_plan
from .request import Prepared
from .videos.request import PreparedAnimation


def plan_prepared(
    content: Manifest, prepared: Prepared | PreparedAnimation, machine: Machine, budget: int | None, settled: bool
) -> Plan:
    """Return the plan of a request; `budget` in bytes, None: everything stays loaded.

    With `settled` a video keeps its own tiling, even if that is None. Raises BudgetError if the budget is too small.
    """
    if isinstance(prepared, Prepared):
        wanted = Wanted(
            prepared.height, prepared.width, prepared.schedule.steps, prepared.guided, len(prepared.prompts)
        )
        return unbounded_plan(content, wanted, machine) if budget is None else plan(content, wanted, machine, budget)
    video = WantedVideo(prepared.height, prepared.width, prepared.frames, prepared.tiling, settled)
    if budget is None:
        return unbounded_video_plan(content, video, machine)
    return plan_video(content, video, machine, budget)
