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


def streamed(
    backend: Backend,
    prepare: Callable[[S], Prepared],
    items: Iterable[S],
    *,
    batch_size: int,
    workers: int | None = None,
) -> Generator[Detections]:
    """Detections in each of any number of items, in their order; only a few batches of them are held at any time.

    Args:
        backend: what runs the model. Where it runs several calls at once, a call has one image.
        prepare: reads and resizes one item; called in threads.
        items: any number; no more are taken than are begun.
        batch_size: images per call, where their network input has one size.
        workers: threads that prepare; by default as many as there are cores.

    Raises:
        UserError: of ``prepare``, when the turn of its item comes; the detections of those before it are there by then.
    """
    size = 1 if backend.streams > 1 else batch_size

    def run(reads: Sequence[Future[Prepared]]) -> list[Detections | UserError]:
        """Detections of a batch; from the first item on that cannot be used, the reason in their place."""
        images: list[Prepared] = []
        reason: list[UserError] = []
        for read in reads:
            try:
                images.append(read.result())
            except UserError as error:
                reason.append(error)
                break
        return [*_alike(backend, images), *reason]

    readers, runners = ThreadPoolExecutor(workers or count_cores()), ThreadPoolExecutor(backend.streams)
    try:
        reads = in_order(readers, prepare, items, ahead=workers or count_cores())
        batches = iter(lambda: list(islice(reads, size)), [])
        for done in in_order(runners, run, batches, ahead=backend.streams):
            for found in done.result():
                if isinstance(found, UserError):
                    raise found
                yield found
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


def _alike(backend: Backend, images: Sequence[Prepared]) -> list[Detections]:
    """Detections of each image; a call has images of one input size."""
    found: dict[int, Detections] = {}
    for places in batches_of_one_size([image.input_size for image in images], len(images)):
        found.update(zip(places, backend.run([images[place] for place in places]), strict=True))
    return [found[place] for place in range(len(images))]
