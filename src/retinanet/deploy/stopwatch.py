"""Times of competitors that take turns, and what is told of the machine beside them."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from retinanet.inference.backend import count_cores

PAUSE = 0.05  # seconds; threads of the runtime that ran last stop spinning in it
PACKAGES = ("torch", "torchvision", "onnxruntime", "openvino")

Seconds = Mapping[str, float]  # of the stages of one call


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
    def of(cls, values: list[float]) -> Spread:
        """The median and the quartiles."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


def take_turns(
    calls: Mapping[str, Callable[[int], Seconds]], rounds: int, *, pause: float | None = None
) -> dict[str, list[Seconds]]:
    """Every competitor once in a round, round after round: what slows the machine for a while slows all of them.

    Args:
        calls: by name of the competitor; given the number of the round, they say what they took. They are warm.
        rounds: how many.
        pause: seconds before each call; by default ``PAUSE``.
    """
    taken: dict[str, list[Seconds]] = {name: [] for name in calls}
    for number in range(rounds):
        for name, call in calls.items():
            time.sleep(PAUSE if pause is None else pause)
            taken[name].append(call(number))
    return taken


def time_in_turns(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The median seconds of each function, after one round of all that warms up; see :func:`take_turns`."""

    def measure(function: Callable[[], object]) -> Callable[[int], Seconds]:
        def call(_: int) -> Seconds:
            began = time.perf_counter()
            function()
            return {"all": time.perf_counter() - began}

        return call

    calls = {name: measure(function) for name, function in functions.items()}
    taken = take_turns(calls, 1 + rounds)
    return {name: statistics.median(call["all"] for call in times[1:]) for name, times in taken.items()}


def describe_machine() -> dict[str, str]:
    """The CPU, the cores in use, the versions of what is measured, and the date."""
    versions = []
    for package in PACKAGES:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return {
        "machine": f"{_read_cpu_name()}, {count_cores()} cores in use",
        "versions": ", ".join(versions),
        "date": time.strftime("%Y-%m-%d"),
    }


def _read_cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
