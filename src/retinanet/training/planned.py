"""Options that are left out: decided by the plan, for ``train`` and for ``plan``, which trains nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from retinanet.data.dataset import DetectionDataset
from retinanet.data.objects import Data, name_data
from retinanet.data.transforms import Augment
from retinanet.data.windows import WindowDataset, count_drawn
from retinanet.errors import UserError
from retinanet.files import check_new_file, write_atomically
from retinanet.model.presets import Architecture
from retinanet.options import accept_short_names, explain_unknown_options
from retinanet.planning.fingerprint import take_fingerprint
from retinanet.planning.machine import Host, Machine, find_host
from retinanet.planning.plan import Plan, read_plan
from retinanet.planning.planner import Origin, Planner
from retinanet.planning.rules import choose_tile
from retinanet.planning.speed import Speed, parse_budget, time_reading, time_step
from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, PostprocessConfig, RunConfig, TrainConfig
from retinanet.training.given import (
    AUGMENT,
    IMAGE,
    LOSS,
    OPTIM,
    POSTPROCESS,
    RUN,
    complete,
    find_given,
    follow,
    follow_file,
)
from retinanet.training.ranks import count_processes
from retinanet.training.recipes import find_recipe
from retinanet.training.start import Sets, cut_sets, load_sets

NONE = "none"  # in place of the file of a plan: no plan
TIMED_IMAGES = {"cpu": 2, "mps": 2, "cuda": 8}
HERE = Machine()


def make_plan(
    config: TrainConfig,
    given: Mapping[str, Any],
    sets: Sets,
    *,
    host: Host,
    budget: str | None = None,
    timed: bool = False,
) -> Plan:
    """The plan for a training.

    Args:
        config: its options.
        given: those that the user decided, by dotted names.
        sets: images to learn from and to evaluate on.
        host: the machine.
        budget: such as ``30m``.
        timed: time a step, also where there is no budget.

    Raises:
        UserError: nothing fits into the budget or the memory, or a value is impossible.
    """
    seconds = None if budget is None else parse_budget(budget)
    bf16 = host.bf16 if config.run.precision == "auto" else config.run.precision != "32"
    host = replace(host, bf16=bf16)
    facts, origin = take_fingerprint(*sets), Origin.find(str(given["model"])) if "model" in given else None
    tile, why = given.get("image.tile"), "yours"
    if tile is None and not (origin and origin.folder) and config.recipe == "default":
        tile, why = choose_tile(facts, host.device)
    sets = cut_sets(sets, origin.tiling if origin else None, tile, given.get("image.overlap"))
    tiling = sets[0].tiling if isinstance(sets[0], WindowDataset) else None
    if tiling:
        facts = replace(take_fingerprint(*sets), images=sum(count_drawn(sets[0])))
    time = partial(_time, sets[0], host) if host.here and (timed or seconds) else None
    names = sets[0].class_names
    many = {"optim.accumulate": config.parts} if count_processes(config.run) > 1 else {}  # they must all plan alike
    if many and budget:
        raise UserError(
            "budget: with several processes, make the plan first (retinanet plan DATA --budget ... --write plan.yaml), "
            "then train with --plan plan.yaml"
        )
    planner = Planner(
        *(sets[0].name, sets[0].samples, names, facts, host, {**many, **given}, config.recipe, seconds),
        find_origin=Origin.find,
        time=time,
        tiling=tiling,
        why_tiling=why,
    )
    return planner.make()


def _time(dataset: DetectionDataset, host: Host, architecture: Architecture, size: tuple[int, int]) -> Speed:
    images, classes = TIMED_IMAGES[host.device], len(dataset.class_names)
    reading = time_reading(dataset)
    # where cores are to spare, images are read while the device computes
    spare = host.device_memory is not None or host.cores > 4
    step = time_step(architecture, classes, size, images, host.device, bf16=host.bf16)
    return Speed(step, 0.0 if spare else reading)


def settle(
    config: TrainConfig,
    given: Mapping[str, Any],
    sets: Sets,
    *,
    plan: str | None,
    budget: str | None,
) -> tuple[TrainConfig, Plan | None]:
    """The configuration of a training with nothing left out, and the plan behind it, if any.

    Args:
        config: with fixed values where options were left out.
        given: the options that the user decided.
        sets: images to learn from and to evaluate on.
        plan: file of a plan; ``none`` takes the fixed values.
        budget: such as ``30m``.

    Raises:
        UserError: as :func:`make_plan` and :func:`follow_file`.
    """
    if plan == NONE:
        if budget is not None:
            raise UserError("budget: only a plan keeps to it. Leave out --plan none")
        return config, None
    if plan is not None:
        config = follow_file(config, Path(plan), given, sets[0].class_names)
        given = {**read_plan(Path(plan), sets[0].class_names), **given}
    host = find_host(HERE, config.run.accelerator, config.folder)
    try:
        made = make_plan(config, given, sets, host=host, budget=budget)
    except UserError as error:
        raise error if plan is None else UserError(f"{plan}: {error}") from None
    return follow(config, made.values), made


@accept_short_names(recipe=find_recipe)
@explain_unknown_options
def plan(
    data: Data,
    *,
    write: str | None = None,
    budget: str | None = None,
    model: str | None = None,
    recipe: str = "default",
    epochs: int | None = None,
    batch_size: int | None = None,
    train_split: str | None = None,
    val_split: str | None = None,
    confine: bool = False,
    architecture: dict[str, Any] | None = None,
    image: ImageConfig = IMAGE,
    augment: Augment = AUGMENT,
    loss: LossConfig = LOSS,
    optim: OptimConfig = OPTIM,
    postprocess: PostprocessConfig = POSTPROCESS,
    run: RunConfig = RUN,
    machine: Machine = HERE,
    timed: bool = True,
    overwrite: bool = False,
) -> Plan:
    """Say what ``train`` would do with annotated images, and why; nothing is trained.

    Args:
        data: annotated images in COCO, VOC, YOLO or CSV form; in Python a data set object too, see ``train``.
        write: file for the plan, which ``train --plan`` takes.
        budget: the longest that the training may take on this machine, such as 30m, 2h or 1h30m.
        model: preset, or a model folder to start from.
        recipe: as in ``train``.
        epochs: passes over the training images.
        batch_size: images per optimiser step.
        train_split: what to learn from; by default train.
        val_split: what to evaluate on; by default val, else a seeded hold-out.
        confine: refuse data that name images outside of their folder.
        architecture: changes to the preset's or the folder's.
        image: size of the images.
        augment: what happens to training images.
        loss: what is minimised.
        optim: how it is minimised.
        postprocess: thresholds for evaluation and prediction.
        run: devices and precision.
        machine: another machine to plan for; no step is timed for it.
        timed: make and time a few training steps, on random images, to say how long it takes.
        overwrite: replace the file of an earlier plan.

    Raises:
        UserError: a mistake in the data or the options, or nothing fits into the budget or the memory.
    """
    check_new_file("--write", write, overwrite=overwrite)
    groups = {"image": image, "augment": augment, "loss": loss, "optim": optim, "postprocess": postprocess, "run": run}
    options = {"model": model, "epochs": epochs, "batch_size": batch_size, "architecture": architecture, **groups}
    config = complete(
        {
            **{"data": name_data(data), "output": "", "recipe": recipe, "weights": "none", "seed": 0, "strict": False},
            **{"train_split": train_split, "val_split": val_split, "confine": confine},
            **options,
        }
    )
    host = find_host(machine, run.accelerator)
    sets = load_sets(config, Origin.find(model) if model else None, data)
    made = make_plan(config, find_given(options), sets, host=host, budget=budget, timed=timed)
    follow(config, made.values)  # which checks them
    if write is not None:
        write_atomically(Path(write), made.to_yaml())
    return made
