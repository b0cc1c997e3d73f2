"""A data set of annotated images: its splits, what to train on, and the images themselves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from retinanet.data.check import describe_wrong_size, has_objects, judge_split
from retinanet.data.faults import Fault, Notes, name_list
from retinanet.data.files import find_spelling, find_training_split
from retinanet.data.formats import read_split, recognise
from retinanet.data.held_out import draw_held_out
from retinanet.data.objects import Data, name_data
from retinanet.errors import UserError
from retinanet.images.io import MAX_PIXELS, read_image, to_planes
from retinanet.types import Sample, Target


@dataclass(eq=False, repr=False)
class DetectionDataset(Dataset[Sample]):
    """Annotated images. An item is a ``Sample`` with its pixels read.

    Attributes:
        samples: the images without pixels.
        class_names: K names.
        category_ids: K ids under which COCO results name the classes; label + 1 if not given.
        name: what to call the set in messages.
        skipped: the annotations that were left out as faulty.
        notes: what else should be known about the set.
        max_pixels: images with more pixels are refused.
        source: reads an image by its id where images are no files, see :mod:`retinanet.data.objects`.

    Raises:
        UserError: there is no image, or no class.
    """

    samples: list[Sample]
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...] = ()
    name: str = ""
    skipped: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    max_pixels: int = MAX_PIXELS
    source: Callable[[int | str], np.ndarray] | None = None

    def __post_init__(self) -> None:
        if not self.samples:
            raise UserError(f"the data set {self.name} holds no image. Check the path and the split.")
        if not self.class_names:
            raise UserError(f"the data set {self.name} declares no class. It needs at least one annotated object.")
        self.category_ids = self.category_ids or tuple(range(1, len(self.class_names) + 1))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        """The sample with its image.

        Raises:
            UserError: the image cannot be read, or is not of the annotated size.
        """
        sample = self.samples[index]
        if self.source is None:
            image = read_image(sample.path, max_pixels=self.max_pixels)
        else:
            image = to_planes(self.source(sample.image_id))
        size = (image.shape[1], image.shape[2])
        if size != sample.size:
            raise UserError(describe_wrong_size(sample, size))
        return replace(sample, image=image)

    def find_image(self, sample: Sample) -> Path | np.ndarray:
        """What a reader of images takes for a sample: the path, or the pixels (H, W, 3) where there is no file."""
        return sample.path if self.source is None else self.source(sample.image_id)

    def summary(self) -> str:
        """What the set holds, in one line; further lines say what was left out of it."""
        lengths = [len(sample.target) for sample in self.samples]
        ignored = sum(int(sample.target.ignore.sum()) for sample in self.samples)
        text = (
            f"{self.name}: {len(self)} images ({lengths.count(0)} without objects), {sum(lengths)} boxes"
            f"{f' ({ignored} of them ignored)' if ignored else ''}, {len(self.class_names)} classes"
        )
        if self.skipped:
            text += f"; left out as faulty: {len(self.skipped)}"
        more = [f"... and {len(self.skipped) - 5} more"] if len(self.skipped) > 5 else []
        return "\n  ".join([text, *(fault.sentence for fault in self.skipped[:5]), *more, *self.notes])

    def subset(self, indices: Sequence[int], name: str, notes: Sequence[str] | None = None) -> DetectionDataset:
        """Some of the images, with the same classes and the notes on the whole, or with other notes if given."""
        samples = [self.samples[index] for index in indices]
        paths = {sample.path for sample in samples}
        skipped = tuple(fault for fault in self.skipped if fault.image in paths)
        notes = self.notes if notes is None else tuple(notes)
        return replace(self, samples=samples, name=name, skipped=skipped, notes=notes)

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


def splits(path: Data) -> tuple[str, ...]:
    """The splits that the data set itself names; () where it has none and a hold-out takes their place.

    Raises:
        UserError: a missing path, or none of the four formats.
    """
    return recognise(path)[1]


def load_dataset(
    path: Data,
    split: str | None = None,
    *,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    confine: bool = False,
) -> DetectionDataset:
    """A data set in COCO, Pascal VOC, YOLO or CSV form, recognised by looking, or an object that holds one.

    Boxes that reach over the edge are clipped. Boxes that are not finite, have x2 <= x1 or y2 <= y1, or lie wholly
    outside their image are left out; their images stay.

    Args:
        path: a file or folder; or an object (:class:`retinanet.data.objects.AnnotatedImages`), or objects by splits.
        split: a split of the set (``val`` finds ``valid`` and ``validation`` too). Where a set has no splits of its
            own, ``val`` is a fifth of its images, held out by a hash of their file names, ``train`` the rest, and
            ``test`` the same images as ``val``. None is the whole set.
        class_names: the classes in the order of their labels, for instance those of a model; an object of another
            class is refused. The set's own classes if not given.
        strict: refuse faulty boxes instead of leaving them out.
        confine: refuse images that lie outside of ``path``.

    Raises:
        UserError: whatever is wrong with the files, with the place and the remedy.
    """
    form, names = recognise(path)
    chosen = None if split is None else find_spelling(split, names)
    if split is not None and chosen is None and (names or find_spelling(split, ("train", "val", "test")) is None):
        known = (
            f"It has: {name_list(names)}" if names else "It has none of its own; train, val and test hold a fifth out"
        )
        raise UserError(f"{name_data(path)}: there is no split {split!r}. {known}.")
    notes = Notes()
    part = judge_split(chosen or "", read_split(form, path, chosen, class_names, notes, confine), notes)
    skipped = part.faulty_boxes()
    if skipped and strict:
        raise UserError(
            f"{skipped[0].sentence}. Fix it, or leave out strict and it is left out ({len(skipped)} in all)."
        )
    name = " ".join(filter(None, [Path(name_data(path)).name or str(path), chosen]))
    found = part.annotations
    whole = DetectionDataset(
        *(part.samples(), found.class_names, found.category_ids, name, tuple(skipped), tuple(dict.fromkeys(notes))),
        source=found.source,
    )
    if split is None or chosen is not None:
        return whole
    train, val = hold_out(whole)
    return train if find_spelling(split, ("train",)) else val


def training_datasets(
    path: Data,
    *,
    train_split: str | None = None,
    val_split: str | None = None,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    confine: bool = False,
) -> tuple[DetectionDataset, DetectionDataset]:
    """What to train on and what to validate on.

    Trained on is ``train_split``, else ``train``, else ``trainval``, else the only split. Validated on is
    ``val_split``, else ``val``, else a fifth of the training images, which is then held out of the training; so too
    where ``val`` shares images with a training split that was asked for. ``test`` is never taken without being asked.

    Raises:
        UserError: as ``load_dataset``, there are splits but none to train on, or no box to learn from.
    """
    names = splits(path)
    train_name = train_split
    if train_name is None and (names or val_split is not None):
        train_name = find_training_split(names or ("train",))
        if train_name is None:
            raise UserError(
                f"{name_data(path)}: there is no split to train on. It has: {name_list(names)}. Say which to take."
            )
    train = load_dataset(path, train_name, class_names=class_names, strict=strict, confine=confine)
    _refuse_nothing_to_learn(train)
    val_name = val_split or find_spelling("val", names or (("val",) if train_split else ()))
    if val_name is None:
        return hold_out(train)
    val = load_dataset(path, val_name, class_names=train.class_names, strict=strict, confine=confine)
    trained = {sample.path.resolve() for sample in train.samples}
    shared = sum(sample.path.resolve() in trained for sample in val.samples)
    if shared and train_split is not None and val_split is None:
        return hold_out(train)
    notes = list(val.notes)
    if shared:
        notes.append(f"{shared} of {len(val)} validation images are training images: AP says little about new images")
    if not has_objects(val.samples):
        notes.append(f"no object in the {len(val)} validation images: AP cannot be measured, so the last model is kept")
    return train, val.subset(range(len(val)), val.name, notes)


def _refuse_nothing_to_learn(dataset: DetectionDataset) -> None:
    """Raises a fault where no image has an object, and says why."""
    if has_objects(dataset.samples):
        return
    ignored = sum(len(sample.target) for sample in dataset.samples)
    reason = "not one image to train on has a box"
    if dataset.skipped:
        reason += f": all {len(dataset.skipped) + ignored} boxes were left out. {dataset.skipped[0].sentence}"
    elif ignored:
        reason += f" that is an object: all {ignored} are ignore regions (iscrowd, or difficult)"
    raise Fault("nothing-to-learn", dataset.name, reason)


def hold_out(dataset: DetectionDataset, *, seed: int = 0) -> tuple[DetectionDataset, DetectionDataset]:
    """Four fifths to train on and one fifth to validate on.

    The images with the lowest hashes of (seed, file name) are held out, so neither their order nor the place of the set
    on the disk matters. Copies of a file stay together, unless they are so many that nothing else would be left.

    Raises:
        UserError: fewer than two images.
    """
    if len(dataset) < 2:
        raise UserError(f"{dataset.name}: one image cannot be split into training and validation. Add images.")

    held = draw_held_out([sample.path for sample in dataset.samples], [str(s.image_id) for s in dataset.samples], seed)
    kept = sorted(set(range(len(dataset))).difference(held))
    return (
        dataset.subset(kept, f"{dataset.name} (four fifths)"),
        dataset.subset(held, f"{dataset.name} (a fifth, held out)", notes=()),
    )
