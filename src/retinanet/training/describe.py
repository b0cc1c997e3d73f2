"""What a person is told of a training before it starts."""

from __future__ import annotations

import torch
from rich.console import Console

from retinanet.analysis.anchors.audit import audit
from retinanet.training.build import Training
from retinanet.training.transfer import Transfer

AUDITED = 10_000  # boxes that tell how the anchors fit
BADLY_COVERED = 0.05  # share of boxes without an anchor at the background IoU from which on there is a hint


def describe(training: Training, moved: Transfer | None) -> None:
    """Tell the person what is going to happen, what was left out, how the anchors fit, what is kept of a model."""
    detector, fabric, spec = training.detector, training.fabric, training.detector.spec
    size = f"images of {spec.preprocess.short} to {spec.preprocess.long} pixels"
    if spec.tiling is not None:
        size = f"windows of {spec.tiling.tile} pixels shown with {spec.preprocess.short}"
    parameters = sum(p.numel() for p in detector.net.parameters() if p.requires_grad)
    lines = [
        f"classes: {', '.join(spec.class_names)}",
        f"train: {training.train_set.summary()}",
        f"validation: {training.val_set.summary()}",
        f"model: {spec.architecture.backbone}, {parameters / 1e6:.1f} M trained parameters, {size}",
        f"device: {fabric.world_size} x {fabric.device.type}, precision {fabric.strategy.precision.precision}",
        *describe_anchors(training),
    ]
    augment = training.config.augment
    small = int((~augment.keeps(torch.cat([sample.target.boxes for sample in training.train_set.samples]))).sum())
    if small:
        lines.insert(
            2, f"  {small} boxes have a side below {augment.min_side:g} pixels (augment.min_side): not trained on"
        )
    if moved is not None:
        lines += [f"weights from {training.config.model}:", *(f"  {line}" for line in moved.summary().splitlines())]
    say("\n".join(lines))


def say(text: str) -> None:
    """Lines for the person."""
    Console(stderr=True).print(text, highlight=False, markup=False, soft_wrap=True)


def describe_anchors(training: Training) -> list[str]:
    """How the anchors fit the training boxes, and a hint where they do not; audited on ``AUDITED`` boxes where more."""
    samples, detector = training.train_set.samples, training.detector
    every = -(-sum(len(sample.target) for sample in samples) // AUDITED) or 1
    audited = audit(
        samples[::every],
        detector.spec.class_names,
        lattice=detector.spec.architecture.anchors,
        preprocess=detector.spec.preprocess,
        matcher=training.criterion.matcher,
    )
    lines = audited.summary().splitlines()
    lines[0] += f" (one image in {every} was looked at)" if every > 1 else ""
    if audited.below(audited.background) > BADLY_COVERED:
        check = f"retinanet check {training.config.data}"
        lines.append(f"  hint: many boxes are unlike every anchor; {check} proposes anchors that fit")
    return lines
