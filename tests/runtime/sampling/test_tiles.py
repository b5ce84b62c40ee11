import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segue.errors import UsageError
from segue.runtime.sampling.tiles import Tiling, blend, efficient_tilings, make_tiles

tilings = st.integers(1, 12).flatmap(lambda side: st.builds(Tiling, st.just(side), st.integers(0, side - 1)))


@given(st.integers(1, 40), st.integers(1, 40), tilings, st.integers(1, 4))
@settings(deadline=None)
def test_tiles_that_are_cut_and_joined_are_the_plane(height, width, tiling, factor):
    plane = np.arange(2 * height * width * factor**2, dtype=np.float32).reshape(2, height * factor, width * factor)
    tiles = make_tiles(height, width, tiling)
    found = blend([tile.cut(plane, factor) for tile in tiles], tiles, tiling, factor)
    assert np.allclose(found, plane, rtol=1e-5)
    assert all(len(side) <= tiling.side for tile in tiles for side in (tile.rows, tile.columns))


def test_without_tiling_or_room_for_two_tiles_nothing_is_touched():
    plane = np.ones((3, 4, 5), np.float32)
    for tiling in (None, Tiling(5, 1)):
        tiles = make_tiles(4, 5, tiling)
        assert len(tiles) == 1
        part = tiles[0].cut(plane)
        assert blend([part], tiles, tiling) is part


def test_where_tiles_overlap_one_goes_over_into_the_other():
    tiling = Tiling(6, 4)
    tiles = make_tiles(6, 8, tiling)
    found = blend([np.full((6, 6), value, np.float32) for value in (0, 1)], tiles, tiling)
    assert found[0, 0] == 0
    assert found[0, -1] == 1
    assert np.all(np.diff(found[0]) >= 0)
    assert len(np.unique(found[0])) == 6


@pytest.mark.parametrize(("side", "overlap"), [(0, 0), (4, 4), (4, -1)])
def test_tiles_that_cannot_be_laid_are_refused(side, overlap):
    with pytest.raises(UsageError, match="overlap must be 0 or more"):
        Tiling(side, overlap)


@given(st.integers(2, 90), st.integers(2, 160))
@settings(max_examples=40, deadline=None)
def test_thrifty_tiles_cover_the_plane_and_none_is_larger_for_nothing(height, width):
    made = [(tiling, make_tiles(height, width, tiling)) for tiling in efficient_tilings(height, width, 8, 16)]
    areas = [tiling.side * tiling.columns for tiling, _ in made]
    assert areas == sorted(set(areas))
    totals = [area * len(tiles) for area, (_, tiles) in zip(areas, made, strict=True)]
    assert totals == sorted(set(totals), reverse=True)
    for _, tiles in made:
        seen = np.zeros((height, width), int)
        for tile in tiles:
            tile.cut(seen)[...] += 1
        assert len(tiles) > 1
        assert seen.min() >= 1
    assert bool(made) == (max(height, width) > 16)


def test_thrifty_tiles_of_two_k_are_those_of_the_table():
    redundancies = {  # swifti2v.md, 5.4: 48x84 with an overlap of 8, four tiles, 1.15
        (tiling.side, tiling.columns): (len(tiles), len(tiles) * tiling.side * tiling.columns / (88 * 160))
        for tiling in efficient_tilings(88, 160, 8, 16)
        for tiles in [make_tiles(88, 160, tiling)]
    }
    assert redundancies[48, 84] == (4, pytest.approx(1.15, abs=0.01))
