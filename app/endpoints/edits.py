"""OpenAI's endpoint that changes pictures: its multipart form, and the pictures in it."""

from __future__ import annotations

import io
import json
import re
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ...errors import UsageError
from ...runtime.bundle.families import family_of
from ...runtime.media.read_image import read_image, read_transparent
from ..failures import Refused
from ..kept.inputs import MOST, Inputs, check_mask, check_references, reduced
from ..runner import Runner
from .images import STREAM, answered
from .images_schema import EditsRequest, ImagesAnswer

PATH = "/v1/images/edits"
FILES = ("image", "mask")
FIELDS = 64  # most fields of a form
# A form holds only text
PLAIN = ("n", "output_compression", "partial_images", "stream", "seed", "steps", "guidance", "strength", "feather")
LITERAL = re.compile(r"true|false|-?(0|[1-9]\d{0,20})(\.\d{1,20})?(e[+-]?\d{1,3})?")


def add_edits(app: FastAPI, runner: Runner) -> None:
    """Add the endpoint."""
    form = EditsRequest.model_json_schema()

    @app.post(
        PATH,
        response_model=ImagesAnswer,
        responses={200: {"content": STREAM, "description": "The pictures, or with stream their events"}},
        openapi_extra={"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}},
    )
    async def edits(http: Request) -> Any:
        """Change pictures as OpenAI's endpoint does. Closing the connection cancels the job."""
        try:
            wanted = await _read(http)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody reads it
        return await answered(runner, wanted, http, lambda name: _inputs(runner, wanted, name), "image_edit")


async def _read(http: Request) -> EditsRequest:
    """Return the form of a request; raises Refused or RequestValidationError for one that is not as it should be."""
    if not http.headers.get("content-type", "").startswith("multipart/form-data"):
        async for _ in http.stream():  # a client may not listen before it has sent its picture
            pass
        raise Refused(422, "the body must be multipart/form-data with image and prompt. Send it so.")
    body: dict[str, Any] = {}
    try:
        async with http.form(max_files=MOST + 1, max_fields=FIELDS) as form:
            for key, value in form.multi_items():
                name = key.partition("[")[0]
                given = await value.read() if isinstance(value, UploadFile) else _plain(name, value)
                if name == "image":
                    body.setdefault(name, []).append(given)
                elif name in body:
                    raise Refused(422, f"the key {name[:80]} was sent twice. Send it once.", name[:80], "invalid_value")
                else:
                    body[name] = given
    except HTTPException as error:
        if isinstance(error, Refused):
            raise
        text = f"the body is not valid multipart/form-data: {str(error.detail).rstrip('.')}. Correct it."
        raise Refused(422, text) from None
    try:
        return EditsRequest.model_validate(body)
    except ValidationError as error:
        faults = [{**one, "loc": ("body", *one["loc"][:1])} for one in error.errors()]  # files of image have no names
        raise RequestValidationError(faults) from None


def _plain(name: str, text: str) -> Any:
    """Return the value of a field as JSON would hold it; text that is no value stays, and is refused in words."""
    return json.loads(text) if name in PLAIN and LITERAL.fullmatch(text) else text


def _inputs(runner: Runner, wanted: EditsRequest, name: str) -> Inputs:
    """Return the pictures of a request to the bundle called `name`."""
    content = runner.models[name].bundle.manifest
    begins = not family_of(content).references or wanted.mask is not None or wanted.strength is not None
    first, others = (wanted.image[0], wanted.image[1:]) if begins else (None, wanted.image)
    if begins and others and not family_of(content).references:
        text = f"{len(wanted.image)} images were sent, and {name} takes no references beside the first. Send one image."
        raise Refused(422, text, "image", "invalid_value")
    runner.check_room()
    try:
        check_references(len(others), content, name, wanted.mask is not None)
        with runner.decoding:
            image = None if first is None else read_image(io.BytesIO(first), name="the image that was sent")
            references = tuple(
                reduced(read_image(io.BytesIO(one), name=f"reference {number}"), content)
                for number, one in enumerate(others, 1)
            )
    except UsageError as error:
        raise Refused(422, str(error), "image", "invalid_value") from None
    if wanted.mask is None or image is None:
        return Inputs(image, None, references)
    try:
        with runner.decoding:
            mask = read_transparent(io.BytesIO(wanted.mask), name="the mask that was sent")
        check_mask(mask, image)
    except UsageError as error:
        raise Refused(422, str(error), "mask", "invalid_value") from None
    return Inputs(image, mask, references)
