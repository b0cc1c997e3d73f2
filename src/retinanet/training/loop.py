"""The training loop, in sight."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import StepSampler, training_batches
from retinanet.data.transforms import Augment
from retinanet.data.workers import WorkerLost
from retinanet.detector import Detector
from retinanet.errors import Interrupted, UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.evaluate import one_pass
from retinanet.evaluation.report import EvaluationResult, save_coco_results
from retinanet.losses.detection import DetectionLoss, Losses
from retinanet.losses.focal import FocalLoss, expected_initial_loss
from retinanet.model.retinanet import RetinaNet
from retinanet.training.config import OptimConfig, RunConfig
from retinanet.training.log import RunLog
from retinanet.training.ranks import noticing_lost_ranks, on_any, summed
from retinanet.training.resume import Progress, save_state
from retinanet.training.schedule import lr_factor, set_lr
from retinanet.training.stop import GradientWatch, stop_if_not_finite, stop_requested
from retinanet.types import Assignment, Batch, Detections, RawOutput

FIRST_LOSS_TOLERANCE = 0.1


@dataclass
class Training:
    """Everything that takes part in a run, built.

    Attributes:
        fabric: devices, precision and processes.
        detector: what is trained; its ``net`` is the bare network.
        net: the network with its loss, as fabric wraps it.
        optimizer: over the parameters of ``net``.
        criterion: the loss.
        average: moving average of the weights, or None.
        train_set: what is learned from.
        val_set: what is evaluated on.
        augment: of the training images.
        sampler: of the whole run, from step 0.
        optim: knobs of the optimisation.
        run: knobs of the run.
        folder: of the run.
        untrained: whether the heads start from their initialisation.
    """

    fabric: Fabric
    detector: Detector
    net: _FabricModule
    optimizer: torch.optim.Optimizer
    criterion: DetectionLoss
    average: AveragedModel | None
    train_set: DetectionDataset
    val_set: DetectionDataset
    augment: Augment
    sampler: StepSampler
    optim: OptimConfig
    run: RunConfig
    folder: Path
    untrained: bool

    @property
    def best_net(self) -> RetinaNet:
        """The network that is evaluated and saved: the average where there is one."""
        return self.detector.net if self.average is None else cast(RetinaNet, self.average.module)

    def parts(self) -> dict[str, Any]:
        """What the training state consists of."""
        parts = {"net": self.detector.net, "optimizer": self.optimizer}
        return parts if self.average is None else {**parts, "average": self.average}


def fit(training: Training, progress: Progress, log: RunLog) -> Progress:
    """Train from ``progress`` to the end of the sampler, or until patience runs out.

    Raises:
        UserError: a loss is not finite (the batch is saved beside the log), a file cannot be written, or a process of
            the run has died (after the state was saved, where a process that reads images died).
        Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    sampler, fabric = training.sampler, training.fabric
    batches = training_batches(
        training.train_set,
        preprocess=training.detector.spec.preprocess,
        augment=training.augment,
        sampler=replace(sampler, start=progress.step),
        workers=training.run.workers,
    )
    watch = GradientWatch(min(training.optim.warmup, sampler.stop // 10))
    with noticing_lost_ranks(fabric), log, closing(batches), stop_requested() as stop:
        for step in range(progress.step, sampler.stop):
            if training.run.patience and progress.stale >= training.run.patience:
                log.say(f"stopped early: no better AP in {progress.stale} evaluations")
                break
            began = time.perf_counter()
            torch.manual_seed(sampler.seed * 1_000_003 + step)  # what is random in the net depends on the step alone
            lr = set_lr(training.optimizer, learning_rate_factor(training, step))
            try:
                parts = [batch.to(fabric.device) for batch in islice(batches, sampler.parts)]
            except WorkerLost as error:
                raise _stop_without(error, training, progress, asked=stop.is_set()) from None
            losses, norm = train_step(training, parts, step)
            progress.step = step + 1
            seconds = time.perf_counter() - began
            log.step(_row(sampler, progress.step, losses, lr, norm, sampler.batch_size / seconds))
            if warning := watch.warning(norm, step, parts):
                log.say(warning)
            if step == 0:
                check_first_loss(training, parts, losses, log)
            stopping = on_any(fabric, stop.is_set())
            if progress.step % sampler.steps_per_epoch == 0:
                finish_epoch(training, progress, log)
            elif progress.step % training.run.save_every == 0 or stopping:
                save(training, progress)
            if stopping and progress.step < sampler.stop:
                raise _interruption(training, progress)
    return progress


def _stop_without(lost: WorkerLost, training: Training, progress: Progress, *, asked: bool) -> UserError:
    """Save what was learned before a worker was lost, and say it; a signal to the whole group ends workers too."""
    if not progress.step:
        return lost
    if training.fabric.is_global_zero:  # no barrier: the other ranks wait for this one in their step
        save_state(training.folder, progress, training.parts())
    if asked:
        return _interruption(training, progress)
    return UserError(
        f"{lost}. The state after step {progress.step} is saved; go on with: "
        f"retinanet train --config {training.folder}/config.yaml --resume"
    )


def _interruption(training: Training, progress: Progress) -> Interrupted:
    return Interrupted(
        f"stopped after step {progress.step} of {training.sampler.stop}; the state is saved. "
        f"Go on with: retinanet train --config {training.folder}/config.yaml --resume"
    )


def train_step(training: Training, parts: Sequence[Batch], step: int) -> tuple[Losses, float]:
    """One optimiser step over the parts of a batch: forward, backward, clip, update.

    The normaliser counts the positives of all parts on all ranks before the first forward pass, so however a batch is
    shared out, the gradient is the same.

    Returns:
        The losses of the step, over all parts and ranks, and the norm of the gradient before clipping.
    """
    fabric, criterion, lattice = training.fabric, training.criterion, training.detector.net.lattice
    sides = [tuple(batch.images.shape[-2:]) for batch in parts]
    assignments = [
        criterion.assign(lattice.over(*side), lattice.grids(*side), batch.targets)
        for side, batch in zip(sides, parts, strict=True)
    ]
    counted = [
        [float(criterion.count(one, len(batch))), float(one.num_positives)]
        for one, batch in zip(assignments, parts, strict=True)
    ]
    normaliser, positives = summed(fabric, torch.tensor(counted, device=fabric.device).sum(dim=0)).tolist()
    totals = torch.zeros(2, device=fabric.device)
    for index, (batch, assignment) in enumerate(zip(parts, assignments, strict=True)):
        with fabric.no_backward_sync(training.net, enabled=index < len(parts) - 1):
            losses = _part(training, batch, assignment, max(normaliser, 1.0))
            values = {f"{name} loss": float(getattr(losses, name).detach()) for name in ("classification", "box")}
            stop_if_not_finite(fabric, values, [batch], training.folder, step)
            # data-parallel backward averages over the ranks; the loss is a sum over them
            fabric.backward(losses.total * fabric.world_size)
            totals += torch.stack([losses.classification.detach(), losses.box.detach()])
    totals = summed(fabric, totals)
    norm = _clip(training)
    if training.run.precision != "16":  # where the scaler of the loss skips such a step and goes on
        stop_if_not_finite(fabric, {"norm of the gradient": norm}, parts, training.folder, step)
    _update(training)
    return Losses(totals[0], totals[1], int(positives)), norm


class LossModule(nn.Module):
    """The network and its loss as one module.

    Fabric's wrapper copies what a module returns to fp32. So it sees two scalars, and the raw outputs stay as they are.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor, loss: Callable[[RawOutput], Losses]) -> tuple[Tensor, Tensor]:
        """Normalised images (N, 3, H, W) -> classification and box loss."""
        losses = loss(self.net(images))
        return losses.classification, losses.box


def _part(training: Training, batch: Batch, assignment: Assignment, normaliser: float) -> Losses:
    def loss(raw: RawOutput) -> Losses:
        return training.criterion(raw, batch.targets, assignment, normaliser=normaliser)

    images = training.detector.spec.preprocess.normalise(batch.images, batch.sizes)
    classification, box = training.net(images, loss)
    return Losses(classification, box, assignment.num_positives)


def _clip(training: Training) -> float:
    """Clip the gradient; returns its norm before."""
    norm = training.fabric.clip_gradients(
        training.net, training.optimizer, max_norm=training.optim.clip or math.inf, error_if_nonfinite=False
    )
    assert norm is not None
    return float(norm)


def _update(training: Training) -> None:
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    if training.average is not None:
        training.average.update_parameters(training.detector.net)


def finish_epoch(training: Training, progress: Progress, log: RunLog) -> None:
    """Evaluate where it is due, keep the best and the last model, and save the state."""
    sampler, fabric = training.sampler, training.fabric
    epoch = -(-progress.step // sampler.steps_per_epoch)
    if epoch % training.run.evaluate_every == 0 or progress.step == sampler.stop:
        report, detections = _evaluate(training, log)
        metrics = report.metrics
        ap = -1.0 if math.isnan(metrics.ap) else metrics.ap
        best = ap > progress.best or progress.best < 0
        progress.best, progress.stale = (ap, 0) if best else (progress.best, progress.stale + 1)
        row = {"step": progress.step, "epoch": epoch, "val_loss": report.loss["total"]}
        log.evaluation({**row, "AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75}, best=best)
        if fabric.is_global_zero:
            metrics_of_model = {
                "AP": None if math.isnan(metrics.ap) else metrics.ap,
                "AP50": None if math.isnan(metrics.ap50) else metrics.ap50,
                "data": training.val_set.name,
                "epoch": epoch,
            }
            tensors = training.best_net.state_dict()
            training.detector = training.detector.with_spec(metrics=metrics_of_model)
            training.detector.save(training.folder / "last", tensors)
            if best:
                training.detector.save(training.folder, tensors)
                report.to_json(training.folder / "evaluation.json")
                found = training.val_set
                save_coco_results(training.folder / "predictions.json", found.samples, detections, found.category_ids)
    save(training, progress)


def save(training: Training, progress: Progress) -> None:
    """Write the training state, on rank 0."""
    if training.fabric.is_global_zero:
        save_state(training.folder, progress, training.parts())
    training.fabric.barrier()


def learning_rate_factor(training: Training, step: int) -> float:
    """Factor on the peak learning rate at a step of this run."""
    return lr_factor(step, training.sampler.stop, warmup=training.optim.warmup, schedule=training.optim.schedule)


def check_first_loss(training: Training, parts: Sequence[Batch], losses: Losses, log: RunLog) -> None:
    """Say so if the first class loss of a new model is not what its prior implies (section 4.1 of the paper)."""
    focal, lattice = training.criterion.classification, training.detector.net.lattice
    if not training.untrained or not isinstance(focal, FocalLoss) or training.criterion.normaliser == "image":
        return
    expected = 0.0
    for batch in parts:
        height, width = batch.images.shape[-2:]
        grids = lattice.grids(height, width)
        assignment = training.criterion.assign(lattice.over(height, width), grids, batch.targets)
        pairs = (lattice.count(grids) * len(batch) - len(assignment.ignored)) * len(training.detector.spec.class_names)
        positives = assignment.num_positives
        prior = training.detector.spec.architecture.prior
        expected += expected_initial_loss(prior, pairs - positives, positives, alpha=focal.alpha, gamma=focal.gamma)
    here = torch.tensor([expected], device=training.fabric.device)
    expected = float(summed(training.fabric, here)) / max(losses.positives, 1)
    measured = float(losses.classification)
    if abs(measured - expected) > FIRST_LOSS_TOLERANCE * expected:
        log.say(
            f"warning: the first class loss is {measured:.4f}, but a model that says {prior:g} everywhere has "
            f"{expected:.4f}. The initialisation, the targets or the input is not what it should be"
        )


def _evaluate(training: Training, log: RunLog) -> tuple[EvaluationResult, list[Detections]]:
    dataset = training.val_set
    measure = partial(
        one_pass,
        replace(training.detector, net=training.best_net),
        dataset,
        device=training.fabric.device,
        criterion=training.criterion,
        batch_size=max(1, training.sampler.batch_size // training.sampler.parts // training.sampler.world),
        autocast=training.fabric.autocast,
    )
    try:
        result = measure(workers=training.run.workers)
    except WorkerLost as error:  # the epoch must not be lost
        log.say(f"{error}. This evaluation is done again without such processes")
        result = measure(workers=0)
    training.net.train()
    metrics = coco_metrics(dataset.samples, result.detections, dataset.class_names, category_ids=dataset.category_ids)
    about = {"run": str(training.folder), "data": dataset.name}
    return EvaluationResult(metrics, result.loss, result.images_per_second, about), result.detections


def _row(sampler: StepSampler, step: int, losses: Losses, lr: float, norm: float, speed: float) -> dict[str, Any]:
    return {
        "step": step,
        "epoch": -(-step // sampler.steps_per_epoch),
        "loss": float(losses.total),
        "classification": float(losses.classification),
        "box": float(losses.box),
        "positives": losses.positives,
        "lr": lr,
        "grad_norm": norm,
        "images_per_s": speed,
    }
