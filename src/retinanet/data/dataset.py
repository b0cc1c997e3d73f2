"""A data set of annotated images: which format a path holds, its splits, and the images themselves."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import Dataset

from retinanet.data import coco, csv, voc, yolo
from retinanet.data.check import Annotations, checked_samples, name_list
from retinanet.data.faults import Fault, Faults, refuse
from retinanet.data.files import sub_folders
from retinanet.errors import UserError
from retinanet.images.io import MAX_PIXELS, read_image
from retinanet.types import Sample, Target

_SPELLINGS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))


class Format(Protocol):
    """What a format module offers."""

    LOOKED_FOR: str

    def splits(self, path: Path) -> tuple[str, ...] | None:
        """The splits that the files name, () for none, None where the path is not of this format."""

    def read(
        self, path: Path, split: str | None, class_names: Sequence[str] | None, faults: Faults = refuse
    ) -> Annotations:
        """The annotations of a split (one of ``splits``), or of the whole set; what is faulty goes to ``faults``."""


FORMATS: tuple[Format, ...] = (coco, voc, yolo, csv)


class DetectionDataset(Dataset[Sample]):
    """Annotated images. An item is a ``Sample`` with its pixels read.

    Args:
        samples: the images without pixels.
        class_names: K names.
        category_ids: K ids under which COCO results name the classes; label + 1 if not given.
        name: what to call the set in messages.
        skipped: a message for every annotation that was left out as faulty.
        max_pixels: images with more pixels are refused.

    Raises:
        UserError: there is no image, or no class.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        category_ids: Sequence[int] | None = None,
        name: str = "",
        *,
        skipped: Sequence[str] = (),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not samples:
            raise UserError(f"the data set {name} holds no image. Check the path and the split.")
        if not class_names:
            raise UserError(f"the data set {name} declares no class. It needs at least one annotated object.")
        self.samples = list(samples)
        self.class_names = tuple(class_names)
        self.category_ids = tuple(range(1, len(class_names) + 1) if category_ids is None else category_ids)
        self.name = name
        self.skipped = tuple(skipped)
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """The sample with its image.

        Raises:
            UserError: the image cannot be read, or is not of the annotated size.
        """
        sample = self.samples[index]
        image = read_image(sample.path, max_pixels=self.max_pixels)
        size = (image.shape[1], image.shape[2])
        if size != sample.size:
            raise UserError(_wrong_size(sample, size))
        return replace(sample, image=image)

    def summary(self) -> str:
        """What the set holds, and what was left out of it: one line, and more where something was left out."""
        lengths = [len(sample.target) for sample in self.samples]
        ignored = sum(int(sample.target.ignore.sum()) for sample in self.samples)
        text = (
            f"{self.name}: {len(self)} images ({lengths.count(0)} without objects), {sum(lengths)} boxes"
            f"{f' ({ignored} of them ignored)' if ignored else ''}, {len(self.class_names)} classes"
        )
        if not self.skipped:
            return text
        more = [f"... and {len(self.skipped) - 5} more"] if len(self.skipped) > 5 else []
        return "\n  ".join([f"{text}; left out as faulty: {len(self.skipped)}", *self.skipped[:5], *more])

    def subset(self, indices: Sequence[int], name: str) -> DetectionDataset:
        """Some of the images, with the same classes, and the messages about the whole."""
        return DetectionDataset(
            [self.samples[index] for index in indices],
            self.class_names,
            self.category_ids,
            name,
            skipped=self.skipped,
            max_pixels=self.max_pixels,
        )

    def __getstate__(self) -> dict[str, Any]:
        """Arrays in place of tensors: a spawned worker would be sent a file handle per tensor, and run out of them."""
        rows = [
            (row.path, row.image_id, row.size, [column.numpy() for column in (*vars(row.target).values(), row.areas)])
            for row in self.samples
        ]
        return {**self.__dict__, "samples": rows}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.samples = []
        for path, image_id, size, columns in state["samples"]:
            *target, areas = map(torch.from_numpy, columns)
            self.samples.append(Sample(path, image_id, size, Target(*target), areas))


def splits(path: str | Path) -> tuple[str, ...]:
    """The splits that the data set itself names; () where it has none and a hold-out takes their place.

    Raises:
        UserError: a missing path, or none of the four formats.
    """
    return _recognise(Path(path))[1]


def load_dataset(
    path: str | Path, split: str | None = None, *, class_names: Sequence[str] | None = None, strict: bool = False
) -> DetectionDataset:
    """A data set in COCO, Pascal VOC, YOLO or CSV form, recognised by looking.

    Args:
        path: a file or folder.
        split: a split of the set (``val`` finds ``valid`` and ``validation`` too). Where a set has no splits of its
            own, ``val`` is a fifth of its images, held out by a hash of their file names, ``train`` the rest, and
            ``test`` the same images as ``val``. None is the whole set.
        class_names: the classes in the order of their labels, for instance those of a model; an object of another
            class is refused. The set's own classes if not given.
        strict: refuse faulty boxes instead of leaving them out.

    Raises:
        UserError: whatever is wrong with the files, with the place and the remedy.
    """
    path = Path(path)
    form, names = _recognise(path)
    label = path.name or str(path)
    chosen = None if split is None else _spelled(split, names)
    if split is not None and chosen is None and (names or _spelled(split, ("train", "val", "test")) is None):
        known = (
            f"It has: {name_list(names)}" if names else "It has none of its own; train, val and test hold a fifth out"
        )
        raise UserError(f"{path}: there is no split {split!r}. {known}.")
    found = form.read(path, chosen, class_names)
    samples, skipped = checked_samples(found, strict=strict)
    name = f"{label} {chosen}" if chosen else label
    whole = DetectionDataset(samples, found.class_names, found.category_ids, name, skipped=skipped)
    if split is None or chosen is not None:
        return whole
    train, val = hold_out(whole)
    return train if _spelled(split, ("train",)) else val


