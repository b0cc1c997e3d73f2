from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torchvision.ops import sigmoid_focal_loss as torchvision_focal_loss

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError
from retinanet.losses import implicit
from retinanet.losses.focal import FocalLoss, expected_initial_loss, quality_focal_loss, sigmoid_focal_loss
from retinanet.types import Assignment, RawOutput

GAMMAS = [0, 0.1, 0.5, 1, 2, 5]
ALPHAS = [None, 0.25, 0.75]
PRIOR_LOGIT = -4.59511985013459

# x, y, loss, d loss / dx in fp64 for alpha 0.25, gamma 2
GOLDEN = [
    (-8, 1, 1.9987426198e00, -2.5108912893e-01),
    (-8, 0, 2.8289777572e-11, 8.4845614999e-11),
    (PRIOR_LOGIT, 1, 1.1283818248e00, -2.6514238650e-01),
    (PRIOR_LOGIT, 0, 7.5377518901e-07, 2.2424748742e-06),
    (-2, 1, 4.1251954486e-01, -2.6917843261e-01),
    (-2, 0, 1.3526721264e-03, 3.6532051465e-03),
    (0, 1, 4.3321698785e-02, -7.4571698785e-02),
    (0, 0, 1.2996509635e-01, 2.2371509635e-01),
    (2, 1, 4.5089070881e-04, -1.2177350488e-03),
    (2, 0, 1.2375586346e00, 8.0753529784e-01),
    (4, 1, 1.4678924305e-06, -4.3376328054e-06),
    (4, 0, 2.9061804285e00, 8.1479688981e-01),
    (8, 1, 9.4299258573e-12, -2.8281871666e-11),
    (8, 0, 5.9962278593e00, 7.5326738680e-01),
]


def a_row(logits, positive):
    """Logits (n,) as n cells of one anchor and one class, all positive or all negative."""
    lattice = AnchorLattice(strides=(8,), sizes=(32,), ratios=(1.0,), scales=(1.0,))
    count = len(logits) if positive else 0
    zeros = torch.zeros(count, dtype=torch.int64)
    index = torch.stack([zeros, zeros, zeros, torch.arange(count)], dim=1)
    level = logits.view(1, 1, 1, -1)
    raw = RawOutput((level,), (level.new_zeros(1, 4, 1, len(logits)),), lattice, BoxCoder())
    none = torch.zeros(0, 4, dtype=torch.int64)
    return raw, Assignment(index, zeros, torch.zeros(count, 4), none, (count,), (0,))


def exact(x, positive, alpha, gamma):
    """Loss and derivative in fp64, by the closed form of the paper's appendix."""
    x = x.double()
    sign = 1 if positive else -1
    toward = sign * x
    log_p, log_q = (-(z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))) for z in (-toward, toward))
    weight = 1 if alpha is None else alpha if positive else 1 - alpha
    power = weight * torch.exp(gamma * log_q)
    return -power * log_p, -sign * power * (torch.exp(log_q) - gamma * torch.exp(log_p) * log_p)


def reference(raw, assignment, dense, alpha, gamma):
    """Summed loss and gradients by fp64 autograd over one-hot targets."""
    levels = [level.detach().double().requires_grad_() for level in raw.logits]
    targets, counted = dense(raw, assignment)
    loss = sum(
        sigmoid_focal_loss(level, target, alpha=alpha, gamma=gamma)[count].sum()
        for level, target, count in zip(levels, targets, counted, strict=True)
    )
    return loss, torch.autograd.grad(loss, levels)


@pytest.mark.parametrize(("x", "y", "loss", "slope"), GOLDEN)
def test_golden_values(x, y, loss, slope):
    logit = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    formula = sigmoid_focal_loss(logit, torch.tensor([y]))
    fused = FocalLoss()(*a_row(logit, positive=y == 1))
    for value in (formula.sum(), fused):
        assert value.item() == pytest.approx(loss, rel=1e-10)
        assert torch.autograd.grad(value, logit)[0].item() == pytest.approx(slope, rel=1e-10)


