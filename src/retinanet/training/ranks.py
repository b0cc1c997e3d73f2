"""What the processes of a run agree on."""

from __future__ import annotations

import torch
from lightning_fabric import Fabric
from torch import Tensor


def summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum over all processes, on each of them."""
    result = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(result, Tensor)
    return result


def on_any(fabric: Fabric, here: bool) -> bool:
    """Whether something holds on any process; all of them get the same answer, so none is left waiting for another."""
    if fabric.world_size == 1:
        return here
    return bool(summed(fabric, torch.tensor([float(here)], device=fabric.device)) > 0)
