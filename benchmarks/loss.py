"""Focal loss of one 800x1344 image, forward and backward: ours against torchvision's own code.

Both start from the logits of the five levels as a network leaves them, (1, 9 * 80, H, W), and end with a gradient at
each. Torchvision's side is ``RetinaNetClassificationHead`` itself, its convolutions replaced by nothing: the
rearrangement of its ``forward`` and its ``compute_loss``. Both get the same matching, done beforehand. The two take
turns; times are medians.

Extra memory is the most that torch's CPU allocator holds above the start, in units of the logits, as ``torch.profiler``
records every allocation and release; the gradient at the logits is part of it. The profiler sees one thread only, so
memory is measured with one; each further thread of ours adds its scratch, at most 0.5 MiB.

    python benchmarks/loss.py [--repeats 15] [--threads 2]
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher
from torchvision.models.detection.retinanet import RetinaNetClassificationHead

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.matching import Matcher
from retinanet.deploy.measure import describe_machine, time_in_turns
from retinanet.losses.detection import DetectionLoss
from retinanet.losses.focal import FocalLoss
from retinanet.types import RawOutput, Target

HEIGHT, WIDTH, CLASSES, PRIOR_LOGIT = 800, 1344, 80, -4.595
BOXES = [[100.0, 100, 140, 120], [400, 300, 560, 620], [900, 80, 1200, 360]]


def ours(raw: RawOutput, target: Target) -> Callable[[], Tensor]:
    assignment = DetectionLoss().assign(raw.lattice, raw.grids, [target])
    focal = FocalLoss()
    return lambda: focal(raw, assignment) / max(1, assignment.num_positives)


def torchvision(raw: RawOutput, target: Target) -> Callable[[], Tensor]:
    head = RetinaNetClassificationHead(in_channels=1, num_anchors=raw.lattice.num_anchors, num_classes=CLASSES)
    head.conv, head.cls_logits = nn.Identity(), nn.Identity()
    match = Matcher()(raw.lattice, raw.grids, target.boxes, target.ignore)
    matched = torch.full((raw.lattice.count(raw.grids),), TorchvisionMatcher.BELOW_LOW_THRESHOLD)
    matched[match.positive] = match.box
    matched[match.ignored] = TorchvisionMatcher.BETWEEN_THRESHOLDS
    targets = [{"boxes": target.boxes, "labels": target.labels}]
    return lambda: head.compute_loss(targets, {"cls_logits": head(list(raw.logits))}, [matched])


def step(loss: Callable[[], Tensor], raw: RawOutput) -> None:
    """One forward and backward pass; frees the gradients."""
    loss().backward()
    for level in raw.logits:
        level.grad = None


def extra_memory(loss: Callable[[], Tensor], raw: RawOutput) -> float:
    """Peak of allocated memory above the start, in units of the logits."""
    cpu, threads = torch.profiler.ProfilerActivity.CPU, torch.get_num_threads()
    torch.set_num_threads(1)
    gc.collect()
    with torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        loss().backward()
    torch.set_num_threads(threads)
    for level in raw.logits:
        level.grad = None
    held = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak / sum(level.numel() * level.element_size() for level in raw.logits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lattice, none = AnchorLattice(), torch.zeros(len(BOXES), dtype=torch.bool)
    target = Target(torch.tensor(BOXES), torch.arange(len(BOXES)), none)
    grids = lattice.grids(HEIGHT, WIDTH)
    assignment = DetectionLoss().assign(lattice, grids, [target])
    print("; ".join(describe_machine().values()))
    print(
        f"{HEIGHT}x{WIDTH}, {CLASSES} classes, {lattice.count(grids):,} anchors, {assignment.num_positives} positive, "
        f"{len(assignment.ignored)} ignored; {options.threads} threads, {options.repeats} repeats"
    )
    print(f"{'':<27}{'time':^35}{'extra memory, in logits':^29}")
    print(f"{'logits':<27}{'ours':>10}{'torchvision':>13}{'ratio':>12}{'ours':>14}{'torchvision':>15}")
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            logits = [torch.randn(1, 9 * CLASSES, *grid).add_(PRIOR_LOGIT).to(dtype) for grid in grids]
            levels = tuple(level.contiguous(memory_format=layout).requires_grad_() for level in logits)
            raw = RawOutput(levels, (), lattice, BoxCoder())
            sides = {"ours": ours(raw, target), "theirs": torchvision(raw, target)}
            values = [loss().item() for loss in sides.values()]
            assert abs(values[0] / values[1] - 1) < (1e-4 if dtype == torch.float32 else 0.1), values
            memory = [extra_memory(loss, raw) for loss in sides.values()]
            functions = {name: partial(step, loss, raw) for name, loss in sides.items()}
            mine, theirs = (spread.median for spread in time_in_turns(functions, options.repeats).values())
            name = f"{str(dtype)[6:]} {str(layout)[6:]}"
            print(f"{name:<27}{mine * 1e3:>7.0f} ms{theirs * 1e3:>10.0f} ms{mine / theirs:>12.3f}", end="")
            print(f"{memory[0]:>13.2f}x{memory[1]:>14.2f}x", flush=True)


if __name__ == "__main__":
    main()
