"""Post-processing of an image with 1,500 objects beside the network that found them, at 1024 x 1024 on the CPU.

The objects are those of a rendered scene. The raw outputs are made from them, because random weights find nothing:
every anchor that overlaps an object by an IoU of 0.3 answers for it, the surer the better it fits, with an error in its
box. About 20 of them pass the score threshold for each object. The network is ``lite`` with random weights.

    OMP_NUM_THREADS=1 python benchmarks/dense.py [--objects 1500] [--size 1024] [--depth 2 4] [--threads 1] [--rounds 9]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch

from retinanet.anchors.lattice import AnchorLattice
from retinanet.anchors.nms import nms
from retinanet.anchors.reach import Reach
from retinanet.data.scenes import GLYPHS, Scene, plan_scene
from retinanet.deploy.measure import describe_machine, take_turns
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import preset
from retinanet.types import RawOutput

LATTICE = AnchorLattice(sizes=(16, 32, 64, 128, 256))  # as ``check`` proposes for objects of 12 to 24 pixels
NAMES = tuple(glyph.name for glyph in GLYPHS)


def make_outputs(scene: Scene, seed: int = 0) -> RawOutput:
    """Raw outputs (N = 1) of a network that finds all objects of a scene as networks do: many times, not exactly."""
    dice = torch.Generator().manual_seed(seed)
    coder, grids = preset("lite").coder, LATTICE.grids(*scene.size)
    boxes = torch.from_numpy(scene.boxes).float()
    labels = torch.tensor([thing.label for thing in scene.things])
    classes, templates = len(NAMES), LATTICE.num_anchors
    logits = [torch.randn(1, templates * classes, *grid, generator=dice) * 0.5 - 6 for grid in grids]
    deltas = [torch.randn(1, templates * 4, *grid, generator=dice) * 0.1 for grid in grids]

    # Who overlaps what; an anchor answers for the object that it overlaps most.
    reach, rows = Reach(LATTICE, grids, boxes), torch.arange(len(boxes))
    found = list(reach.overlapping(rows, reach.overlap_for_iou(rows, 0.3)))
    row, anchor = (torch.cat([getattr(part, name) for part in found]) for name in ("row", "anchor"))
    anchors = torch.cat([part.anchor_boxes for part in found])
    iou = paired(boxes[row], anchors)
    order = iou.argsort(stable=True)
    order = order[anchor[order].argsort(stable=True)]  # by anchor, and then by IoU
    order = order[torch.cat([anchor[order].diff() > 0, torch.ones(1, dtype=torch.bool)])]
    row, anchor, anchors, iou = row[order], anchor[order], anchors[order], iou[order]
    level, y, x, a = LATTICE.locate(anchor, grids)
    score = -8 + 14 * iou + 0.7 * torch.randn(len(iou), generator=dice)
    delta = coder.encode(boxes[row], anchors) + 0.05 * torch.randn(len(iou), 4, generator=dice)
    for at in range(LATTICE.num_levels):
        mine = level == at
        logits[at][0, a[mine] * classes + labels[row[mine]], y[mine], x[mine]] = score[mine]
        for k in range(4):
            deltas[at][0, a[mine] * 4 + k, y[mine], x[mine]] = delta[mine, k]
    layout = [level.contiguous(memory_format=torch.channels_last) for level in (*logits, *deltas)]
    return RawOutput(tuple(layout[: len(grids)]), tuple(layout[len(grids) :]), LATTICE, coder)


def paired(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of a[i] and b[i]."""
    sides = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0)
    area = [(box[:, 2:] - box[:, :2]).prod(dim=1) for box in (a, b)]
    return sides.prod(dim=1) / (area[0] + area[1] - sides.prod(dim=1))


def parts_of(rule: Postprocess, raw: RawOutput, size: tuple[int, int]) -> dict[str, Callable[[], object]]:
    """The steps that can be told apart, and the whole."""
    mute = replace(rule, vote=0.0)
    one = mute.find_candidates(raw, 0, size)
    sizes = torch.tensor([size])
    return {
        "threshold": lambda: [mute.find_passed(level[0]) for level in raw.logits],
        "NMS": lambda: nms(one.compared, one.scores, one.labels, rule.nms),
        "all but the vote": lambda: mute(raw, sizes, NAMES),
        "vote": lambda: replace(one, rule=rule).vote(),
        "post-processing": lambda: rule(raw, sizes, NAMES),
    }


def timed(function: Callable[[], object]) -> Callable[[int], tuple[float, float]]:
    """Seconds on the clock and of this process's CPU time: other processes may hold the cores."""

    def call(_: int) -> tuple[float, float]:
        clock, cpu = time.perf_counter(), time.process_time()
        function()
        return time.perf_counter() - clock, time.process_time() - cpu

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--objects", type=int, default=1500)
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--depth", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--max_detections", type=int, default=2000)
    parser.add_argument("--topk", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    size = (options.size, options.size)
    scene = plan_scene(0, "benchmark", 0, size, options.objects)
    raw = make_outputs(scene)
    rule = Postprocess(max_detections=options.max_detections, topk=options.topk, vote=0.65)
    one = rule.find_candidates(raw, 0, size)
    passed = sum(int(rule.find_passed(level).sum()) for level in raw.logits)
    print(*(f"{key}: {value}" for key, value in describe_machine().items()), f"threads: {options.threads}", sep="\n")
    print(f"{len(scene.things)} objects, {passed} entries above the threshold, {len(one.labels)} candidates, ", end="")
    print(f"{len(one.kept)} after suppression, {len(one.detections)} detections")

    calls = parts_of(rule, raw, size)
    image = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    for depth in options.depth:
        net = replace(preset("lite"), depth=depth, anchors=LATTICE).build(len(NAMES)).eval()
        net = net.to(memory_format=torch.channels_last)
        calls[f"network, depth {depth}"] = lambda net=net: net(image)
    with torch.inference_mode():
        results = take_turns({name: timed(call) for name, call in calls.items()}, options.rounds + 1)
    networks = [name for name in calls if name.startswith("network")]
    times = {name: [1000 * median(column) for column in zip(*rows[1:], strict=True)] for name, rows in results.items()}
    print("| step | ms | CPU ms | " + " | ".join(f"of the {name}" for name in networks) + " |")
    print("|---" * (3 + len(networks)) + "|")
    for name, (clock, cpu) in times.items():
        shares = [f"{cpu / times[network][1]:.1%}" for network in networks]
        print(f"| {name} | {clock:.0f} | {cpu:.0f} | " + " | ".join(shares) + " |")


if __name__ == "__main__":
    main()
