"""What the server takes and gives, as its OpenAPI schema shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from ..runtime.bundle.limits import MAX_COUNT, MAX_FPS, MAX_FRAMES, MAX_SIDE, MAX_STEPS, MAX_TEXT, MIN_FPS

MAX_PICTURES = 16  # of one request: they are kept on disk until somebody removes them
SEED = (1 << 53) - 1  # JavaScript's numbers are exact up to here

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class PictureRequest(_Closed):
    """Pictures of a text; what is left out takes the bundle's default."""

    kind: Literal["picture"] = "picture"
    bundle: str | None = Field(None, description="A name of /v1/models; the first that draws pictures if left out.")
    prompt: Text
    negative: Text = ""
    seed: int = Field(0, ge=0, le=SEED)
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(None, ge=0, le=1000)
    width: Side | None = None
    height: Side | None = None
    count: int = Field(1, ge=1, le=min(MAX_PICTURES, MAX_COUNT))
    previews: bool = Field(False, description="Send what each step has made as an event; each costs a decoding.")


class VideoRequest(_Closed):
    """A video of a picture: one that is sent, or one that a job has made."""

    kind: Literal["video"]
    bundle: str | None = Field(None, description="A name of /v1/models; the first that makes videos if left out.")
    image: str | None = Field(None, description="A PNG, JPEG or WebP file in base64; or a data URL of one.")
    image_job: str | None = Field(None, description="A job that has drawn a picture; its first one is taken.")
    prompt: Text = ""
    negative: Text = ""
    seed: int = Field(0, ge=0, le=SEED)
    frames: int | None = Field(None, ge=1, le=MAX_FRAMES)
    fps: float | None = Field(None, ge=MIN_FPS, le=MAX_FPS)
    width: Side | None = None
    height: Side | None = None


def _kind(body: object) -> object:
    """Return the kind of a job's body: a picture where it is left out."""
    return body.get("kind", "picture") if isinstance(body, dict) else getattr(body, "kind", None)


JobRequest = Annotated[
    Annotated[PictureRequest, Tag("picture")] | Annotated[VideoRequest, Tag("video")], Discriminator(_kind)
]


class JobView(BaseModel):
    """A job and where it stands."""

    id: str
    kind: Literal["picture", "video"]
    bundle: str
    request: dict[str, Any]
    state: Literal["waiting", "running", "done", "failed", "cancelled"]
    created: float
    started: float | None
    finished: float | None
    files: list[str] = Field(description="Paths of what it has made, from this server's root.")
    error: dict[str, str] | None


class JobList(BaseModel):
    """Jobs, newest first."""

    jobs: list[JobView]


class Fault(BaseModel):
    """What went wrong and what to do next, in OpenAI's form."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class Failure(BaseModel):
    """The body of every answer that is no success."""

    error: Fault


class ModelView(BaseModel):
    """A bundle that the server has opened."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    kind: Literal["picture", "video"]
    width: int
    height: int
    multiple: int = Field(description="Sides are multiples of it.")
    steps: int
    frames: int | None = Field(description="Of a video by default; None for pictures.")


class ModelList(BaseModel):
    """The bundles of this server, in OpenAI's form."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class ImagesRequest(BaseModel):
    """OpenAI's image generation; fields that Segue has no use for are taken and ignored."""

    model_config = ConfigDict(extra="allow")

    prompt: Text
    model: str | None = None
    n: int | None = Field(1, ge=1, le=MAX_PICTURES)
    size: str | None = Field(None, pattern=r"^([1-9]\d{0,4}x[1-9]\d{0,4}|auto)$", description="Width x height.")
    response_format: Literal["b64_json", "url"] | None = "b64_json"
    output_format: Literal["png"] | None = "png"
    seed: int | None = Field(None, ge=0, le=SEED, description="Segue's own addition; 0 if left out.")


class ImageView(BaseModel):
    """A picture, in the form that was asked for."""

    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(BaseModel):
    """OpenAI's answer to an image generation."""

    created: int
    data: list[ImageView]
    output_format: Literal["png"] = "png"
    size: str


class PhaseView(BaseModel):
    """A phase of the plan: what runs, how often, how long, and how much memory it takes at most."""

    component: str
    calls: int
    seconds: float
    peak: int = Field(description="Bytes.")


class PlanView(BaseModel):
    """What a request takes on this machine, by what the bundle says of itself."""

    peak: int = Field(description="Bytes.")
    budget: int | None
    seconds: float
    keep: list[str]
    phases: list[PhaseView]
