"""The options of a training run, typed and checked; ``train`` and its command line are made of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from retinanet.data.transforms import Augment
from retinanet.errors import UserError, suggest
from retinanet.losses.config import LossConfig
from retinanet.model.postprocess import Postprocess
from retinanet.options import explain_unknown_fields, split_words
from retinanet.plain import check_types

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")


@explain_unknown_fields
@dataclass(frozen=True)
class ImageConfig:
    """Size of the images that the network sees; null is the model folder's, or for a new model the paper's 800, 1333.

    A new model sees whole images where ``tile`` is null.

    Attributes:
        short: pixels of the short side; where the data decide, they do.
        long: most pixels of the long side, likewise.
        multiple: batches are padded to a multiple of this.
        tile: train on windows of this many pixels of the original images, for objects that are small in large images;
            prediction cuts likewise. The network sees a window at its own size, or resized to ``short`` where that is
            given. 0: whole images.
        overlap: pixels that neighbouring windows share; by default more than 99 % of the objects have, at least 64 and
            less than half the tile.
    """

    short: int | None = None
    long: int | None = None
    multiple: int | None = None
    tile: int | None = None
    overlap: int | None = None

    def __post_init__(self) -> None:
        check_types(self, "image")
        _expect_at_least(self, "image", short=1, long=1, multiple=1, tile=0, overlap=0)


@explain_unknown_fields
@dataclass(frozen=True)
class OptimConfig:
    """How it is minimised.

    Attributes:
        optimizer: ``adamw``, or ``sgd`` with momentum 0.9.
        lr: peak learning rate for a batch of ``lr_batch`` images; by default 5e-4 for adamw, 0.01 for sgd.
        lr_batch: the batch size that ``lr`` is meant for; the rate grows linearly with it. By default 8 for adamw
            and 16, the paper's, for sgd.
        weight_decay: on weights, not on biases and norms; by default 0.05 for adamw and 1e-4 for sgd.
        backbone_lr: factor on the learning rate of the backbone.
        schedule: ``cosine`` to zero, or ``steps``: divided by 10 after 2/3 and 8/9 of the training, as in the paper.
        warmup: optimiser steps of linear warm-up, at most a tenth of the training.
        clip: largest norm of the gradient; 0 does not clip.
        accumulate: parts in which a batch is computed one after the other, for less memory; null as the plan says.
        ema: decay of the moving average of the weights that is evaluated and saved; 0 is off.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: float | None = None
    lr_batch: int | None = None
    weight_decay: float | None = None
    backbone_lr: float = 1.0
    schedule: Literal["cosine", "steps"] = "cosine"
    warmup: int = 500
    clip: float = 10.0
    accumulate: int | None = None
    ema: float = 0.999

    def __post_init__(self) -> None:
        check_types(self, "optim")
        _expect_at_least(self, "optim", weight_decay=0, backbone_lr=0, warmup=0, clip=0, accumulate=1, lr_batch=1)
        if self.lr is not None and self.lr <= 0:
            raise UserError(f"optim.lr: expected a number above 0, got {self.lr!r}")
        if not 0 <= self.ema < 1:
            raise UserError(f"optim.ema: expected at least 0 and below 1, got {self.ema!r}")


