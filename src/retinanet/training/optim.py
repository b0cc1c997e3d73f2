"""The optimiser and its parameter groups."""

from __future__ import annotations

import torch
from torch import nn

from retinanet.training.config import OptimConfig

DEFAULT_LR = {"adamw": 5e-4, "sgd": 0.01}
DEFAULT_LR_BATCH = {"adamw": 8, "sgd": 16}
DEFAULT_DECAY = {"adamw": 0.05, "sgd": 1e-4}


def build_optimizer(net: nn.Module, config: OptimConfig, batch_size: int) -> torch.optim.Optimizer:
    """AdamW or SGD; each group remembers its peak learning rate as ``peak_lr``.

    Args:
        net: a RetinaNet; the parameters under ``backbone`` are its backbone.
        config: knobs.
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
    options = [
        {
            "params": parameters,
            "lr": lr * (config.backbone_lr if backbone else 1.0),
            "peak_lr": lr * (config.backbone_lr if backbone else 1.0),
            "weight_decay": decay if decays else 0.0,
        }
        for (backbone, decays), parameters in groups.items()
    ]
    if config.optimizer == "adamw":
        return torch.optim.AdamW(options)
    return torch.optim.SGD(options, momentum=0.9)
