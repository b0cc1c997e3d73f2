"""Names of options: short ones of options in groups, and which was meant by a name that a function does not have."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from types import NoneType, UnionType
from typing import Any, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from retinanet.errors import UserError
from retinanet.plain import check_type, with_changes

P = ParamSpec("P")
T = TypeVar("T")

# What ultralytics, detectron2, mmdetection, torchvision's references and keras-retinanet call our options. A group is
# named as in train; where a command has the option without its group, that is meant.
SYNONYMS = {
    "image.short": "imgsz img_size image_size img size input_size resize min_size image_min_side",
    "image.long": "max_size image_max_side",
    "optim.lr": "learning_rate lr0 base_lr",
    "optim.optimizer": "opt solver",
    "optim.weight_decay": "wd decay",
    "optim.schedule": "scheduler lr_scheduler cos_lr",
    "optim.warmup": "warmup_epochs warmup_iters warmup_steps",
    "optim.clip": "grad_clip clip_grad clip_norm",
    "optim.accumulate": "accumulation accumulate_grad_batches gradient_accumulation_steps",
    "augment.hflip": "fliplr flip horizontal_flip random_transform",
    "augment.vflip": "flipud vertical_flip",
    "run.accelerator": "device gpu cuda",
    "device": "accelerator gpu gpus cuda",
    "run.devices": "gpus num_gpus world_size",
    "run.workers": "num_workers j",
    "run.precision": "amp half fp16 bf16 int8 dtype quantize",
    "run.save_every": "save_period checkpoint_interval",
    "run.evaluate_every": "val_period eval_interval eval_period",
    "run.patience": "early_stopping",
    "run.log": "logger loggers tracker report_to",
    "postprocess.score": "conf confidence threshold score_thresh score_thr conf_thres score_threshold",
    "postprocess.nms": "iou iou_thres iou_thr nms_thresh nms_threshold",
    "postprocess.max_detections": "max_det max_dets max_per_img detections_per_img",
    "model": "weights backbone arch net network checkpoint ckpt cfg",
    "weights": "pretrained pretrained_backbone weights_backbone snapshot imagenet_weights",
    "data": "dataset data_path dataset_path annotations coco_path",
    "images": "source input img_path image",
    "output": "name project out o outdir output_dir save_dir work_dir logdir snapshot_path",
    "epochs": "e max_epochs num_epochs",
    "batch_size": "b batch batchsize bs samples_per_gpu ims_per_batch",
    "seed": "random_seed manual_seed",
    "pictures": "save visualize show show_dir",
    "tile": "slice tile_size patch_size window",
    "split": "task subset",
    "overwrite": "exist_ok force",
}

SHORT = {"device": "run.accelerator"}  # names that all commands share, where a group calls an option otherwise
NUMBERS = {int, float, bool, NoneType}


def find_full_names(name: str, known: Collection[str]) -> list[str]:
    """The options in groups that a name may stand for: ``lr`` is optim.lr. Several where groups share the name."""
    return [SHORT[name]] if SHORT.get(name) in known else sorted(one for one in known if one.endswith(f".{name}"))


def split_words(words: Iterable[str]) -> list[str]:
    """The names in words of which each may hold several, parted by commas or spaces."""
    return " ".join(words).replace(",", " ").split()


def suggest_option(name: str, known: Iterable[str], spell: Callable[[str], str] = str) -> str:
    """The end of a message about an unknown option: which was meant, or a full stop where none is near.

    Args:
        name: as it was given, without dashes.
        known: the options that there are, those of a group as ``group.name``.
        spell: how one of these has to be written.
    """
    known, word = list(known), name.rpartition(".")[2].lower()
    meant = [option for option, others in SYNONYMS.items() if word in others.split()]
    fields = {word, *(option.rpartition(".")[2] for option in meant)}
    here = [option for option in known if option.rpartition(".")[2] in fields]
    settled = [option for option in meant if option.startswith(("image.", "postprocess."))]
    if settled and not here:
        return f"; it is settled in training, by {spell(settled[0])}."
    nearest = here or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f", did you mean {' or '.join(repr(spell(option)) for option in nearest)}?" if nearest else "."


def explain_unknown_options(function: Callable[P, T]) -> Callable[P, T]:
    """A function that says which parameter was meant where it is given one that it does not have.

    It also says so where it is given a text for a number.

    Raises:
        UserError: it was given one.
    """
    parameters = inspect.signature(function).parameters
    groups, fields = _find_groups(function)

    def spell(option: str) -> str:
        group, _, field = option.partition(".")
        return f"{group}={type(groups[group]).__name__}({field}=...)" if group in groups else option

    @functools.wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> T:
        for name, value in list(options.items()):
            if name not in parameters:
                hint = suggest_option(name, [*parameters, *fields], spell)
                raise UserError(f"{function.__qualname__.removesuffix('.__init__')}() has no parameter {name!r}{hint}")
            if function.__name__ == "__init__":  # groups check all their types
                continue
            if isinstance(value, str):
                _refuse_text_for_number(function, name, value)
            if name in groups and value is not None and not isinstance(value, type(groups[name])):
                wanted = f"{type(groups[name]).__name__}(...)"
                if not isinstance(value, Mapping):
                    raise UserError(f"{name}: expected {wanted}, or a dict of its fields; got {value!r}")
                options[name] = with_changes(groups[name], value, name)
        return function(*arguments, **options)

    return checked


def accept_short_names(**bases: Callable[[str], Mapping[str, Any]]) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Makes a function take options of its groups without the group, as its command does: ``lr=`` for optim.lr.

    Args:
        bases: parameters whose value decides what the options of a group are that is not given, as on a command line.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        parameters = inspect.signature(function).parameters
        groups, fields = _find_groups(function)

        @functools.wraps(function)
        def complete(*arguments: P.args, **options: P.kwargs) -> T:
            changes: dict[str, dict[str, Any]] = {}
            for name in [name for name in options if name not in parameters]:
                full = find_full_names(name, fields)
                if len(full) > 1:
                    raise UserError(f"{function.__name__}(): {name} could be {' or '.join(full)}: give the group")
                if full:
                    group, _, field = full[0].partition(".")
                    changes.setdefault(group, {})[field] = options.pop(name)
            for group, values in changes.items():
                base = options.get(group)
                if base is None:
                    base = groups[group]
                    for name, find_base in bases.items():
                        chosen = options.get(name, parameters[name].default)
                        base = with_changes(base, find_base(str(chosen)).get(group, {}), group)
                options[group] = with_changes(base, values, group)
            return function(*arguments, **options)

        return complete

    return decorate


def _find_groups(function: Callable[..., Any]) -> tuple[dict[str, Any], list[str]]:
    """The groups of options that a function takes, at their defaults, and the full names of the options in them."""
    parameters = inspect.signature(function).parameters
    groups = {name: one.default for name, one in parameters.items() if dataclasses.is_dataclass(one.default)}
    return groups, [f"{name}.{field.name}" for name, group in groups.items() for field in dataclasses.fields(group)]


def _refuse_text_for_number(function: Callable[..., Any], name: str, value: str) -> None:
    hint = get_type_hints(function).get(name)
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not set(kinds) <= NUMBERS:
        return
    try:
        check_type(value, hint, name)
    except UserError as error:
        without = f". Write it without quotes: {name}={value}" if value.replace(".", "", 1).isdigit() else ""
        raise UserError(f"{error}{without}") from None


def explain_unknown_fields(group: type[T]) -> type[T]:
    """A dataclass whose constructor says which field was meant; see :func:`explain_unknown_options`."""
    group.__init__ = explain_unknown_options(group.__init__)  # type: ignore[method-assign]
    return group
