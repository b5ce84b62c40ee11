"""The endpoints of bundles: what there is, what it can draw, what a request would take."""

from typing import Annotated

import numpy as np
from fastapi import FastAPI, Query

from ...errors import UsageError
from ...runtime.bundle.families import family_of, takes_picture
from ...runtime.bundle.prompts import nearest, spell_emoji
from ...runtime.pipeline import Model
from ...runtime.videos.request import takes_last, takes_text_alone
from .. import schema
from ..failures import Refused
from ..job_work import kind_of, picture_request, video_request
from ..kept.inputs import Inputs, check_references, reduced, sent
from ..runner import Runner
from .jobs import arguments

NAMES = 50  # most names of an answer


def add_models(app: FastAPI, runner: Runner) -> None:
    """Add the endpoints."""

    @app.get("/v1/models")
    def models() -> schema.ModelList:
        """List the bundles of this server."""
        return schema.ModelList(data=[_view(name, model) for name, model in runner.models.items()])

    @app.get("/v1/models/{model}")
    def model(model: str) -> schema.ModelView:
        """Show a bundle of this server."""
        if model not in runner.models:
            raise Refused(404, f"there is no model {model[:80]!r}. {_choice(runner)}", "model", "model_not_found")
        return _view(model, runner.models[model])

    @app.get("/v1/prompts")
    def prompts(
        bundle: str | None = None,
        query: Annotated[str, Query(max_length=1000)] = "",
        limit: Annotated[int, Query(ge=1, le=NAMES)] = 8,
    ) -> schema.PromptList:
        """List names that a bundle can draw, nearest to `query` first; `query` may be the beginning of a name.

        Default of `bundle`: the first one that draws pictures, if there is one. The list is empty for a bundle that
        knows no names.
        """
        drawing = [name for name, model in runner.models.items() if kind_of(model) == "picture"]
        name = bundle or (drawing or list(runner.models))[0]
        if name not in runner.models:
            raise UsageError(f"there is no bundle {name[:80]!r}. {_choice(runner)}")
        held = runner.models[name].prompts
        if held is None:
            return schema.PromptList(bundle=name, names=[], styles=[], photographs=False)
        near = nearest(held, spell_emoji(query, held), limit)
        return schema.PromptList(bundle=name, names=list(near), styles=list(held.styles), photographs=held.photographs)

    @app.post("/v1/plan")
    def plan(wanted: schema.JobRequest) -> schema.PlanView:
        """Return the memory and time that a job would need, phase by phase.

        A video needs no image here, nor does a picture with `strength`.
        """
        name = runner.find(wanted.kind, wanted.bundle)
        model, given = runner.models[name], arguments(wanted)
        if isinstance(wanted, schema.PictureRequest):
            made = model.plan(picture_request(given, _planned(runner, wanted, name)))
        else:
            height, width = given.get("size", model.bundle.manifest.sizes.default)
            blank = np.zeros((height, width, 3), np.uint8)
            made = model.plan(video_request(given, Inputs(blank, last=None if wanted.last is None else blank)))
        phases = [
            schema.PhaseView(component=phase.component, calls=phase.calls, seconds=phase.seconds, peak=phase.peak)
            for phase in made.phases
        ]
        return schema.PlanView(
            peak=made.peak, server=0 if made.host else model.ledger.idle, budget=made.budget, seconds=made.seconds,
            keep=list(made.keep), phases=phases,
        )  # fmt: skip


def _planned(runner: Runner, wanted: schema.PictureRequest, name: str) -> Inputs:
    """Return pictures that take as much memory and time as those of a request."""
    content = runner.models[name].bundle.manifest
    check_references(len(wanted.references), content, name, wanted.mask is not None)
    blank = np.zeros((64, 64, 3), np.uint8)
    begins = any(one is not None for one in (wanted.image, wanted.image_job, wanted.mask, wanted.strength))
    with runner.decoding:
        references = tuple(reduced(sent("reference", one), content) for one in wanted.references)
    return Inputs(blank if begins else None, None if wanted.mask is None else blank[..., 0], references)


def _choice(runner: Runner) -> str:
    return f"Choose {' or '.join(runner.models)}."


def _view(name: str, model: Model) -> schema.ModelView:
    content = model.bundle.manifest
    height, width = content.sizes.default
    sampler = content.sampler if content.video is None else content.video.motion.sampler
    guided = sampler.guidance > 1
    return schema.ModelView(
        id=name, created=0, owned_by="segue", kind=kind_of(model), width=width, height=height,  # type: ignore[arg-type]
        multiple=content.sizes.multiple, steps=content.sampler.steps,
        frames=None if content.video is None else content.video.frames,
        sizes=[(wide, high) for high, wide in content.sizes.good], guided=guided, negative=guided, draws=_draws(model),
        takes_image=content.video is not None or takes_picture(content), references=family_of(content).references,
        takes_text_alone=content.video is None or takes_text_alone(content), takes_last=takes_last(content),
    )  # fmt: skip


def _draws(model: Model) -> str:
    if model.prompts is None:
        return "any text"
    return f"{len(model.prompts.seen):,} names, such as {', '.join(nearest(model.prompts, '', 3))}"
