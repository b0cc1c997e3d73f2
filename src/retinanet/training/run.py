"""``train``: from annotated images to a model folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retinanet.data.objects import Data, name_data
from retinanet.data.transforms import Augment
from retinanet.data.workers import end_if_imported_by_a_worker
from retinanet.files import explain_failed_write, write_atomically
from retinanet.options import accept_short_names, explain_unknown_options
from retinanet.plain import to_plain
from retinanet.planning.fingerprint import take_fingerprint
from retinanet.planning.plan import NAME as PLAN
from retinanet.planning.plan import Plan
from retinanet.planning.planner import Origin
from retinanet.plotting.figures import save_figure, training_curves
from retinanet.training.build import Training
from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, PostprocessConfig, RunConfig, TrainConfig
from retinanet.training.describe import describe, say
from retinanet.training.given import (
    AUGMENT,
    IMAGE,
    LOSS,
    OPTIM,
    POSTPROCESS,
    RUN,
    complete,
    find_given,
    recall,
    recall_plan,
)
from retinanet.training.log import RunLog, read_log
from retinanet.training.loop import fit
from retinanet.training.output import OPTIONS, check_not_in_use, check_output, check_space, lock, remove_drafts
from retinanet.training.planned import NONE, settle
from retinanet.training.precision import build_fabric
from retinanet.training.ranks import is_first_process
from retinanet.training.recipes import find_recipe, follow_recipe
from retinanet.training.resume import Progress, digest_data, load_state, save_state
from retinanet.training.start import adapt_detector, build_detector, check_images, cut_sets, load_sets
from retinanet.training.trackers import choose_trackers, open_trackers
from retinanet.training.transfer import Transfer
from retinanet.yaml_files import dump_plain


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        folder: of the run; it is the folder of its best model.
        ap: best AP on the validation split; NaN if it has no objects.
        steps: optimiser steps done.
    """

    folder: Path
    ap: float
    steps: int


