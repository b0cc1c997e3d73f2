"""Matching on the lattice next to torchvision's dense matching, in one run: time, memory, and whether they agree.

Both match the same boxes to the same 201,600 anchors of an 800x1344 input: those of ``AnchorLattice()``, IoU 0.5 / 0.4,
best anchors forced. Theirs is ``box_iou`` and ``Matcher(0.5, 0.4, allow_low_quality_matches=True)`` with anchors made
before the clock starts; ours has no anchors to begin with.

* Time: rounds of one after the other, median.
* Memory: the most bytes that tensors hold at one time beyond what was there before, as ``torch.profiler`` counts them.
* Same: the same positive anchors for the same boxes and the same ignored anchors in every round, else the run fails.
* ATSS: the time of the adaptive rule, which torchvision does not have.

The second table matches 1,000 boxes while other processes multiply matrices with all cores: with all threads, as in the
process that trains, and with one, as in the processes that read images, where the training has it done.

    python benchmarks/matching.py
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable
from itertools import accumulate
from multiprocessing.synchronize import Barrier

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.ops import box_iou

from retinanet.anchors.atss import ATSS
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Match, Matcher
from retinanet.deploy.measure import describe_machine, time_in_turns
from retinanet.plotting.html import Table
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


def peak_bytes(function: Callable, target: Target) -> int:
    """The most bytes that tensors hold at one time while one image is matched."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function(target)
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(accumulate(changes))


def main() -> None:
    print("; ".join(describe_machine().values()) + f"; {torch.get_num_threads()} threads")
    find_theirs, rows, agreed = dense_matching(), [], True
    for count, rounds in ROUNDS.items():
        target = random_target(count)
        results: dict[str, list] = {"ours": [], "theirs": []}
        spreads = time_in_turns(
            {
                "ours": lambda target=target, kept=results["ours"]: kept.append(ours(target)),
                "theirs": lambda target=target, kept=results["theirs"]: kept.append(find_theirs(target)),
                "atss": lambda target=target: ATSS()(LATTICE, GRIDS, target.boxes, target.ignore),
            },
            rounds,
        )
        agree = all(same(match, dense) for match, dense in zip(results["ours"], results["theirs"], strict=True))
        agreed &= agree
        our_memory, their_memory = (peak_bytes(function, target) / 1e6 for function in (ours, find_theirs))
        mine, theirs = spreads["ours"].median, spreads["theirs"].median
        times = (mine * 1e3, theirs * 1e3, theirs / mine, spreads["atss"].median * 1e3)
        memory = (our_memory, their_memory, f"{our_memory / their_memory:.2%}")
        rows.append((count, *times, *memory, "yes" if agree else "NO"))
    headings = (
        "boxes",
        "ours, ms",
        "torchvision, ms",
        "ratio",
        "ATSS, ms",
        "ours, MB",
        "torchvision, MB",
        "share",
        "same",
    )
    print(Table(headings, rows, digits=(0, 1, 0, 0, 1, 2, 0, 0, 0)).to_markdown())
    measure_beside_others()
    if not agreed:
        sys.exit("the matches differ")


def measure_beside_others() -> None:
    """Both rules with all threads and with one, beside 0, 1 and 2 processes that use all cores."""
    target, every, rows = random_target(1000), torch.get_num_threads(), []

    def match_with(threads: int, matcher: Matcher | ATSS) -> None:
        torch.set_num_threads(threads)
        matcher(LATTICE, GRIDS, target.boxes, target.ignore)

    for others in range(3):
        fresh = multiprocessing.get_context("spawn")  # a forked process would wait for threads that it does not have
        begun = fresh.Barrier(others + 1)
        busy = [fresh.Process(target=multiply, args=(begun,), daemon=True) for _ in range(others)]
        for process in busy:
            process.start()
        begun.wait(60)
        spreads = time_in_turns(
            {
                f"{rule}, {threads}": lambda threads=threads, matcher=matcher: match_with(threads, matcher)
                for rule, matcher in (("IoU", Matcher()), ("ATSS", ATSS()))
                for threads in (every, 1)
            },
            9,
            warm_up=3,
        )
        rows.append((others, *(spread.median * 1e3 for spread in spreads.values())))
        for process in busy:
            process.kill()
            process.join()
    torch.set_num_threads(every)
    columns = (f"{name} thread{'s' * (name[-1] != '1')}, ms" for name in spreads)
    print(Table(("other processes", *columns), rows, digits=(0, 1, 1, 1, 1)).to_markdown())


def multiply(begun: Barrier) -> None:
    """What a busy process does."""
    matrix = torch.rand(600, 600)
    matrix @ matrix
    begun.wait(60)
    while True:
        matrix @ matrix


if __name__ == "__main__":
    main()
