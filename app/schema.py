"""The bodies of requests and answers of Segue's own endpoints, as the OpenAPI schema shows them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from ..runtime.bundle.limits import MAX_COUNT, MAX_FPS, MAX_FRAMES, MAX_SIDE, MAX_STEPS, MAX_TEXT, MIN_FPS
from .kept.inputs import MOST

MAX_PICTURES = 16  # of one request, because files stay on disk until a user removes them
SEED = (1 << 53) - 1  # JavaScript's numbers are exact up to here

Text = Annotated[str, Field(max_length=MAX_TEXT)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Seed = Annotated[
    int | None, Field(ge=0, le=SEED, description="Default: a random one. The answer holds the seed that was used.")
]


class Closed(BaseModel):
    """A body that may hold only the keys that it names. `refused` says of other known keys what to do instead."""

    model_config = ConfigDict(extra="forbid", strict=True)
    refused: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _known(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        body = {key: value for key, value in body.items() if value is not None or key not in cls.refused}
        for key in body:
            if key in cls.refused:
                raise fault("unsupported_parameter", key, f"the key {key} is not supported. {cls.refused[key]}")
            if key not in cls.model_fields:
                known = ", ".join(cls.model_fields)
                text = f"the key {key[:80]} is unknown; known are {known}. Leave it out."
                raise fault("unknown_parameter", key[:80], text)
        return body


def fault(code: str, key: str, message: str) -> PydanticCustomError:
    """Return the error of a key, for a validator to raise. `message` is a whole sentence for people."""
    message, key = (text.encode(errors="replace").decode() for text in (message, key))  # of lone surrogates
    return PydanticCustomError(code, "{message}", {"message": message, "param": key})  # type: ignore[arg-type]


File = Annotated[str, Field(description="A PNG, JPEG or WebP file in base64, or as a data URL.")]
Strength = Annotated[
    float | None, Field(gt=0, le=1, description="Share of the steps that run. Less keeps more of the picture.")
]
Feather = Annotated[int | None, Field(ge=0, le=MAX_SIDE, description="Softness of the mask's edge in pixels.")]


class LoraFile(Closed):
    """A LoRA file of the server's directory."""

    file: str = Field(max_length=255, description="The name of a file in the directory of --lora-dir.")
    factor: float = Field(1.0, ge=-100, le=100)
    component: str = Field("", max_length=64, description="The denoiser that takes it. Default: the bundle's.")


Loras = Annotated[
    list[LoraFile],
    Field(max_length=8, description="LoRA files to play. The bundle needs segue export --lora-rank. Default: none."),
]


class PictureRequest(Closed):
    """Pictures of a prompt. A value that is left out takes the bundle's default."""

    kind: Literal["picture"] = "picture"
    bundle: str | None = Field(None, description="A name of /v1/models. Default: the first bundle that draws pictures.")
    prompt: Text
    negative: Text = ""
    seed: Seed = None
    steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    guidance: float | None = Field(None, ge=0, le=1000)
    width: Side | None = None
    height: Side | None = None
    count: int = Field(1, ge=1, le=min(MAX_PICTURES, MAX_COUNT))
    image: File | None = Field(None, description="A picture to begin with, as a PNG, JPEG or WebP file in base64.")
    image_job: str | None = Field(None, description="A finished picture job, instead of image.")
    mask: File | None = Field(None, description="A file of the picture's size. White is redrawn, black stays.")
    strength: Strength = None
    feather: Feather = None
    references: Annotated[list[File], Field(max_length=MOST, description="For bundles that draw from pictures.")] = []
    loras: Loras = []
    previews: bool = Field(False, description="Send a preview event, a small picture, after each step.")


class VideoRequest(Closed):
    """A video of a picture, which is sent or taken from a job. Some bundles also draw from the prompt alone."""

    kind: Literal["video"]
    bundle: str | None = Field(None, description="A name of /v1/models. Default: the first bundle that makes videos.")
    image: File | None = None
    image_job: str | None = Field(None, description="A finished picture job. Its first picture is used.")
    last: File | None = Field(None, description="The picture that it ends with, for bundles that take one.")
    prompt: Text = ""
    negative: Text = ""
    seed: Seed = None
    frames: int | None = Field(None, ge=1, le=MAX_FRAMES)
    fps: float | None = Field(None, ge=MIN_FPS, le=MAX_FPS)
    width: Side | None = None
    height: Side | None = None
    loras: Loras = []


def _kind(body: object) -> object:
    """Return the kind of a job's body: picture if it is left out."""
    return body.get("kind", "picture") if isinstance(body, dict) else getattr(body, "kind", None)


JobRequest = Annotated[
    Annotated[PictureRequest, Tag("picture")] | Annotated[VideoRequest, Tag("video")], Discriminator(_kind)
]
Warnings = Annotated[
    list[str], Field(description="What is probably not as intended, one line each, such as a prompt that was cut.")
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
    warnings: Warnings


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
    sizes: list[tuple[int, int]] = Field(description="The sizes that the bundle was trained at, [width, height] each.")
    guided: bool = Field(description="Whether the bundle was made for guidance.")
    negative: bool = Field(description="Whether a negative prompt has an effect.")
    takes_image: bool = Field(description="Whether a request may give a picture to begin with.")
    takes_text_alone: bool = Field(description="Whether a request may do without a picture.")
    takes_last: bool = Field(description="Whether a video may be given the picture that it ends with.")
    references: int = Field(description="Most reference pictures of a request.")
    draws: str = Field(description="What prompts the bundle knows, in a few words.")


class ModelList(BaseModel):
    """The bundles of this server, in OpenAI's form."""

    object: Literal["list"] = "list"
    data: list[ModelView]


class PromptList(BaseModel):
    """What a bundle can draw."""

    bundle: str
    names: list[str] = Field(description="Names that the bundle was trained with. The best match comes first.")
    styles: list[str] = Field(description="Words that choose a style, such as noto.")
    photographs: bool = Field(description="Whether the bundle was trained with photographs.")


class PhaseView(BaseModel):
    """A phase of the plan: its component, calls, time and peak of memory."""

    component: str
    calls: int
    seconds: float
    peak: int = Field(description="Peak of memory in bytes.")


class PlanView(BaseModel):
    """The planned memory and time of a request on this machine."""

    peak: int = Field(description="Most memory in bytes that the model takes, in addition to the server's.")
    server: int = Field(description="Memory in bytes of the server before it opened the model; 0 for a GPU's plan.")
    budget: int | None
    seconds: float
    keep: list[str]
    phases: list[PhaseView]


class Health(BaseModel):
    """The server answers."""

    status: Literal["ok"] = "ok"
    version: str
