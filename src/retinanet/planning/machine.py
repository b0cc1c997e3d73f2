"""What a training runs on."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from retinanet.errors import UserError
from retinanet.inference.backend import count_cores
from retinanet.model.device import choose_device, cpu_computes_bf16
from retinanet.options import explain_unknown_fields
from retinanet.plain import check_types

GB = 1e9
BUSY = 0.5  # cores that others take, from which on it is told


@explain_unknown_fields
@dataclass(frozen=True)
class Machine:
    """The machine of a training; null is what this one has.

    Attributes:
        device: cpu, cuda or mps.
        cores: of the CPU, that the training may use.
        memory: GB of main memory that are free.
        device_memory: GB of memory of one accelerator.
        disk: GB free where the run is written.
    """

    device: str | None = None
    cores: int | None = None
    memory: float | None = None
    device_memory: float | None = None
    disk: float | None = None

    def __post_init__(self) -> None:
        check_types(self, "machine")
        for name in ("cores", "memory", "device_memory", "disk"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise UserError(f"machine.{name}: expected a number above 0, got {value!r}")
        if self.device is not None and self.device not in ("cpu", "cuda", "mps"):
            raise UserError(f"machine.device: expected cpu, cuda or mps, got {self.device!r}")


@dataclass(frozen=True)
class Host:
    """A machine of which all is known.

    Attributes:
        device: cpu, cuda or mps.
        cores: that the training may use.
        memory: bytes of main memory that are free.
        device_memory: bytes of an accelerator; None on a CPU.
        disk: bytes that are free.
        bf16: whether it computes in bf16 by itself.
        here: whether it is this machine, so that a step can be timed.
        busy: cores that other work takes at the moment.
    """

    device: str
    cores: int
    memory: float
    device_memory: float | None
    disk: float
    bf16: bool
    here: bool
    busy: float = 0.0

    @property
    def room(self) -> float:
        """Bytes in which the training has to fit: of the accelerator, or of the main memory on a CPU."""
        return self.memory if self.device_memory is None else self.device_memory

    def summary(self) -> str:
        """The machine in one line."""
        where = self.device if self.device_memory is None else f"{self.device} with {self.device_memory / GB:.0f} GB"
        text = (
            f"{where}, {self.cores} cores, {self.memory / GB:.1f} GB of memory and {self.disk / GB:.0f} GB of disk free"
        )
        return text + self.others

    @property
    def others(self) -> str:
        """That other work slows this machine, to be added to a sentence; empty where it does not."""
        if self.busy < BUSY:
            return ""
        return f"; other work takes about {min(self.busy, self.cores):.1f} of the cores now"


def find_host(machine: Machine, accelerator: str = "auto", folder: Path = Path()) -> Host:
    """This machine, with what ``machine`` says of another one in its place.

    Args:
        machine: what is to be assumed.
        accelerator: as in ``run.accelerator``; ``machine.device`` has the last word.
        folder: where the run is written; a part of the path that exists is asked for its disk.

    Raises:
        UserError: a GPU that is not here, without its memory.
    """
    device = machine.device or ("cuda" if accelerator == "gpu" else accelerator)
    try:
        device = choose_device(device).type
        present = True
    except UserError:
        present = False
    if not present and machine.device_memory is None:
        raise UserError(
            f"there is no {device} device here. Take --device cpu; to plan for one, say its memory: "
            "--machine.device_memory 24"
        )
    is_gpu = present and device == "cuda"
    own_memory = float(torch.cuda.get_device_properties(0).total_memory) if is_gpu else None
    existing = next((parent for parent in (folder, *folder.absolute().parents) if parent.is_dir()), Path("/"))
    return Host(
        device=device,
        cores=machine.cores or count_cores(),
        memory=machine.memory * GB if machine.memory else find_free_memory(),
        device_memory=machine.device_memory * GB if machine.device_memory else own_memory,
        disk=machine.disk * GB if machine.disk else shutil.disk_usage(existing).free,
        bf16=_computes_bf16(device, present),
        here=present and machine.cores is None and machine.device_memory is None,
        busy=os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0,
    )


def find_free_memory() -> float:
    """Bytes of main memory that this process may still take: of the machine, or of its container where that is less."""
    free = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if hasattr(os, "sysconf") else 8 * GB
    if os.path.isfile("/proc/meminfo"):
        facts = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
        free = float(facts.get("MemAvailable", f"{free / 1024} kB").split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.is_file() and used.is_file() and (most := limit.read_text().strip()).isdigit():
        free = min(free, float(most) - float(used.read_text()))
    return free


def _computes_bf16(device: str, present: bool) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported() if present else True  # all that have 16 GB or more and are not of 2017
    return device == "cpu" and cpu_computes_bf16()
