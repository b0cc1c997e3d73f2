"""The learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from typing import Literal

import torch


def lr_factor(step: int, total: int, *, warmup: int, schedule: Literal["cosine", "steps"]) -> float:
    """Factor on the peak learning rate.

    Args:
        step: optimiser step, from 0.
        total: steps of the training.
        warmup: steps of the linear warm-up, at most a tenth of the training.
        schedule: ``cosine`` falls to zero; ``steps`` falls by 10 after 2/3 and 8/9 (60k and 80k of 90k in the paper).
    """
    warmup = min(warmup, total // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if schedule == "steps":
        return 0.1 ** ((step >= total * 2 / 3) + (step >= total * 8 / 9))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its peak times ``factor``; returns the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
