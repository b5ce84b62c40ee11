"""The bodies of OpenAI's image generation, as far as Segue has what they ask for."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, Field, model_validator

from ...errors import UsageError
from ...runtime.bundle.limits import MAX_STEPS
from ...runtime.units import SIDES, size_of
from ..kept.inputs import MOST as MOST_INPUTS
from ..schema import Closed, Feather, Seed, Strength, Text, Warnings, fault

MOST = 10  # pictures of one request, as with OpenAI
PARTIAL = 3  # unfinished pictures of each picture, as with OpenAI
Quality = Literal["auto", "low", "medium", "high", "xhigh", "max", "standard", "hd"]


def _size(text: Any) -> Any:
    if isinstance(text, str) and text != "auto":
        try:
            fits = "x" in text and bool(size_of(text))
        except UsageError:
            fits = False
        if not fits:
            raise fault(
                "invalid_value",
                "size",
                f"size = {text[:40]!r} is not a size. Write width x height as in 192x128, or auto.",
            )
    return text


def _background(text: Any) -> Any:
    if text == "transparent":
        raise fault(
            "unsupported_value",
            "background",
            "background = transparent is not supported, because Segue draws no transparency. Leave it out.",
        )
    return text


def _format(text: Any) -> Any:
    other = {
        "gif": "Make a video with POST /v1/jobs instead.",
        "svg": "Choose png, jpeg or webp, because Segue draws pixels.",
    }
    if isinstance(text, str) and text in other:
        raise fault("unsupported_value", "output_format", f"output_format = {text} is not supported. {other[text]}")
    return text


class ImagesRequest(Closed):
    """OpenAI's image generation."""

    refused: ClassVar[dict[str, str]] = {
        "complexity": "Leave it out, because the bundle has one way to draw.",
        "frame_count": "Make a video with POST /v1/jobs instead.",
        "frame_duration_ms": "Make a video with POST /v1/jobs instead.",
        "image": "Send pictures to /v1/images/edits.",
        "input_fidelity": "It belongs to /v1/images/edits, where strength says how much stays.",
        "mask": "Send pictures to /v1/images/edits.",
        "prompt_rewriter": "Leave it out, because Segue draws the prompt as it is.",
        "style": "Describe the style in the prompt.",
        "svg": "Choose png, jpeg or webp as output_format, because Segue draws pixels.",
    }

    prompt: Text
    model: str | None = Field(None, description="A name of /v1/models. Default: the first bundle that draws pictures.")
    n: int | None = Field(1, ge=1, le=MOST)
    size: Annotated[str, BeforeValidator(_size)] | None = Field(
        None,
        json_schema_extra={"anyOf": [{"type": "string", "pattern": f"^({SIDES}|auto)$"}, {"type": "null"}]},
        description="Width x height in pixels, as 192x128; auto: the bundle's default.",
    )
    response_format: Literal["b64_json", "url"] | None = Field(
        "b64_json", description="url: the address of the file on this server. It stays until its job is deleted."
    )
    output_format: Annotated[Literal["png", "jpeg", "webp"] | None, BeforeValidator(_format)] = "png"
    output_compression: int | None = Field(None, ge=0, le=100, description="Quality of JPEG and WebP. Default: 100.")
    background: Annotated[Literal["auto", "opaque"] | None, BeforeValidator(_background)] = Field(
        None, description="Every picture is opaque."
    )
    stream: bool | None = Field(False, description="Send server-sent events instead of one answer.")
    partial_images: int | None = Field(
        None, ge=0, le=PARTIAL, description="Unfinished pictures to send with stream, each after a step of the sampler."
    )
    quality: Quality | None = Field(
        None, description="No effect: a bundle has one quality. A value other than auto gives a warning."
    )
    moderation: Literal["auto", "low"] | None = Field(
        None, description="No effect: Segue does not filter pictures. A value gives a warning."
    )
    user: str | None = Field(None, max_length=1000, description="No effect, and it is not stored.")
    safety_identifier: str | None = Field(None, max_length=1000, description="No effect, and it is not stored.")
    seed: Seed = None
    negative: Text | None = Field(None, description="What the picture should not hold; an addition of Segue.")
    steps: int | None = Field(None, ge=1, le=MAX_STEPS, description="Default: the bundle's; an addition of Segue.")
    guidance: float | None = Field(None, ge=0, le=1000, description="Default: the bundle's; an addition of Segue.")

    @model_validator(mode="after")
    def _together(self) -> ImagesRequest:
        if self.partial_images and not self.stream:
            raise fault(
                "invalid_value",
                "partial_images",
                f"partial_images = {self.partial_images} needs stream = true. Give both, or leave both out.",
            )
        if self.stream and self.response_format == "url":
            raise fault(
                "invalid_value",
                "response_format",
                "response_format = url is not possible with stream, whose events hold b64_json. Leave it out.",
            )
        if self.output_compression not in (None, 100) and self.output_format in (None, "png"):
            raise fault(
                "invalid_value",
                "output_compression",
                f"output_compression = {self.output_compression} needs output_format = jpeg or webp, because a png "
                "keeps every pixel. Leave it out, or choose another format.",
            )
        return self

    def told(self) -> list[str]:
        """Return a warning for each value that has no effect."""
        lines = []
        if self.quality not in (None, "auto"):
            lines.append(f"quality {self.quality!r} has no effect, because a bundle has one quality. Leave it out.")
        if self.moderation is not None:
            lines.append(f"moderation {self.moderation!r} has no effect, because Segue filters nothing. Leave it out.")
        return lines


class EditsRequest(ImagesRequest):
    """OpenAI's edit of pictures: the values of a generation, and the pictures as files."""

    refused: ClassVar[dict[str, str]] = {
        **{key: text for key, text in ImagesRequest.refused.items() if key not in ("image", "mask")},
        "input_fidelity": "Send strength, an addition of Segue: less of it keeps more of the picture.",
        "markup": "Say in the prompt what shall change, and send a mask that says where.",
    }

    image: list[bytes] = Field(
        min_length=1, max_length=MOST_INPUTS,
        description="PNG, JPEG or WebP files. For a bundle that takes references they are references, unless there is "
        "a mask or a strength: then the first one is the picture to begin with. Other bundles take one.",
    )  # fmt: skip
    mask: bytes | None = Field(
        None, description="A PNG or WebP file of the first picture's size. Its fully transparent pixels are redrawn."
    )
    strength: Strength = None
    feather: Feather = None


class ImageView(BaseModel):
    """A picture in the requested format."""

    b64_json: str | None = None
    url: str | None = None


class ImagesAnswer(BaseModel):
    """OpenAI's answer to an image generation; `seed`, `job` and `warnings` are additions of Segue."""

    created: int
    data: list[ImageView]
    background: Literal["opaque"] = "opaque"
    output_format: Literal["png", "jpeg", "webp"]
    size: str
    seed: int = Field(description="Send it again, with the other values, for the same pictures.")
    job: str = Field(description="The job's identifier in /v1/jobs.")
    warnings: Warnings
