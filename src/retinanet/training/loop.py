"""The training loop, in sight."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import cast

import torch
from torch import Tensor

from retinanet.card import write_card
from retinanet.data.loader import training_batches
from retinanet.data.workers import WorkerLost
from retinanet.errors import Interrupted, UserError, stop_requested
from retinanet.evaluation.evaluate import judge, one_pass
from retinanet.evaluation.report import EvaluationResult, save_coco_results
from retinanet.files import make_json_safe
from retinanet.losses.detection import Losses
from retinanet.training.build import Training
from retinanet.training.log import RunLog
from retinanet.training.optim import compute_lr_factor, set_lr
from retinanet.training.output import resume_command
from retinanet.training.ranks import noticing_lost_ranks, on_any, sum_over_ranks
from retinanet.training.resume import Progress, save_state
from retinanet.training.stop import GradientWatch, stop_if_not_finite
from retinanet.types import Batch, Detections

FIRST_LOSS_TOLERANCE = 0.1


def fit(training: Training, progress: Progress, log: RunLog) -> Progress:
    """Train from ``progress`` to the end of the sampler, or until patience runs out.

    Raises:
        UserError: a loss is not finite (the batch is saved beside the log), a file cannot be written, or a process of
            the run has died (after the state was saved, where a process that reads images died).
        Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    config, sampler, fabric = training.config, training.sampler, training.fabric
    batches = training_batches(
        training.train_set,
        preprocess=training.detector.spec.preprocess,
        augment=config.augment,
        sampler=replace(sampler, start=progress.step),
        workers=config.workers,
        assign=training.assign,
    )
    watch = GradientWatch(min(config.optim.warmup, sampler.stop // 10))
    with noticing_lost_ranks(fabric), log, closing(batches), stop_requested() as stop:
        for step in range(progress.step, sampler.stop):
            if config.run.patience and progress.stale >= config.run.patience:
                log.say(f"stopped early: no better AP in {progress.stale} evaluations")
                break
            began = time.perf_counter()
            torch.manual_seed(sampler.seed * 1_000_003 + step)  # what is random in the net depends on the step alone
            lr = set_lr(training.optimizer, compute_lr_factor(step, sampler.stop, config.optim))

            try:
                parts = [batch.to(fabric.device) for batch in islice(batches, sampler.parts)]
            except WorkerLost as error:
                raise _stop_without(error, training, progress, asked=stop.is_set()) from None
            losses, norm = train_step(training, parts, step)
            progress.step = step + 1

            log.step(
                {
                    "step": progress.step,
                    "epoch": -(-progress.step // sampler.steps_per_epoch),
                    "loss": float(losses.total),
                    "classification": float(losses.classification),
                    "box": float(losses.box),
                    "positives": losses.positives,
                    "lr": lr,
                    "grad_norm": norm,
                    "images_per_s": sampler.batch_size / (time.perf_counter() - began),
                }
            )
            if warning := watch.warning(norm, step, parts):
                log.say(warning)
            if step == 0:
                check_first_loss(training, parts, losses, log)

            stopping = on_any(fabric, stop.is_set())
            if progress.step % sampler.steps_per_epoch == 0:
                finish_epoch(training, progress, log)
            elif progress.step % config.run.save_every == 0 or stopping:
                save(training, progress)
            if stopping and progress.step < sampler.stop:
                raise _interruption(training, progress)
    return progress


def train_step(training: Training, parts: Sequence[Batch], step: int) -> tuple[Losses, float]:
    """One optimiser step over the parts of a batch: forward, backward, clip, update.

    The normaliser counts the positives of all parts on all ranks before the first forward pass, so however a batch is
    shared out, the gradient is the same.

    Returns:
        The losses of the step, over all parts and ranks, and the norm of the gradient before clipping.
    """
    fabric, criterion = training.fabric, training.criterion
    assignments = [training.find_assignment(batch) for batch in parts]
    counts = torch.zeros(2, device=fabric.device)  # what the loss is divided by, and positives
    for batch, assignment in zip(parts, assignments, strict=True):
        count = [float(criterion.count(assignment, len(batch))), float(assignment.num_positives)]
        counts += torch.tensor(count, device=fabric.device)
    normaliser, positives = sum_over_ranks(fabric, counts).tolist()

    totals = torch.zeros(2, device=fabric.device)
    for index, (batch, assignment) in enumerate(zip(parts, assignments, strict=True)):
        images = training.detector.spec.preprocess.normalise(batch.images, batch.sizes)
        loss = partial(criterion, targets=batch.targets, assignment=assignment, normaliser=max(normaliser, 1.0))
        with fabric.no_backward_sync(training.net, enabled=index < len(parts) - 1):
            classification, box = training.net(images, loss)
            values = {"classification loss": classification.item(), "box loss": box.item()}
            stop_if_not_finite(fabric, values, [batch], training.config.folder, step)
            # data-parallel backward averages over the ranks; the loss is a sum over them
            fabric.backward(Losses(classification, box, assignment.num_positives).total * fabric.world_size)
        totals += torch.stack([classification.detach(), box.detach()])
    totals = sum_over_ranks(fabric, totals)

    norm = _clip(training)
    if training.config.run.precision != "16":  # where the scaler of the loss skips such a step and goes on
        stop_if_not_finite(fabric, {"norm of the gradient": norm}, parts, training.config.folder, step)
    _update(training)
    return Losses(totals[0], totals[1], int(positives)), norm


def _clip(training: Training) -> float:
    """Clip the gradient; returns its norm before."""
    limit = training.config.optim.clip or math.inf
    norm = training.fabric.clip_gradients(training.net, training.optimizer, max_norm=limit, error_if_nonfinite=False)
    return float(cast(Tensor, norm))


def _update(training: Training) -> None:
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=True)
    if training.average is not None:
        training.average.update_parameters(training.detector.net)


def finish_epoch(training: Training, progress: Progress, log: RunLog) -> None:
    """Evaluate where it is due, keep the best and the last model, and save the state."""
    sampler, folder = training.sampler, training.config.folder
    epoch = -(-progress.step // sampler.steps_per_epoch)
    if epoch % training.config.evaluate_every == 0 or progress.step == sampler.stop:
        report, detections = _evaluate(training, log)
        metrics = {"AP": report.metrics.ap, "AP50": report.metrics.ap50, "AP75": report.metrics.ap75}
        ap = -1.0 if math.isnan(metrics["AP"]) else metrics["AP"]
        best = ap > progress.best or progress.best < 0
        progress.best, progress.stale = (ap, 0) if best else (progress.best, progress.stale + 1)
        log.evaluation({"step": progress.step, "epoch": epoch, "val_loss": report.loss["total"], **metrics}, best=best)
        for line in report.describe_limits():
            log.say(line)

        if training.fabric.is_global_zero:
            known = make_json_safe({name: metrics[name] for name in ("AP", "AP50")})
            known |= {"data": training.val_set.name, "epoch": epoch}
            training.detector = training.detector.with_spec(metrics=known)
            tensors = training.best_net.state_dict()
            training.detector.save(folder / "last", tensors)
            if best:
                training.detector.save(folder, tensors)
                report.to_json(folder / "evaluation.json")
                dataset = training.val_images
                save_coco_results(folder / "predictions.json", dataset.samples, detections, dataset.category_ids)
                write_card(folder)
    save(training, progress)


def save(training: Training, progress: Progress) -> None:
    """Write the training state, on rank 0."""
    if training.fabric.is_global_zero:
        save_state(training.config.folder, progress, training.parts(), training.data)
    training.fabric.barrier()


def _stop_without(lost: WorkerLost, training: Training, progress: Progress, *, asked: bool) -> UserError:
    """Save what was learned before a worker was lost, and say it; a signal to the whole group ends workers too."""
    if not progress.step:
        return lost
    if training.fabric.is_global_zero:  # no barrier: the other ranks wait for this one in their step
        save_state(training.config.folder, progress, training.parts(), training.data)
    if asked:
        return _interruption(training, progress)
    return UserError(
        f"{lost}. The state after step {progress.step} is saved. Go on with: {resume_command(training.config.folder)}"
    )


def _interruption(training: Training, progress: Progress) -> Interrupted:
    done = f"stopped after step {progress.step} of {training.sampler.stop}; the state is saved"
    return Interrupted(f"{done}. Go on with: {resume_command(training.config.folder)}")


def check_first_loss(training: Training, parts: Sequence[Batch], losses: Losses, log: RunLog) -> None:
    """Say so if the first class loss of a new model is not what its prior implies (section 4.1 of the paper)."""
    criterion, lattice = training.criterion, training.detector.net.lattice
    if not training.untrained:
        return
    prior, classes = training.detector.spec.architecture.prior, len(training.detector.spec.class_names)
    expected = torch.zeros(2, device=training.fabric.device)  # the least and the highest
    for batch in parts:
        size = batch.images.shape[-2:]
        assignment = training.find_assignment(batch)
        over, grids = lattice.over(*size), lattice.grids(*size)
        part = criterion.expect_initial(assignment, over, grids, len(batch), classes, prior)
        if part is None:
            return
        expected += expected.new_tensor(part)
    least, highest = (sum_over_ranks(training.fabric, expected) / max(losses.positives, 1)).tolist()
    measured = float(losses.classification)
    if not (1 - FIRST_LOSS_TOLERANCE) * least <= measured <= (1 + FIRST_LOSS_TOLERANCE) * highest:
        wanted = f"{least:.4f}" if least == highest else f"{least:.4f} to {highest:.4f}"
        log.say(
            f"warning: the first class loss is {measured:.4f}, but a model that says {prior:g} everywhere has "
            f"{wanted}. The initialisation, the targets or the input is not what it should be"
        )


def _evaluate(training: Training, log: RunLog) -> tuple[EvaluationResult, list[Detections]]:
    dataset = training.val_images
    measure = partial(
        one_pass,
        replace(training.detector, net=training.best_net),
        training.val_set,
        device=training.fabric.device,
        criterion=training.criterion,
        batch_size=max(1, training.sampler.batch_size // training.sampler.parts // training.sampler.world),
        autocast=training.fabric.autocast,
    )
    try:
        result = measure(workers=training.config.workers)
    except WorkerLost as error:  # the epoch must not be lost
        log.say(f"{error}. This evaluation is done again without such processes")
        result = measure(workers=0)
    training.net.train()
    about = {"run": str(training.config.folder), "data": dataset.name}
    return judge(training.detector.spec, dataset, result, about), result.detections
