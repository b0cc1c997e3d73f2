"""The sum of the focal loss over all logits of a batch, of which nearly all are negatives.

Every logit is taken as a negative, as it lies in memory; then the few that are positive or ignored are corrected. No
tensor of targets exists, nothing is permuted or concatenated, and one buffer of the size of the logits holds the
gradient, which has a closed form. :class:`~retinanet.losses.focal.FocalLoss` is the interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Entries that an operation takes at a time. On a CPU they stay in the cache of one core, and below 2**15 torch leaves
# them to one core; on another device it is the least, and few launches matter more.
CPU_CHUNK = 31 * 2**10
DEVICE_CHUNK = 2**20
BLOCK = 8  # chunks that a thread takes at a time
MOST_THREADS = 8  # beyond, they wait for the interpreter more than they compute

# float16 resolves nothing below 6e-8, where most gradients of negatives lie, so its buffer holds them this much larger.
# No gradient of a logit exceeds 1.32 for gamma up to 5, and the bound grows like log(gamma): nothing overflows.
_HALF_UNIT = 2.0**14


class ImplicitNegatives(torch.autograd.Function):
    """All logits as negatives, then corrections; the gradient is ready when the loss is.

    Positives (P_l,) and ignored (G_l,) of each level are offsets into its memory: of the entry of the true class, and
    of class 0. Scores (P_l,) are what the positives should say, None for 1. Whether a gradient is needed must be said:
    in here, ``no_grad`` cannot be told.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rule: tuple[float | None, float, int],
        positives: Sequence[Tensor],
        scores: Sequence[Tensor | None],
        ignored: Sequence[Tensor],
        needs_gradient: bool,
        *levels: Tensor,
    ) -> Tensor:
        """Alpha, gamma and K; for each level positives, scores, ignored and logits -> the sum."""
        alpha, gamma, num_classes = rule
        numel = [level.numel() for level in levels]
        gradient = levels[0].new_empty(sum(numel)) if needs_gradient else None
        slices: Sequence[Tensor | None] = gradient.split(numel) if gradient is not None else [None] * len(levels)
        unit = _HALF_UNIT if levels[0].dtype == torch.float16 else 1.0
        work = _Work(alpha, gamma, unit, levels[0], sum(numel))
        flats = [level.detach().as_strided((level.numel(),), (1,)) for level in levels]  # as they lie in memory
        work.take_all_as_negative(flats, slices)
        for i, level in enumerate(levels):
            work.correct_positives(flats[i], positives[i], scores[i], slices[i])
            work.remove_ignored(flats[i], ignored[i], level.stride(1), num_classes, slices[i])
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.unit, ctx.layouts = unit, [(level.shape, level.stride()) for level in levels]
        return work.total()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The buffer that the forward pass filled, times the gradient of the sum."""
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

    def __init__(self, alpha: float | None, gamma: float, unit: float, like: Tensor, entries: int) -> None:
        self.gamma, self.unit = gamma, unit
        self.positive = unit * (1 if alpha is None else alpha)
        self.negative = unit * (1 if alpha is None else 1 - alpha)
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

    def correct_positives(self, flat: Tensor, index: Tensor, score: Tensor | None, out: Tensor | None) -> None:
        """Replaces negatives at ``index`` (n,) by positives: the loss of x as positive is that of -x as negative."""
        x = flat[index].to(self.dtype)
        scratch = self._scratch(len(x))
        self.sums.append(-self._losses(x, self.negative, scratch).sum())
        if score is not None:
            loss, slope = _quality(x, score.to(self.dtype), self.gamma)
            self.sums.append(self.positive * loss.sum())
            if out is not None:
                out[index] = (self.positive * slope).to(out.dtype)
            return
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


def _quality(x: Tensor, score: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """The loss of logits x towards scores, and its derivative, all (n,), without alpha: few, so nothing is reused."""
    p = x.sigmoid()
    away = p - score
    entropy = score * F.softplus(-x) + (1 - score) * F.softplus(x)
    focus = away.abs().pow(gamma)
    steeper = gamma * away.abs().pow(gamma - 1) * away.sign() * p * (1 - p) if gamma else torch.zeros_like(p)
    return focus * entropy, steeper * entropy + focus * away


def is_dense(level: Tensor) -> bool:
    """Whether the tensor fills its memory without gaps or overlap, in any order of dimensions."""
    return torch.empty_like(level, device="meta").stride() == level.stride()  # torch keeps exactly such strides


def memory_offset(level: Tensor, index: Tensor, label: Tensor, num_classes: int) -> Tensor:
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
