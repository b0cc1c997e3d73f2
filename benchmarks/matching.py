"""Matching on the lattice next to torchvision's dense matching, in one run: time, memory, and whether they agree.

Both match the same boxes to the same 201,600 anchors of an 800x1344 input: those of ``AnchorLattice()``, IoU 0.5 / 0.4,
best anchors forced. Theirs is ``box_iou`` and ``Matcher(0.5, 0.4, allow_low_quality_matches=True)`` with anchors made
before the clock starts; ours has no anchors to begin with.

* Time: rounds of one after the other, median.
* Memory: the most bytes that tensors hold at one time beyond what was there before, as ``torch.profiler`` counts them.
* Same: the same positive anchors for the same boxes and the same ignored anchors in every round, else the run fails.

    python benchmarks/matching.py
"""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Match, Matcher
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
    return Matcher()(LATTICE, GRIDS, target.boxes, target.ignore)


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


def peak_bytes(function: Callable, target: Target) -> int:
    """The most bytes that tensors hold at one time while one image is matched."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(target)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def machine() -> str:
    """What it runs on, for the head of the table."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    load = os.getloadavg()[0]
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load {load:.1f}; "
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )


def main() -> None:
    print(machine())
    print("| boxes | ours, ms | torchvision, ms | ratio | ours, MB | torchvision, MB | share | same |")
    print("|---|---|---|---|---|---|---|---|")
    theirs, agreed = dense_matching(), True
    for count in ROUNDS:
        our_time, their_time, agree = times(count, theirs)
        our_memory, their_memory = (peak_bytes(function, random_target(count)) for function in (ours, theirs))
        agreed &= agree
        print(
            f"| {count} | {our_time * 1e3:.1f} | {their_time * 1e3:.0f} | {their_time / our_time:.0f}x "
            f"| {our_memory / 1e6:.2f} | {their_memory / 1e6:.0f} | {our_memory / their_memory:.2%} "
            f"| {'yes' if agree else 'NO'} |",
            flush=True,
        )
    if not agreed:
        sys.exit("the matches differ")


if __name__ == "__main__":
    main()
