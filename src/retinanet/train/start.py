"""What a run starts from, checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track

from retinanet.data.dataset import DetectionDataset, training_datasets
from retinanet.images.preprocess import Preprocess
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import PRESETS, Architecture, preset
from retinanet.train.config import ImageConfig, changed, plain
from retinanet.train.resume import STATE
from retinanet.types import UserError
from retinanet.weights.checkpoint import CONFIG, Detector, load_detector, read_config

# what may differ when a run goes on: where it is computed, not what
FREE = {f"run.{key}" for key in ("accelerator", "devices", "nodes", "workers", "save_every")} | {"optim.accumulate"}


def load_sets(
    data: str, train_split: str | None, val_split: str | None, *, strict: bool, model: str
) -> tuple[DetectionDataset, DetectionDataset]:
    """What to learn from and what to evaluate on; labels in the order of a model folder that knows the same classes.

    Raises:
        UserError: a mistake in the data.
    """
    train_set, val_set = training_datasets(data, train_split=train_split, val_split=val_split, strict=strict)
    if not (Path(model) / CONFIG).is_file():
        return train_set, val_set
    known = [str(name) for name in read_config(model).get("class_names", [])]
    if sorted(known) != sorted(train_set.class_names) or tuple(known) == train_set.class_names:
        return train_set, val_set
    return training_datasets(data, train_split=train_split, val_split=val_split, strict=strict, class_names=known)


def check_images(*datasets: DetectionDataset) -> None:
    """Read every image once before anything is written, so that a damaged one does not end the run hours later.

    Raises:
        UserError: an image cannot be read, or is not of the annotated size.
    """

    def read(one: tuple[DetectionDataset, int]) -> int:
        return len(one[0][one[1]].target)

    images = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    console = Console(stderr=True)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        sizes = pool.map(read, images)
        quiet = not console.is_terminal
        for _ in track(sizes, "reading every image once", len(images), console=console, transient=True, disable=quiet):
            pass


def build_detector(
    model: str,
    weights: str,
    dataset: DetectionDataset,
    changes: Mapping[str, Any],
    image: ImageConfig,
    postprocess: Postprocess,
    new_classes: bool,
) -> Detector:
    """A new detector for the classes of a data set, or one that goes on from a model folder.

    Raises:
        UserError: there is no such preset or folder, an option is unknown, or the classes differ.
    """
    sides = {key: value for key, value in vars(image).items() if value is not None}
    if (Path(model) / CONFIG).is_file():
        if changes:
            raise UserError(f"{model} has its architecture already; leave out --architecture ({', '.join(changes)})")
        return _from_folder(model, dataset, sides, postprocess, new_classes)
    if model not in PRESETS and Path(model).exists():
        read_config(model)  # which says what is wrong with it
    base = preset(model)
    if "norm" not in changes and weights == "none":
        base = replace(base, norm="batch")
    architecture: Architecture = changed(base, changes, "architecture")
    try:
        net = architecture.build(len(dataset.class_names), weights=weights)
    except UserError:
        raise
    except (ValueError, RuntimeError, ArithmeticError) as error:  # torch's, about numbers that make no layer
        raise UserError(f"no network can be built from {architecture}: {error}") from None
    preprocess = changed(Preprocess(mean=net.backbone.mean, std=net.backbone.std), sides, "image")
    return Detector(net, architecture, preprocess, postprocess, dataset.class_names)


def _from_folder(
    folder: str, dataset: DetectionDataset, sides: Mapping[str, int], postprocess: Postprocess, new_classes: bool
) -> Detector:
    """A saved detector, its class layer made new for other classes where that was asked for."""
    saved = load_detector(folder)
    preprocess = changed(saved.preprocess, sides, "image")
    detector = replace(saved, preprocess=preprocess, postprocess=postprocess, metrics={})
    if saved.class_names == dataset.class_names:
        return detector
    if not new_classes:
        raise UserError(
            f"{folder} knows {len(saved.class_names)} classes {saved.class_names} and {dataset.name} has "
            f"{len(dataset.class_names)} {dataset.class_names}. Pass --new_classes to start the class layer anew"
        )
    net = saved.architecture.build(len(dataset.class_names))
    kept = {key: value for key, value in saved.net.state_dict().items() if not key.startswith("heads.cls.output.")}
    net.load_state_dict(kept, strict=False)
    return replace(detector, net=net, class_names=dataset.class_names)


def check_output(folder: Path, config: Mapping[str, Any], *, resume: bool) -> None:
    """A run is never overwritten, and goes on only as it began.

    Raises:
        UserError: the folder holds a run and ``resume`` is off, or there is none to resume, or its options differ.
    """
    if not resume:
        if any((folder / name).exists() for name in (CONFIG, STATE)):
            raise UserError(
                f"{folder} already holds a run. Choose another --output, or go on with it: "
                f"retinanet train --config {folder}/config.yaml --resume"
            )
        place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        if not place.is_dir():
            raise UserError(f"--output {folder}: {place} is a file; expected the name of a new folder")
        if not os.access(place, os.W_OK):
            raise UserError(f"--output {folder}: {place} cannot be written to. Choose another folder")
        return
    if not (folder / STATE).is_file() or not (folder / "config.yaml").is_file():
        raise UserError(f"nothing to resume: {folder} holds no saved step of a run. Start it without --resume")
    try:
        before = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{folder / 'config.yaml'} is damaged: {' '.join(str(error).split())}") from None
    then, now = _flat(before if isinstance(before, dict) else {}), _flat(plain(config))
    names = [name for name in {**now, **then} if name not in FREE and then.get(name) != now.get(name)]
    differing = [f"{name} {then.get(name)} -> {now.get(name)}" for name in names]
    if differing:
        raise UserError(
            f"{folder} was started with other options ({', '.join(differing)}). Go on with the same: "
            f"retinanet train --config {folder}/config.yaml --resume"
        )


def _flat(options: Mapping[str, Any], group: str = "") -> dict[str, Any]:
    """Nested options under dotted names."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        flat.update(_flat(value, f"{group}{key}.") if isinstance(value, Mapping) else {f"{group}{key}": value})
    return flat
