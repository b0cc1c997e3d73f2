"""Annotated images and detections made by chance, for the tests of error analysis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.types import Detections, Sample, Target

NAMES = ("a", "b", "c")


def as_sample(boxes, labels, ignore=None, image_id=0, size=(1000, 10_000)):
    boxes = torch.tensor(np.asarray(boxes), dtype=torch.float64).reshape(-1, 4)
    ignore = [False] * len(boxes) if ignore is None else ignore
    target = Target(boxes, torch.tensor(labels, dtype=torch.int64), torch.tensor(ignore, dtype=torch.bool))
    return Sample(Path(f"{image_id}.png"), image_id, size, target, (boxes[:, 2:] - boxes[:, :2]).prod(1))


def as_detections(boxes, scores, labels, names=NAMES):
    boxes = torch.tensor(np.asarray(boxes), dtype=torch.float32).reshape(-1, 4)
    return Detections(boxes, torch.tensor(scores, dtype=torch.float32), torch.tensor(labels, dtype=torch.int64), names)


def chance(seed, *, images=8, ties=False, ignore=0.15, found=5):
    """Samples and detections: objects found several times, badly, as another class, not at all; and false alarms.

    With ``ties`` boxes and scores come from a coarse grid, so that equal IoUs and equal scores abound.
    """
    dice = np.random.default_rng(seed)
    samples, detections = [], []
    for image_id in dice.permutation(images).tolist():
        count = int(dice.integers(0, 9))
        corner, side = dice.uniform(0, 300, (count, 2)), np.exp(dice.uniform(2, 5, (count, 2)))
        boxes = np.concatenate([corner, corner + side], axis=1)
        labels = dice.integers(0, len(NAMES), count)
        copies = np.repeat(np.arange(count), dice.integers(0, found, count))
        guessed = boxes[copies] + dice.normal(0, 0.17, (len(copies), 4)) * np.tile(side[copies], 2)
        wrong = dice.uniform(size=len(copies)) < 0.25
        given = np.where(wrong, dice.integers(0, len(NAMES), len(copies)), labels[copies])
        corner = dice.uniform(0, 300, (4, 2))
        guessed = np.concatenate([guessed, np.concatenate([corner, corner + dice.uniform(8, 90, (4, 2))], axis=1)])
        given = np.concatenate([given, dice.integers(0, len(NAMES), 4)])
        scores = dice.uniform(0.01, 1, len(guessed))
        if ties:
            boxes, guessed, scores = (np.round(boxes / 32) * 32, np.round(guessed / 32) * 32, np.round(scores * 8) / 8)
            boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 32)
        guessed[:, 2:] = np.maximum(guessed[:, 2:], guessed[:, :2] + 4)
        samples.append(as_sample(boxes, labels, dice.uniform(size=count) < ignore, image_id))
        detections.append(as_detections(guessed, scores, given))
    return samples, detections


@pytest.fixture
def make_scene():
    """``chance``: samples and detections of three classes a, b, c."""
    return chance


@pytest.fixture
def make_sample():
    """``as_sample``: one annotated image from lists."""
    return as_sample


@pytest.fixture
def make_detections():
    """``as_detections``: the detections of one image from lists."""
    return as_detections
