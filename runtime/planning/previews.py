"""Room for previews: a bundle's small decoder works beside the denoiser if a plan leaves memory for it."""

from __future__ import annotations

from dataclasses import replace

from ..bundle.families import PREVIEW, family_of
from ..bundle.manifest import Manifest
from .costs import cost_of, dims_of
from .hardware import CPU, Machine
from .pictures import PIXEL, Plan, Wanted, limit_of


def with_previews(content: Manifest, found: Plan, wanted: Wanted, machine: Machine) -> Plan:
    """Return the plan `found`, whose denoiser's phase counts the small decoder if the bundle has one and it fits.

    Nothing else of a plan changes: previews never make a request slower or too large.
    """
    if PREVIEW not in content.components:
        return found
    dims = dims_of(content, PREVIEW, wanted.height, wanted.width)
    beside = PIXEL * wanted.height * wanted.width if machine.kind == CPU else 0
    taken = cost_of(content, PREVIEW, dims, machine, 1, beside).peak
    denoiser = family_of(content).denoiser
    phases = tuple(replace(p, peak=p.peak + taken) if p.component == denoiser else p for p in found.phases)
    if max(phase.peak for phase in phases) > limit_of(machine, found.budget):
        return found
    return replace(found, phases=phases, previews=True)
