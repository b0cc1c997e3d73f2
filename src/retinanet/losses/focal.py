"""Focal loss (Lin et al., section 3): the readable formula, and the form that training uses.

Nearly all of the 16 million targets of an image are zero. :class:`FocalLoss` therefore takes every logit as a
negative, as it lies in memory, and corrects the few that are positive or ignored. No tensor of targets exists, nothing
is permuted or concatenated, and one buffer of the size of the logits holds the gradient, which has a closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.errors import UserError
from retinanet.types import Assignment, RawOutput

# Entries that an operation takes at a time. On a CPU they stay in the cache of one core, and below 2**15 torch leaves
# them to one core; on another device it is the least, and few launches matter more.
CPU_CHUNK = 31 * 2**10
DEVICE_CHUNK = 2**20
BLOCK = 8  # chunks that a thread takes at a time
MOST_THREADS = 8  # beyond, they wait for the interpreter more than they compute

# float16 resolves nothing below 6e-8, where most gradients of negatives lie, so its buffer holds them this much larger.
# No gradient of a logit exceeds 1.32 for gamma up to 5, and the bound grows like log(gamma): nothing overflows.
_HALF_UNIT = 2.0**14


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


def expected_initial_loss(
    prior: float, negatives: int, positives: int, *, alpha: float | None = 0.25, gamma: float = 2.0
) -> float:
    """The classification loss, summed, of a network that says ``prior`` everywhere (Lin et al., section 4.1).

    With the prior 0.01 and the paper's alpha and gamma a negative costs 7.538e-7 and a positive 1.128. A first loss far
    from this value means a wrong initialisation, wrong targets or a wrong loss.

    Args:
        prior: the probability that an untrained network gives to every class of every anchor.
        negatives: pairs of anchor and class with target 0, ignored anchors not counted.
        positives: pairs with target 1, one per positive anchor.
        alpha: as in :class:`FocalLoss`.
        gamma: as in :class:`FocalLoss`.
    """
    logit = torch.tensor(prior, dtype=torch.float64).logit()
    negative, positive = (
        sigmoid_focal_loss(logit, torch.tensor(target), alpha=alpha, gamma=gamma).item() for target in (0, 1)
    )
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
    """

    alpha: float | None = 0.25
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 < self.alpha < 1:
            raise UserError(f"alpha must lie between 0 and 1, neither included, or be None (off), got {self.alpha}")
        if not 0 <= self.gamma < math.inf:
            raise UserError(f"gamma must be a number of at least 0, got {self.gamma}")

    def __call__(self, raw: RawOutput, assignment: Assignment) -> Tensor:
        """The sum over all images, anchors and classes but the ignored: scalar float32 (float64 for float64 logits).

        Args:
            raw: logits in any float type and any dense memory layout, all levels alike in type and device. The gradient
                has the type and layout of each.
            assignment: positives and ignored anchors of the batch, on the device of the logits.
        """
        levels = [level if _is_dense(level) else level.contiguous() for level in raw.logits]
        positives = [
            _memory_offset(level, index, label, raw.num_classes)
            for level, (index, label) in zip(levels, assignment.positives_by_level(), strict=True)
        ]
        ignored = [
            _memory_offset(level, index, torch.zeros_like(index[:, 0]), raw.num_classes)
            for level, index in zip(levels, assignment.ignored_by_level(), strict=True)
        ]
        needs_gradient = torch.is_grad_enabled() and any(level.requires_grad for level in levels)
        return _ImplicitNegatives.apply(self, positives, ignored, raw.num_classes, needs_gradient, *levels)