@pytest.mark.parametrize("gamma", [0, 1, 2, 5])
@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_formula_equals_torchvision_where_that_is_accurate(alpha, gamma):
    logits = torch.linspace(-12, 12, 97, dtype=torch.float64, requires_grad=True)
    targets = (torch.arange(97) % 2).double()
    ours = sigmoid_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    theirs = torchvision_focal_loss(logits, targets, alpha=alpha, gamma=gamma)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-14)
    slopes = [torch.autograd.grad(loss.sum(), logits)[0] for loss in (ours, theirs)]
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-12)


def test_cross_entropy_is_a_setting():
    logits = torch.linspace(-9, 9, 50, dtype=torch.float64)
    targets = (torch.arange(50) % 3 == 0).double()
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, alpha=None, gamma=0), plain)


def check_against_dense_autograd(raw, assignment, dense, alpha, gamma, relative):
    expected, expected_gradients = reference(raw, assignment, dense, alpha, gamma)
    loss = FocalLoss(alpha, gamma)(raw, assignment)
    assert loss.dtype == raw.logits[0].dtype
    assert loss.item() == pytest.approx(expected.item(), rel=relative)
    (3 * loss).backward()
    for level, gradient in zip(raw.logits, expected_gradients, strict=True):
        torch.testing.assert_close(level.grad.double(), 3 * gradient, rtol=relative, atol=1e-30)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_equals_dense_autograd(make_raw, make_assignment, dense, alpha, gamma):
    raw = make_raw()
    check_against_dense_autograd(raw, make_assignment(raw), dense, alpha, gamma, relative=1e-12)


@pytest.mark.parametrize(("alpha", "gamma"), [(None, 0), (0.75, 0.5), (0.25, 2), (0.25, 5)])
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=str)
def test_any_layout(make_raw, make_assignment, dense, layout, dtype, relative, alpha, gamma):
    raw = make_raw(dtype=dtype, layout=layout, seed=4)
    check_against_dense_autograd(raw, make_assignment(raw), dense, alpha, gamma, relative)
    for level in raw.logits:
        assert layout.__name__ == "with_gaps" or level.grad.stride() == level.stride()


@pytest.mark.parametrize("gamma", [0.5, 2, 5])
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)], ids=str)
def test_half_precision_loses_only_the_rounding_of_the_result(
    make_raw, make_assignment, dense, layout, dtype, rounding, gamma
):
    raw = make_raw(dtype=dtype, layout=layout)
    assignment = make_assignment(raw)
    expected, expected_gradients = reference(raw, assignment, dense, 0.25, gamma)
    loss = FocalLoss(0.25, gamma)(raw, assignment)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-6)
    (loss * 0.3).backward()
    smallest = torch.finfo(dtype).smallest_normal
    for level, gradient in zip(raw.logits, expected_gradients, strict=True):
        assert level.grad.dtype == dtype
        # Twice rounded: as it is stored, and as it is scaled.
        torch.testing.assert_close(level.grad.double(), 0.3 * gradient, rtol=2.1 * rounding, atol=rounding * smallest)


