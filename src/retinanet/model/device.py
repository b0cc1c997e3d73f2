"""Which device to run on."""

from __future__ import annotations

import torch

from retinanet.errors import UserError


def choose_device(device: str) -> torch.device:
    """``auto`` is the first accelerator, else the CPU.

    Raises:
        UserError: there is no such device here.
    """
    if device == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen).cpu()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {device!r} cannot be used here ({reason}). Expected auto, cpu, cuda or mps") from None
    return chosen


def cpu_computes_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware; elsewhere it would be emulated and slower than fp32."""
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
