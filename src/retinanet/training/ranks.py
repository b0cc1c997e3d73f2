"""What the processes of a run agree on."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning_fabric import Fabric
from torch import Tensor, distributed

from retinanet.errors import UserError
from retinanet.training.config import RunConfig

PATIENCE = 20.0  # seconds in which a process may notice by itself that its launcher is gone


def is_first_process() -> bool:
    """Whether this process is the first of its run, as its launcher says; known before the processes have met."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "SLURM_PROCID"))


def count_processes(run: RunConfig) -> int:
    """How many processes a run has, as far as that is known before they have met."""
    devices = int(run.devices) if str(run.devices).isdigit() else 1
    if run.devices == "auto" and run.accelerator != "cpu" and torch.accelerator.is_available():
        devices = torch.accelerator.device_count()
    return max(int(os.environ.get("WORLD_SIZE", "1")), devices * run.nodes)


def sum_over_ranks(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum over all processes, on each of them."""
    result = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(result, Tensor)
    return result


def on_any(fabric: Fabric, here: bool) -> bool:
    """Whether something holds on any process; all of them get the same answer, so none is left waiting for another."""
    if fabric.world_size == 1:
        return here
    return bool(sum_over_ranks(fabric, torch.tensor([float(here)], device=fabric.device)) > 0)


@contextmanager
def noticing_lost_ranks(fabric: Fabric) -> Iterator[None]:
    """End this process with a message when another process of the run has ended.

    gloo tells at the next collective. Where it does not (NCCL waits), a thread of every process but the first of a
    machine watches the process that started it.

    Raises:
        UserError: a collective operation failed.
    """
    if fabric.world_size == 1:
        yield
        return
    done = threading.Event()
    if fabric.local_rank > 0:
        threading.Thread(target=_watch_launcher, args=(os.getppid(), done), daemon=True).start()
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise UserError(
            f"another process of the run has ended; its own message says why, or it was killed ({reason}). To go on "
            "from the last saved step, start the run again with --resume"
        ) from None
    finally:
        done.set()


def _watch_launcher(launcher: int, done: threading.Event) -> None:
    while not done.wait(1.0):
        if os.getppid() != launcher:
            if not done.wait(PATIENCE):
                print("retinanet: the process that started this one has ended, so this one ends", file=sys.stderr)
                os._exit(2)
            return
