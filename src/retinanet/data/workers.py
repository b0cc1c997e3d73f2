"""Processes that read images: they end with whoever uses them, however that ends, and their loss is one message."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Generator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from torch.utils.data import DataLoader

from retinanet.errors import UserError

ADVICE = "read with fewer processes, or in this one (train: --run.workers 0, else --workers 0)"


class WorkerLost(UserError):
    """A process that reads images has died; what was computed from earlier batches is sound."""


def read_batches(loader: DataLoader[Any]) -> Generator[Any]:
    """The batches of a loader; its worker processes are gone when this generator has ended or was closed.

    The loader's workers must start with :func:`start_worker`.

    Raises:
        WorkerLost: a worker has died. It is raised while a batch is waited for, never amid the caller's work.
    """
    if not loader.num_workers:
        yield from loader
        return
    end_if_imported_by_a_worker()
    others, begun = set(multiprocessing.active_children()), False
    workers: list[BaseProcess] = []
    handler = batches = None
    try:
        try:
            batches = iter(loader)
            workers = _started_since(others)
            handler = _replace_child_handler(signal.SIG_DFL)
            while not any(worker.exitcode is not None for worker in workers):
                batch = next(batches)
                begun = True
                yield batch
        except (StopIteration, GeneratorExit):
            return
        except Exception as error:
            unreachable = isinstance(error, OSError | EOFError)
            if unreachable:
                _wait_for_end(workers)
            failed_start = unreachable and not workers
            if not failed_start and all(worker.exitcode is None for worker in workers):
                raise
        raise WorkerLost(_explain(workers, begun)) from None
    finally:
        del batches  # torch then ends its workers
        for worker in workers or _started_since(others):
            if worker.is_alive():
                worker.kill()
                worker.join(timeout=5)
        if handler is not None:
            _replace_child_handler(handler)


def start_worker(worker: int) -> None:
    """What a worker does first: leave Ctrl-C to the parent, end at SIGTERM, and end when the parent is gone.

    Ctrl-C goes to the whole group; the parent stops after its step, and until then needs its workers.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a forked worker has inherited the handler of the parent
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def end_if_imported_by_a_worker() -> None:
    """End this process if it is a worker that is just importing the script of its parent.

    Where processes are not forked, a worker imports the script first. Without a main guard the script trains again, in
    each worker; the parent sees that they end and says what to do.
    """
    # There is no public way to ask. Without it, each worker prints a traceback of multiprocessing's.
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit(1)


def _end_with_the_parent() -> None:
    # torch's own watch looks between two batches only, and not while a worker waits for space in a pipe
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _started_since(others: set[BaseProcess]) -> list[BaseProcess]:
    return [child for child in multiprocessing.active_children() if child.daemon and child not in others]


def _wait_for_end(workers: Sequence[BaseProcess]) -> None:
    """Let a worker end that is about to: its pipes are closed before it is gone."""
    ended = wait([worker.sentinel for worker in workers], timeout=2)
    for worker in workers:
        if worker.sentinel in ended:
            worker.join(timeout=2)


def _replace_child_handler(handler: Any) -> Any:
    """Set the handler of SIGCHLD and return the one before; None where there is none to set.

    torch's raises wherever the main thread is when a worker dies; amid an optimiser step no state could be saved.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        return None
    return signal.signal(signal.SIGCHLD, handler)


def _explain(workers: Sequence[BaseProcess], begun: bool) -> str:
    codes = [worker.exitcode for worker in workers if worker.exitcode is not None]
    if not begun and multiprocessing.get_start_method() != "fork" and min(codes, default=1) >= 0:
        return (
            "the processes that read images did not start. Each of them imports your script first, so the script "
            'must call the training or evaluation under `if __name__ == "__main__":`. Or read in this process '
            "(train: run=RunConfig(workers=0), else workers=0)"
        )
    code = codes[0] if codes else 1
    name = signal.Signals(-code).name if code < 0 else ""
    if name == "SIGKILL":
        return f"a process that reads images was killed; most often memory ran out. Free some, or {ADVICE}"
    if name == "SIGBUS":
        return f"a process that reads images found the shared memory full. Enlarge /dev/shm, or {ADVICE}"
    cause = f"was ended by {name}" if name else f"ended with code {code}"
    return f"a process that reads images {cause}. If it happens again, {ADVICE}"
