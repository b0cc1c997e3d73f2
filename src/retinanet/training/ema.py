"""The moving average of the weights, which is what is evaluated and saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged(net: nn.Module, decay: float) -> AveragedModel:
    """Torch's AveragedModel with a decay that grows from 0 to ``decay``, so that short runs are not left behind.

    After n updates the decay is min(decay, (n + 1) / (n + 10)), the rule of TensorFlow's ExponentialMovingAverage.
    """
    return AveragedModel(net, multi_avg_fn=_average(decay), use_buffers=True)


def _average(decay: float) -> Callable[[Sequence[Tensor], Sequence[Tensor], Tensor | int], None]:
    @torch.no_grad()
    def update(averages: Sequence[Tensor], currents: Sequence[Tensor], updates: Tensor | int) -> None:
        count = int(updates)
        weight = 1 - min(decay, (count + 1) / (count + 10))
        for average, current in zip(averages, currents, strict=True):
            if average.is_floating_point():
                average.lerp_(current, weight)
            else:
                average.copy_(current)

    return update
