"""Curves: labelled axes that hold the numbers that were passed."""

import math
import warnings

import matplotlib
import numpy as np
import pytest
from PIL import Image

from retinanet.plotting.figures import column, save_figure, smooth, training_curves


def log(steps=20, epochs=3):
    rows = []
    for epoch in range(epochs):
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows.append({"step": step, "epoch": epoch, "loss": 2 / (1 + step), "classification": 1.5 / (1 + step)})
            rows[-1] |= {"box": 0.5 / (1 + step), "lr": 0.01 * (step + 1), "val_loss": "", "AP": None}
        ap = (0.2, 0.6, 0.5)[epoch]
        rows.append(
            {"step": (epoch + 1) * steps - 1, "epoch": epoch + 1, "val_loss": 1 - ap, "AP": ap, "AP50": ap + 0.3}
        )
    return rows


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_every_axis_is_labelled():
    figure = training_curves(log())
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_xlabel() and axes.get_ylabel() and axes.get_title(loc="left")


def test_the_figure_contains_the_data():
    rows = log()
    losses, metrics, rate = training_curves(rows).axes
    raw = [line for line in losses.get_lines() if line.get_label().startswith("_")]
    trained = [row for row in rows if "loss" in row]
    for line, name in zip(raw, ("loss", "classification", "box"), strict=True):
        assert line.get_xdata().tolist() == [row["step"] for row in trained]
        assert line.get_ydata().tolist() == [row[name] for row in trained]
    assert lines(losses)["validation"].get_ydata().tolist() == pytest.approx([0.8, 0.4, 0.5])
    shown = lines(metrics)
    assert set(shown) == {"AP", "AP50", "best"}  # AP75 is not in this log
    assert shown["AP"].get_xdata().tolist() == [1, 2, 3]
    assert shown["AP"].get_ydata().tolist() == [0.2, 0.6, 0.5]
    assert (shown["best"].get_xdata()[0], shown["best"].get_ydata()[0]) == (2, 0.6)
    assert [text.get_text() for text in metrics.texts] == ["0.600"]
    assert rate.get_lines()[0].get_ydata().tolist() == [row["lr"] for row in trained]


def test_text_from_a_csv_file_gives_the_same_lines():
    rows = log()
    text = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    for ours, theirs in zip(training_curves(rows).axes, training_curves(text).axes, strict=True):
        for a, b in zip(ours.get_lines(), theirs.get_lines(), strict=True):
            assert np.array_equal(a.get_xydata(), b.get_xydata(), equal_nan=True)


def test_lines_are_told_apart_without_colour():
    losses, metrics, _ = training_curves(log()).axes
    for axes, names in ((losses, ("total", "classification", "box")), (metrics, ("AP", "AP50"))):
        assert len({lines(axes)[name].get_linestyle() for name in names}) == len(names)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        log()[:1],
        log()[:20],
        [row for row in log() if "AP50" in row],
        [row | {"loss": math.nan} for row in log()],
        [row | {"loss": math.inf, "box": "nan"} for row in log()],
        [{"step": 0, "epoch": 0, "loss": 0.0, "lr": 0.0}],
        [{"epoch": 1, "AP": 0.0}],
        [{"note": "nothing that is known"}],
    ],
    ids=["none", "one", "not evaluated", "evaluated only", "nan", "inf", "zeros", "zero AP", "strange"],
)
def test_any_log_can_be_drawn(rows, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(training_curves(rows), tmp_path / "curves.png", dpi=40)


def test_a_nan_is_a_gap_in_the_line():
    rows = log()[:20]
    rows[7] = rows[7] | {"loss": "nan"}
    losses = training_curves(rows).axes[0]
    for line in losses.get_lines()[:2]:  # raw and smoothed
        assert np.flatnonzero(np.isnan(line.get_ydata())).tolist() == [7]


def test_one_wild_value_does_not_set_the_limits():
    rows = [{"step": step, "loss": 1.0} for step in range(400)]
    rows[200]["loss"] = 1000.0
    assert training_curves(rows).axes[0].get_ylim()[1] < 100


def test_smoothing_keeps_constants_and_straight_lines_and_equals_the_definition():
    assert np.allclose(smooth(np.full(50, 3.0), 4), 3)
    ramp = np.arange(60.0)
    assert np.allclose(smooth(ramp, 2)[10:-10], ramp[10:-10])
    values = np.random.default_rng(0).normal(size=30)
    values[11] = np.nan
    distance = np.arange(30)[:, None] - np.arange(30)
    weight = np.where(np.abs(distance) <= 6, np.exp(-0.5 * (distance / 2) ** 2), 0) * np.isfinite(values)
    expected = (weight @ np.nan_to_num(values)) / weight.sum(1)
    expected[11] = np.nan
    assert np.allclose(smooth(values, 2), expected, equal_nan=True)
    assert np.array_equal(smooth(values, 0), values, equal_nan=True)


def test_column_reads_numbers_and_text():
    rows = [{"a": 1}, {"a": "2.5"}, {"a": ""}, {"a": None}, {}, {"a": "word"}]
    assert np.array_equal(column(rows, "a"), [1, 2.5, *[np.nan] * 4], equal_nan=True)


def test_a_figure_is_saved_and_changes_no_setting(tmp_path):
    before = dict(matplotlib.rcParams)
    save_figure(training_curves(log()), tmp_path / "curves.png", dpi=50)
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (675, 200)
    assert dict(matplotlib.rcParams) == before
