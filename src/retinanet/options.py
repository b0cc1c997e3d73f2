"""Which option was meant by a name that a function does not have: what other tools call it, or one spelt nearly so."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from retinanet.errors import UserError

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

    Raises:
        UserError: it was given one.
    """
    parameters = inspect.signature(function).parameters
    groups = {name: one.default for name, one in parameters.items() if dataclasses.is_dataclass(one.default)}
    fields = [f"{name}.{field.name}" for name, group in groups.items() for field in dataclasses.fields(group)]

    def spell(option: str) -> str:
        group, _, field = option.partition(".")
        return f"{group}={type(groups[group]).__name__}({field}=...)" if group in groups else option

    @functools.wraps(function)
    def checked(*arguments: P.args, **options: P.kwargs) -> T:
        for name in options:
            if name not in parameters:
                hint = suggest_option(name, [*parameters, *fields], spell)
                raise UserError(f"{function.__qualname__.removesuffix('.__init__')}() has no parameter {name!r}{hint}")
        return function(*arguments, **options)

    return checked


def explain_unknown_fields(group: type[T]) -> type[T]:
    """A dataclass whose constructor says which field was meant; see :func:`explain_unknown_options`."""
    group.__init__ = explain_unknown_options(group.__init__)  # type: ignore[method-assign]
    return group