def test_a_scaled_loss_brings_small_gradients_through_half_precision():
    logits = torch.linspace(-7, -4, 200).half().requires_grad_()
    scale = 2.0**16
    (FocalLoss()(*a_row(logits, positive=False)) * scale).backward()
    _, slope = exact(logits.detach(), False, 0.25, 2)
    assert slope.max() < 2**-16  # unscaled, float16 would hold it with a few bits or not at all
    torch.testing.assert_close(logits.grad.double(), slope * scale, rtol=0.01, atol=0)


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("positive", [False, True])
def test_float32_accuracy_over_the_whole_range(positive, gamma):
    logits = torch.linspace(-40, 40, 20001).requires_grad_()
    loss, slope = exact(logits.detach(), positive, 0.25, gamma)
    power = exact(logits.detach(), positive, None, gamma)[1].abs()
    normal = (loss > 1e-37) & (slope.abs() > 1e-37) & (power > 1e-37)  # below, float32 has no digits to lose
    (gradient,) = torch.autograd.grad(FocalLoss(0.25, gamma)(*a_row(logits, positive)), logits)
    torch.testing.assert_close(gradient.double()[normal], slope[normal], rtol=2e-6, atol=0)
    for index in normal.nonzero().flatten()[::997].tolist():
        one = FocalLoss(0.25, gamma)(*a_row(logits.detach()[index : index + 1], positive))
        assert one.item() == pytest.approx(loss[index].item(), rel=2e-6)

    formula = sigmoid_focal_loss(logits, torch.full_like(logits, positive), alpha=0.25, gamma=gamma)
    torch.testing.assert_close(formula.detach().double()[normal], loss[normal], rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(formula.sum(), logits)
    torch.testing.assert_close(gradient.double()[normal], slope[normal], rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("positive", [False, True])
def test_saturated_logits(positive, gamma, dtype):
    logits = torch.tensor([-745.0, -100.0, -88.5, 88.5, 100.0, 745.0]).to(dtype).requires_grad_()
    loss, slope = exact(logits.detach(), positive, 0.25, gamma)
    fused = FocalLoss(0.25, gamma)(*a_row(logits, positive))
    formula = sigmoid_focal_loss(logits, torch.full_like(logits, positive), alpha=0.25, gamma=gamma).sum()
    for value in (fused, formula):
        assert value.item() == pytest.approx(loss.sum().item(), rel=1e-6)
        (gradient,) = torch.autograd.grad(value, logits)
        torch.testing.assert_close(gradient.double(), slope, rtol=0.005, atol=1e-30)


@pytest.mark.parametrize("gamma", [0.5, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_chunks_and_threads_are_invisible(make_raw, make_assignment, channels_last_layout, monkeypatch, dtype, gamma):
    raw = make_raw(dtype=dtype, layout=channels_last_layout, seed=3)
    assignment = make_assignment(raw)
    results = []
    monkeypatch.setattr(implicit, "BLOCK", 2)
    for chunk, threads in [(10**6, 1), (1, 2), (7, 2), (7, 1), (240, 3)]:
        monkeypatch.setattr(implicit, "CPU_CHUNK", chunk)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        loss = FocalLoss(0.25, gamma)(raw, assignment)
        results.append((loss.detach(), *torch.autograd.grad(loss, raw.logits)))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=1e-6 if dtype == torch.float64 else 0.01, atol=0)
    assert all(torch.equal(a, b) for a, b in zip(results[2], results[3], strict=True))  # threads: not one bit


def test_gradient_is_that_of_the_loss(make_raw, make_assignment, layout):
    raw = make_raw(images=1, classes=2, layout=layout, grids=((2, 2), (1, 1)))
    assignment = make_assignment(raw, positives=3, ignored=2)

    def loss(*logits):
        return FocalLoss(0.25, 1.5)(RawOutput(logits, raw.deltas, raw.lattice, raw.coder), assignment)

    assert torch.autograd.gradcheck(loss, raw.logits)


def test_ignored_anchors_count_nothing(make_raw, make_assignment):
    raw = make_raw()
    assignment = make_assignment(raw, positives=0, ignored=20)
    loss = FocalLoss()(raw, assignment)
    loss.backward()
    touched = 0
    with torch.no_grad():
        for level, ignored in zip(raw.logits, assignment.ignored_by_level(), strict=True):
            n, a, y, x = ignored.unbind(1)
            for k in range(raw.num_classes):
                assert (level.grad[n, a * raw.num_classes + k, y, x] == 0).all()
                level[n, a * raw.num_classes + k, y, x] += 5
            touched += (level.grad == 0).sum().item()
    assert touched == 20 * raw.num_classes
    assert FocalLoss()(raw, assignment).item() == pytest.approx(loss.item(), rel=1e-12)


def test_more_ignored_entries_than_a_chunk(make_raw, make_assignment, dense, monkeypatch):
    monkeypatch.setattr(implicit, "CPU_CHUNK", 50)
    raw = make_raw(images=3)
    assignment = make_assignment(raw, positives=90, ignored=200)
    expected, gradients = reference(raw, assignment, dense, 0.25, 2)
    loss = FocalLoss()(raw, assignment)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss, raw.logits), gradients, rtol=1e-12, atol=1e-30)


def test_retained_graph_second_pass_and_second_derivative(make_raw, make_assignment):
    raw = make_raw()
    assignment = make_assignment(raw)
    loss = FocalLoss()(raw, assignment)
    first = torch.autograd.grad(loss, raw.logits, retain_graph=True)
    kept = [gradient.clone() for gradient in first]
    doubled = torch.autograd.grad(2 * loss, raw.logits, retain_graph=True)
    last = torch.autograd.grad(loss, raw.logits)
    torch.testing.assert_close(list(first), kept, rtol=0, atol=0)
    torch.testing.assert_close(last, first)
    torch.testing.assert_close([gradient / 2 for gradient in doubled], kept)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, raw.logits)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(FocalLoss()(raw, assignment), raw.logits, create_graph=True)


