"""Matching on the lattice next to torchvision's dense matching, in one run: time, memory, and whether they agree.

Both match the same boxes to the same 201,600 anchors of an 800x1344 input (``AnchorLattice()``, IoU 0.5 / 0.4, best anchors
forced). Theirs is ``box_iou`` and ``Matcher(0.5, 0.4, allow_low_quality_matches=True)`` on anchors that were made before
the clock starts; ours has no anchors to begin with.

* Time: rounds of one after the other, median.
* Memory: the growth of the peak resident set while one image is matched, each in a process of its own, after a warm-up
  with one box.
* Same: the same positive anchors for the same boxes and the same ignored anchors, else the run fails.

    python benchmarks/matching.py
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from retinanet.boxes.lattice import AnchorLattice
from retinanet.boxes.matching import Match, Matcher
from retinanet.types import Target

HEIGHT, WIDTH = 800, 1344
ROUNDS = {10: 15, 100: 7, 1000: 3}
LATTICE = AnchorLattice()
GRIDS = LATTICE.grids(HEIGHT, WIDTH)


def random_target(count: int) -> Target:
    """Boxes anywhere, sides of 8 to 512 px, small ones as frequent as large ones, at most 1:2.7."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])
    side = 8 * 64 ** torch.rand(count, 1, generator=generator)
    half = side / 2 * torch.exp(torch.rand(count, 2, generator=generator) - 0.5)
    boxes = torch.cat([centre - half, centre + half], dim=1)
    boxes = boxes.clamp(min=torch.zeros(4), max=torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32))
    return Target(boxes, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool))


def ours(target: Target) -> Match:
    return Matcher()(LATTICE, GRIDS, target)


def dense_matching() -> Callable[[Target], Tensor]:
    """Torchvision's way, with its anchors made."""
    anchors = LATTICE.boxes(torch.arange(LATTICE.count(GRIDS)), GRIDS)
    matcher = TorchvisionMatcher(0.5, 0.4, allow_low_quality_matches=True)
    return lambda target: matcher(box_iou(target.boxes, anchors))


def same(match: Match, dense: Tensor) -> bool:
    """Whether a match says what torchvision's (A,) box indices say."""
    return (
        torch.equal(match.positive, (dense >= 0).nonzero().flatten())
        and torch.equal(match.box, dense[match.positive])
        and torch.equal(match.ignored, (dense == TorchvisionMatcher.BETWEEN_THRESHOLDS).nonzero().flatten())
    )


def timed(function: Callable, target: Target) -> tuple[float, Match | Tensor]:
    start = time.perf_counter()
    result = function(target)
    return time.perf_counter() - start, result


def times(count: int, theirs: Callable[[Target], Tensor]) -> tuple[float, float, bool]:
    """Median seconds of ours and of theirs, and whether every round agreed."""
    target, seconds, agree = random_target(count), [], True
    ours(target)
    for _ in range(ROUNDS[count]):
        our_time, match = timed(ours, target)
        their_time, dense = timed(theirs, target)
        seconds.append((our_time, their_time))
        agree &= same(match, dense)
    our_times, their_times = zip(*seconds, strict=True)
    return statistics.median(our_times), statistics.median(their_times), agree


def peak_growth(who: str, count: int) -> int:
    """Bytes by which matching one image raises the peak resident set of this process."""
    function = ours if who == "ours" else dense_matching()
    target = random_target(count)
    function(random_target(1))
    reset = Path("/proc/self/clear_refs")
    if reset.exists():  # else the peak of the imports may hide a few MB
        reset.write_text("5")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    function(target)
    unit = 1 if sys.platform == "darwin" else 1024
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * unit


def memory(who: str, count: int) -> int:
    """The same, measured in a fresh process."""
    command = [sys.executable, __file__, "--memory", who, str(count)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def machine() -> str:
    """What it runs on, for the head of the table."""
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if (info.exists())
        else []
    )
    name = names[0] if names else platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.1f}; "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", nargs=2, metavar=("WHO", "BOXES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory:
        print(peak_growth(arguments.memory[0], int(arguments.memory[1])))
        return
    print(machine())
    print("| boxes | ours, s | torchvision, s | ratio | ours, MB | torchvision, MB | share | same |")
    print("|---|---|---|---|---|---|---|---|")
    theirs, agreed = dense_matching(), True
    for count in ROUNDS:
        our_time, their_time, agree = times(count, theirs)
        our_memory, their_memory = memory("ours", count), memory("theirs", count)
        agreed &= agree
        print(
            f"| {count} | {our_time:.4f} | {their_time:.3f} | {their_time / our_time:.0f}x "
            f"| {our_memory / 1e6:.1f} | {their_memory / 1e6:.0f} | {our_memory / their_memory:.2%} "
            f"| {'yes' if agree else 'NO'} |"
        )
    if not agreed:
        sys.exit("the matches differ")


if __name__ == "__main__":
    main()
