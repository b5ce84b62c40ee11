"""A bundle ready to render: prompt, sampler, decoder, one network call at a time."""

from __future__ import annotations

import importlib.metadata
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from ..engines.base import Engine
from ..engines.ort import OrtEngine
from ..errors import BundleError, Cancelled, UsageError
from . import bundle as bundles
from . import latents as latent_space
from . import sampler, text
from .request import Job, Request, plan

if TYPE_CHECKING:
    from tokenizers import Tokenizer

OnStep = Callable[[int, int, np.ndarray], None]
Cancel = Callable[[], bool]

TEXT_ENCODERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}  # component -> its tokenizer
_COMPONENTS = (*TEXT_ENCODERS, "transformer", "vae_decoder")
_REMEMBERED_PROMPTS = 64


@dataclass(frozen=True, eq=False)
class Result:
    """What a request gave.

    `images` uint8 [pictures, height, width, 3], sRGB; `latents` float32 [pictures, channels, height / factor, width /
    factor], denoised; `metadata`, for each picture, what is needed to render it again (JSON types only).
    """

    images: np.ndarray
    latents: np.ndarray
    metadata: tuple[dict[str, Any], ...]


class Model:
    """An opened bundle. Use it as a context manager, or `close` it; one call at a time.

    Components are loaded when first needed and stay until `close`. Pictures are rendered one after another, so the
    memory needed does not grow with `count`, and a picture's bytes do not depend on what is rendered beside it.
    """

    def __init__(self, bundle: bundles.Bundle, threads: int | None = None) -> None:
        _check_family(bundle)
        if threads is not None and threads < 1:
            raise UsageError(f"threads = {threads} is below 1. Ask for 1 or more, or leave it out.")
        self.bundle = bundle
        self._threads = threads
        self._engines: dict[str, Engine] = {}
        self._tokenizers: dict[str, Tokenizer] = {}
        self._prompts: dict[str, text.Conditioning] = {}
        self._closed = False

    def generate(
        self,
        prompt: str | Sequence[str],
        *,
        negative: str = "",
        seed: int = 0,
        steps: int | None = None,
        guidance: float | None = None,
        size: int | tuple[int, int] | None = None,
        count: int = 1,
        sigmas: Sequence[float] | None = None,
        latents: np.ndarray | None = None,
        noise: str = "philox",
        on_step: OnStep | None = None,
        cancel: Cancel | None = None,
    ) -> np.ndarray:
        """Render and return only the pixels, uint8, sRGB: [height, width, 3] for one picture.

        For several (`count` above 1, or several prompts) it returns [pictures, height, width, 3], the pictures of a
        prompt side by side. The arguments are those of `Request`; `on_step`, `cancel` and the errors are those of
        `render`.
        """
        request = Request(prompt, negative, seed, steps, guidance, size, count, sigmas, latents, noise)
        images = self._render(request, on_step, cancel).images
        return images[0] if len(images) == 1 else images

    def render(self, request: Request, *, on_step: OnStep | None = None, cancel: Cancel | None = None) -> Result:
        """Render `request`; the same request gives the same bytes again on the same machine.

        `on_step(done, total, latents)` is called after each step: steps done and to do over all pictures, and the
        current picture's latents, read-only float32 [1, channels, height / factor, width / factor]. `cancel()` is
        asked before every network call. Warns `PromptTruncated` when a prompt is cut.

        Raises UsageError for a request that cannot be met, Cancelled when `cancel` returned true, BundleError when a
        component cannot be loaded and SegueError when one fails.
        """
        return self._render(request, on_step, cancel)

    def close(self) -> None:
        """Free every component. Closing twice is allowed."""
        self._closed = True
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()
        self._prompts.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _render(self, request: Request, on_step: OnStep | None, cancel: Cancel | None) -> Result:
        if self._closed:
            raise UsageError(f"the model of {self.bundle.directory} was closed. Open the bundle again.")
        job = plan(request, self.bundle.manifest)
        self._warn_of_cuts(job)
        total = len(job.prompts) * job.schedule.steps
        finished, images = [], []
        for index, prompt in enumerate(job.prompts):

            def report(step: int, latents: np.ndarray, before: int = index * job.schedule.steps) -> None:
                if on_step is not None:
                    view = latents.view()
                    view.flags.writeable = False
                    on_step(before + step, total, view)

            conditioning = self._condition(prompt, job, cancel)
            latents = sampler.sample_euler(
                lambda x, t, known=conditioning: self._velocity(x, t, known, job, cancel),  # type: ignore[misc]
                job.latents[index : index + 1],
                job.schedule,
                report,
            )
            finished.append(latents)
            images.append(self._decode(latents, cancel))
        metadata = tuple(self._describe(job, index) for index in range(len(job.prompts)))
        return Result(np.concatenate(images), np.concatenate(finished), metadata)

    def _condition(self, prompt: str, job: Job, cancel: Cancel | None) -> text.Conditioning:
        """Return the conditioning of one network call: the prompt's, below the negative's when guidance runs."""
        positive = self._encode(prompt, cancel)
        if not job.guided:
            return positive
        negative = self._encode(job.negative, cancel)
        return text.Conditioning(
            np.concatenate([negative.sequence, positive.sequence]), np.concatenate([negative.pooled, positive.pooled])
        )

    def _encode(self, prompt: str, cancel: Cancel | None) -> text.Conditioning:
        if prompt not in self._prompts:
            encoded = []
            for component, name in TEXT_ENCODERS.items():
                out = self._run(component, cancel, input_ids=self._tokens(name, prompt).ids)
                encoded.append((out["hidden_states"], out["pooled"]))
            joined = text.assemble(encoded, _joint_width(self.bundle), self.bundle.manifest.t5_tokens)
            while len(self._prompts) >= _REMEMBERED_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
            self._prompts[prompt] = joined
        return self._prompts[prompt]

    def _warn_of_cuts(self, job: Job) -> None:
        for prompt in dict.fromkeys((*job.prompts, job.negative) if job.guided else job.prompts):
            cut, name = max((self._tokens(name, prompt).cut, name) for name in TEXT_ENCODERS.values())
            if cut:
                limit = self.bundle.manifest.tokenizers[name].length
                warnings.warn(
                    f"a prompt is longer than {limit} tokens; this part of it was cut: {cut!r}. Shorten the prompt.",
                    text.PromptTruncated,
                    stacklevel=4,  # the caller of generate or render
                )

    def _velocity(
        self, latents: np.ndarray, timestep: np.float32, known: text.Conditioning, job: Job, cancel: Cancel | None
    ) -> np.ndarray:
        batch = 2 if job.guided else 1
        velocity = self._run(
            "transformer",
            cancel,
            hidden_states=np.repeat(latents, batch, axis=0),
            encoder_hidden_states=known.sequence,
            pooled_projections=known.pooled,
            timestep=np.full(batch, timestep, np.float32),
        )["velocity"]
        return sampler.guide(velocity[:1], velocity[1:], job.guidance) if job.guided else velocity

    def _decode(self, latents: np.ndarray, cancel: Cancel | None) -> np.ndarray:
        scaled = latent_space.for_decoder(latents, self.bundle.manifest.latents)
        return latent_space.to_bytes(self._run("vae_decoder", cancel, latents=scaled)["pixels"])

    def _run(self, component: str, cancel: Cancel | None, **feeds: np.ndarray) -> dict[str, np.ndarray]:
        if cancel is not None and cancel():
            raise Cancelled("rendering was cancelled. Nothing was kept; start again when you like.")
        if component not in self._engines:
            graph = self.bundle.path(self.bundle.manifest.components[component].graph)
            self._engines[component] = OrtEngine(graph, self._threads)
        return self._engines[component].run(feeds)

    def _tokens(self, name: str, prompt: str) -> text.Tokens:
        spec = self.bundle.manifest.tokenizers[name]
        if name not in self._tokenizers:
            self._tokenizers[name] = text.load_tokenizer(self.bundle.path(spec.file))
        return text.tokenise(self._tokenizers[name], spec, prompt)

    def _describe(self, job: Job, index: int) -> dict[str, Any]:
        return {
            "prompt": job.prompts[index],
            "negative": job.negative,
            "seed": job.seed,
            "index": index % job.count,
            "count": job.count,
            "steps": job.schedule.steps,
            "guidance": job.guidance,
            "size": [job.height, job.width],
            "sigmas": None if job.sigmas is None else list(job.sigmas),
            "noise": job.noise,
            "bundle": self.bundle.manifest.name,
            "bundle_sha256": self.bundle.digest,
            "segue": importlib.metadata.version("segue"),
        }