def test_without_gradient_the_value_is_the_same(make_raw, make_assignment):
    raw = make_raw(dtype=torch.float32)
    assignment = make_assignment(raw)
    loss = FocalLoss()(raw, assignment)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            alone = FocalLoss()(raw, assignment)
        assert not alone.requires_grad
        assert alone.item() == loss.item()


def test_first_loss_of_an_untrained_network():
    assert expected_initial_loss(0.01, 201_600 * 80, 0) == pytest.approx(12.16, abs=0.005)
    assert expected_initial_loss(0.01, 76_725 * 80, 0) == pytest.approx(4.63, abs=0.005)
    assert expected_initial_loss(0.01, 201_600 * 80, 0, alpha=None, gamma=0) == pytest.approx(162_092, abs=0.5)
    assert expected_initial_loss(0.01, 76_725 * 80, 0, alpha=None, gamma=0) == pytest.approx(61_689, abs=0.5)
    assert expected_initial_loss(0.01, 0, 1) == pytest.approx(1.128, abs=0.0005)
    assert expected_initial_loss(0.01, 1, 0) == pytest.approx(7.538e-7, rel=1e-4)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gamma", [0, 0.5, 2])
@pytest.mark.parametrize("prior", [0.01, 0.2])
def test_expected_first_loss_is_the_measured_one(make_raw, make_assignment, prior, gamma, alpha):
    raw = make_raw(dtype=torch.float32)
    assignment = make_assignment(raw)
    with torch.no_grad():
        for level in raw.logits:
            level.fill_(math.log(prior / (1 - prior)))
    positives = assignment.num_positives
    negatives = sum(level.numel() for level in raw.logits) - len(assignment.ignored) * raw.num_classes - positives
    expected = expected_initial_loss(prior, negatives, positives, alpha=alpha, gamma=gamma)
    assert FocalLoss(alpha, gamma)(raw, assignment).item() == pytest.approx(expected, rel=1e-5)


def test_first_loss_of_a_whole_image_in_float32(make_raw, make_assignment):
    lattice = AnchorLattice()
    raw = RawOutput(
        tuple(torch.full((1, 720, *grid), PRIOR_LOGIT) for grid in lattice.grids(640, 640)), (), lattice, BoxCoder()
    )
    assignment = make_assignment(raw, positives=0, ignored=0)
    per_anchor = 80 * exact(torch.tensor(PRIOR_LOGIT), False, 0.25, 2)[0].item()
    assert FocalLoss()(raw, assignment).item() == pytest.approx(76_725 * per_anchor, rel=2e-6)


