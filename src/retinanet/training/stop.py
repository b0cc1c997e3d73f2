"""Why a run stops before its end, a number that is not finite; and what is said of an absurd gradient."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from lightning_fabric import Fabric

from retinanet.errors import UserError
from retinanet.files import write_tensors
from retinanet.training.ranks import on_any
from retinanet.types import Batch

ABSURD, ABSURD_RATIO = 1e6, 1e4
REMEMBERED, ENOUGH = 100, 20  # steps


class GradientWatch:
    """Notices a finite but absurd norm of the gradient, which clipping would hide: the step still goes its way.

    Absurd is a norm above 1e6 at any step. After the warm-up it is also one above 1e4 times the usual, the median of
    the last 100 steps (20 at least). During warm-up peaks are normal, while the heads leave their initialisation, so
    nothing is compared there.

    Args:
        warmup: steps of the warm-up.
    """

    def __init__(self, warmup: int) -> None:
        self._warmup = warmup
        self._norms: deque[float] = deque(maxlen=REMEMBERED)
        self._warned = False

    def warning(self, norm: float, step: int, batches: Sequence[Batch]) -> str | None:
        """What to say after a step; once only.

        Args:
            norm: of its gradient, before clipping; one that is not finite is :func:`stop_if_not_finite`'s business.
            step: optimiser step, from 0.
            batches: what the gradient was computed from.
        """
        if not math.isfinite(norm):
            return None
        known = step >= self._warmup and len(self._norms) >= ENOUGH
        usual = median(self._norms) if known else math.inf
        self._norms.append(norm)
        if self._warned or not (norm > ABSURD or norm > ABSURD_RATIO * usual):
            return None
        self._warned = True
        beside = f"; usual is {usual:.3g}" if known else ""
        images = ", ".join(str(sample.path) for batch in batches for sample in batch.samples)
        return (
            f"warning: the norm of the gradient is {norm:.3g} at step {step + 1}{beside}. Clipping hides this, but the "
            f"direction of such a step is likely to be wrong. Its images are {images}. Look at their boxes, lower "
            "--optim.lr, or train with --run.precision 32. Said once; log.csv has the norm of every step"
        )


def stop_if_not_finite(
    fabric: Fabric, values: Mapping[str, float], batches: Sequence[Batch], folder: Path, step: int
) -> None:
    """Save the batches and stop where a loss or gradient is NaN or infinite, on all processes together.

    Args:
        fabric: of the run.
        values: name -> value, such as ``box loss``.
        batches: what they were computed from.
        folder: where to save them.
        step: optimiser step, from 0.

    Raises:
        UserError: one is not finite, here or on another process.
    """
    wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if not on_any(fabric, wrong is not None):
        return
    if wrong is None:
        raise UserError(f"the loss of another process is not finite at step {step + 1}; its message names the images")
    alone = fabric.world_size == len(batches) == 1
    files = []
    for number, batch in enumerate(batches):
        name = "nonfinite_batch.pt" if alone else f"nonfinite_batch_{fabric.global_rank}_{number}.pt"
        content = {  # plain tensors and texts, so that torch.load reads them with weights_only=True
            "images": batch.images.cpu(),
            "sizes": batch.sizes,
            "targets": [vars(target) for target in batch.targets],
            "paths": [str(sample.path) for sample in batch.samples],
        }
        write_tensors(folder / name, content)
        files.append(folder / name)
    images = [str(sample.path) for batch in batches for sample in batch.samples]
    raise UserError(
        f"the {wrong} is {values[wrong]} at step {step + 1}. The batch is saved in {', '.join(map(str, files))}; its "
        f"images are {', '.join(images)}. Look at their boxes, lower --optim.lr, or train with --run.precision 32"
    )
