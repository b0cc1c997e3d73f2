"""Many images, one after the other: threads read ahead while the network runs, and the results keep their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from retinanet.errors import UserError
from retinanet.images.preprocess import batches_of_one_size
from retinanet.inference.backend import Backend, Prepared, count_cores
from retinanet.types import Detections

S = TypeVar("S")
T = TypeVar("T")


def stream_detections(
    backend: Backend,
    prepare: Callable[[S], Prepared],
    items: Iterable[S],
    *,
    batch_size: int,
    workers: int | None = None,
) -> Generator[Detections | UserError]:
    """Detections in each of any number of items, in their order; only a few batches of them are held at any time.

    Args:
        backend: what runs the model. Where it runs several calls at once, a call has one image.
        prepare: reads and resizes one item; called in threads.
        items: any number; no more are taken than are begun.
        batch_size: images per call, where their network input has one size.
        workers: threads that prepare; by default as many as there are cores.

    Yields:
        For each item its detections, or the UserError that ``prepare`` raised for it.
    """
    size = 1 if backend.streams > 1 else batch_size

    def run(reads: Sequence[Future[Prepared]]) -> list[Detections | UserError]:
        """Detections of a batch, a call for the images of each input size."""
        results: dict[int, Detections | UserError] = {}
        images: dict[int, Prepared] = {}
        for place, read in enumerate(reads):
            try:
                images[place] = read.result()
            except UserError as error:
                results[place] = error
        places = list(images)
        for batch in batches_of_one_size([image.input_size for image in images.values()], max(1, len(images))):
            detections = backend.run([images[places[index]] for index in batch])
            results.update(zip((places[index] for index in batch), detections, strict=True))
        return [results[place] for place in range(len(reads))]

    readers, runners = ThreadPoolExecutor(workers or count_cores()), ThreadPoolExecutor(backend.streams)
    try:
        reads = in_order(readers, prepare, items, ahead=workers or count_cores())
        batches = iter(lambda: list(islice(reads, size)), [])
        for done in in_order(runners, run, batches, ahead=backend.streams):
            yield from done.result()
    finally:  # also when the caller wants no more
        for pool in (readers, runners):
            pool.shutdown(wait=True, cancel_futures=True)


def in_order(pool: Executor, function: Callable[[S], T], items: Iterable[S], *, ahead: int) -> Iterator[Future[T]]:
    """A function of each item, begun in a pool while the caller deals with earlier ones.

    Args:
        pool: where it runs.
        function: of one item.
        items: any number; no more are taken than are begun.
        ahead: how many are begun beyond the one that is handed out, which may not be done yet.
    """
    begun: deque[Future[T]] = deque()
    for item in items:
        begun.append(pool.submit(function, item))
        if len(begun) > ahead:
            yield begun.popleft()
    while begun:
        yield begun.popleft()
