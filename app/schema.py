"""The bodies of requests and answers, as the OpenAPI schema shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from ..runtime.bundle.limits import MAX_COUNT, MAX_FPS, MAX_FRAMES, MAX_SIDE, MAX_STEPS, MAX_TEXT, MIN_FPS
from ..runtime.units import SIDES

MAX_PICTURES = 16  # of one request, because files stay on disk until a user removes them
SEED = (1 << 53) - 1  # JavaScript's numbers are exact up to here

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PictureRequest(_Closed):
    """Pictures of a prompt. A value that is left out takes the bundle's default."""

    kind: Literal["picture"] = "picture"
    bundle: str | None = Field(None, description="A name of /v1/models. Default: the first bundle that draws pictures.")
    prompt: Text
    negative: Text = ""
    seed: int = Field(0, ge=0, le=SEED)
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(None, ge=0, le=1000)
    width: Side | None = None
    height: Side | None = None
    count: int = Field(1, ge=1, le=min(MAX_PICTURES, MAX_COUNT))
    previews: bool = Field(False, description="Send a preview event after each step. Each preview costs one decoding.")


class VideoRequest(_Closed):
    """A video of a picture. The picture is sent, or taken from a job."""

    kind: Literal["video"]
    bundle: str | None = Field(None, description="A name of /v1/models. Default: the first bundle that makes videos.")
    image: str | None = Field(None, description="A PNG, JPEG or WebP file in base64, or as a data URL.")
    image_job: str | None = Field(None, description="A finished picture job. Its first picture is used.")
    prompt: Text = ""
    negative: Text = ""
    seed: int = Field(0, ge=0, le=SEED)
    frames: int | None = Field(None, ge=1, le=MAX_FRAMES)
    fps: float | None = Field(None, ge=MIN_FPS, le=MAX_FPS)
    width: Side | None = None
    height: Side | None = None


def _kind(body: object) -> object:
    """Return the kind of a job's body: picture if it is left out."""
    return body.get("kind", "picture") if isinstance(body, dict) else getattr(body, "kind", None)


JobRequest = Annotated[
    Annotated[PictureRequest, Tag("picture")] | Annotated[VideoRequest, Tag("video")], Discriminator(_kind)
]


class JobView(BaseModel):
    """A job and its state."""

    id: str
    kind: Literal["picture", "video"]
    bundle: str
    request: dict[str, Any]
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    created: float
    started: float | None
    finished: float | None
    files: list[str] = Field(description="Paths of the finished files, from the root of this server.")
    error: dict[str, str] | None


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobView]


class Fault(BaseModel):
    """An error and what to do next, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(BaseModel):
    """The body of the answer to a failed request."""

    error: Fault


class ModelView(BaseModel):
    """A bundle of this server."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["picture", "video"]
    width: int
    height: int
    multiple: int = Field(description="Width and height must be multiples of this.")
    steps: int
    frames: int | None = Field(description="Default length of a video in frames; null for pictures.")


class ModelList(BaseModel):
    """The bundles of this server, in OpenAI's form."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class ImagesRequest(BaseModel):
    """OpenAI's image generation. Segue ignores the fields that it does not use."""

    model_config = ConfigDict(extra="allow")

    prompt: Text
    model: str | None = None
    n: int | None = Field(1, ge=1, le=MAX_PICTURES)
    size: str | None = Field(
        None,
        pattern=f"^({SIDES}|auto)$",
        description="Width x height in pixels, as 192x128; auto: the bundle's default.",
    )
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    seed: int | None = Field(None, ge=0, le=SEED, description="An addition of Segue. Default: 0.")


class ImageView(BaseModel):
    """A picture in the requested format."""

    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(BaseModel):
    """OpenAI's answer to an image generation."""

    created: int
    data: list[ImageView]
    output_format: Literal["png"] = "png"
    size: str


class PhaseView(BaseModel):
    """A phase of the plan: its component, calls, time and peak of memory."""

    component: str
    calls: int
    seconds: float
    peak: int = Field(description="Peak of memory in bytes.")


class PlanView(BaseModel):
    """The planned memory and time of a request on this machine."""

    peak: int = Field(description="Peak of memory in bytes.")
    budget: int | None
    seconds: float
    keep: list[str]
    phases: list[PhaseView]