def open_model(name_or_path: str | os.PathLike[str], threads: int | None = None) -> Model:
    """Open a bundle, given the name of one that ships with Segue or a path, and verify it.

    `threads` is the number of processor threads of one network call (None: the cores that this process may use). No
    component is loaded yet. Raises UsageError for an unknown name and BundleError for a bundle that is damaged,
    altered, unsafe, of a newer schema or of a family that this Segue does not run.
    """
    return Model(bundles.read(name_or_path), threads)


def _check_family(bundle: bundles.Bundle) -> None:
    content = bundle.manifest
    if content.family != "sd3" or content.sampler.kind != "flow-match-euler":
        raise BundleError(
            f"the bundle {content.name!r} is of family {content.family!r} with sampler {content.sampler.kind!r}; this "
            "Segue renders sd3 with flow-match-euler. Upgrade: pip install --upgrade segue"
        )
    missing = [name for name in _COMPONENTS if name not in content.components]
    missing += [name for name in TEXT_ENCODERS.values() if name not in content.tokenizers]
    if missing:
        raise BundleError(f"the bundle {content.name!r} lacks {', '.join(missing)}. Export it again.")
    for name in _COMPONENTS:
        if content.components[name].precision == "bf16":
            raise BundleError(
                f"{name} of the bundle {content.name!r} is in bf16, which ONNX Runtime's CPU cannot run. "
                "Export it again with --precision fp16 or fp32."
            )
    _joint_width(bundle)


def _joint_width(bundle: bundles.Bundle) -> int:
    for spec in bundle.manifest.components["transformer"].inputs:
        if spec.name == "encoder_hidden_states" and len(spec.shape) == 3 and isinstance(spec.shape[2], int):
            return spec.shape[2]
    raise BundleError(
        f"the transformer of the bundle {bundle.manifest.name!r} has no input encoder_hidden_states "
        "[batch, text, width] of fixed width. Export it again."
    )
