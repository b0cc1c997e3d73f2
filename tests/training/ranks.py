"""Started by test_distributed.py as a script: one step and one evaluation, on as many processes as it is told.

Usage: ranks.py DEVICES DATA MODEL FOLDER. Rank 0 writes losses, the whole gradient and detections to FOLDER/result.pt.
"""

from __future__ import annotations

import math
import sys
from itertools import islice
from pathlib import Path

import torch

from retinanet.data.dataset import load_dataset
from retinanet.data.loader import training_batches
from retinanet.data.transforms import Augment
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.evaluate import one_pass
from retinanet.training import loop
from retinanet.training.build import Training
from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, PostprocessConfig, RunConfig, TrainConfig
from retinanet.training.precision import build_fabric
from retinanet.training.ranks import on_any
from retinanet.training.stop import stop_if_not_finite


def measure(devices: str, data: str, model: str, folder: str) -> dict[str, object]:
    """What one step and one evaluation give, on every rank."""
    config = TrainConfig(
        data=data,
        output=folder,
        model=model,
        recipe="default",
        weights="none",
        epochs=1,
        batch_size=4,
        seed=0,
        train_split=None,
        val_split=None,
        strict=False,
        confine=False,
        architecture=None,
        image=ImageConfig(),
        augment=Augment(),
        loss=LossConfig(),
        optim=OptimConfig(optimizer="sgd", clip=0.0, ema=0.0),
        postprocess=PostprocessConfig(),
        run=RunConfig(accelerator="cpu", devices=devices, precision="32", workers=0),
    )
    fabric = build_fabric(config.run)
    fabric.launch()
    detector = Detector.load(model)
    training = Training(config, fabric, detector, load_dataset(data, "train"), load_dataset(data, "val"))
    batches = training_batches(
        training.train_set, preprocess=detector.spec.preprocess, augment=config.augment, sampler=training.sampler
    )
    parts = list(islice(batches, training.sampler.parts))
    gradient: dict[str, torch.Tensor] = {}
    loop._update = lambda training: gradient.update(
        {name: p.grad.clone() for name, p in detector.net.named_parameters() if p.requires_grad}
    )
    losses, norm = loop.train_step(training, parts, 0)
    loss = math.nan if fabric.global_rank == fabric.world_size - 1 else 1.0
    try:
        stop_if_not_finite(fabric, {"box loss": loss}, parts, Path(folder), 7)
        stopped = "not at all"
    except UserError as error:
        stopped = str(error)
    found = one_pass(detector, training.val_set, device=fabric.device, batch_size=2)
    return {
        "rank": fabric.global_rank,
        "world": fabric.world_size,
        "own_images": sum(len(batch) for batch in parts),
        "classification": losses.classification,
        "box": losses.box,
        "positives": losses.positives,
        "norm": norm,
        "gradient": gradient,
        "val_loss": dict(found.loss),
        "detections": [[one.boxes, one.scores, one.labels] for one in found.detections],
        "stopped": stopped,
        "any": [on_any(fabric, fabric.global_rank == fabric.world_size - 1), on_any(fabric, False)],
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    result = measure(*sys.argv[1:])
    if result["rank"] == 0:
        torch.save(result, Path(sys.argv[4], "result.pt"))