def peak_and_saved_bytes(action):
    """What torch's CPU allocator held at most above the start, and what autograd saved."""
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with (
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile,
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        action()
    peak = held = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak, sum(saved.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(make_raw, make_assignment, channels_last_layout, monkeypatch, dtype):
    monkeypatch.setattr(implicit, "MOST_THREADS", 1)  # the profiler sees no other thread
    raw = make_raw(
        images=1,
        classes=80,
        dtype=dtype,
        layout=channels_last_layout,
        grids=((60, 60), (30, 30)),
        lattice=AnchorLattice((8, 16), (32, 64)),
    )
    assignment = make_assignment(raw, positives=30, ignored=60)
    logits = sum(level.numel() * level.element_size() for level in raw.logits)
    peak, saved = peak_and_saved_bytes(lambda: (FocalLoss()(raw, assignment) / 30).backward())
    assert saved == logits
    assert logits <= peak <= 1.3 * logits
    with torch.no_grad():
        peak, saved = peak_and_saved_bytes(lambda: FocalLoss()(raw, assignment))
    assert saved == 0
    assert 0 < peak <= 0.3 * logits


@pytest.mark.parametrize("alpha", [0, 1, -0.5, 2, math.nan])
def test_alpha_outside_is_refused(alpha):
    with pytest.raises(UserError, match="alpha must lie between 0 and 1"):
        FocalLoss(alpha=alpha)


@pytest.mark.parametrize("gamma", [-1, math.nan, math.inf])
def test_gamma_outside_is_refused(gamma):
    with pytest.raises(UserError, match="gamma must be a number of at least 0"):
        FocalLoss(gamma=gamma)


# Quality focal loss --------------------------------------------------------------------------------------------------


def with_quality(assignment, seed=3):
    generator = torch.Generator().manual_seed(seed)
    quality = torch.rand(assignment.num_positives, generator=generator, dtype=torch.float64)
    return replace(assignment, quality=quality)


@pytest.mark.parametrize("gamma", [0, 1, 1.5, 2, 5])
def test_the_quality_formula_in_its_own_words(gamma):
    """Equation 5 of Li et al., in fp64."""
    x, y = torch.linspace(-12, 12, 241, dtype=torch.float64), torch.linspace(0, 1, 241, dtype=torch.float64).roll(97)
    p = 1 / (1 + torch.exp(-x))
    expected = -((y - p).abs() ** gamma) * ((1 - y) * torch.log1p(-p) + y * torch.log(p))
    torch.testing.assert_close(quality_focal_loss(x, y, gamma=gamma), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(quality_focal_loss(x, y, alpha=0.3, gamma=gamma), 0.3 * expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", [0.25, 0.75])
def test_a_quality_of_one_is_a_positive_and_of_zero_a_negative(alpha):
    logits = torch.linspace(-9, 9, 50, dtype=torch.float64)
    for target, weight in ((1.0, alpha), (0.0, 1 - alpha)):
        soft = quality_focal_loss(logits, torch.full_like(logits, target), alpha=weight)
        hard = sigmoid_focal_loss(logits, torch.full_like(logits, target), alpha=alpha)
        torch.testing.assert_close(soft, hard, rtol=1e-9, atol=0)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("gamma", [0, 1, 1.5, 2, 5])
def test_quality_changes_the_positives_alone(make_raw, make_assignment, dense, layout, alpha, gamma):
    """By fp64 autograd over dense targets: negatives are those of focal loss, positives those of the formula."""
    raw = make_raw(layout=layout)
    assignment = with_quality(make_assignment(raw))
    levels = [level.detach().double().requires_grad_() for level in raw.logits]
    targets, counted = dense(raw, assignment)
    expected = sum(
        sigmoid_focal_loss(level, target, alpha=alpha, gamma=gamma)[count & (target == 0)].sum()
        for level, target, count in zip(levels, targets, counted, strict=True)
    )
    quality = assignment.quality.split(list(assignment.positives_per_level))
    for level, scores, (index, labels) in zip(levels, quality, assignment.positives_by_level(), strict=True):
        image, anchor, y, x = index.unbind(1)
        x = level[image, anchor * raw.num_classes + labels, y, x]
        expected = expected + quality_focal_loss(x, scores, alpha=alpha, gamma=gamma).sum()
    loss = FocalLoss(alpha, gamma, quality=True)(raw, assignment)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    loss.backward()
    for level, gradient in zip(raw.logits, torch.autograd.grad(expected, levels), strict=True):
        torch.testing.assert_close(level.grad, gradient, rtol=1e-10, atol=1e-30)


def test_without_a_gradient_where_the_score_is_right():
    """The smallest loss of a positive is at p = y."""
    logits = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    raw, assignment = a_row(logits, positive=True)
    FocalLoss(None, 2, quality=True)(raw, replace(assignment, quality=logits.detach().sigmoid())).backward()
    assert logits.grad.abs() < 1e-15


def test_expected_initial_loss_of_soft_targets():
    targets = torch.tensor([0.2, 0.9, 0.5])
    logits = torch.full((3,), PRIOR_LOGIT, dtype=torch.float64)
    expected = (
        1000 * sigmoid_focal_loss(logits[0], torch.tensor(0))
        + quality_focal_loss(logits, targets.double(), alpha=0.25).sum()
    )
    assert expected_initial_loss(0.01, 1000, targets) == pytest.approx(expected.item(), rel=1e-6)


def test_a_power_whose_slope_is_infinite_is_refused():
    with pytest.raises(UserError, match="0 or at least 1"):
        FocalLoss(gamma=0.5, quality=True)