@accept_short_names(recipe=find_recipe)
@explain_unknown_options
def train(
    data: Data,
    output: str,
    *,
    plan: str | None = None,
    budget: str | None = None,
    model: str | None = None,
    recipe: str = "default",
    weights: str = "imagenet",
    epochs: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    train_split: str | None = None,
    val_split: str | None = None,
    resume: bool = False,
    callbacks: Sequence[object] = (),
    strict: bool = False,
    confine: bool = False,
    architecture: dict[str, Any] | None = None,
    image: ImageConfig = IMAGE,
    augment: Augment = AUGMENT,
    loss: LossConfig = LOSS,
    optim: OptimConfig = OPTIM,
    postprocess: PostprocessConfig = POSTPROCESS,
    run: RunConfig = RUN,
) -> TrainResult:
    """Train RetinaNet on annotated images; what is left out is decided by the data and the machine, see ``plan``.

    Args:
        data: annotated images in COCO, VOC, YOLO or CSV form; in Python also an object, see ``AnnotatedImages``.
        output: folder of the run, new; it becomes the model folder.
        plan: file of a plan, whose values hold where nothing else is said; by default a plan is made, and ``none``
            takes fixed values: a resnet50, 12 epochs, batches of 8 and images of 800 to 1333 pixels.
        budget: the longest that the training may take, such as 30m, 2h or 1h30m; a step is timed first.
        model: preset (resnet18, resnet34, resnet50, resnet101, resnet152, lite) or a model folder to start from; its
            class layer is made new where its classes are not those of the data.
        recipe: what augment, loss and optim are where they are left out, and whether a new model votes: ``default``,
            ``paper`` (the paper's) or ``torchvision`` (that of its first RetinaNet). In Python a group that is given is
            taken as it is; on a command line and in a file, options change the recipe's.
        weights: of a preset's backbone: imagenet (downloaded), a safetensors file with timm's names, or none.
        epochs: passes over the training images.
        batch_size: images per optimiser step, over all devices and accumulated parts.
        seed: of everything random.
        train_split: what to learn from; by default train.
        val_split: what to evaluate on; by default val, else a seeded hold-out.
        resume: go on from the last saved step of the run in output.
        callbacks: objects that are told of every step and evaluation (see
            :class:`retinanet.training.trackers.Callback`); in Python only.
        strict: refuse the data at the first faulty box instead of leaving faulty boxes out.
        confine: refuse data that name images outside of their folder.
        architecture: changes to the preset's or the folder's, such as norm, channels, anchors (see Architecture). A
            preset's batch norms are frozen with pretrained weights and trained without, unless norm is given.
        image: size of the images.
        augment: what happens to training images.
        loss: what is minimised.
        optim: how it is minimised.
        postprocess: thresholds for evaluation and prediction, saved with the model; defaults leave a folder's.
        run: devices, precision, saving.

    Raises:
        UserError: a mistake in the data or the options, with nothing written; later a loss that is not finite, a full
            disk, a process of the run that died. Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    options: dict[str, Any] = {
        **{"data": name_data(data), "output": output, "model": model, "recipe": recipe, "weights": weights},
        **{"epochs": epochs, "batch_size": batch_size, "seed": seed, "train_split": train_split},
        **{"val_split": val_split, "strict": strict, "confine": confine, "architecture": architecture},
        **{"image": image, "augment": augment, "loss": loss, "optim": optim, "postprocess": postprocess, "run": run},
    }
    if resume:
        options = recall(options)
    groups = {name: options[name] for name in ("augment", "loss", "optim")}
    groups = follow_recipe(recipe, groups, {"augment": AUGMENT, "loss": LOSS, "optim": OPTIM})
    config = complete({**options, **groups})
    given = find_given(options)
    return run_training(config, resume=resume, given=given, plan=plan, budget=budget, data=data, callbacks=callbacks)


def run_training(
    config: TrainConfig,
    *,
    resume: bool = False,
    given: Mapping[str, Any] | None = None,
    plan: str | None = NONE,
    budget: str | None = None,
    data: Data | None = None,
    callbacks: Sequence[object] = (),
) -> TrainResult:
    """Check everything, build the parts, fit them.

    Args:
        config: the options, with fixed values where they were left out.
        resume: go on with the run in the folder.
        given: the options that the user decided, by dotted names; a plan decides the others.
        plan: as in :func:`train`, whose errors these are.
        budget: likewise.
        data: the data themselves, which may be no files; by default those that the options name.
        callbacks: likewise.
    """
    end_if_imported_by_a_worker()
    first, trackers = is_first_process(), choose_trackers(config.run.trackers, callbacks)
    if first:  # the others may find what this one makes
        check_not_in_use(config.folder)
        check_output(config, resume=resume)
    is_chosen = resume or "model" in (given or vars(config))
    sets, made = load_sets(config, Origin.find(config.model) if is_chosen else None, data), None
    if not resume:
        config, made = settle(config, given or {}, sets, plan=plan, budget=budget)
    origin = Origin.find(config.model)
    train_set, val_set = cut_sets(sets, origin.tiling, config.image.tile, config.image.overlap)
    torch.manual_seed(config.seed)
    home = origin.folder
    detector, moved = adapt_detector(config, home, train_set) if home else (build_detector(config, train_set), None)
    known = recall_plan(config.folder, train_set.class_names) if resume else {}
    detector = detector.with_spec(plan=made.to_dict()["options"] if made else known)
    if first and not resume:
        check_images(train_set, val_set)

    fabric = build_fabric(config.run)
    fabric.launch()
    training = Training(config, fabric, detector, train_set, val_set, untrained=home is None)
    if fabric.is_global_zero:
        facts = take_fingerprint(*sets) if made is None or detector.spec.tiling else made.facts  # else of windows
        names, digest = (sets[0].name, sets[1].name), digest_data(training.data)
        about = {"train": names[0], "validation": names[1], "sha256": digest, "fingerprint": facts.to_dict()}
        training.detector = training.detector.with_spec(data=about)
    with lock(config.folder) if fabric.is_global_zero else nullcontext():
        progress = go_on(training) if resume else begin(training, moved, made)
        named = trackers if fabric.is_global_zero else ()
        opened = open_trackers(named, config, step=progress.step, resume=resume, say=say)
        log = RunLog(
            config.folder,
            total=training.sampler.stop,
            start=progress.step,
            per_epoch=training.sampler.steps_per_epoch,
            enabled=fabric.is_global_zero,
            callbacks=[*opened, *callbacks],
        )
        progress = fit(training, progress, log)
        if fabric.is_global_zero:
            with explain_failed_write(config.folder / "curves.png"):
                save_figure(training_curves(read_log(config.folder / "log.csv")), config.folder / "curves.png")
    return TrainResult(config.folder, progress.best if progress.best >= 0 else float("nan"), progress.step)


def begin(training: Training, moved: Transfer | None, made: Plan | None) -> Progress:
    """Make the folder of a run: its first state, its options, what became of each tensor of the model it starts from.

    The state comes first and the options last: a folder without both can be started anew.
    """
    config, progress = training.config, Progress()
    if not training.fabric.is_global_zero:
        return progress
    check_output(config, resume=False)  # again: another run may have been here since
    if made is not None:
        say(made.summary(given=False))
    describe(training, moved)
    remove_drafts(config.folder)
    check_space(training)
    (config.folder / OPTIONS).unlink(missing_ok=True)  # of a run that saved nothing
    save_state(config.folder, progress, training.parts(), training.data)
    if moved is not None:
        text = f"weights from {config.model}\n{moved.summary()}\n\n{moved.report()}\n"
        write_atomically(config.folder / "transfer.txt", text)
    if made is not None:
        write_atomically(config.folder / PLAN, made.to_yaml())
    write_atomically(config.folder / OPTIONS, dump_plain(to_plain(config)))
    return progress


def go_on(training: Training) -> Progress:
    """Restore the state of a run, and say what keeps it from ending as an uninterrupted one would, bit for bit."""
    config = training.config
    data = None if config.run.accept_changed_data else training.data
    progress, differences = load_state(config.folder, training.parts(), data)
    if training.fabric.is_global_zero:
        differences += check_output(config, resume=True)
        describe(training, None)
        remove_drafts(config.folder)
        check_space(training)
        if differences:
            say(
                f"goes on with {', '.join(differences)}: the weights will equal those of an uninterrupted run up to "
                "rounding, not bit for bit"
            )
    return progress
