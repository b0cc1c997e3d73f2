"""How much memory a training takes, found without running it: the network is walked through on tensors without data."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from retinanet.model.presets import Architecture
from retinanet.planning.machine import GB

# Measured, see docs/results/planning.md.
PROCESS = 0.8 * GB  # of Python with torch, timm, lightning, what evaluates and draws curves, and the data
CONTEXT = 0.6 * GB  # of CUDA and its libraries on the accelerator
WORKER = 0.1 * GB  # of a process that reads images, beyond what it shares
MOMENTS = {"adamw": 2, "sgd": 1}  # copies of the weights that an optimiser keeps


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that a training takes at its peak.

    Attributes:
        weights: the network, its gradient, the optimiser's moments and the moving average.
        activations: what the forward pass keeps for the backward pass.
        passing: the largest things that live for a moment: gradients of maps and the workspace of a convolution.
        process: of Python and its libraries; on an accelerator, of its context.
    """

    weights: float
    activations: float
    passing: float
    process: float

    @property
    def peak(self) -> float:
        """All of it."""
        return self.weights + self.activations + self.passing + self.process


def predict_memory(
    architecture: Architecture,
    num_classes: int,
    size: tuple[int, int],
    images: int,
    *,
    optimizer: str = "adamw",
    average: bool = True,
    bf16: bool = False,
    accelerator: bool = False,
) -> MemoryNeed:
    """The peak of a training step, of the accelerator or, on a CPU, of the process.

    Args:
        architecture: of the network.
        num_classes: K.
        size: (height, width) of the padded images.
        images: of a batch, or of a part of it where gradients are accumulated.
        optimizer: adamw or sgd.
        average: whether a moving average of the weights is kept.
        bf16: whether maps are kept in bf16.
        accelerator: whether the network is on one.
    """
    saved, largest, weights = _walk(architecture, num_classes, size)
    saved, largest = saved * images, largest * images
    if bf16:  # weights stay fp32; a cast copy of each lives through the step
        saved, largest = saved / 2 + weights / 2, largest / 2
    pixels = images * 3 * size[0] * size[1]
    return MemoryNeed(
        weights=weights * (2 + MOMENTS[optimizer] + average),
        activations=saved + 5.0 * pixels,  # the bytes, and the images as floats
        passing=2 * largest,
        process=CONTEXT if accelerator else PROCESS,
    )


@cache
def _walk(architecture: Architecture, num_classes: int, size: tuple[int, int]) -> tuple[float, float, float]:
    """Bytes that one image keeps for the backward pass, of its largest map, and of the weights."""
    with torch.device("meta"):
        net = architecture.build(num_classes)
        batch = torch.empty(1, 3, *size).to(memory_format=torch.channels_last)
    net.train()
    own = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[StorageWeakRef, Tensor] = {}  # one tensor of each piece of memory

    def keep(tensor: Tensor) -> Tensor:
        if (piece := StorageWeakRef(tensor.untyped_storage())) not in own:
            kept.setdefault(piece, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        raw = net(batch)
    sizes = [tensor.untyped_storage().nbytes() for tensor in kept.values()]
    outputs = sum(tensor.nbytes for tensor in (*raw.logits, *raw.deltas))
    # the loss keeps a gradient of the outputs
    return sum(sizes) + 2 * outputs, max(sizes, default=0), sum(p.nbytes for p in net.parameters())
