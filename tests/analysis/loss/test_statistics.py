from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from retinanet.analysis.loss import statistics as focal
from retinanet.analysis.loss.curves import BINS, LOGIT_EDGES, PER_UNIT, REACH, SHARES, spread_losses
from retinanet.analysis.loss.report import section
from retinanet.analysis.loss.statistics import FocalStatistics
from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError
from retinanet.losses.focal import FocalLoss, sigmoid_focal_loss
from retinanet.types import Assignment, RawOutput

LATTICE = AnchorLattice(strides=(8, 16), sizes=(16, 32), ratios=(0.5, 1.0, 2.0), scales=(1.0,))
GRIDS = ((12, 10), (6, 5))
K = 4
GAMMAS = (0.0, 0.5, 1.0, 2.0)


def make_raw(seed=0, images=3, classes=K, dtype=torch.float32):
    """Logits as of a half-trained model: background around 0.003, with a long tail."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(images, 3 * classes, *grid) for grid in GRIDS]
    logits = tuple((torch.randn(s, generator=generator, dtype=torch.float64) * 2.5 - 6).to(dtype) for s in shapes)
    return RawOutput(logits, tuple(torch.zeros(images, 12, *grid) for grid in GRIDS), LATTICE, BoxCoder())


def make_assignment(raw, positives=40, ignored=25, seed=1):
    """Random anchors, positive with a random class or ignored; by level, and within a level by image."""
    generator = torch.Generator().manual_seed(seed)
    images, total = len(raw.logits[0]), LATTICE.count(GRIDS)
    rows = torch.randperm(images * total, generator=generator)[: positives + ignored]

    def part(rows):
        level, y, x, a = LATTICE.locate(rows % total, GRIDS)
        order = (level * images + rows // total).argsort(stable=True)
        index = torch.stack([rows // total, a, y, x], dim=1)[order]
        return index, tuple(torch.bincount(level, minlength=2).tolist())

    index, counts = part(rows[:positives])
    left, left_counts = part(rows[positives:])
    labels = torch.randint(raw.num_classes, (positives,), generator=generator)
    return Assignment(index, labels, torch.zeros(positives, 4), left, counts, left_counts)


def learnt(raw, assignment):
    """The same with the logits of the annotated classes where a trained model has them."""
    logits = tuple(level.clone() for level in raw.logits)
    for level, (index, labels) in zip(logits, assignment.positives_by_level(), strict=True):
        n, a, y, x = index.T
        level[n, a * raw.num_classes + labels, y, x] += 6
    return replace(raw, logits=logits)


@pytest.fixture
def case():
    raw = make_raw()
    assignment = make_assignment(raw)
    return learnt(raw, assignment), assignment


def diagnosis(*batches, classes=K, **options):
    statistics = FocalStatistics(num_classes=classes, num_levels=2, **options)
    for raw, assignment in batches:
        statistics.update(raw, assignment)
    return statistics


def dense(raw, assignment):
    """For each level the targets and which entries count, (N, A, K, H, W), entry by entry."""
    rows = zip(raw.logits, assignment.positives_by_level(), assignment.ignored_by_level(), strict=True)
    for logits, (index, labels), ignored in rows:
        shape = (len(logits), 3, raw.num_classes, *logits.shape[2:])
        target, counted = torch.zeros(shape, dtype=torch.bool), torch.ones(shape, dtype=torch.bool)
        for (n, a, y, x), label in zip(index.tolist(), labels.tolist(), strict=True):
            target[n, a, label, y, x] = True
        for n, a, y, x in ignored.tolist():
            counted[n, a, :, y, x] = False
        yield logits.reshape(shape), target, counted


def logits_of(raw, assignment, positive):
    """All positive or all negative logits, float64."""
    parts = [x[counted & (target == positive)] for x, target, counted in dense(raw, assignment)]
    return torch.cat(parts).double().numpy()


def sorted_losses(x, positive, gamma):
    """The textbook formula in float64, ascending."""
    p = 1 / (1 + np.exp(-(x if positive else -x)))
    return np.sort(-((1 - p) ** gamma) * np.log(p))


def cumulative(losses, shares):
    """What share of the sum the first ``shares`` of the sorted losses carry."""
    knots = np.concatenate([[0], losses.cumsum()]) / losses.sum()
    return np.interp(shares * len(losses), np.arange(len(losses) + 1), knots)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("positive", [True, False])
def test_the_curves_are_those_of_the_sorted_losses(seed, positive):
    raw = make_raw(seed)
    assignment = make_assignment(raw, positives=200, seed=seed + 10)
    raw = learnt(raw, assignment)
    found = diagnosis((raw, assignment))
    found = found.positive if positive else found.negative
    assert tuple(found.spreads) == GAMMAS
    for spread in found.spreads.values():
        losses = sorted_losses(logits_of(raw, assignment, positive), positive, spread.gamma)
        close = {"abs": spread.tolerance}
        assert spread.curve == pytest.approx(cumulative(losses, SHARES), **close)
        assert spread.loss == pytest.approx(losses.sum(), rel=(spread.gamma + 1) / 2000)
        assert spread.hardest_fifth == pytest.approx(1 - cumulative(losses, np.array(0.8)), **close)
        assert spread.hardest_hundredth == pytest.approx(1 - cumulative(losses, np.array(0.99)), **close)
        assert cumulative(losses, 1 - np.array(spread.half)) == pytest.approx(0.5, **close)
        assert cumulative(losses, 1 - np.array(spread.ninety)) == pytest.approx(0.1, **close)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 5.0])
@pytest.mark.parametrize("positive", [True, False])
def test_the_stated_tolerance_holds_where_every_logit_lies_worst_in_its_bin(gamma, positive):
    edges = np.array([-9.0, -8.0]) if positive else np.array([-12.0, -11.0])
    logits = np.concatenate([np.full(900, edges[0]), np.full(100, edges[1] + 0.9999 / PER_UNIT)])
    counts = np.bincount(np.floor((logits + REACH) * PER_UNIT).astype(int), minlength=BINS)
    spread = spread_losses(counts, gamma, positive=positive)
    expected = cumulative(sorted_losses(logits, positive, gamma), SHARES)
    assert 0 < np.abs(spread.curve - expected).max() <= spread.tolerance


def test_gamma_of_the_loss_joins_the_curves(case):
    found = diagnosis(case, gamma=1.5)
    assert list(found.negative.spreads) == [0.0, 0.5, 1.0, 1.5, 2.0]


@pytest.mark.parametrize(("alpha", "gamma"), [(0.25, 2.0), (None, 0.0), (0.75, 0.5), (0.4, 3.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_by_level_class_and_sign_are_sums_of_the_formula(case, alpha, gamma, dtype):
    raw, assignment = case
    raw = replace(raw, logits=tuple(level.to(dtype) for level in raw.logits))
    found = diagnosis((raw, assignment), alpha=alpha, gamma=gamma)
    rel = 1e-5 if dtype == torch.float32 else 1e-12
    for level, (x, target, counted) in enumerate(dense(raw, assignment)):
        losses = sigmoid_focal_loss(x.double(), target, alpha=alpha, gamma=gamma)
        for k in range(K):
            here, hit = counted[:, :, k], target[:, :, k]
            positive, negative = losses[:, :, k][here & hit].sum(), losses[:, :, k][here & ~hit].sum()
            assert found.positive.losses[level, k] == pytest.approx(positive.item(), rel=rel)
            assert found.negative.losses[level, k] == pytest.approx(negative.item(), rel=rel)
            assert found.counts[level, k] == hit.sum()
    assert found.loss == pytest.approx(FocalLoss(alpha, gamma)(raw, assignment).item(), rel=1e-5)
    assert found.share(found.positive.loss) + found.share(found.negative.loss) == pytest.approx(1)


def test_a_confident_detector_does_not_drown_its_negatives():
    raw = make_raw()
    assignment = make_assignment(raw, positives=1000, ignored=0)
    logits = tuple(torch.full_like(level, -12.0) for level in raw.logits)
    for level, (index, labels) in zip(logits, assignment.positives_by_level(), strict=True):
        n, a, y, x = index.T
        level[n, a * K + labels, y, x] = 12.0
    found = diagnosis((replace(raw, logits=logits), assignment))
    each = sigmoid_focal_loss(torch.tensor(-12.0, dtype=torch.float64), torch.tensor(0)).item()
    assert found.negative.loss == pytest.approx(found.negative.count * each, rel=1e-5)


def test_counts_and_probabilities(case):
    raw, assignment = case
    found = diagnosis(case)
    positive, negative = (logits_of(raw, assignment, sign) for sign in (True, False))
    anchors = LATTICE.count(GRIDS)
    assert (found.images, found.anchors, found.ignored_anchors) == (3, 3 * anchors, 25)
    assert (found.positive.count, found.negative.count) == (40, 3 * anchors * K - 40 - 25 * K)
    edges = np.concatenate([[-np.inf], LOGIT_EDGES[1:-1], [np.inf]])
    for windows_, logits in ((found.positive, positive), (found.negative, negative)):
        assert windows_.histogram.tolist() == np.histogram(logits, edges)[0].tolist()
        assert windows_.count == len(logits)
    assert found.above == list(int((negative > np.log(p / (1 - p))).sum()) for p in (0.05, 0.5))
    assert found.above[0] > found.above[1] > 0
    assert found.mean_probability == pytest.approx((1 / (1 + np.exp(-positive))).mean())
    of_class = torch.cat([x[:, :, 2][target[:, :, 2]] for x, target, _ in dense(raw, assignment)])
    assert found.probabilities[2] == pytest.approx(of_class.double().sigmoid().mean().item())


def test_batches_add_up_to_one_update(case):
    raw, assignment = case
    parts = []
    for image in range(3):
        logits = tuple(level[image : image + 1] for level in raw.logits)
        parts.append((replace(raw, logits=logits), assignment.of_image(image)))
    whole, streamed = diagnosis(case).to_dict(), diagnosis(*parts).to_dict()
    _assert_close(streamed, whole, rel=1e-6)


def test_the_size_of_the_chunks_changes_nothing(case, monkeypatch):
    whole = diagnosis(case).to_dict()
    monkeypatch.setattr(focal, "CPU_CHUNK", 1)
    _assert_close(diagnosis(case).to_dict(), whole, rel=1e-6)


@pytest.mark.parametrize("value", [30.0, float("nan"), float("inf")])
def test_ignored_anchors_have_no_influence(case, value):
    raw, assignment = case
    changed = tuple(level.clone() for level in raw.logits)
    for level, ignored in zip(changed, assignment.ignored_by_level(), strict=True):
        n, a, y, x = ignored.T
        level.unflatten(1, (3, K))[n, a, :, y, x] = value
    assert not torch.equal(changed[0], raw.logits[0])
    assert diagnosis((replace(raw, logits=changed), assignment)).to_dict() == diagnosis(case).to_dict()


def channels_last(level):
    return level.contiguous(memory_format=torch.channels_last)


def width_first(level):
    return level.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)


def with_gaps(level):
    room = torch.full((*level.shape[:3], level.shape[3] + 3), torch.nan)
    room[..., 1:-2] = level
    return room[..., 1:-2]


@pytest.mark.parametrize("layout", [channels_last, width_first, with_gaps])
def test_the_layout_changes_nothing(case, layout):
    raw, assignment = case
    laid = replace(raw, logits=tuple(layout(level) for level in raw.logits))
    assert laid.logits[0].stride() != raw.logits[0].stride()
    assert diagnosis((laid, assignment)).to_dict() == diagnosis(case).to_dict()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_count_as_what_they_are(case, dtype):
    raw, assignment = case
    narrow = replace(raw, logits=tuple(level.to(dtype) for level in raw.logits))
    same = replace(raw, logits=tuple(level.float() for level in narrow.logits))
    found = diagnosis((narrow, assignment))
    assert found.to_dict() == diagnosis((same, assignment)).to_dict()
    exact = diagnosis(case)
    assert found.loss == pytest.approx(exact.loss, rel=0.01)
    for spread, other in zip(found.negative.spreads.values(), exact.negative.spreads.values(), strict=True):
        assert spread.curve == pytest.approx(other.curve, abs=0.02)


def test_the_output_is_left_as_it_was(case):
    raw, assignment = case
    leaves = tuple(level.clone().requires_grad_() for level in raw.logits)
    diagnosis((replace(raw, logits=leaves), assignment))
    assert all(torch.equal(leaf, level) for leaf, level in zip(leaves, raw.logits, strict=True))


def test_inference_mode_may_begin_and_end_anywhere(case):
    with torch.inference_mode():
        statistics = FocalStatistics(num_classes=K, num_levels=2)
        made_inside = replace(case[0], logits=tuple(level * 1 for level in case[0].logits))
        statistics.update(made_inside, case[1])
    statistics.update(made_inside, case[1])
    assert statistics.loss == pytest.approx(2 * diagnosis(case).loss)


def test_logits_beyond_the_histogram_are_counted(case):
    raw, assignment = case
    far = replace(raw, logits=(raw.logits[0] * 100, raw.logits[1]))
    found = diagnosis((far, assignment))
    assert found.positive.count == 40
    assert found.negative.count == diagnosis(case).negative.count
    assert found.loss == pytest.approx(FocalLoss()(far, assignment).item(), rel=1e-5)
    assert np.isfinite(found.negative.spreads[2.0].curve).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_are_told(case, value):
    raw, assignment = case
    raw.logits[1][0, 0, 0, 0] = value
    with pytest.raises(UserError, match="level P4 is not finite"):
        diagnosis((raw, replace(assignment, ignored=assignment.ignored[:0], ignored_per_level=(0, 0))))


def test_what_does_not_fit_is_told(case):
    raw, assignment = case
    with pytest.raises(UserError, match="2 levels and 4 classes, expected 2 and 5"):
        diagnosis(case, classes=5)
    with pytest.raises(UserError, match="label 4, but the network has 4 classes"):
        diagnosis((raw, replace(assignment, labels=assignment.labels + 4 - assignment.labels.min())))
    with pytest.raises(UserError, match="gamma must be"):
        FocalStatistics(num_classes=K, num_levels=2, gamma=-1.0)
    with pytest.raises(UserError, match="expected 4 class names"):
        section(diagnosis(case), ["one", "two"])


def test_nothing_at_all_is_told_in_plain_json():
    raw = make_raw()
    for found in (diagnosis(), diagnosis((raw, make_assignment(raw, positives=0, ignored=0)))):
        plain = found.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert plain["probability_at_positives"] == {"mean": None, "by_class": [None] * K}
        assert plain["positive"]["spreads"][0]["half"] is None
        assert "nan" not in found.summary().lower()
        assert "nan" not in section(found, list("abcd")).text.lower().replace("another", "")


def test_the_json_is_plain(case):
    plain = diagnosis(case).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain


def test_the_section_says_the_numbers(case):
    found = diagnosis(case)
    part = section(found, ["red", "white", "blue", "green"])
    spread = found.negative.spreads[2.0]
    assert f"40 positive and {found.negative.count:,} negative windows" in part.text
    assert f"{spread.half * found.negative.count:,.0f} (" in part.text
    assert len(part.figures) == 5 and len(part.tables) == 3
    assert sum(row[1] for row in part.tables[1].rows) == sum(row[1] for row in part.tables[2].rows) == 40


def test_the_section_names_a_class_that_loses_more_than_its_share():
    raw = make_raw()
    assignment = make_assignment(raw, positives=200, ignored=0)
    part = section(diagnosis((learnt(raw, assignment), assignment)), ["a", "b", "c", "thin"])
    assert "Classes with much more" not in part.text
    logits = tuple(level.clone() for level in learnt(raw, assignment).logits)
    for level, (index, labels) in zip(logits, assignment.positives_by_level(), strict=True):
        n, a, y, x = index[labels == 3].T
        level[n, a * K + 3, y, x] = -9.0
    part = section(diagnosis((replace(raw, logits=logits), assignment)), ["a", "b", "c", "thin"])
    assert "Classes with much more of the loss than of the positives: thin (" in part.text


def test_the_section_shows_the_twenty_classes_with_the_most_loss():
    raw = make_raw(classes=30)
    names = [f"class {k}" for k in range(30)]
    found = diagnosis((raw, make_assignment(raw, positives=200)), classes=30)
    part = section(found, names)
    losses = (found.positive.losses + found.negative.losses).sum(axis=0)
    expected = [names[k] for k in sorted(range(30), key=lambda k: -losses[k])[:20]]
    assert [row[0] for row in part.tables[2].rows] == expected and "20 classes with the most" in part.tables[2].note
    (axes,) = part.figures[4][1].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == expected
    shares = [bar.get_width() for group in axes.containers for bar in group]
    assert sum(shares) == pytest.approx(100 * np.sort(losses)[-20:].sum() / losses.sum())


def test_one_class_needs_no_table_of_classes():
    raw = make_raw(classes=1)
    part = section(diagnosis((raw, make_assignment(raw)), classes=1), ["cell"])
    assert len(part.tables) == 2 and len(part.figures) == 4


def _assert_close(found, expected, rel):
    """The same structure; numbers alike, counts equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            _assert_close(found[key], expected[key], rel)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_close(one, other, rel)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=rel, abs=1e-12)
    else:
        assert found == expected
