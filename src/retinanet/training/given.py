"""The options of a training: what the user gave, what was left out, and what a plan or an earlier run fills in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

from retinanet.data.transforms import Augment
from retinanet.errors import UserError
from retinanet.model_folder import read_spec
from retinanet.plain import with_changes
from retinanet.planning.plan import NAME as PLAN
from retinanet.planning.plan import read_plan
from retinanet.spec import CONFIG
from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, PostprocessConfig, RunConfig, TrainConfig
from retinanet.training.output import OPTIONS
from retinanet.yaml_files import find_line, read_mapping

UNPLANNED = {"model": "resnet50", "epochs": 12, "batch_size": 8}
UNPLANNED_IN: dict[str, dict[str, Any]] = {"optim": {"accumulate": 1}, "run": {"workers": 2, "evaluate_every": 1}}
# Groups that are left out: they are the plan's or the recipe's.
AUGMENT, IMAGE, LOSS, OPTIM = Augment(), ImageConfig(), LossConfig(), OptimConfig()
POSTPROCESS, RUN = PostprocessConfig(), RunConfig()
NESTED = ("image", "optim", "postprocess", "run")  # groups in which null leaves an option to the plan
PLANNED = {"optim": ("accumulate", "optimizer"), "run": ("workers", "evaluate_every")}  # of those, where not all


def find_given(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the user decided, by dotted names, of those that a plan decides.

    Args:
        options: of ``train``; null, or the very object that is the default of a group, is what was left out.
    """
    given = {name: options[name] for name in UNPLANNED if options[name] is not None}
    given |= {f"architecture.{name}": value for name, value in (options["architecture"] or {}).items()}
    for group in NESTED:
        fields = vars(options[group])
        names = PLANNED.get(group, tuple(fields))
        given |= {f"{group}.{name}": fields[name] for name in names if fields[name] is not None}
    return given if options["augment"] is AUGMENT else {**given, "augment": True}


def complete(options: dict[str, Any]) -> TrainConfig:
    """A configuration with fixed values in place of what was left out, which :func:`follow` replaces."""
    values = {name: value for name, value in options.items() if value is not None or name not in UNPLANNED}
    for group, fixed in UNPLANNED_IN.items():
        if not is_dataclass(options[group]):
            continue  # which TrainConfig refuses
        missing = {name: value for name, value in fixed.items() if getattr(options[group], name) is None}
        values[group] = replace(options[group], **missing) if missing else options[group]
    return TrainConfig(**{**UNPLANNED, **values})


def follow(config: TrainConfig, values: Mapping[str, Any]) -> TrainConfig:
    """A configuration with the values of a plan, by dotted names.

    Raises:
        UserError: a value is impossible; the message begins with the name of the option.
    """
    nested: dict[str, Any] = {}
    for option, value in values.items():
        group, _, name = option.partition(".")
        if name:
            nested.setdefault(group, {})[name] = value
        else:
            nested[group] = value
    if "architecture" in nested:
        nested["architecture"] = {**(config.architecture or {}), **nested["architecture"]}
    return with_changes(config, nested, "")


def follow_file(config: TrainConfig, path: Path, given: Mapping[str, Any], class_names: tuple[str, ...]) -> TrainConfig:
    """A configuration with what the file of a plan says where the user says nothing.

    Raises:
        UserError: it is no plan for these classes, or a value is impossible; the line is named.
    """
    values = {
        name: value
        for name, value in read_plan(path, class_names).items()
        if name not in given and name.partition(".")[0] not in given
    }
    for option, value in values.items():
        try:
            config = follow(config, {option: value})
        except UserError as error:
            raise UserError(f"{path}, line {find_line(path, tuple(option.split('.')))}: {error}") from None
    return config


def recall(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run that goes on: those that are left out are as it began with."""
    file = Path(options["output"]) / OPTIONS
    if not file.is_file():
        return options
    then = read_mapping(file)
    now = dict(options)
    for name in UNPLANNED:
        now[name] = then.get(name) if now[name] is None else now[name]
    now["architecture"] = {**(then.get("architecture") or {}), **(now["architecture"] or {})} or None
    for group in filter(lambda group: is_dataclass(now[group]), NESTED):
        values = {name: value for name, value in vars(now[group]).items() if value is not None}
        now[group] = with_changes(now[group], {**(then.get(group) or {}), **values}, group)
    if now["augment"] is AUGMENT:
        now["augment"] = with_changes(AUGMENT, then.get("augment") or {}, "augment")
    return now


def recall_plan(folder: Path, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The plan of a run that goes on: its model has it, or, before the first evaluation, its file, less the reasons."""
    if (folder / CONFIG).is_file():
        return dict(read_spec(folder).plan)
    if not (folder / PLAN).is_file():
        return {}
    values = read_plan(folder / PLAN, class_names)
    return {name: {"value": value, "reason": f"see {PLAN}"} for name, value in values.items()}
