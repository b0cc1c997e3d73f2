r"""Annotations damaged on purpose, and how many of them ``suspects`` finds, beside ranking them by the loss alone.

A tenth of the annotations of a split are damaged: in turn dropped, given another class, or shifted by a share of their
width and height. ``suspects`` lists what it doubts, worst first; precision is that of the first n, n the number
damaged, and recall is told of these n and of the whole list, by kind. A drop is found by a proposal with IoU 0.5 to the
dropped box, other damage by naming the annotation. Mistakes that were in the data before count as false.

Ranking by loss: each annotation has the loss of its positive anchors (their mean), and each detection that lies on no
annotation (IoU below 0.5) the cross entropy of its score as a negative, -log(1 - score). ``loss by rank`` takes from
the two lists in turn, as often from each as it holds damage, which nobody knows of data of his own.

    OMP_NUM_THREADS=1 python benchmarks/suspects.py OUTPUT --data FOLDER --model MODEL \
        [--split test] [--seeds 0 1 2] [--share 0.1] [--shift 0.25] [--kinds drop class shift] [--folds 3 --budget 5m]
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retinanet import Detector, load_dataset, suspects
from retinanet.anchors.geometry import iou
from retinanet.curation.folds import make_coco
from retinanet.data.dataset import DetectionDataset
from retinanet.evaluation.evaluate import one_pass
from retinanet.evaluation.matching import overlap_boxes
from retinanet.files import write_atomically
from retinanet.losses.focal import sigmoid_focal_loss
from retinanet.types import Assignment, Batch, RawOutput, Sample, Target

Damage = dict[str, Any]  # kind, image, box before, box and class after
KINDS = ("drop", "class", "shift")


def damage(
    dataset: DetectionDataset, share: float, shift: float, kinds: Sequence[str], seed: int
) -> tuple[list[Sample], list[Damage]]:
    """The samples with a share of their annotations damaged, and what was done."""
    dice = random.Random(seed)
    places = [(i, r) for i, one in enumerate(dataset.samples) for r in range(len(one.target))]
    places = [(i, r) for i, r in places if not dataset.samples[i].target.ignore[r]]
    chosen = dice.sample(places, round(share * len(places)))
    plan = {place: kinds[number % len(kinds)] for number, place in enumerate(chosen)}
    samples, done = [], []
    for i, sample in enumerate(dataset.samples):
        boxes, labels, rows = [], [], []
        for r, (box, label) in enumerate(zip(sample.target.boxes.tolist(), sample.target.labels.tolist(), strict=True)):
            kind, before = plan.get((i, r)), box
            if kind == "class":
                label = dice.choice([other for other in range(len(dataset.class_names)) if other != label])
            elif kind == "shift":
                box = move(box, sample.size, shift, dice)
            if kind is not None:
                after = None if kind == "drop" else [round(side, 2) for side in box]
                done.append({"kind": kind, "image": sample.path.name, "before": before, "after": after, "label": label})
            if kind != "drop":
                boxes.append(box)
                labels.append(label)
                rows.append(r)
        corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
        target = Target(corners, torch.tensor(labels, dtype=torch.int64), sample.target.ignore[rows])
        samples.append(replace(sample, target=target, areas=(corners[:, 2:] - corners[:, :2]).prod(1)))
    return samples, done


def move(box: list[float], size: tuple[int, int], shift: float, dice: random.Random) -> list[float]:
    """A box moved by a share of its sides in both directions, to the side where the image goes on."""
    moved = []
    for low, high, limit in ((box[0], box[2], size[1]), (box[1], box[3], size[0])):
        step = dice.choice((-1, 1)) * shift * (high - low)
        step = -step if low + step < 0 or high + step > limit else step
        moved.append((max(low + step, 0), min(high + step, limit)))
    return [moved[0][0], moved[1][0], moved[0][1], moved[1][1]]


def find_damage(found: Sequence[Damage], done: Sequence[Damage]) -> list[int | None]:
    """For each suspect the damage that it names, each once, or None."""
    left = dict(enumerate(done))
    hits: list[int | None] = []
    for one in found:
        hit = next((number for number, other in left.items() if is_named(one, other)), None)
        hits.append(hit)
        left.pop(-1 if hit is None else hit, None)
    return hits


def is_named(one: Damage, other: Damage) -> bool:
    """Whether a suspect (image, annotated box or None, proposed box or None, class) names a damage."""
    if one["image"] != other["image"] or (one["old"] is None) != (other["after"] is None):
        return False
    if one["old"] is None:
        return float(iou(*(torch.tensor([box], dtype=torch.float64) for box in (one["new"], other["before"])))) >= 0.5
    return one["label"] == other["label"] and bool(np.abs(np.subtract(one["old"], other["after"])).max() < 0.02)


def read_suspects(path: Path, class_names: Sequence[str]) -> list[Damage]:
    rows = []
    for one in json.loads(path.read_text())["suspects"]:
        old, new = one["annotated"], one["proposed"]
        rows.append(
            {
                **{"image": Path(one["image"]).name, "score": one["score"], "kind": one["kind"]},
                **{"old": old and old["box"], "new": new and new["box"]},
                "label": class_names.index(old["class"]) if old else None,
            }
        )
    return rows


def rank_by_loss(model: str, samples: Sequence[Sample], class_names: Sequence[str]) -> list[Damage]:
    """Annotations and unmatched detections by the loss that they cause, highest first."""
    detector = Detector.load(model)
    dataset = DetectionDataset(samples, class_names)
    criterion = detector.spec.criterion()
    rows: list[Damage] = []

    def watch(places: Sequence[int], raw: RawOutput, batch: Batch, assignment: Assignment) -> None:
        for image, place in enumerate(places):
            part = assignment.of_image(image)
            alone = replace(
                raw,
                logits=tuple(level[image : image + 1] for level in raw.logits),
                deltas=tuple(level[image : image + 1] for level in raw.deltas),
            )
            for row, box in enumerate(batch.targets[image].boxes):
                mine = (part.boxes == box).all(1)
                loss = 0.0
                if mine.any():
                    loss = measure(alone, part, mine, criterion)
                target = samples[place].target
                entry = {"old": [round(side, 2) for side in target.boxes[row].tolist()], "new": None}
                entry |= {"label": int(target.labels[row]), "image": samples[place].path.name, "score": loss}
                rows.append({**entry, "kind": "annotation"})

    run = one_pass(detector, dataset, device=torch.device("cpu"), criterion=criterion, watch=watch)
    for sample, found in zip(samples, run.detections, strict=True):
        overlaps = overlap_boxes([found], [sample.target], class_names)
        _, nearest = overlaps.nearest(np.ones(len(overlaps.pair_iou), bool))
        for row, score, overlap in zip(overlaps.row, overlaps.score, nearest, strict=True):
            if overlap < 0.5:
                entry = {"old": None, "new": found.boxes[int(row)].tolist(), "label": None, "kind": "missing"}
                rows.append({**entry, "image": sample.path.name, "score": -np.log(max(1 - score, 1e-9))})
    return sorted(rows, key=lambda row: -row["score"])


def take_in_turn(ranked: Sequence[Damage], share: float) -> list[Damage]:
    """The same rows, of the missing ones as many as their share of the damage, wherever one stops."""
    places: dict[bool, int] = {True: 0, False: 0}
    keyed = []
    for row in ranked:
        missing = row["old"] is None
        places[missing] += 1
        keyed.append((places[missing] / max(share if missing else 1 - share, 1e-9), row))
    return [row for _, row in sorted(keyed, key=lambda pair: pair[0])]


def measure(raw: RawOutput, part: Assignment, mine: torch.Tensor, criterion: Any) -> float:
    """The mean loss of the positive anchors of one annotation: cross entropy of its class, and the box loss."""
    counts, kept = list(part.positives_per_level), []
    for chunk in mine.split(counts):
        kept.append(int(chunk.sum()))
    own = Assignment(part.index[mine], part.labels[mine], part.boxes[mine], part.ignored[:0], tuple(kept),
                     tuple(0 for _ in counts))  # fmt: skip
    logits = []
    for level, (index, labels) in zip(raw.logits, own.positives_by_level(), strict=True):
        scores = level.unflatten(1, (-1, raw.num_classes))
        logits.append(scores[index[:, 0], index[:, 1], labels, index[:, 2], index[:, 3]])
    x = torch.cat(logits)
    classification = sigmoid_focal_loss(x, x.new_ones(()), alpha=None, gamma=0.0).mean()
    target = Target(own.boxes[:1], own.labels[:1], torch.zeros(1, dtype=torch.bool))
    box = criterion(raw, [target], own, normaliser=len(x)).box
    return float(classification + box)


def tell(name: str, found: Sequence[Damage], done: Sequence[Damage], kinds: Sequence[str]) -> dict[str, float]:
    """Precision and recall by kind, as a row of a table."""
    hits, count = find_damage(found, done), len(done)
    values: dict[str, float] = {"precision": sum(hit is not None for hit in hits[:count]) / count}
    for kind in kinds:
        of_kind = {number for number, one in enumerate(done) if one["kind"] == kind}
        values[f"recall {kind}"] = len(of_kind & set(hits[:count])) / len(of_kind)
        values[f"listed {kind}"] = len(of_kind & set(hits)) / len(of_kind)
    print(f"| {name} | {len(found)} | " + " | ".join(f"{value:.3f}" for value in values.values()) + " |", flush=True)
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.1)
    parser.add_argument("--shift", type=float, default=0.25)
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--folds", type=int)
    parser.add_argument("--budget")
    parser.add_argument("--weights", default="imagenet")
    options = parser.parse_args()
    names = None if options.folds else Detector.load(options.model).spec.class_names
    dataset = load_dataset(options.data, options.split, class_names=names)
    results = []
    for seed in options.seeds:
        samples, done = damage(dataset, options.share, options.shift, options.kinds, seed)
        folder = options.output / f"seed{seed}"
        annotations = folder / "data" / "annotations" / "instances_train.json"
        write_atomically(annotations, make_coco(samples, dataset.class_names))
        how: dict[str, Any] = {"output": str(folder / "suspects"), "overwrite": True, "score": 0.0}
        data = str(folder / "data")
        if options.folds:
            how |= {"folds": options.folds, "budget": options.budget, "weights": options.weights}
        suspects(options.model, data, **how)
        found = read_suspects(folder / "suspects" / "suspects.json", dataset.class_names)
        results.append({"seed": seed, "damaged": len(done), "suspects": tell("suspects", found, done, options.kinds)})
        if not options.folds:
            ranked = rank_by_loss(options.model, samples, dataset.class_names)
            results[-1]["loss"] = tell("loss", ranked, done, options.kinds)
            share = sum(one["kind"] == "drop" for one in done) / len(done)
            results[-1]["loss by rank"] = tell("loss by rank", take_in_turn(ranked, share), done, options.kinds)
    for name in ("suspects", "loss", "loss by rank"):
        rows = [row[name] for row in results if name in row]
        if rows:
            means = {key: np.mean([row[key] for row in rows]) for key in rows[0]}
            print(name, ", ".join(f"{key} {value:.2f}" for key, value in means.items()), flush=True)
    (options.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
