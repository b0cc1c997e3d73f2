"""Figures of errors: labelled axes that hold the numbers that were passed, told apart without colour."""

import math

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from retinanet.analysis.errors.curves import ClassCurve, ConfusionMatrix, Reliability
from retinanet.analysis.errors.figures import (
    confusion_map,
    error_bars,
    group_bars,
    precision_recall,
    reliability_diagram,
)
from retinanet.analysis.errors.groups import GroupAP
from retinanet.plotting.figures import LINES, save_figure

GAINS = {"localisation": 0.04, "background": 0.125, "missed": -0.001}
SPECIAL = {"all false positives": 0.25}
COUNTS = {"localisation": 1234, "background": 50, "missed": 0}


def texts(axes):
    return [text.get_text().strip() for text in axes.texts if text.get_text()]


def curve(name, hits=(1, 3, 3), detections=(1, 4, 6), objects=5, scores=(0.9, 0.5, 0.3)):
    """Recall 0.2, 0.6, 0.6 and precision 1, 0.75, 0.5, the second point the best, at 0.4."""
    return ClassCurve(name, objects, np.array(scores[: len(hits)]), np.array(hits), np.array(detections), 0.5)


def test_bars_of_gains_and_counts(tmp_path):
    figure = error_bars(GAINS, SPECIAL, COUNTS)
    left, right = figure.axes
    assert [bar.get_width() for bar in left.patches] == [*GAINS.values(), *SPECIAL.values()]
    assert texts(left) == ["+0.040", "+0.125", "-0.001", "+0.250"] and texts(right) == ["1,234", "50", "0"]
    assert [label.get_text() for label in left.get_yticklabels()] == [*GAINS, *SPECIAL]
    assert [bar.get_width() for bar in right.patches] == list(COUNTS.values())
    assert left.get_xlabel() == "gain in AP50" and right.get_xlabel() == "errors"
    assert left.patches[-1].get_hatch() and not left.patches[0].get_hatch()  # without colour
    centres = [bar.get_y() + bar.get_height() / 2 for bar in left.patches]
    assert left.get_ylim()[0] > centres[-1] > centres[0] > left.get_ylim()[1]  # the first on top
    assert texts(error_bars({"both": math.nan}, {}, {"both": 0}).axes[0]) == ["not measured"]
    save_figure(figure, tmp_path / "bars.png", dpi=40)


def test_confusions_are_numbers_and_shares():
    matrix = [[8, 1, 1], [0, 0, 0], [5, 15, 0]]
    axes = confusion_map(ConfusionMatrix(("cat", "dog"), np.array(matrix), (0.5, 0.5))).axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_allclose(shown, [[0.8, 0.1, 0.1], [0, 0, 0], [0.25, 0.75, 0]])
    assert texts(axes) == ["8\n80%", "1\n10%", "1\n10%", "0", "0", "0", "5\n25%", "15\n75%", "–"]
    at = [text.get_position() for text in axes.texts]
    assert at[1] == (1, 0) and at[6] == (0, 2)  # x is the column, y the row
    colours = [sum(to_rgb(text.get_color())) for text in axes.texts]
    assert colours[0] == 3 and colours[1] < 1  # white on dark, dark on light
    assert axes.get_xlabel().startswith("class given") and axes.get_ylabel().startswith("class of the object")
    names = tuple(f"class {i}" for i in range(40))
    assert texts(confusion_map(ConfusionMatrix(names, np.eye(41), (0.5,) * 40)).axes[0]) == []