class _ImplicitNegatives(torch.autograd.Function):
    """All logits as negatives, then corrections; the gradient is ready when the loss is.

    Positives (P_l,) and ignored (G_l,) of each level are offsets into its memory: of the entry of the true class, and
    of class 0. Whether a gradient is needed must be said: in here, ``no_grad`` cannot be told.
    """

    @staticmethod
    def forward(
        ctx: Any,
        loss: FocalLoss,
        positives: Sequence[Tensor],
        ignored: Sequence[Tensor],
        num_classes: int,
        needs_gradient: bool,
        *levels: Tensor,
    ) -> Tensor:
        numel = [level.numel() for level in levels]
        gradient = levels[0].new_empty(sum(numel)) if needs_gradient else None
        slices: Sequence[Tensor | None] = gradient.split(numel) if gradient is not None else [None] * len(levels)
        unit = _HALF_UNIT if levels[0].dtype == torch.float16 else 1.0
        work = _Work(loss, unit, levels[0], sum(numel))
        flats = [level.detach().as_strided((level.numel(),), (1,)) for level in levels]  # as they lie in memory
        work.take_all_as_negative(flats, slices)
        for i, level in enumerate(levels):
            work.correct_positives(flats[i], positives[i], slices[i])
            work.remove_ignored(flats[i], ignored[i], level.stride(1), num_classes, slices[i])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.unit, ctx.layouts = unit, [(level.shape, level.stride()) for level in levels]
        return work.total()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("FocalLoss has no second derivative (create_graph=True): use sigmoid_focal_loss instead")
        (gradient,) = ctx.saved_tensors
        # The buffer itself is handed out, unless the caller keeps the graph and may come again.
        if _graph_is_kept():
            gradient = gradient.clone()
        _multiply(gradient, grads[0] / ctx.unit)
        pieces = gradient.split([shape.numel() for shape, _ in ctx.layouts])
        return *(None,) * 5, *(piece.as_strided(*layout) for piece, layout in zip(pieces, ctx.layouts, strict=True))


