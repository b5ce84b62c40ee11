"""OpenAI's image endpoints: pictures at once or as a stream, and words for what Segue does not do."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import format_sse_event
from starlette.requests import ClientDisconnect

from ...errors import UsageError
from ...runtime.request import check_size
from ...runtime.sampling.noise import random_seed
from ...runtime.units import size_of
from ..failures import CODES, Refused, status_of
from ..job_work import kind_of
from ..kept.feed import Feed
from ..kept.inputs import NONE, Inputs
from ..kept.store import CANCELLED, DONE, FAILED, Job
from ..runner import Runner
from .images_schema import ImagesAnswer, ImagesRequest, ImageView
from .jobs import found

# Clients read it from the last event of a stream. Nothing is billed here.
NO_USAGE = {
    "input_tokens": 0, "input_tokens_details": {"image_tokens": 0, "text_tokens": 0}, "output_tokens": 0,
    "total_tokens": 0,
}  # fmt: skip
STREAM = {"text/event-stream": {"schema": {"type": "string"}}}


def add_images(app: FastAPI, runner: Runner) -> None:
    """Add the endpoints."""

    @app.post(
        "/v1/images/generations",
        response_model=ImagesAnswer,
        responses={200: {"content": STREAM, "description": "The pictures, or with stream their events"}},
    )
    async def generations(wanted: ImagesRequest, http: Request) -> Any:
        """Draw pictures as OpenAI's endpoint does. Closing the connection cancels the job."""
        return await answered(runner, wanted, http, lambda name: NONE, "image_generation")

    @app.post("/v1/images/variations", include_in_schema=False)
    async def changed(http: Request) -> Response:
        """Say what this server does instead."""
        with contextlib.suppress(ClientDisconnect):
            async for _ in http.stream():  # a client may not listen before it has sent its picture
                pass
        text = (
            "this server makes no variations. Send the picture with a prompt to /v1/images/edits; a strength below 1 "
            "keeps more of it."
        )
        raise Refused(404, text, None, "unsupported_endpoint")


async def answered(
    runner: Runner, wanted: ImagesRequest, http: Request, inputs: Callable[[str], Inputs], kind: str
) -> Any:
    """Return the answer to a request for pictures; `inputs` gives its pictures for a bundle, `kind` names its events.

    Raises Refused, and the errors of `Runner.submit`.
    """
    feed = Feed()
    job = await asyncio.to_thread(_submit, runner, wanted, feed, inputs)
    if wanted.stream:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        events = _events(runner, job, feed, kind)
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)
    job = await _finished(runner, job.id, feed, http)
    if job.state != DONE:
        raise _failure(job.id, job.error)
    if wanted.response_format == "url":
        data = [ImageView(url=f"{http.base_url}v1/jobs/{job.id}/files/{name}") for name in job.files]
    else:
        data = [ImageView(b64_json=await asyncio.to_thread(_encoded, runner, job, name)) for name in job.files]
    facts = _facts(runner, job)
    return ImagesAnswer(
        created=int(job.created), data=data, output_format=facts["output_format"], size=facts["size"],
        seed=job.request["seed"], job=job.id, warnings=job.warnings,
    )  # fmt: skip


def _submit(runner: Runner, wanted: ImagesRequest, feed: Feed, inputs: Callable[[str], Inputs]) -> Job:
    drawing = [name for name, model in runner.models.items() if kind_of(model) == "picture"]
    if wanted.model not in (None, *drawing) or not drawing:
        choice = f"Choose {' or '.join(drawing)}." if drawing else "Start segue serve with a bundle that does."
        named = "" if wanted.model is None else f"{wanted.model[:80]!r} "
        text = f"this server has no model {named}that draws pictures. {choice}"
        raise Refused(404, text, "model", "model_not_found")
    name = wanted.model or drawing[0]
    request: dict[str, Any] = {"prompt": wanted.prompt, "count": wanted.n or 1}
    request["seed"] = random_seed() if wanted.seed is None else wanted.seed
    request |= wanted.model_dump(include={"negative", "steps", "guidance", "strength", "feather"}, exclude_none=True)
    if wanted.size not in (None, "auto"):
        try:
            request["size"] = list(check_size(size_of(wanted.size), runner.models[name].bundle.manifest.sizes))
        except UsageError as error:
            raise Refused(422, str(error), "size", "invalid_value") from None
    if wanted.output_format not in (None, "png"):
        request["output_format"] = wanted.output_format
        if wanted.output_compression is not None:
            request["output_compression"] = wanted.output_compression
    if wanted.partial_images:
        request["partial_images"] = wanted.partial_images
    return runner.submit("picture", name, request, inputs(name), feed, wanted.told())


def _facts(runner: Runner, job: Job) -> dict[str, Any]:
    height, width = job.request.get("size", runner.models[job.bundle].bundle.manifest.sizes.default)
    return {"output_format": job.request.get("output_format", "png"), "size": f"{width}x{height}"}


def _encoded(runner: Runner, job: Job, name: str) -> str:
    return base64.b64encode((runner.place(job.id) / name).read_bytes()).decode()


def _failure(identifier: str, error: dict[str, str] | None) -> Refused:
    if error is None:
        return Refused(409, f"the job {identifier} was cancelled. Send the request again.", None, "cancelled")
    kind = error["kind"]
    return Refused(status_of(kind), error["message"], None, CODES.get(kind))


async def _finished(runner: Runner, identifier: str, feed: Feed, http: Request) -> Job:
    async def over() -> None:
        async for _ in feed.read():
            pass

    waiting = asyncio.create_task(over())
    while not waiting.done():
        await asyncio.wait([waiting], timeout=0.25)
        if not waiting.done() and await http.is_disconnected():
            await asyncio.to_thread(runner.cancel, identifier)
            break
    await waiting
    return await asyncio.to_thread(found, runner, identifier)


async def _events(runner: Runner, job: Job, feed: Feed, kind: str) -> AsyncIterator[bytes]:
    """Yield OpenAI's events of a job: unfinished pictures, finished ones, or an error."""
    common = {"created_at": int(job.created), "background": "opaque", "quality": "auto", **_facts(runner, job)}
    told = {"usage": NO_USAGE, "seed": job.request["seed"], "job": job.id, "warnings": job.warnings}
    ended = False
    try:
        async for event in feed.read():
            if event.name == "partial":
                values = {"b64_json": event.values["image"], "partial_image_index": event.values["index"]}
                yield _event(f"{kind}.partial_image", values | common)
            elif event.name == "picture":
                image = await asyncio.to_thread(_encoded, runner, job, event.values["file"])
                yield _event(f"{kind}.completed", {"b64_json": image} | common | told)
            elif event.name in (FAILED, CANCELLED):
                failure = _failure(job.id, event.values["error"])
                fault = "server_error" if failure.status_code >= 500 else "invalid_request_error"
                text = {"message": failure.detail, "type": fault, "param": failure.param, "code": failure.code}
                yield _event("error", {"error": text})
        ended = True
    finally:
        if not ended:  # the client is gone
            asyncio.get_running_loop().run_in_executor(None, runner.cancel, job.id)


def _event(name: str, values: dict[str, Any]) -> bytes:
    return format_sse_event(data_str=json.dumps({"type": name, **values}), event=name)
