"""Polynomials of what components cost, against the walk that they were fitted to."""

import numpy as np
import pytest

from segue.export.graphs.cost import cost
from segue.export.graphs.cost_model import fit
from segue.runtime.bundle import reader
from segue.runtime.bundle.polynomial import Polynomial
from segue.runtime.bundle.shapes import SizeRange, dimensions, sized

TERMS = [(), ("h", "w"), ("h", "w", "h", "w"), ("h",)]


def test_a_polynomial_is_found_again_and_never_falls():
    samples = [({"h": h, "w": w}, 7 * h * w + 5 * (h * w) ** 2 + 11) for h in (2, 4, 8) for w in (2, 6, 10)]
    found = fit(samples, TERMS)
    assert found.error < 1e-6
    coefficients = dict(zip(found.terms, found.coefficients, strict=True))
    assert coefficients.pop(("h",), 0) == pytest.approx(0, abs=1e-3)
    assert coefficients == pytest.approx({(): 11, ("h", "w"): 7, ("h", "w", "h", "w"): 5}, abs=1e-3)


def test_what_it_gives_is_no_less_than_what_it_was_fitted_to():
    samples = [({"h": h}, max(100, 30 * h)) for h in range(1, 9)]  # two lines, as the peaks of two layers are
    found = fit(samples, [(), ("h",)])
    assert found.error > 0
    assert all(found.at(sizes) >= value * (1 - 1e-9) for sizes, value in samples)


def test_a_polynomial_grows_with_every_dimension():
    found = Polynomial(((), ("h",), ("h", "w")), (1.0, 2.0, 0.5), 0.1)
    grid = np.array([[found.at({"h": h, "w": w}) for w in range(1, 6)] for h in range(1, 6)])
    assert (np.diff(grid, axis=0) > 0).all()
    assert (np.diff(grid, axis=1) > 0).all()
    assert found.at({"h": 1, "w": 2}) == pytest.approx(4 / 0.9)


@pytest.mark.parametrize(
    "name",
    [
        "exported",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("video_bundle", "longcat_bundle", "sdxl_bundle", "klein_bundle")
        ),
    ],
)
def test_components_cost_what_their_polynomials_say_at_sizes_that_were_not_fitted(name, request):
    opened = reader.read(request.getfixturevalue(name))
    content = opened.manifest
    side = content.sizes.default[0] - content.sizes.multiple
    wanted = SizeRange(*[(max(side, content.sizes.minimum), content.sizes.default[1])] * 3)
    for component, spec in content.components.items():
        dims = {name: three[1] for name, three in dimensions(content, component, wanted).items()}
        free = {part for port in spec.inputs for part in port.shape if isinstance(part, str)}
        sizes = {part: sized(part, dims, component) for part in free}
        path = opened.path(spec.graph)
        plain, wide = cost(path, sizes, scores=False), cost(path, sizes, float_bytes=4)
        assert spec.cost.flops.at(dims) == pytest.approx(max(plain.flops, 1), rel=0.05), component
        for found, walked in ((spec.cost.activations, plain), (spec.cost.widened, wide)):
            assert 0.98 * walked.activations <= found.at(dims) <= 2 * walked.activations, component