def test_curves_and_their_best_points():
    figure = precision_recall([curve("cat"), curve("$dog", (0, 0, 0)), curve("none", (0,), (1,), objects=0)])
    (axes,) = figure.axes
    drawn = {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}
    assert list(drawn) == ["cat: F1 0.67 at score 0.40", r"\$dog"]
    cat, dog = drawn.values()
    assert cat.get_xdata().tolist() == [0.2, 0.6, 0.6] and cat.get_ydata().tolist() == [1, 0.75, 0.5]
    assert cat.get_markevery() == [1] and cat.get_marker() == "o" and dog.get_marker() == "None"
    assert cat.get_linestyle() != dog.get_linestyle()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("recall", "precision")
    guides = [line for line in axes.get_lines() if line.get_label().startswith("_")]
    for line, f1 in zip(guides, (0.2, 0.4, 0.6, 0.8), strict=True):
        x, y = line.get_xdata(), line.get_ydata()
        np.testing.assert_allclose(2 * x * y / (x + y), f1)
    assert "no objects" in texts(precision_recall([]).axes[0])


def test_of_many_classes_the_worst_are_named():
    assert len({(style, marker) for _, style, marker in LINES}) == len(LINES)
    # recall 0.5, precision 1/12 .. 12/12
    curves = [curve(f"class {i}", (i * 7 % 12 + 1,), (12,), 2 * (i * 7 % 12 + 1)) for i in range(12)]
    lines = precision_recall(curves).axes[0].get_lines()
    named = {line.get_label().split(":")[0] for line in lines if line.get_label().startswith("class")}
    assert named == {one.name for one in curves if one.precision[0] <= 8 / 12} and len(named) == len(LINES)
    assert len(lines) == 4 + 12


def test_reliability_shows_shares_scores_and_counts():
    columns = ([0, 0.5, 0.75, 1], [30, 0, 4], [0.4, math.nan, 0.9], [0.1, math.nan, 0.95])
    figure = reliability_diagram(Reliability("all", 0.27, 0.2, *map(np.array, columns)))
    above, below = figure.axes
    share, distance = (bars.patches for bars in above.containers)
    assert [(bar.get_x(), bar.get_width(), bar.get_height()) for bar in share] == [(0, 0.5, 0.1), (0.75, 0.25, 0.95)]
    ends = [(bar.get_y(), bar.get_y() + bar.get_height()) for bar in distance]
    np.testing.assert_allclose(ends, [(0.1, 0.4), (0.9, 0.95)])
    assert all(bar.get_hatch() for bar in distance)
    diagonal, points = above.get_lines()
    assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [0, 1]
    assert points.get_xydata().tolist() == [[0.4, 0.1], [0.9, 0.95]]
    assert [bar.get_height() for bar in below.patches] == [30, 4]
    assert above.get_title(loc="left") == "Reliability: expected calibration error 0.270"
    assert below.get_xlabel() == "score" and below.get_ylabel() == "detections"
    empty = reliability_diagram(
        Reliability("cat", math.nan, math.nan, *map(np.array, ([0, 1], [0], [math.nan], [math.nan])))
    )
    assert empty.axes[0].get_title(loc="left") == "cat: no detections"
    empty.draw_without_rendering()


@pytest.mark.parametrize("panels", [1, 3])
def test_groups_have_two_bars_and_their_number(panels):
    bars = [GroupAP("small", 1200, 1, 0.25, 0.5, 0.5), GroupAP("large", 3, 1, math.nan, 1.0, 1.0)]
    figure = group_bars({**{f"by {i}": bars for i in range(panels)}, "nothing": []})
    figure.draw_without_rendering()
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown] == [f"by {i}" for i in range(panels)]
    for axes in shown:
        ap, ap50 = axes.containers
        heights = [[bar.get_height() for bar in side] for side in (ap, ap50)]
        np.testing.assert_equal(heights, [[0.25, math.nan], [0.5, 1.0]])
        assert ap50[0].get_hatch() and not ap[0].get_hatch()
        assert [label.get_text() for label in axes.get_xticklabels()] == ["small\n1,200 obj.", "large\n3 obj."]
        assert texts(axes) == ["0.25", "0.50", "1.00"] and axes.get_ylabel() == "average precision"
    group_bars({}).draw_without_rendering()
