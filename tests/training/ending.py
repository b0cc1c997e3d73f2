"""Started by test_ending.py as a script: runs that end badly, each in a process group of its own.

Usage: ending.py WORD... for one run, or ending.py without words: then every line of the standard input names a run,
which is forked (so torch and all that trains is imported once), and whose exit code is printed.

The words of a run: CASE METHOD OUTPUT, then those of ``retinanet train``. All processes of the run hold OUTPUT, a named
pipe, open: its reader sees the end of the file when the last of them has ended.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import resource
import signal
import sys

import torch

from retinanet.cli.main import main
from retinanet.data import loader
from retinanet.detector import Detector
from retinanet.training.log import RunLog


def fail(*_arguments: object) -> None:
    raise RuntimeError("out of luck")


def after_step(number: int, action) -> None:
    """Let something happen when a step has been logged."""

    def step(log, row, original=RunLog.step):
        original(log, row)
        if row["step"] == number:
            action()

    RunLog.step = step


def kill_newest_worker() -> None:
    worker = max(multiprocessing.active_children(), key=lambda child: child.pid)
    worker.kill()
    worker.join()


def detections_without_a_worker(self, raw, batch, original=Detector.detections):
    Detector.detections = original
    kill_newest_worker()
    return original(self, raw, batch)


def limit_files(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (megabytes * 1_000_000, resource.RLIM_INFINITY))


def close_pipe_and_signal(number: int) -> None:
    """What Ctrl-C does to ``train 2>&1 | tee log``: tee ends, and all processes get the signal."""
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.close(writer)
    os.close(reader)
    os.killpg(0, number)


def arrange(case: str) -> None:
    if case == "step":
        after_step(2, fail)
    elif case == "dataset":
        loader.TrainingViews.__getitem__ = fail
    elif case == "evaluation":
        Detector.detections = fail
    elif case == "worker-killed":
        after_step(3, kill_newest_worker)
    elif case == "evaluation-worker-killed":
        Detector.detections = detections_without_a_worker
    elif case == "no-shared-memory":
        original = loader.start_worker
        loader.start_worker = lambda worker: (original(worker), limit_files(0))
    elif case == "disk-full":
        after_step(3, lambda: limit_files(1))  # of a run that has saved both model and state after step 2
    elif case == "disk-full-at-state":
        limit_files(6)  # the model and the state of step 0 take less, that of the first epoch more
    elif case in ("SIGINT", "SIGTERM"):
        after_step(2, lambda: close_pipe_and_signal(signal.Signals[case]))  # at the end of an epoch, which is told
    elif case == "killed" or (case == "rank-killed" and os.environ.get("LOCAL_RANK", "0") == "0"):
        after_step(1, lambda: os.kill(os.getpid(), signal.SIGKILL))


def run(case: str, method: str, output: str, *words: str) -> int:
    end = os.open(output, os.O_WRONLY)  # and stays open, inherited by forked processes
    os.set_inheritable(end, True)
    os.dup2(end, 1)
    os.dup2(end, 2)
    torch.set_num_threads(1)
    if multiprocessing.get_start_method() != method:
        multiprocessing.set_start_method(method, force=True)
    arrange(case)
    return main(["train", *words])


def serve() -> int:
    """Fork a run for each line; returns its exit code in the fork, else 0 when there are no more lines."""
    importlib.import_module("retinanet.training.run")  # here, for a worker that is spawned imports this script too
    for line in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            os.setsid()
            return run(*line.split())
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]) if len(sys.argv) > 1 else serve())
