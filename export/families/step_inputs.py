"""Which inputs a step graph has for a sampler, besides those of a plain Euler step."""

from __future__ import annotations

from collections.abc import Mapping

from ...runtime.bundle.families import role_of
from ...runtime.bundle.limits import FLOW
from ...runtime.bundle.manifest import Component, Sampler
from ...runtime.sampling.samplers import SAMPLERS

EXTRAS = frozenset({"scale", "keep", "noise"})


def inputs_for(sampler: Sampler) -> frozenset[str]:
    """Return the inputs of `with_step` that the steps of a sampler need."""
    if sampler.noise is None:
        return frozenset() if sampler.kind == FLOW[0] else frozenset({"keep", "noise"})
    exploding = sampler.kind in ("euler", "euler-ancestral")
    plain = exploding and sampler.noise.prediction == "epsilon"
    needed = {"scale": exploding, "keep": not plain, "noise": SAMPLERS[sampler.kind].fresh}
    return frozenset(name for name, needs in needed.items() if needs)


def inputs_of(components: Mapping[str, Component]) -> frozenset[str]:
    """Return the inputs for a sampler that the step graphs of a bundle's `components` have."""
    steps = [component for name, component in components.items() if role_of(name).step]
    return EXTRAS & {spec.name for component in steps for spec in component.inputs}
