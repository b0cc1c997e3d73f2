"""What a run starts from, checked before anything is written."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import track

from retinanet.data.dataset import DetectionDataset, training_datasets
from retinanet.data.objects import Data
from retinanet.data.windows import WindowDataset, choose_overlap
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Tiling, choose_tiling
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import Architecture, preset
from retinanet.model.retinanet import RetinaNet
from retinanet.plain import find_differences, flatten_fields, with_changes
from retinanet.planning.planner import Origin
from retinanet.spec import ModelSpec
from retinanet.training.config import ImageConfig, TrainConfig
from retinanet.training.recipes import VOTES
from retinanet.training.transfer import Transfer, named_as, transfer

Sets = tuple[DetectionDataset, DetectionDataset]


def load_sets(config: TrainConfig, origin: Origin | None, data: Data | None = None) -> Sets:
    """What to learn from and what to evaluate on; labels in the order of a model that knows the same classes.

    Args:
        config: names the data.
        origin: what the run starts from, where that is known already.
        data: the data themselves, which may be no files; by default those that the options name.

    Raises:
        UserError: a mistake in the data.
    """
    load = partial(
        training_datasets,
        config.data if data is None else data,
        train_split=config.train_split,
        val_split=config.val_split,
        strict=config.strict,
        confine=config.confine,
    )
    train_set, val_set = load()
    known = origin.class_names if origin else ()
    if sorted(known) != sorted(train_set.class_names) or known == train_set.class_names:
        return train_set, val_set
    return load(class_names=known)


def cut_sets(sets: Sets, known: Tiling | None, tile: int | None, overlap: int | None) -> Sets:
    """The windows of both sets, where windows are trained on; a :class:`WindowDataset` knows its images.

    Args:
        sets: images to learn from and to evaluate on.
        known: tiling of the model that the run starts from.
        tile: as in ``image.tile``.
        overlap: as in ``image.overlap``.

    Raises:
        UserError: windows that cannot be.
    """
    try:
        tiling = choose_tiling(known, tile, overlap, partial(choose_overlap, sets[0]))
    except UserError as error:
        raise UserError(f"image: {error}") from None
    return sets if tiling is None else (WindowDataset(sets[0], tiling), WindowDataset(sets[1], tiling))


def check_images(*datasets: DetectionDataset) -> None:
    """Read every image once before anything is written, so that a damaged one does not end the run hours later.

    Raises:
        UserError: an image cannot be read, or is not of the annotated size.
    """

    def read(one: tuple[DetectionDataset, int]) -> None:
        dataset, index = one
        if isinstance(dataset, WindowDataset):
            dataset.check_image(index)
        else:
            dataset[index]

    wholes = [(one, one.whole if isinstance(one, WindowDataset) else one) for one in datasets]
    images = [(dataset, index) for dataset, whole in wholes for index in range(len(whole))]
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        sizes = pool.map(read, images)
        quiet = not console.is_terminal
        for _ in track(sizes, "reading every image once", len(images), console=console, transient=True, disable=quiet):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # at Ctrl-C, do not read the others first


def build_detector(config: TrainConfig, dataset: DetectionDataset) -> Detector:
    """A new detector of a preset, for the classes of a data set.

    Raises:
        UserError: there is no such preset, an option is unknown, or no network can be built.
    """
    base, changes = preset(config.model), config.architecture or {}
    if "norm" not in changes and config.weights == "none":
        base = replace(base, norm="batch")
    architecture = with_changes(base, changes, "architecture")
    net = _build_net(architecture, len(dataset.class_names), config.weights)
    preprocess = choose_size(Preprocess(mean=net.backbone.mean, std=net.backbone.std), None, config.image, dataset)
    postprocess = config.postprocess.apply(Postprocess())
    if postprocess.vote is None:
        postprocess = replace(postprocess, vote=VOTES.get(config.recipe))
    return Detector(_make_spec(config, dataset, architecture, preprocess, postprocess), net)


def adapt_detector(config: TrainConfig, origin: Path, dataset: DetectionDataset) -> tuple[Detector, Transfer]:
    """A detector for the classes of a data set that starts from a saved one.

    The architecture is the saved one's with the changes applied. Its tensors are taken over by name and shape, except
    those that mean something else now: see :func:`starts_anew`. Sizes of images and thresholds are the saved one's
    where the options are at their defaults.

    Raises:
        UserError: weights of a backbone are given too, another backbone is asked for, or an option is unknown.
    """
    saved = Detector.load(origin)
    old = saved.spec.architecture
    new = with_changes(old, config.architecture or {}, "architecture")
    _check_fits(origin, config.weights, old, new)
    net = _build_net(new, len(dataset.class_names), "none")
    fresh = starts_anew(old, new, saved.spec.class_names, dataset.class_names)
    moved = transfer(named_as(saved.net, net), net, fresh=fresh)
    preprocess = choose_size(saved.spec.preprocess, saved.spec.tiling, config.image, dataset)
    postprocess = config.postprocess.apply(saved.spec.postprocess)
    return Detector(_make_spec(config, dataset, new, preprocess, postprocess), net), moved


def _make_spec(
    config: TrainConfig,
    dataset: DetectionDataset,
    architecture: Architecture,
    preprocess: Preprocess,
    postprocess: Postprocess,
) -> ModelSpec:
    return ModelSpec(
        class_names=dataset.class_names,
        preprocess=preprocess,
        postprocess=postprocess,
        architecture=architecture,
        scale=magnification(dataset, preprocess),
        tiling=_tiling(dataset),
        loss=config.loss,
    )


def choose_size(base: Preprocess, known: Tiling | None, image: ImageConfig, dataset: DetectionDataset) -> Preprocess:
    """The resize rule of a model: ``base`` with the changes that the options ask for.

    Where windows are trained on, ``short`` and ``long`` are one number, so that a window at the edge of a narrow image
    has the magnification of all others: that of ``image.short``, else of a model with the same tile, else 1.

    Args:
        base: of the model to start from, or a new model's.
        known: its tiling.
        image: the options.
        dataset: what is learned from.

    Raises:
        UserError: a size is out of its range, or there are two of a window.
    """
    changes = {name: value for name, value in find_differences(image).items() if name not in ("tile", "overlap")}
    tiling = _tiling(dataset)
    if tiling is None:
        return with_changes(base, changes, "image")
    kept = base.short if known is not None and known.tile == tiling.tile else tiling.tile
    side = kept if image.short is None else image.short
    if image.long not in (None, side):
        raise UserError(f"image.long is {image.long}: windows are square and resized to {side}. Leave it out")
    return with_changes(base, {**changes, "short": side, "long": side}, "image")


def _tiling(dataset: DetectionDataset) -> Tiling | None:
    return dataset.tiling if isinstance(dataset, WindowDataset) else None


def magnification(dataset: DetectionDataset, preprocess: Preprocess) -> float:
    """How large the images of a data set are shown to the network, relative to their own pixels: the median.

    It is taken from the sizes in the annotations; no image is read. Of windows it is that of a full one.
    """
    if tiling := _tiling(dataset):
        return preprocess.size(tiling.tile, tiling.tile)[0] / tiling.tile
    return statistics.median(sum(preprocess.size(*sample.size)) / sum(sample.size) for sample in dataset.samples)


def _check_fits(origin: Path, weights: str, old: Architecture, new: Architecture) -> None:
    if weights != "imagenet":
        raise UserError(
            f"--weights {weights}: they are for the backbone of a new model, and {origin} has all its weights already. "
            "Leave out --weights, or train from a preset (--model resnet50)"
        )
    if new.backbone != old.backbone:
        raise UserError(
            f"--architecture.backbone {new.backbone}: {origin} has the backbone {old.backbone}, whose weights would "
            "not fit. Leave it out, or train from a preset (--model resnet50 --architecture.backbone NAME)"
        )
    if new.stride_in_1x1 != old.stride_in_1x1:
        raise UserError(
            f"--architecture.stride_in_1x1 {new.stride_in_1x1}: the backbone of {origin} was trained with "
            f"{old.stride_in_1x1}, and its weights do not work otherwise. Leave it out"
        )
    if old.norm == "group" and new.norm == "frozen":
        raise UserError(
            f"--architecture.norm frozen: {origin} has group norms, so there are no statistics to freeze. Expected "
            "batch or group"
        )


def starts_anew(old: Architecture, new: Architecture, known: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Which parts of a network mean something else than before, even where they keep their shape.

    Args:
        old: architecture of the saved model.
        new: architecture of the new one.
        known: classes of the saved model.
        wanted: classes of the data.

    Returns:
        Prefix of tensors' names -> reason.
    """
    classes = f"the classes differ: the model knew {_few(known)}, the data has {_few(wanted)}"
    compat = replace(new.anchors.compat, floor_strides=old.anchors.compat.floor_strides)
    # with floor_strides only the anchors over an input of odd size move; what the heads have learned holds
    anchors = _differences(old.anchors, replace(new.anchors, compat=compat))
    coder = _differences(old.coder, replace(old.coder, std=new.coder.std))  # limits do not touch what a delta means
    moved = [f"the anchors differ: {anchors}"] if anchors else []
    parts = {
        "heads.cls.output.": [*([classes] if tuple(known) != tuple(wanted) else []), *moved],
        "heads.box.output.": [*moved, *([f"the coding of boxes differs: {coder}"] if coder else [])],
        "fpn.output.p6.": [f"P6 is made from {new.p6_from} instead of {old.p6_from}"] * (old.p6_from != new.p6_from),
    }
    return {prefix: "; ".join(reasons) for prefix, reasons in parts.items() if reasons}


def _build_net(architecture: Architecture, num_classes: int, weights: str) -> RetinaNet:
    try:
        return architecture.build(num_classes, weights=weights)
    except UserError:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:  # torch's, about numbers that make no layer
        raise UserError(f"no network can be built from {architecture}: {error}") from None


def _differences(old: object, new: object) -> str:
    """``sizes (32, 64) became (8, 16)``, for the fields of two dataclasses and of those in them."""
    after = flatten_fields(new)
    pairs = [(key, value, after[key]) for key, value in flatten_fields(old).items()]
    return ", ".join(f"{key} {_rounded(one)} became {_rounded(two)}" for key, one, two in pairs if one != two)


def _rounded(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_rounded, value))})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _few(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 5 else f"{', '.join(names[:2])}, ... ({len(names)})"
