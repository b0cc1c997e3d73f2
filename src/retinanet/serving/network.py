"""The queue before the network: what waits is batched, and never more waits than was agreed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from retinanet.inference.backend import Backend, Prepared
from retinanet.serving.limits import Refusal


class Outcome(NamedTuple):
    """What came of a job: its result, and how many seconds the network took for its batch."""

    result: Any
    seconds: float


@dataclass(eq=False)
class _Job:
    """An image for the network, or a call that uses the network itself."""

    image: Prepared | None
    call: Callable[[], Any] | None = None
    future: Future[Outcome] = field(default_factory=Future)

    @property
    def input_size(self) -> tuple[int, int] | None:
        return self.image.input_size if self.image else None


class NetworkQueue:
    """Runs a network for many requests, in as many threads as it can profitably use.

    Images that wait while the network is busy share its next call where their network input has one size. A backend
    that runs several calls at once gets an image for each, which is faster for it than a batch.

    Args:
        backend: what runs the model.
        batch_size: most images of a call.
        places: most images that are in the server at once; see :meth:`reserve`.
        report: called with the images and the seconds of each call.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        batch_size: int,
        places: int,
        report: Callable[[int, float], Any] = lambda images, seconds: None,
    ) -> None:
        self._backend = backend
        self._batch_size = 1 if backend.streams > 1 else batch_size
        self._report = report
        self._places = places
        self._taken = 0
        self._waiting: list[_Job] = []
        self._closed = False
        self._changed = threading.Condition()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(backend.streams)]
        for thread in self._threads:
            thread.start()

    @property
    def taken(self) -> int:
        """Images that are in the server: being read, waiting, or in the network."""
        return self._taken

    @contextmanager
    def reserve(self, count: int = 1) -> Iterator[None]:
        """Places for so many images, for as long as they are in the server.

        Raises:
            Refusal: there are not so many free; 503.
        """
        with self._changed:
            if self._taken + count > self._places:
                raise Refusal(503, f"the server is busy with {self._taken} images; try again in a second", wait=1)
            self._taken += count
        try:
            yield
        finally:
            with self._changed:
                self._taken -= count

    def submit(self, image: Prepared) -> Future[Outcome]:
        """The detections of an image, as soon as the network comes to it."""
        return self._put(_Job(image))

    def submit_call(self, call: Callable[[], Any]) -> Future[Outcome]:
        """What a function returns that calls the network itself, when its turn comes."""
        return self._put(_Job(None, call))

    def close(self) -> None:
        """Finish what waits, and stop."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _put(self, job: _Job) -> Future[Outcome]:
        with self._changed:
            if self._closed:
                raise Refusal(503, "the server is stopping")
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def _take_batch(self) -> list[_Job]:
        """The next jobs for one call, oldest first; none when the queue is closed and empty."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return []
                first, batch = self._waiting[0], list[_Job]()
                if first.image is None:
                    batch = [first]
                else:
                    batch = [job for job in self._waiting if job.input_size == first.input_size][: self._batch_size]
                self._waiting = [job for job in self._waiting if job not in batch]
                # Whoever waited too long has gone.
                if batch := [job for job in batch if job.future.set_running_or_notify_cancel()]:
                    return batch

    def _work(self) -> None:
        while batch := self._take_batch():
            began = time.perf_counter()
            try:
                results = self._run(batch)
            except BaseException as error:  # the thread has to live; whoever waits is told
                for job in batch:
                    job.future.set_exception(error)
                continue
            seconds = time.perf_counter() - began
            self._report(len(batch), seconds)
            for job, result in zip(batch, results, strict=True):
                job.future.set_result(Outcome(result, seconds))

    def _run(self, batch: Sequence[_Job]) -> list[Any]:
        if batch[0].call is not None:
            return [batch[0].call()]
        return list(self._backend.run([job.image for job in batch if job.image is not None]))