class _Work:
    """The passes over memory of one forward pass. Losses and gradients here are ``unit`` times too large."""

    def __init__(self, loss: FocalLoss, unit: float, like: Tensor, entries: int) -> None:
        self.gamma, self.unit = loss.gamma, unit
        self.positive = unit * (1 if loss.alpha is None else loss.alpha)
        self.negative = unit * (1 if loss.alpha is None else 1 - loss.alpha)
        self.device, self.dtype = like.device, torch.promote_types(like.dtype, torch.float32)
        self.chunk = CPU_CHUNK if self.device.type == "cpu" else max(DEVICE_CHUNK, entries // 32)
        self.sums: list[Tensor] = []

    def total(self) -> Tensor:
        """All sums so far: float32 within a chunk, float64 over the chunks."""
        double = torch.float32 if self.device.type == "mps" else torch.float64
        return (torch.stack(self.sums).to(double).sum() / self.unit).to(self.dtype)

    def take_all_as_negative(self, flats: Sequence[Tensor], outs: Sequence[Tensor | None]) -> None:
        """Adds the loss of every logit (n,) of every level as a negative and writes its gradient to ``out`` (n,).

        On a CPU each thread takes the next block when it is done with one. With torch's own threads all would wait
        for each other after every operation, a thousand times per image, also for one that a data loader delays.
        """
        blocks: list[tuple[Tensor, Tensor | None]] = []
        for flat, out in zip(flats, outs, strict=True):
            size = BLOCK * self.chunk
            parts = flat.split(size)
            blocks += zip(parts, out.split(size) if out is not None else [None] * len(parts), strict=True)
        threads = min(torch.get_num_threads(), MOST_THREADS, len(blocks)) if self.device.type == "cpu" else 1
        if threads == 1:
            sums = [self._negatives(*block) for block in blocks]
        else:
            inference = torch.inference_mode(torch.is_inference_mode_enabled())  # each thread has a mode of its own
            with ThreadPoolExecutor(threads) as pool:
                sums = list(pool.map(inference(self._negatives), *zip(*blocks, strict=True)))
        self.sums += [total for block in sums for total in block]

    def correct_positives(self, flat: Tensor, index: Tensor, out: Tensor | None) -> None:
        """Replaces negatives at ``index`` (n,) by positives: the loss of x as positive is that of -x as negative."""
        x = flat[index].to(self.dtype)
        scratch = self._scratch(len(x))
        self.sums.append(-self._losses(x, self.negative, scratch).sum())
        self.sums.append(self._losses(x.neg_(), self.positive, scratch).sum())
        if out is not None:
            out[index] = self._gradient(x, scratch).neg_().to(out.dtype)

    def remove_ignored(self, flat: Tensor, first: Tensor, stride: int, num_classes: int, out: Tensor | None) -> None:
        """Takes back all classes of the anchors whose class 0 lies at ``first`` (n,)."""
        classes = torch.arange(num_classes, device=first.device) * stride
        for part in first.split(max(1, self.chunk // num_classes)) if len(first) else ():
            index = (part[:, None] + classes).flatten()
            scratch = self._scratch(len(index))
            self.sums.append(-self._losses(flat[index].to(self.dtype), self.negative, scratch).sum())
            if out is not None:
                out[index] = 0

    def _negatives(self, block: Tensor, out: Tensor | None) -> list[Tensor]:
        """The sums of the losses of each chunk of a block (n,); writes the gradient to ``out`` (n,)."""
        room, sums = self._scratch(min(len(block), self.chunk)), []
        outs = out.split(self.chunk) if out is not None else ()
        for i, narrow in enumerate(block.split(self.chunk)):
            x, scratch = narrow.to(self.dtype), room[:, : len(narrow)]
            sums.append(self._losses(x, self.negative, scratch).sum())
            if outs and narrow.dtype == self.dtype:
                self._gradient(x, scratch, outs[i])
            elif outs:
                outs[i].copy_(self._gradient(x, scratch))
        return sums

    def _scratch(self, length: int) -> Tensor:
        """Rows for loss, power, p, and 1 - p where it is needed."""
        return torch.empty(4 if self.gamma > 2 else 3, length, dtype=self.dtype, device=self.device)

    def _losses(self, x: Tensor, weight: float, scratch: Tensor) -> Tensor:
        """The weighted losses of x (n,) as negatives: a row of the scratch, all of which it fills."""
        loss, power, p = scratch[:3].unbind()
        torch.sigmoid(x, out=p)
        torch.pow(p, self.gamma, out=power).mul_(weight)
        F.softplus(x, threshold=40, out=loss)  # type: ignore[call-arg]  # -log(1 - p); the stub lacks out
        return loss.mul_(power)

    def _gradient(self, x: Tensor, scratch: Tensor, out: Tensor | None = None) -> Tensor:
        """Their derivatives, (1 - p) gamma loss + p power (appendix A), to ``out`` or the scratch, which it uses up."""
        loss, power, p = scratch[:3].unbind()
        out = power if out is None else out
        loss.mul_(self.gamma)
        if self.gamma <= 2:
            return torch.lerp(loss, power, p, out=out)
        q = torch.neg(x, out=scratch[3]).sigmoid_()  # 1 - p by subtraction is off by 1e-7, and gamma multiplies that
        return torch.addcmul(loss.mul_(q), power, p, out=out)


def _is_dense(level: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps or overlap, in any order of dimensions."""
    return torch.empty_like(level, device="meta").stride() == level.stride()  # torch keeps exactly such strides


def _memory_offset(level: Tensor, index: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """Index (n, 4) of image, anchor, y, x and label (n,) -> offsets (n,) into the memory of level (N, A*K, H, W)."""
    image, anchor, y, x = index.unbind(1)
    places = (image, anchor * num_classes + label, y, x)
    return sum((place * stride for place, stride in zip(places, level.stride(), strict=True)), torch.zeros_like(label))


def _graph_is_kept() -> bool:
    """Whether the running backward pass has ``retain_graph=True``; True where torch does not tell.

    Nothing public tells. Without the private function every backward pass copies the buffer of the gradient.
    """
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or ask()


def _multiply(gradient: Tensor, factor: Tensor) -> None:
    """Multiplies in place, in float32: a factor rounded to bfloat16 would be wrong by up to 0.4 %."""
    if gradient.device.type == "cpu":
        gradient.mul_(factor.item())
    else:
        for chunk in gradient.split(max(DEVICE_CHUNK, len(gradient) // 32)):
            chunk.copy_(chunk.to(factor.dtype).mul_(factor))
