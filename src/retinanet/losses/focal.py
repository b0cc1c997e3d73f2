"""Focal loss (Lin et al., section 3): the readable formula, and the loss over all anchors that training uses.

Nearly all of the 16 million targets of an image are zero. :class:`FocalLoss` therefore takes every logit as a
negative, as it lies in memory, and corrects the few that are positive or ignored: see
:mod:`retinanet.losses.implicit`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.errors import UserError
from retinanet.losses.implicit import ImplicitNegatives, is_dense, memory_offset
from retinanet.types import Assignment, RawOutput


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0) -> Tensor:
    """The focal loss of each entry, -alpha_t (1 - p_t)^gamma log(p_t) (Lin et al., equation 5).

    Computed in float32 at least, from log p_t and log(1 - p_t), so that neither cancels; the loss and its gradient are
    finite for every finite logit and any gamma.

    Args:
        logits: any shape and float type.
        targets: 0 or 1 (bool or number), of the same shape or one that broadcasts to it.
        alpha: weight of the positives, in (0, 1); the negatives get 1 - alpha. None weighs both with 1.
        gamma: focusing power, at least 0; 0 is cross entropy.

    Returns:
        The shape of ``logits``, float32 (float64 for float64 logits).
    """
    positive = targets > 0
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    towards_target = torch.where(positive, logits, -logits)  # x_t, with p_t = sigmoid(x_t)
    log_p = F.logsigmoid(towards_target)
    log_q = F.logsigmoid(-towards_target)
    loss = -torch.exp(gamma * log_q) * log_p
    if alpha is None:
        return loss
    return torch.where(positive, alpha * loss, (1 - alpha) * loss)


def quality_focal_loss(logits: Tensor, targets: Tensor, *, alpha: float | None = None, gamma: float = 2.0) -> Tensor:
    """The focal loss of each entry towards a score y: alpha |y - p|^gamma (-y log p - (1 - y) log(1 - p)).

    It is the quality focal loss of Li et al. 2020 (arXiv 2006.04388, equation 5), where alpha is None. A target of 1
    makes it the loss of a positive in :func:`sigmoid_focal_loss`.

    Args:
        logits: any shape and float type.
        targets: in [0, 1], of the same shape.
        alpha: weight, or None for 1.
        gamma: focusing power, 0 or at least 1.

    Returns:
        The shape of ``logits``, float32 (float64 for float64 logits).
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    away = (targets - logits.sigmoid()).abs()
    entropy = targets * F.softplus(-logits) + (1 - targets) * F.softplus(logits)
    return (1 if alpha is None else alpha) * away.pow(gamma) * entropy


def expected_initial_loss(
    prior: float, negatives: int, positives: int | Tensor, *, alpha: float | None = 0.25, gamma: float = 2.0
) -> float:
    """The classification loss, summed, of a network that says ``prior`` everywhere (Lin et al., section 4.1).

    With the prior 0.01 and the paper's alpha and gamma a negative costs 7.538e-7 and a positive 1.128. A first loss far
    from this value means a wrong initialisation, wrong targets or a wrong loss.

    Args:
        prior: the probability that an untrained network gives to every class of every anchor.
        negatives: pairs of anchor and class with target 0, ignored anchors not counted.
        positives: pairs with target 1, one per positive anchor; or the targets (P,) of quality focal loss.
        alpha: as in :class:`FocalLoss`.
        gamma: as in :class:`FocalLoss`.
    """
    logit = torch.tensor(prior, dtype=torch.float64).logit()
    negative, positive = (
        sigmoid_focal_loss(logit, torch.tensor(target), alpha=alpha, gamma=gamma).item() for target in (0, 1)
    )
    if isinstance(positives, Tensor):
        soft = quality_focal_loss(logit.expand(len(positives)), positives.double(), alpha=alpha, gamma=gamma)
        return negatives * negative + soft.sum().item()
    return negatives * negative + positives * positive


@dataclass(frozen=True)
class FocalLoss:
    """Focal loss over all anchors of a batch, summed.

    ``FocalLoss(alpha=None, gamma=0)`` is plain cross entropy, ``FocalLoss(alpha=0.75, gamma=0)`` the alpha-balanced
    cross entropy of the paper's Table 1a.

    There is no second derivative: a backward pass with ``create_graph=True`` raises a ``RuntimeError``. Use
    :func:`sigmoid_focal_loss` for that.

    Args:
        alpha: weight of the positives, in (0, 1); the negatives get 1 - alpha. None weighs both with 1.
        gamma: focusing power, at least 0.
        quality: a positive anchor has to give its class the score ``assignment.quality``, not 1; see
            :func:`quality_focal_loss`. The negatives' loss is the same.
    """

    alpha: float | None = 0.25
    gamma: float = 2.0
    quality: bool = False

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise UserError(f"alpha must lie between 0 and 1, neither included, or be None (off), got {self.alpha}")
        if not 0 <= self.gamma < math.inf:
            raise UserError(f"gamma must be a number of at least 0, got {self.gamma}")
        if self.quality and 0 < self.gamma < 1:
            raise UserError(f"gamma of the quality focal loss is 0 or at least 1, got {self.gamma}")

    def __call__(self, raw: RawOutput, assignment: Assignment) -> Tensor:
        """The sum over all images, anchors and classes but the ignored: scalar float32 (float64 for float64 logits).

        Args:
            raw: logits in any float type and any dense memory layout, all levels alike in type and device. The gradient
                has the type and layout of each.
            assignment: positives and ignored anchors of the batch, on the device of the logits; with their quality
                where it is asked for.
        """
        levels = [level if is_dense(level) else level.contiguous() for level in raw.logits]
        positives = [
            memory_offset(level, index, label, raw.num_classes)
            for level, (index, label) in zip(levels, assignment.positives_by_level(), strict=True)
        ]
        ignored = [
            memory_offset(level, index, torch.zeros_like(index[:, 0]), raw.num_classes)
            for level, index in zip(levels, assignment.ignored_by_level(), strict=True)
        ]
        scores: Sequence[Tensor | None] = [None] * len(levels)
        if self.quality:
            assert assignment.quality is not None, "quality focal loss needs the quality of every positive"
            scores = assignment.quality.split(list(assignment.positives_per_level))
        needs_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in levels)
        rule = (self.alpha, self.gamma, raw.num_classes)
        return ImplicitNegatives.apply(rule, positives, scores, ignored, needs_gradient, *levels)
