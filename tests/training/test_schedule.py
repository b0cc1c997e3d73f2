"""The learning rate at the points that matter."""

import math

import pytest
import torch

from retinanet.training.config import OptimConfig
from retinanet.training.optim import compute_lr_factor, set_lr


@pytest.mark.parametrize("schedule", ["cosine", "steps"])
def test_warm_up_is_linear_and_ends_at_the_peak(schedule):
    factors = [compute_lr_factor(step, 1000, OptimConfig(warmup=50, schedule=schedule)) for step in range(52)]
    assert factors[:50] == pytest.approx([(step + 1) / 51 for step in range(50)], abs=1e-15)
    assert factors[50] == 1.0 and max(factors) == 1.0


def test_cosine():
    def factor(step):
        return compute_lr_factor(step, 1000, OptimConfig(warmup=0, schedule="cosine"))

    assert factor(0) == 1.0
    assert factor(500) == pytest.approx(0.5)
    assert factor(250) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert 0 < factor(999) < 1e-5 and factor(1000) == 0.0
    assert compute_lr_factor(550, 1000, OptimConfig(warmup=100, schedule="cosine")) == pytest.approx(
        0.5
    )  # the middle of what is left


def test_steps_fall_where_those_of_the_paper_do():
    factors = {
        step: compute_lr_factor(step, 90_000, OptimConfig(warmup=500, schedule="steps"))
        for step in (59_999, 60_000, 79_999, 80_000)
    }
    assert factors == pytest.approx({59_999: 1.0, 60_000: 0.1, 79_999: 0.1, 80_000: 0.01})


def test_warm_up_is_at_most_a_tenth():
    assert compute_lr_factor(0, 40, OptimConfig(warmup=500, schedule="steps")) == pytest.approx(1 / 5)
    assert compute_lr_factor(4, 40, OptimConfig(warmup=500, schedule="steps")) == 1.0
    assert compute_lr_factor(0, 1, OptimConfig(warmup=500, schedule="cosine")) == 1.0


def test_set_lr_keeps_the_ratio_of_the_groups():
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 1.0, "peak_lr": peak, "weight_decay": 0.0}
        for peak in (0.4, 0.04)
    ]
    optimizer = torch.optim.SGD(groups)
    for _ in range(2):  # a second time gives the same: it is set, not multiplied
        assert set_lr(optimizer, 0.5) == pytest.approx(0.2)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])
