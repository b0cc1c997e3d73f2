from __future__ import annotations

import io

import numpy as np
import pytest

from retinanet.analysis.loss.report import (
    cumulative_loss,
    hardest_windows,
    loss_shares,
    probability_histograms,
)

SHARES = np.linspace(0, 1, 21)
CURVES = {gamma: SHARES ** (1 + gamma) for gamma in (2.0, 0.0, 1.0, 0.5)}


def drawn(figure):
    """Whether it can be laid out and saved."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=30)
    return stream.tell() > 0


def test_figure_4_shows_each_gamma_in_both_panels():
    background = {gamma: curve**2 for gamma, curve in CURVES.items()}
    figure = cumulative_loss(SHARES, CURVES, background)
    assert drawn(figure)
    for axes, title, curves in zip(figure.axes, ("Foreground", "Background"), (CURVES, background), strict=True):
        assert axes.get_title(loc="left") == title
        assert title.lower() in axes.get_xlabel() and "loss" in figure.axes[0].get_ylabel()
        lines = {line.get_label(): line for line in axes.get_lines()}
        assert lines.keys() == {"γ = 0", "γ = 0.5", "γ = 1", "γ = 2"}
        for gamma, curve in curves.items():
            line = lines[f"γ = {gamma:g}"]
            assert line.get_xdata() == pytest.approx(SHARES) and line.get_ydata() == pytest.approx(curve)
        assert len({line.get_linestyle() for line in lines.values()}) == 4  # without colour
        names = [text.get_text() for text in axes.get_legend().get_texts()]
        assert names == ["γ = 0", "γ = 0.5", "γ = 1", "γ = 2"]


def test_the_hard_end_is_the_mirrored_curve_from_a_single_window_on():
    figure = hardest_windows(SHARES, CURVES, count=10)
    assert drawn(figure)
    (axes,) = figure.axes
    line = next(line for line in axes.get_lines() if line.get_label() == "γ = 1")
    x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
    assert x.min() == pytest.approx(0.1) and axes.get_xscale() == "log"
    assert y == pytest.approx(1 - (1 - x) ** 2)


def test_figures_of_nothing_say_so():
    empty = {0.0: np.full(21, np.nan)}
    figure = cumulative_loss(SHARES, empty, empty)
    assert drawn(figure)
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["no foreground windows", "no background windows"]
    assert drawn(hardest_windows(SHARES, empty, count=0))
    assert drawn(probability_histograms(np.linspace(-15, 9, 49), np.zeros(48, int), np.zeros(48, int)))
    assert drawn(loss_shares("level", ["P3"], [0.0], [0.0]))


def test_the_histogram_shows_every_count_and_the_threshold():
    edges, negative, positive = np.linspace(-15, 9, 49), np.zeros(48, int), np.zeros(48, int)
    negative[8:30], positive[25:40] = 12345, 7
    figure = probability_histograms(edges, positive, negative)
    assert drawn(figure)
    (axes,) = figure.axes
    lines = {patch.get_label(): patch for patch in axes.patches if patch.get_label() in ("positives", "negatives")}
    assert lines["negatives"].get_data().values.tolist() == negative.tolist()
    assert lines["positives"].get_data().values.tolist() == positive.tolist()
    assert lines["positives"].get_linestyle() != lines["negatives"].get_linestyle()
    assert axes.get_lines()[0].get_xdata()[0] == pytest.approx(np.log(0.05 / 0.95))
    marks = dict(zip([t.get_text() for t in axes.get_xticklabels()], axes.get_xticks(), strict=True))
    assert marks["0.5"] == 0 and marks["0.9"] == pytest.approx(np.log(9))
    low, high = axes.get_xlim()
    assert low <= edges[8] and high >= edges[40]
    assert axes.get_yscale() == "log"


def test_bars_are_percent_in_the_given_order_and_differ_without_colour():
    names = ["P3", "P4", "a name that is much too long for an axis"]
    figure = loss_shares("level", names, [0.5, 0.1, 0.0], [0.2, 0.1996, 0.0004])
    assert drawn(figure)
    (axes,) = figure.axes
    lengths = [[bar.get_width() for bar in group] for group in axes.containers]
    assert lengths == [pytest.approx([50, 10, 0]), pytest.approx([20, 19.96, 0.04])]
    assert "%" in axes.get_xlabel() and "by level" in axes.get_title(loc="left")
    assert [text.get_text() for text in axes.texts] == ["50", "10", "", "20", "20", "<0.1"]
    shown = [label.get_text() for label in axes.get_yticklabels()]
    assert shown == ["P3", "P4", "a name that is much too…"]
    top, bottom = axes.get_ylim()[::-1]
    assert top < bottom  # the first is on top
    first, second = (group[0].get_hatch() for group in axes.containers)
    assert first != second
