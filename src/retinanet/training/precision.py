"""Devices and number formats: what runs where, in what."""

from __future__ import annotations

import os
from types import MethodType
from typing import Any, Literal, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from retinanet.errors import UserError
from retinanet.model.device import cpu_computes_bf16
from retinanet.training.config import RunConfig


def build_fabric(run: RunConfig) -> Fabric:
    """Devices, processes and precision as asked for; ``auto`` is one CPU process, or all accelerators.

    Under torchrun, the processes that it started are those of the run.

    Raises:
        UserError: an accelerator or a number of devices that is not here, or processes started in an unknown way.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and "LOCAL_RANK" not in os.environ:
        raise UserError(
            f"WORLD_SIZE is {world}, but LOCAL_RANK is not set: each process would train a model of its own. Start the "
            "run with torchrun, or once with --devices"
        )
    local, nodes = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), run.nodes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        nodes = world // local
    if nodes > 1 and world == 1 and not {"MASTER_ADDR", "SLURM_NTASKS"} & os.environ.keys():
        raise UserError(
            f"--nodes {nodes}: the machines have to find each other. Start the run on each with "
            f"torchrun --nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
        )
    devices: int | str = int(run.devices) if str(run.devices).lstrip("-").isdigit() else run.devices
    gpu = run.accelerator not in ("auto", "cpu") or (run.accelerator == "auto" and torch.accelerator.is_available())
    if devices == "auto" and not gpu:
        devices = local
    if isinstance(devices, int) and not gpu and devices > (os.cpu_count() or 1):
        raise UserError(f"--devices {devices}: this machine has {os.cpu_count()} cores, each process needs one")
    bf16 = torch.cuda.is_bf16_supported() if gpu and torch.cuda.is_available() else cpu_computes_bf16() and not gpu
    auto: Literal["bf16", "32"] = "bf16" if bf16 else "32"
    wanted = auto if run.precision == "auto" else run.precision
    if wanted == "16" and not gpu:
        raise UserError("precision 16 needs an accelerator; on a CPU choose bf16 or 32")
    precision = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[wanted]
    try:
        return Fabric(accelerator=run.accelerator, devices=devices, num_nodes=nodes, precision=cast(Any, precision))
    except (ValueError, RuntimeError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"cannot train on accelerator {run.accelerator}, devices {run.devices}: {reason}") from None


def prepare_for_cpu(net: nn.Module) -> None:
    """Let convolutions whose bf16 is slow or wrong on a CPU compute in fp32 under autocast; all others keep its bf16.

    * Depthwise ones: their bf16 backward pass has no fast path. With a stride of 2 it took 4 to 16 times as long as in
      fp32 (AMD EPYC with AVX512_BF16, torch 2.15).
    * Strided ones over a map that is smaller than their kernel, which are P6, P7 and the end of the backbone for the
      smallest images. At a width of one cell, with images of up to 64 pixels, their bf16 weight gradient was seen to be
      garbage on a CPU with bf16, infinite or finite (1e12). Such maps are so small that fp32 costs nothing.

    Weights and names stay as they are.
    """
    for module in net.modules():
        if not isinstance(module, nn.Conv2d):
            continue
        # methods, not closures: a deep copy of the module is then bound to the copy's weights
        if 1 < module.groups == module.in_channels:
            module.forward = MethodType(_forward_in_fp32, module)  # type: ignore[method-assign]
        elif max(module.stride) > 1:
            module.forward = MethodType(_forward_small_in_fp32, module)  # type: ignore[method-assign]


def _forward_small_in_fp32(self: nn.Conv2d, images: Tensor) -> Tensor:
    if min(images.shape[-2:]) < max(self.kernel_size):
        return _forward_in_fp32(self, images)
    return type(self).forward(self, images)


def _forward_in_fp32(self: nn.Conv2d, images: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return type(self).forward(self, images.float()).to(images.dtype)
