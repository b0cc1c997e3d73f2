"""Samples to batches: stateless randomness, and a sampler that can start anywhere.

A training sample depends on (seed, epoch, index) alone and a step on (seed, step) alone, so neither the number of
workers nor an interruption changes what the model sees.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from retinanet.data.dataset import DetectionDataset
from retinanet.data.transforms import Augment
from retinanet.data.workers import ADVICE, read_batches, start_worker
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, batches_of_one_size
from retinanet.types import Assignment, Batch, Sample, Target

View = tuple[int, int]  # epoch and index of a sample
Assign = Callable[[Sequence[int], Sequence[Target]], Assignment]  # (H, W) of the input and targets


@dataclass(frozen=True)
class StepSampler(Sampler[list[View]]):
    """Which samples make which part of which optimiser step.

    Every epoch is a permutation of the data set; its last step is filled up from the beginning of the permutation, so
    that all steps have the same size. Samples at the end of the data set may take turns: an epoch has a few of them,
    and goes on where the one before ended. Yields one list of views per part, for the steps ``start`` to ``stop``.

    Attributes:
        length: samples of an epoch.
        batch_size: samples of a step, over all ranks and parts.
        start: first step.
        stop: step after the last one.
        seed: of the permutations.
        parts: how many batches a rank accumulates in a step.
        rank: of this process.
        world: number of processes.
        in_turns: samples of the data set that take turns, in the last ``turns`` places of an epoch.
        turns: how many of them an epoch has.
    """

    length: int
    batch_size: int
    start: int
    stop: int
    seed: int = 0
    parts: int = 1
    rank: int = 0
    world: int = 1
    in_turns: int = 0
    turns: int = 0

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UserError(f"a batch has at least one image, got {self.batch_size}")
        if self.batch_size % (self.parts * self.world):
            raise UserError(
                f"a batch of {self.batch_size} images cannot be shared evenly by {self.world} processes of "
                f"{self.parts} accumulated parts: choose a multiple of {self.parts * self.world}"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in which every sample is seen once."""
        return -(-self.length // self.batch_size)

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts

    def __iter__(self) -> Iterator[list[View]]:
        for step in range(self.start, self.stop):
            mine = self.step(step)[self.rank :: self.world]
            size = len(mine) // self.parts
            yield from (mine[part * size : (part + 1) * size] for part in range(self.parts))

    def step(self, step: int) -> list[View]:
        """All views of one step, over all ranks and parts."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(self.length)
        rows = np.arange(position * self.batch_size, (position + 1) * self.batch_size) % self.length
        return [(epoch, self._find_sample(epoch, int(place))) for place in order[rows]]

    def _find_sample(self, epoch: int, place: int) -> int:
        """The sample of the data set that has a place in an epoch."""
        always = self.length - self.turns
        if place < always:
            return place
        turn = epoch * self.turns + place - always
        order = np.random.default_rng((self.seed, turn // self.in_turns, 1)).permutation(self.in_turns)
        return always + int(order[turn % self.in_turns])


@dataclass(frozen=True)
class TrainingViews(Dataset[Sample | UserError]):
    """The data set as training sees it: augmented and resized, boxes in pixels of the result.

    A sample that cannot be read is returned as its error, because a worker process would bury the message in a
    traceback; :func:`batches` raises it.
    """

    dataset: DetectionDataset
    preprocess: Preprocess
    augment: Augment
    seed: int
    epochs: int

    def __getitem__(self, view: View) -> Sample | UserError:
        try:
            return self._view(*view)
        except UserError as error:
            return error

    def _view(self, epoch: int, index: int) -> Sample:
        sample, augment = self.dataset[index], self.augment.in_epoch(epoch, self.epochs)
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which seeds the accelerators too, and those are not forked.
            torch.default_generator.manual_seed(
                int(np.random.SeedSequence((self.seed, epoch, index)).generate_state(1)[0])
            )
            assert sample.image is not None
            image, target = augment(sample.image, sample.target, self._draw)
            scale = augment.draw_scale()
        rule = replace(
            self.preprocess,
            short=max(1, round(self.preprocess.short * scale)),
            long=max(1, round(self.preprocess.long * scale)),
        )
        return resized(replace(sample, image=image, target=target), rule)

    def _draw(self) -> tuple[Tensor, Target]:
        """A random image of the data set with its objects."""
        sample = self.dataset[int(torch.randint(len(self.dataset), ()))]
        assert sample.image is not None
        return sample.image, sample.target


@dataclass(frozen=True)
class EvaluationViews(Dataset[Sample | UserError]):
    """The data set as evaluation sees it: resized, nothing else."""

    dataset: DetectionDataset
    preprocess: Preprocess

    def __getitem__(self, index: int) -> Sample | UserError:
        try:
            return resized(self.dataset[index], self.preprocess)
        except UserError as error:
            return error


def resized(sample: Sample, preprocess: Preprocess) -> Sample:
    """The sample with its image resized and its boxes in pixels of the result."""
    assert sample.image is not None
    image = preprocess.resize(sample.image)
    factor = torch.tensor([image.shape[-1] / sample.image.shape[-1], image.shape[-2] / sample.image.shape[-2]])
    target = sample.target
    return replace(
        sample, image=image, target=Target((target.boxes * factor.repeat(2)).float(), target.labels, target.ignore)
    )


@dataclass(frozen=True)
class Collate:
    """Samples to one batch; the first error stands for all.

    ``assign`` matches the anchors here, in the process that reads images: it consists of many small operations, and
    in the process that trains they would compete with the others for every one of them.
    """

    preprocess: Preprocess
    assign: Assign | None = None

    def __call__(self, samples: Sequence[Sample | UserError]) -> Batch | UserError:
        """N samples with pixels -> their batch."""
        for sample in samples:
            if isinstance(sample, UserError):
                return sample
        good = [sample for sample in samples if isinstance(sample, Sample)]
        images, sizes = self.preprocess.pad([_pixels(sample) for sample in good])
        bare = tuple(replace(sample, image=None) for sample in good)
        targets = tuple(sample.target for sample in good)
        assignment = None if self.assign is None else self.assign((images.shape[-2], images.shape[-1]), targets)
        if get_worker_info() is not None:
            records = targets if assignment is None else (*targets, assignment)
            columns = [column for record in records for column in vars(record).values()]
            try:  # put them where the parent reads them: torch would do it in a thread that loses the batch if it fails
                for tensor in (images, sizes, *(column for column in columns if isinstance(column, Tensor))):
                    tensor.share_memory_()
            except (OSError, RuntimeError) as error:
                return UserError(f"the shared memory for images is full ({error}). Enlarge /dev/shm, or {ADVICE}")
        return Batch(images, sizes, targets, bare, assignment)


def _pixels(sample: Sample) -> Tensor:
    assert sample.image is not None
    return sample.image


def training_batches(
    dataset: DetectionDataset,
    *,
    preprocess: Preprocess,
    augment: Augment,
    sampler: StepSampler,
    workers: int = 0,
    assign: Assign | None = None,
) -> Generator[Batch]:
    """The parts of the steps that ``sampler`` names, augmented; close it to end its worker processes.

    Args:
        dataset: annotated images.
        preprocess: how they become the network's input.
        augment: what happens to them before.
        sampler: which samples make which batch.
        workers: processes that read images.
        assign: matches the anchors of a batch; it is called where the batch is made.

    Raises:
        UserError: an image cannot be read, or a worker has died (:class:`~retinanet.data.workers.WorkerLost`).
    """
    epochs = -(-sampler.stop // sampler.steps_per_epoch)
    views = TrainingViews(dataset, preprocess, augment, sampler.seed, epochs)
    return _load(views, Collate(preprocess, assign), workers, batch_sampler=sampler)


def evaluation_batches(
    dataset: DetectionDataset,
    *,
    preprocess: Preprocess,
    batch_size: int,
    indices: Sequence[int],
    workers: int = 0,
) -> Generator[tuple[list[int], Batch]]:
    """Samples, resized only, in batches that pad each image exactly as it is padded alone; close it to end its workers.

    So neither the batch size nor the other images change what the network sees of an image, and evaluation measures
    what prediction delivers.

    Args:
        dataset: annotated images.
        preprocess: how they become the network's input.
        batch_size: most images of a batch; where the sizes are mixed, batches may have fewer.
        indices: of the samples; each is in one batch, in the order of :func:`batches_of_one_size`.
        workers: processes that read images.

    Yields:
        The indices of a batch, and the batch.

    Raises:
        UserError: an image cannot be read, or a worker has died (:class:`~retinanet.data.workers.WorkerLost`).
    """
    sizes = [preprocess.padded(*preprocess.size(*dataset.samples[index].size)) for index in indices]
    batches = [[indices[place] for place in places] for places in batches_of_one_size(sizes, batch_size)]
    views = EvaluationViews(dataset, preprocess)
    with closing(_load(views, Collate(preprocess), workers, batch_sampler=batches)) as loaded:
        yield from zip(batches, loaded, strict=True)


def _load(views: Dataset[Sample | UserError], collate: Collate, workers: int, **how: Any) -> Generator[Batch]:
    loader = DataLoader(
        views,
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=start_worker,
        pin_memory=torch.cuda.is_available() and workers > 0,
        **how,
    )
    with closing(read_batches(loader)) as batches:
        for batch in batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
