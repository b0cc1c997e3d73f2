"""Seconds and memory of competitors, and the machine that they were measured on.

``python -m retinanet.deploy.measure`` is the process whose memory is measured. Nothing but what its model needs is
imported here, so that an exported model is measured without torch.
"""

from __future__ import annotations

import json
import logging
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retinanet.inference.backend import Mode, count_cores
from retinanet.inference.predictor import Predictor

PAUSE = 0.05  # seconds; threads of the runtime that ran last stop spinning in it
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino")
T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Spread:
    """Repeated measurements of one thing.

    Attributes:
        median: half of them are below.
        low: a quarter of them are below.
        high: a quarter of them are above.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The median and the quartiles."""
        low, median, high = np.percentile(values, (25, 50, 75)).tolist()
        return cls(median, low, high)


def take_turns(calls: Mapping[str, Callable[[int], T]], rounds: int) -> dict[str, list[T]]:
    """Every competitor once in a round, round after round: what slows the machine for a while slows all of them.

    Args:
        calls: by name of the competitor; given the number of the round, they say what they took. They are warm.
        rounds: how many; before each call there is a pause.
    """
    results: dict[str, list[T]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE)
            results[name].append(call(number))
    return results


def time_in_turns(functions: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: int = 1) -> dict[str, Spread]:
    """Seconds of each function, after some rounds of all that do not count; see :func:`take_turns`."""

    def measure(function: Callable[[], object]) -> float:
        began = time.perf_counter()
        function()
        return time.perf_counter() - began

    calls = {name: lambda _, function=function: measure(function) for name, function in functions.items()}
    return {name: Spread.of(times[warm_up:]) for name, times in take_turns(calls, warm_up + rounds).items()}


def describe_machine() -> dict[str, str]:
    """The CPU, the cores in use, the versions of what is measured, and the date."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "machine": f"{cpu}, {count_cores()} cores in use",
        "versions": ", ".join(versions),
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory(model: str, options: dict[str, Any], images: Sequence[Path]) -> float | None:
    """Peak memory in MB of a process that loads a model and predicts some images, one by one; None if it failed.

    Args:
        model: for :meth:`Predictor.load`.
        options: likewise; ``{"torchvision": True}`` is torchvision's own network with the weights of a model folder.
        images: paths.
    """
    words = json.dumps([model, options, [str(path) for path in images]])
    command = [sys.executable, "-m", "retinanet.deploy.measure", words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()
        _log.warning("the memory of %s could not be measured: %s", model, reason[-1] if reason else done.returncode)
        return None
    return float(done.stdout.split()[-1])


def load_predictor(model: str | Path, options: Mapping[str, Any], mode: Mode = "latency") -> Predictor:
    """A competitor, ready to run; for the options see :func:`peak_memory`."""
    if not options.get("torchvision"):
        return Predictor.load(model, mode=mode, **options)
    from retinanet.deploy.competitors import TorchvisionBackend
    from retinanet.detector import Detector

    return Predictor(TorchvisionBackend(Detector.load(model)))


def measure_peak() -> float:
    """MB; from the kernel where it tells, because ``ru_maxrss`` begins with the memory of the parent process."""
    status = Path("/proc/self/status")
    if status.is_file():
        fields = dict(line.partition(":")[::2] for line in status.read_text(encoding="utf-8").splitlines())
        if "VmHWM" in fields:
            return int(fields["VmHWM"].split()[0]) * 1024 / 1e6
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _main() -> None:
    model, options, images = json.loads(sys.argv[1])
    predictor = load_predictor(model, options)
    for image in images:
        predictor(image)
    print(measure_peak())


if __name__ == "__main__":
    _main()
