"""The optimiser, its learning rate, and the moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from retinanet.training.config import OptimConfig

DEFAULT_LR = {"adamw": 5e-4, "sgd": 0.01}
DEFAULT_LR_BATCH = {"adamw": 8, "sgd": 16}
DEFAULT_DECAY = {"adamw": 0.05, "sgd": 1e-4}


def build_optimizer(net: nn.Module, config: OptimConfig, batch_size: int) -> torch.optim.Optimizer:
    """AdamW or SGD; each group remembers its peak learning rate as ``peak_lr``.

    Args:
        net: a RetinaNet; the parameters under ``backbone`` are its backbone.
        config: how to optimise.
        batch_size: images per optimiser step; the learning rate grows linearly with it (Goyal et al. 2017).
    """
    lr = DEFAULT_LR[config.optimizer] if config.lr is None else config.lr
    lr *= batch_size / (config.lr_batch or DEFAULT_LR_BATCH[config.optimizer])
    decay = DEFAULT_DECAY[config.optimizer] if config.weight_decay is None else config.weight_decay
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            # biases and norms have one dimension; decay would pull the prior of the class bias towards 0.5
            groups.setdefault((name.startswith("backbone."), parameter.ndim > 1), []).append(parameter)
    options = []
    for (backbone, decays), parameters in groups.items():
        peak = lr * (config.backbone_lr if backbone else 1.0)
        options.append({"params": parameters, "lr": peak, "peak_lr": peak, "weight_decay": decay if decays else 0.0})
    return torch.optim.AdamW(options) if config.optimizer == "adamw" else torch.optim.SGD(options, momentum=0.9)


def compute_lr_factor(step: int, total: int, config: OptimConfig) -> float:
    """Factor on the peak learning rate: a pure function of the step, so a resumed run needs no scheduler's state.

    Args:
        step: optimiser step, from 0.
        total: steps of the training.
        config: its warm-up is linear and at most a tenth of the training. Its schedule ``cosine`` falls to zero,
            ``steps`` falls by 10 after 2/3 and 8/9 (60k and 80k of 90k in the paper).
    """
    warmup = min(config.warmup, total // 10)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.schedule == "steps":
        return 0.1 ** ((step >= total * 2 / 3) + (step >= total * 8 / 9))
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to its peak times ``factor``; returns the highest rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)


def average_weights(net: nn.Module, decay: float) -> AveragedModel:
    """A moving average of the weights and buffers; its decay grows from 0, so that short runs are not left behind.

    After n updates the decay is min(``decay``, (n + 1) / (n + 10)), the rule of TensorFlow's ExponentialMovingAverage.
    """

    @torch.no_grad()
    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1 - min(decay, (count + 1) / (count + 10))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, weight)
            else:
                average.copy_(current)

    return AveragedModel(net, multi_avg_fn=update, use_buffers=True)