def read_parts(path: str | Path, faults: Faults) -> dict[str, Annotations]:
    """Every split as the files have it, for whoever looks for faults: boxes and images are not checked.

    The split to train on is read first, and the others with its class names, as training and evaluation do. A split
    that cannot be read at all is left out.

    Args:
        path: a file or folder.
        faults: is given every fault of the files.

    Returns:
        The annotations by split; the whole set under "" where it names no splits.

    Raises:
        UserError: a missing path, or none of the four formats.
    """
    path = Path(path)
    try:
        form, names = _recognise(path)
    except Fault as fault:
        faults(fault)
        return {}
    first = _spelled("train", names) or _spelled("trainval", names) or (names[0] if names else None)
    parts: dict[str, Annotations] = {}
    for name in (first, *(name for name in names if name != first)):
        class_names = next((part.class_names for part in parts.values()), None)
        try:
            parts[name or ""] = form.read(path, name, class_names, faults)
        except Fault as fault:
            faults(fault)
    return parts


def training_datasets(
    path: str | Path,
    *,
    train_split: str | None = None,
    val_split: str | None = None,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
) -> tuple[DetectionDataset, DetectionDataset]:
    """What to train on and what to validate on.

    Trained on is ``train_split``, else ``train``, else ``trainval``, else the only split. Validated on is
    ``val_split``, else ``val``, else a fifth of the training images, which is then held out of the training; so too
    where ``val`` shares images with a training split that was asked for. ``test`` is never taken without being asked.

    Raises:
        UserError: as ``load_dataset``, or there are splits but none to train on.
    """
    names = splits(path)
    train_name = train_split
    if train_name is None and (names or val_split is not None):
        train_name = _spelled("train", names or ("train",)) or _spelled("trainval", names)
        train_name = train_name or (names[0] if len(names) == 1 else None)
        if train_name is None:
            raise UserError(f"{path}: there is no split to train on. It has: {name_list(names)}. Say which to take.")
    train = load_dataset(path, train_name, class_names=class_names, strict=strict)
    val_name = val_split or _spelled("val", names or (("val",) if train_split else ()))
    if val_name is None:
        return hold_out(train)
    val = load_dataset(path, val_name, class_names=train.class_names, strict=strict)
    if train_split is not None and val_split is None and _share_images(train, val):
        return hold_out(train)
    return train, val


def hold_out(dataset: DetectionDataset, *, seed: int = 0) -> tuple[DetectionDataset, DetectionDataset]:
    """Four fifths to train on and one fifth to validate on.

    The images with the lowest hashes of (seed, file name) are held out, so neither their order nor the place of the set
    on the disk matters.

    Raises:
        UserError: fewer than two images.
    """
    if len(dataset) < 2:
        raise UserError(f"{dataset.name}: one image cannot be split into training and validation. Add images.")

    def drawn(row: int) -> tuple[bytes, str]:
        sample = dataset.samples[row]
        name = f"{seed}/{sample.path.name}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name).digest(), str(sample.image_id)

    held = set(sorted(range(len(dataset)), key=drawn)[: max(1, round(len(dataset) / 5))])
    kept = [row for row in range(len(dataset)) if row not in held]
    return (
        dataset.subset(kept, f"{dataset.name} (four fifths)"),
        dataset.subset(sorted(held), f"{dataset.name} (a fifth, held out)"),
    )


def _share_images(one: DetectionDataset, other: DetectionDataset) -> bool:
    return not {sample.path for sample in one.samples}.isdisjoint(sample.path for sample in other.samples)


def _wrong_size(sample: Sample, size: tuple[int, int]) -> str:
    if size == sample.size[::-1]:
        hint = (
            "The sides are swapped: the annotation has width and height in the wrong order, or was made on the image "
            "without its EXIF rotation. Turn the boxes, or write the image anew upright."
        )
    else:
        hint = "The image was resized or exchanged since: annotate it anew, or put the original back."
    return (
        f"{sample.path}: the image is {size[1]} x {size[0]} pixels (width x height, upright), but it is annotated as "
        f"{sample.size[1]} x {sample.size[0]}. {hint}"
    )


def _recognise(path: Path) -> tuple[Format, tuple[str, ...]]:
    """The format of a path, and the splits it names."""
    if not os.path.exists(path):  # unlike Path.exists it answers for names that no file can have
        raise UserError(f"{path}: no such file or folder. Expected the path of a data set.")
    found = [(form, names) for form in FORMATS if (names := form.splits(path)) is not None]
    if len(found) == 1:
        return found[0]
    wanted = "; ".join(form.LOOKED_FOR for form, _ in found or [(form, ()) for form in FORMATS])
    if found:
        raise UserError(f"{path}: holds more than one format ({wanted}). Give the annotation file or folder itself.")
    inside = next((folder for folder in sub_folders(path)[:20] if _holds_data(folder)), None)
    hint = f" But {inside} is a data set: give that path." if inside else ""
    raise UserError(f"{path}: is none of the four known formats. Looked for: {wanted}.{hint}")


def _holds_data(path: Path) -> bool:
    try:
        return any(form.splits(path) is not None for form in FORMATS)
    except UserError:  # faults of a folder that was not asked for
        return False


def _spelled(split: str, names: Sequence[str]) -> str | None:
    """The name that means this split: itself, or another spelling of it."""
    same = next((spellings for spellings in _SPELLINGS if split in spellings), (split,))
    return next((name for name in (split, *same) if name in names), None)
