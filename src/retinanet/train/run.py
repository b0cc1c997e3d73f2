"""``train``: from annotated images to a model folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, is_dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from lightning_fabric import Fabric
from rich.console import Console
from rich.progress import track

from retinanet.data.dataset import DetectionDataset, training_datasets
from retinanet.data.loader import StepSampler
from retinanet.data.transforms import Augment
from retinanet.images.preprocess import Preprocess
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import Architecture, preset
from retinanet.plot.figures import save_figure, training_curves
from retinanet.train.config import ImageConfig, LossConfig, OptimConfig, RunConfig, changed
from retinanet.train.ema import averaged
from retinanet.train.log import RunLog, read_log
from retinanet.train.loop import LossModule, Training, fit
from retinanet.train.optim import build_optimizer
from retinanet.train.precision import build_fabric, prepare_for_cpu
from retinanet.train.resume import STATE, Progress, load_state
from retinanet.types import UserError
from retinanet.weights.checkpoint import CONFIG, Detector, load_detector, read_config


@dataclass(frozen=True)
class TrainResult:
    """What a run made.

    Attributes:
        folder: of the run; it is the folder of its best model.
        ap: best AP on the validation split; NaN if it has no objects.
        steps: optimiser steps done.
    """

    folder: Path
    ap: float
    steps: int


def train(
    data: str,
    output: str,
    *,
    model: str = "resnet50",
    weights: str = "imagenet",
    epochs: int = 12,
    batch_size: int = 8,
    seed: int = 0,
    train_split: str | None = None,
    val_split: str | None = None,
    resume: bool = False,
    strict: bool = False,
    new_classes: bool = False,
    architecture: dict[str, Any] | None = None,
    image: ImageConfig = ImageConfig(),
    augment: Augment = Augment(),
    loss: LossConfig = LossConfig(),
    optim: OptimConfig = OptimConfig(),
    postprocess: Postprocess = Postprocess(),
    run: RunConfig = RunConfig(),
) -> TrainResult:
    """Train RetinaNet on annotated images.

    Args:
        data: annotated images in COCO, VOC, YOLO or CSV form.
        output: folder of the run, new; it becomes the model folder.
        model: preset (resnet18, resnet34, resnet50, resnet101, resnet152, lite) or a model folder to go on from.
        weights: of the trunk: imagenet (downloaded), a safetensors file with timm's names, or none.
        epochs: passes over the training images.
        batch_size: images per optimiser step, over all devices and accumulated parts.
        seed: of everything random.
        train_split: what to learn from; by default train.
        val_split: what to evaluate on; by default val, else a seeded hold-out.
        resume: go on from the last saved step of the run in output.
        strict: refuse the data at the first faulty box instead of leaving faulty boxes out.
        new_classes: make a new class layer where a model folder's classes are not those of the data.
        architecture: changes to the preset, such as norm, frozen_stages, channels, anchors (see Architecture). Batch
            norms are frozen with pretrained weights and trained without, unless norm is given.
        image: size of the images.
        augment: what happens to training images.
        loss: what is minimised.
        optim: how it is minimised.
        postprocess: thresholds for evaluation and prediction, saved with the model.
        run: devices, precision, saving.

    Raises:
        UserError: a mistake in the data or the options; nothing has been written then.
    """
    config = {key: value for key, value in locals().items() if key != "resume"}
    if epochs < 1 or batch_size < 1 or seed < 0:
        raise UserError(f"expected epochs and batch_size >= 1 and seed >= 0, got {epochs}, {batch_size} and {seed}")
    folder = Path(output)
    first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0
    if first:  # the others may find what this one makes
        check_output(folder, config, resume=resume)
    train_set, val_set = load_sets(data, train_split, val_split, strict=strict, model=model)
    torch.manual_seed(seed)
    detector = build_detector(model, weights, train_set, architecture or {}, image, postprocess, new_classes)
    if first and not resume:
        check_images(train_set, val_set)
    fabric = build_fabric(run)
    fabric.launch()
    training = assemble(fabric, detector, train_set, val_set, config)
    progress = load_state(folder, training.parts()) if resume else Progress()
    if fabric.is_global_zero:
        describe(training, model)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(_plain(config), sort_keys=False), encoding="utf-8")
    log = RunLog(folder, total=training.sampler.stop, start=progress.step, enabled=fabric.is_global_zero)
    progress = fit(training, progress, log)
    if fabric.is_global_zero:
        save_figure(training_curves(read_log(folder / "log.csv")), folder / "curves.png")
    return TrainResult(folder, progress.best if progress.best >= 0 else float("nan"), progress.step)


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
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        for _ in track(
            pool.map(read, images),
            "reading every image once",
            len(images),
            console=Console(stderr=True),
            transient=True,
        ):
            pass


def assemble(
    fabric: Fabric,
    detector: Detector,
    train_set: DetectionDataset,
    val_set: DetectionDataset,
    config: Mapping[str, Any],
) -> Training:
    """Put the parts of a run together on this process."""
    optim, run = cast(OptimConfig, config["optim"]), cast(RunConfig, config["run"])
    detector.net.to(fabric.device).to(memory_format=torch.channels_last)
    if fabric.device.type == "cpu":
        prepare_for_cpu(detector.net)
    average = averaged(detector.net, optim.ema) if optim.ema else None
    net, optimizer = fabric.setup(LossModule(detector.net), build_optimizer(detector.net, optim, config["batch_size"]))
    net.train()
    sampler = StepSampler(
        length=len(train_set),
        batch_size=config["batch_size"],
        start=0,
        stop=-(-len(train_set) // config["batch_size"]) * config["epochs"],
        seed=config["seed"],
        parts=optim.accumulate,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    return Training(
        fabric=fabric,
        detector=detector,
        net=net,
        optimizer=optimizer,
        criterion=config["loss"].build(),
        average=average,
        train_set=train_set,
        val_set=val_set,
        augment=config["augment"],
        sampler=sampler,
        optim=optim,
        run=run,
        folder=Path(config["output"]),
        untrained=not (Path(config["model"]) / CONFIG).is_file(),
    )


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
    now = _plain(config)
    differing = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
    if differing:
        raise UserError(
            f"{folder} was started with other options ({', '.join(differing)}). Go on with the same: "
            f"retinanet train --config {folder}/config.yaml --resume"
        )


def describe(training: Training, model: str) -> None:
    """Tell the person what is going to happen, and what was left out of the data."""
    detector, fabric = training.detector, training.fabric
    parameters = sum(p.numel() for p in detector.net.parameters() if p.requires_grad)
    lines = [
        f"classes: {', '.join(detector.class_names)}",
        f"train: {training.train_set.summary()}",
        f"validation: {training.val_set.summary()}",
        f"model: {detector.architecture.backbone}, {parameters / 1e6:.1f} M trained parameters, images of "
        f"{detector.preprocess.short} to {detector.preprocess.long} pixels",
        f"device: {fabric.world_size} x {fabric.device.type}, precision {fabric._precision.precision}",
    ]
    if not training.untrained and tuple(known := read_config(model)["class_names"]) != detector.class_names:
        lines.append(f"the class layer starts anew: {model} knew the classes {', '.join(known)}")
    Console(stderr=True).print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    """Nested dataclasses, tuples and paths as YAML knows them."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, Path):
        return str(value)
    return [_plain(entry) for entry in value] if isinstance(value, list | tuple) else value
