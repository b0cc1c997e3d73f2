"""Figures of the anchor audit: labelled, holding the numbers that were passed, told apart without colour."""

import warnings

import numpy as np
import pytest

from retinanet.analysis.anchors.audit import AnchorAudit
from retinanet.analysis.anchors.report import draw_best_iou, draw_positives, draw_sides
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Matcher
from retinanet.images.preprocess import Preprocess
from retinanet.plotting.figures import save_figure

rng = np.random.default_rng(0)
IOU = rng.uniform(0.1, 0.9, 500).astype(np.float32)
SIDES = np.exp(rng.uniform(1, 5, (500, 2))).astype(np.float32)
LATTICE = AnchorLattice(strides=(8, 16), sizes=(32, 64), ratios=(1,), scales=(1, 2))
TEMPLATES = np.repeat([32, 64, 64, 128], 2).reshape(4, 2)


def audited(best_iou, sides=None, positives=None):
    """The audit of boxes with these best IoUs, sides and positives."""
    count = len(best_iou)
    sides = np.ones((count, 2)) if sides is None else np.array(sides)
    positives = np.ones(count, dtype=int) if positives is None else np.array(positives)
    boxes = np.concatenate([np.zeros_like(sides), sides], axis=1).astype(np.float32)
    zeros = np.zeros(count, dtype=int)
    best_iou = np.array(best_iou, dtype=np.float32)
    forced = (positives > 0) & (best_iou < 0.5)
    return AnchorAudit(boxes, zeros, best_iou, zeros, positives, forced, (), (), LATTICE, Preprocess(), Matcher())


def test_the_histogram_holds_the_shares():
    axes = draw_best_iou(audited(IOU), audited(IOU + 0.05)).axes[0]
    now, new = axes.patches
    values, edges, _ = now.get_data()
    assert values.sum() == pytest.approx(1) and np.allclose(values, np.histogram(IOU, edges)[0] / 500)
    assert np.allclose(new.get_data().values, np.histogram(IOU + 0.05, edges)[0] / 500)
    assert now.get_fill() and not new.get_fill()  # told apart without colour
    assert now.get_label() == f"now ({(IOU < 0.5).mean():.1%} below 0.5)"
    assert new.get_label() == f"proposed ({(IOU + 0.05 < 0.5).mean():.1%} below 0.5)"
    lines = axes.get_lines()
    assert [line.get_xdata()[0] for line in lines] == [0.4, 0.5]
    assert len({line.get_linestyle() for line in lines}) == 2


def test_the_scatter_holds_every_box_and_anchor():
    axes = draw_sides(audited(IOU, SIDES)).axes[0]
    good, missed = axes.collections
    assert np.allclose(good.get_offsets(), SIDES[IOU >= 0.5]) and np.allclose(missed.get_offsets(), SIDES[IOU < 0.5])
    assert not np.array_equal(good.get_paths()[0].vertices, missed.get_paths()[0].vertices)  # other markers
    (anchors,) = axes.get_lines()
    assert np.array_equal(anchors.get_xydata(), TEMPLATES) and anchors.get_marker() == "+"
    low, high = axes.get_xlim()
    everything = np.concatenate([SIDES, TEMPLATES])
    assert low < everything.min() and high > everything.max() and axes.get_xscale() == axes.get_yscale() == "log"


def test_a_scatter_of_very_many_boxes_is_thinned_but_counts_them_all():
    many = np.tile(SIDES, (30, 1))
    axes = draw_sides(audited(np.tile(IOU, 30), many)).axes[0]
    assert sum(len(part.get_offsets()) for part in axes.collections) <= 4000
    assert f"({(IOU < 0.5).mean():.1%})" in axes.get_legend().get_texts()[1].get_text()


def test_positives_by_size():
    sides = np.array([[6, 6], [7, 7], [7, 5], [40, 40], [50, 50], [33, 60]], dtype=np.float32)  # none from 8 to 32
    counts, shares = draw_positives(audited([0.3, 0.3, 0.3, 0.6, 0.6, 0.6], sides, [1, 0, 2, 10, 20, 30])).axes
    assert [text.get_text() for text in shares.get_xticklabels()] == [
        "4 to 8\nn = 3",
        "8 to 16\nn = 0",
        "16 to 32\nn = 0",
        "32 to 64\nn = 3",
    ]
    medians = [line.get_ydata()[0] for line in counts.get_lines() if line.get_linewidth() == 2]
    assert medians == [1, 20]
    none, forced_only = shares.containers
    assert [bar.get_height() for bar in none] == pytest.approx([1 / 3, 0, 0, 0])
    assert [bar.get_height() for bar in forced_only] == pytest.approx([2 / 3, 0, 0, 0])
    assert forced_only[0].get_y() == pytest.approx(1 / 3)  # stacked
    assert none[0].get_hatch() != forced_only[0].get_hatch()


@pytest.mark.parametrize(
    "figure",
    [
        lambda: draw_best_iou(audited(IOU), audited(IOU)),
        lambda: draw_best_iou(audited(IOU)),
        lambda: draw_best_iou(audited([]), audited([])),
        lambda: draw_sides(audited(IOU, SIDES)),
        lambda: draw_sides(audited([])),
        lambda: draw_sides(audited([0.0], [[0.0, 5.0]])),
        lambda: draw_positives(audited(IOU, SIDES, rng.integers(0, 9, 500))),
        lambda: draw_positives(audited([])),
        lambda: draw_positives(audited([0.0], [[0.0, 0.0]], [0])),
    ],
)
def test_all_can_be_drawn_and_every_axis_is_labelled(figure, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = figure()
        save_figure(drawn, tmp_path / "figure.png", dpi=40)
    assert all(axes.get_ylabel() for axes in drawn.axes)
    assert drawn.axes[-1].get_xlabel() and drawn.axes[0].get_title(loc="left")
