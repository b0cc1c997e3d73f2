"""Where windows lie, against brute force, and which tiling two options mean."""

import numpy as np
import pytest

from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Tiling, choose_tiling, fix_scale, usual_overlap


@pytest.mark.parametrize("size", [(100, 100), (97, 230), (40, 301), (64, 20), (33, 33), (500, 32)])
@pytest.mark.parametrize(("tile", "overlap"), [(64, 0), (64, 20), (64, 31), (33, 32)])
def test_every_pixel_is_covered_and_every_small_box_is_whole_in_a_window(size, tile, overlap):
    windows = Tiling(tile, overlap).windows(size)
    seen = np.zeros(size, int)
    for y0, x0, y1, x1 in windows:
        assert 0 <= y0 < y1 <= size[0] and 0 <= x0 < x1 <= size[1]
        assert (y1 - y0, x1 - x0) == (min(tile, size[0]), min(tile, size[1]))
        seen[y0:y1, x0:x1] += 1
    assert seen.all() and len(set(windows)) == len(windows)
    assert (len(windows) > 1) == Tiling(tile, overlap).cuts(size)

    tall, wide = min(overlap, size[0]), min(overlap, size[1])
    for y in range(size[0] - tall + 1):
        for x in range(0, size[1] - wide + 1, 3):
            assert any(y0 <= y and x0 <= x and y + tall <= y1 and x + wide <= x1 for y0, x0, y1, x1 in windows)


@pytest.mark.parametrize(
    ("known", "tile", "overlap", "wanted"),
    [
        (None, None, None, None),
        (None, 0, None, None),
        (None, 200, None, Tiling(200, 20)),
        (None, 200, 50, Tiling(200, 50)),
        (Tiling(100, 30), None, None, Tiling(100, 30)),
        (Tiling(100, 30), None, 40, Tiling(100, 40)),
        (Tiling(100, 30), 0, None, None),
        (Tiling(100, 30), 100, None, Tiling(100, 30)),
        (Tiling(100, 30), 200, None, Tiling(200, 20)),
    ],
)
def test_options_that_are_left_out_are_the_models(known, tile, overlap, wanted):
    assert choose_tiling(known, tile, overlap, lambda tile: tile // 10) == wanted


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((31, None), "tile is at least 32 pixels, .*got 31"),
        ((-5, None), "tile is at least 32 pixels, .*got -5"),
        ((100, 100), r"overlap is at least 0 and smaller than the tile \(100 pixels\), got 100"),
        ((100, -1), "overlap is at least 0"),
        ((None, 50), "overlap is for images that are cut into windows; give tile too"),
        ((0, 50), "overlap is for images that are cut into windows"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(UserError, match=message):
        choose_tiling(None, *options, usual_overlap)


def test_the_usual_overlap_is_less_than_half_the_tile():
    assert [usual_overlap(tile) for tile in (32, 33, 256, 257, 4000)] == [15, 16, 127, 128, 128]


@pytest.mark.parametrize("window", [(100, 100), (60, 100), (100, 31)])
def test_a_square_rule_shows_all_windows_with_a_full_side_alike(window):
    """Why a model of windows has one number for short and long: narrow images are not shown larger."""
    rule = Preprocess(short=150, long=150)
    assert rule.size(*window) == tuple(int(1.5 * side + 0.5) for side in window)
    both = zip(fix_scale(rule, window, 1.5).size(*window), rule.size(*window), strict=True)
    assert all(abs(one - other) <= 2 for one, other in both)  # so windows of the training are resized by its own rule
