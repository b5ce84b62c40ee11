"""Prepare a request, of pictures or of a video, for a bundle, and plan it on the machine that runs it."""

from __future__ import annotations

from dataclasses import replace

from ..errors import UsageError
from .bundle.manifest import Manifest
from .bundle.prompts import Prompts, spell_emoji
from .planning.hardware import Machine
from .planning.pictures import Plan, Wanted, plan, unbounded_plan
from .planning.previews import with_previews
from .planning.videos import WantedVideo, plan_video, unbounded_video_plan
from .request import Prepared, Request, check_text, prepare
from .videos.request import AnimationRequest, PreparedAnimation
from .videos.request import prepare as prepare_animation

Asked = Request | AnimationRequest | Prepared | PreparedAnimation


def prepare_any(content: Manifest, request: Asked, names: Prompts | None) -> Prepared | PreparedAnimation:
    """Return a request with its defaults, checked for this bundle; a prepared one comes back unchanged.

    Emoji in prompts become the names that the bundle has for them. Raises UsageError if the bundle cannot meet the
    request.
    """
    if isinstance(request, Prepared | PreparedAnimation):
        return request
    if isinstance(request, AnimationRequest):
        if content.video is None:
            raise UsageError(
                f"the bundle {content.name!r} draws pictures, not videos. Open emoji-motion or another video bundle."
            )
        moving = prepare_animation(request, content)
        return replace(
            moving,
            prompt=_spelled("prompt", moving.asked, names),
            negative=_spelled("negative", moving.negative, names),
        )
    if content.video is not None:
        raise UsageError(
            f"the bundle {content.name!r} draws videos, not pictures. Call Model.animate, or run segue animate."
        )
    still = prepare(request, content)
    spelled = {text: _spelled("prompt", text, names) for text in still.asked}
    return replace(
        still,
        prompts=tuple(spelled[text] for text in still.asked),
        negative=_spelled("negative", still.negative, names),
    )


def _spelled(field: str, text: str, names: Prompts | None) -> str:
    made = spell_emoji(text, names)
    check_text(field, made)  # names are longer than characters
    return made


def plan_prepared(
    content: Manifest, prepared: Prepared | PreparedAnimation, machine: Machine, budget: int | None, settled: bool,
    previews: bool = False,
) -> Plan:  # fmt: skip
    """Return the plan of a request; `budget` in bytes, None: everything stays loaded.

    With `settled` a video keeps its own tiling, even if that is None. `previews` makes room for the small decoder, if
    the bundle has one and the budget allows it. Raises BudgetError if the budget is too small.
    """
    if isinstance(prepared, Prepared):
        wanted = wanted_of(prepared)
        if budget is None:
            return unbounded_plan(content, wanted, machine)
        found = plan(content, wanted, machine, budget)
        return with_previews(content, found, wanted, machine) if previews else found
    video = WantedVideo(prepared.height, prepared.width, prepared.frames, prepared.tiling, settled)
    if budget is None:
        return unbounded_video_plan(content, video, machine)
    return plan_video(content, video, machine, budget)


def wanted_of(prepared: Prepared) -> Wanted:
    """Return the part of a request for pictures that memory and time depend on."""
    return Wanted(
        prepared.height, prepared.width, prepared.steps, prepared.guided, len(prepared.prompts),
        prepared.start is not None, tuple((one.shape[0], one.shape[1]) for one in prepared.references),
    )  # fmt: skip


def plan_default(content: Manifest, machine: Machine) -> Plan:
    """Return the plan, without a budget, of one picture or one window with the defaults of a bundle."""
    height, width = content.sizes.default
    if content.video is not None:
        return unbounded_video_plan(content, WantedVideo(height, width, content.video.frames), machine)
    return unbounded_plan(content, Wanted(height, width, content.sampler.steps, content.sampler.guidance > 1), machine)
