"""What the fast path is worth: the same network on the CPU in four ways, in one run.

* eager: as it is trained, images contiguous;
* folded: batch norms folded into the convolutions, channels last;
* fast: our convolutions on top of that, as ``predict`` runs a model folder;
* compiled: ``torch.compile`` with ``freezing`` under ``no_grad``, from the folded network. It needs a C++ compiler, and
  the table says why it is missing where it cannot be made.

Measured is the network alone, batch 1, on all cores. After a warm-up all take turns; times are medians with quartiles,
and the ratio is to eager. Weights are random, which changes no time. Where other processes run beside, compare the time
of the processor, which counts all threads of this process alone; threads that wait must sleep for that
(OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0).

    python benchmarks/fast_path.py [--repeats 20] [--only lite] [--without compiled]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from retinanet.deploy.measure import Spread, describe_machine, take_turns
from retinanet.inference.backend import count_cores
from retinanet.model.fast import use_fast_convolutions
from retinanet.model.fold import fold_batch_norms
from retinanet.model.presets import preset
from retinanet.plotting.html import Table

NETWORKS = {"resnet50": 640, "lite": 384}  # preset: pixels of both sides
WAYS = ("eager", "folded", "fast", "compiled")
CLASSES = 80


def prepare_ways(name: str, without: list[str]) -> tuple[dict[str, nn.Module | Callable[[Tensor], object]], list[str]]:
    """The network in each way, and why others are missing."""
    torch.manual_seed(0)
    eager = preset(name).build(CLASSES).eval().requires_grad_(False)
    folded = fold_batch_norms(eager).to(memory_format=torch.channels_last)
    ways: dict[str, nn.Module | Callable[[Tensor], object]] = {"eager": eager, "folded": folded}
    notes = []
    fast = use_fast_convolutions(folded)
    if fast is folded:
        notes.append("fast is missing: this CPU or this torch does not have what it needs")
    else:
        ways["fast"] = fast
    torch._dynamo.reset()
    compiled = torch.compile(folded, dynamic=False, options={"freezing": True})
    if "compiled" not in without:
        try:
            print(f"{name}: compiling", file=sys.stderr, flush=True)
            compiled(torch.zeros(1, 3, NETWORKS[name], NETWORKS[name]).contiguous(memory_format=torch.channels_last))
            ways["compiled"] = compiled
        except Exception as error:  # the compiler raises anything, such as that there is no g++
            notes.append(f"compiled is missing: {type(error).__name__}: {str(error).splitlines()[0]}")
    return {way: net for way, net in ways.items() if way not in without}, notes


def measure(name: str, repeats: int, without: list[str]) -> tuple[list[tuple[object, ...]], list[str]]:
    """A row for each way, and what is to be said of it."""
    size = NETWORKS[name]
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    ways, notes = prepare_ways(name, without)
    images = {way: image.contiguous(memory_format=torch.channels_last) for way in ways} | {"eager": image}
    expected = next(iter(ways.values()))(image).logits[0]  # type: ignore[union-attr,operator,attr-defined]

    def timed(way: str) -> Callable[[int], dict[str, float]]:
        def call(_: int) -> dict[str, float]:
            began, used = time.perf_counter(), time.process_time()
            ways[way](images[way])  # type: ignore[operator]
            return {"all": time.perf_counter() - began, "processor": time.process_time() - used}

        return call

    calls = {way: timed(way) for way in ways}
    print(f"{name}: warm-up, then {repeats} rounds", file=sys.stderr, flush=True)
    take_turns(calls, 2)
    taken = take_turns(calls, repeats)
    spreads = {way: Spread.of([1e3 * seconds["all"] for seconds in taken[way]]) for way in ways}
    used = {way: Spread.of([1e3 * seconds["processor"] for seconds in taken[way]]).median for way in ways}
    rows = []
    for way, spread in spreads.items():
        logits = ways[way](images[way]).logits[0]  # type: ignore[union-attr,operator,attr-defined]
        difference = float((logits - expected).abs().max() / expected.abs().max())
        ratio = next(iter(spreads.values())).median / spread.median
        quartiles = f"{spread.low:.1f} to {spread.high:.1f}"
        row = (f"{name}, {size} x {size}", way, spread.median, quartiles, ratio, used[way], f"{difference:.0e}")
        rows.append(row)
    return rows, [f"{name}: {note}" for note in notes]


@torch.no_grad()  # freezing asks for it
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--without", nargs="+", choices=WAYS[1:], default=[])
    options = parser.parse_args()
    torch.set_num_threads(count_cores())
    rows: list[tuple[object, ...]] = []
    notes: list[str] = []
    for name in options.only:
        new_rows, new_notes = measure(name, options.repeats, options.without)
        rows, notes = rows + new_rows, notes + new_notes
    headings = ("network", "way", "median ms", "quartiles", "times as fast", "processor ms", "difference")
    about = "; ".join(describe_machine().values())
    print(f"{about}; batch 1, medians of {options.repeats}, the network alone.\n")
    print(Table(headings, rows, digits=(0, 0, 1, 0, 2, 0, 0)).to_markdown())
    print("".join(f"\n{note}" for note in ("The difference is the largest of any logit of the finest level.", *notes)))


if __name__ == "__main__":
    main()