@explain_unknown_fields
@dataclass(frozen=True)
class RunConfig:
    """Where and how the run goes.

    Attributes:
        accelerator: ``auto``, ``cpu``, ``cuda``, ``mps``.
        devices: how many devices of a node, or ``auto`` for one CPU process or all accelerators.
        nodes: machines.
        precision: ``auto`` is bf16 where the hardware computes in it, else fp32; or ``fp32``, ``bf16``, ``fp16``,
            which are kept as ``32``, ``bf16`` and ``16``.
        workers: processes that read images, per device; null as the plan says.
        evaluate_every: epochs between two evaluations, null as the plan says; the last epoch is always evaluated.
        save_every: optimiser steps between two saves of the training state; epochs' ends are always saved.
        patience: stop after so many evaluations without a better AP; 0 never stops early.
        accept_changed_data: let a run go on although its data are not those that it began with.
        log: trackers that hear of every step and evaluation, some of tensorboard, mlflow, wandb and trackio; null is
            tensorboard where it is installed, and [] none. Each is set up by its own environment variables.
    """

    accelerator: str = "auto"
    devices: str = "auto"
    nodes: int = 1
    precision: Literal["auto", "32", "bf16", "16", "fp32", "fp16"] = "auto"
    workers: int | None = None
    evaluate_every: int | None = None
    save_every: int = 500
    patience: int = 0
    accept_changed_data: bool = False
    log: list[str] | None = None

    def __post_init__(self) -> None:
        check_types(self, "run")
        object.__setattr__(self, "precision", self.precision.removeprefix("fp"))
        _expect_at_least(self, "run", nodes=1, workers=0, evaluate_every=1, save_every=1, patience=0)
        for name in self.trackers or ():
            if name not in TRACKERS:
                raise UserError(
                    f"run.log: there is no {name!r}{suggest(name, TRACKERS)} Expected some of {', '.join(TRACKERS)}"
                )

    @property
    def trackers(self) -> tuple[str, ...] | None:
        """The names in ``log``, which commas or spaces part."""
        return None if self.log is None else tuple(split_words(self.log))


@explain_unknown_fields
@dataclass(frozen=True)
class PostprocessConfig:
    """Thresholds for evaluation and prediction, saved with the model; null is the plan's, or the model folder's.

    Attributes:
        score: a detection scores above this.
        topk: most candidates (anchor and class) of a level of an image.
        nms: overlaps above this IoU with a better detection of the same class are suppressed.
        max_detections: most detections of an image.
        class_agnostic: suppress across classes.
        vote: IoU from which on candidates take part in the box of a detection; 0 is off (see Postprocess).
    """

    score: float | None = None
    topk: int | None = None
    nms: float | None = None
    max_detections: int | None = None
    class_agnostic: bool | None = None
    vote: float | None = None

    def __post_init__(self) -> None:
        check_types(self, "postprocess")
        self.apply(Postprocess())

    def apply(self, rule: Postprocess) -> Postprocess:
        """A rule with what is given here.

        Raises:
            UserError: a number is out of its range.
        """
        return replace(rule, **{name: value for name, value in vars(self).items() if value is not None})


@dataclass(frozen=True)
class TrainConfig:
    """All that decides a run: the parameters of :func:`retinanet.train`, which describes them, without ``resume``."""

    data: str
    output: str
    model: str
    recipe: str
    weights: str
    epochs: int
    batch_size: int
    seed: int
    train_split: str | None
    val_split: str | None
    strict: bool
    confine: bool
    architecture: dict[str, Any] | None
    image: ImageConfig
    augment: Augment
    loss: LossConfig
    optim: OptimConfig
    postprocess: PostprocessConfig
    run: RunConfig

    def __post_init__(self) -> None:
        check_types(self, "")
        if self.epochs < 1 or self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError(
                "expected epochs and batch_size >= 1 and seed >= 0 (below 2**32), "
                f"got {self.epochs}, {self.batch_size} and {self.seed}"
            )

    @property
    def folder(self) -> Path:
        """Of the run."""
        return Path(self.output)

    @property
    def parts(self) -> int:
        """In which a batch is computed one after the other."""
        return self.optim.accumulate or 1

    @property
    def workers(self) -> int:
        """Processes that read images, per device."""
        return 2 if self.run.workers is None else self.run.workers

    @property
    def evaluate_every(self) -> int:
        """Epochs between two evaluations."""
        return self.run.evaluate_every or 1


def _expect_at_least(config: object, group: str, **limits: int) -> None:
    for name, least in limits.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise UserError(f"{group}.{name}: expected at least {least}, got {value!r}")
