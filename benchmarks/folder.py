"""A folder of images, ``retinanet predict MODEL FOLDER --pictures false``: torch in fp32 against OpenVINO int8.

The images of DATA are copied, as often as it takes, to a folder of 500 files. Each run is a process of its own, and the
two kinds take turns. Told are the seconds of the whole process, from its start to its end, and of the call of
``predict`` alone, which loads the model, reads, resizes, finds and writes detections.json and .csv; and for both the
seconds of CPU time for each second that passed: 2 means that two cores are busy all the time.

    python benchmarks/folder.py MODEL DATA [--images 500] [--rounds 3]

MODEL is a model folder, such as a run of the preset ``lite`` at 384 x 512. Its export in openvino-int8 is used, or made
for the while, calibrated on the training split of DATA.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import retinanet  # whose parts are imported when they are used: a process without torch stays so
from retinanet.deploy.stopwatch import describe_machine
from retinanet.inference.predict import find_images
from retinanet.spec import exported_file


@dataclass(frozen=True)
class Run:
    """Seconds that passed and of CPU time, of a process and of its call of ``predict``; and what it found."""

    process: float
    process_cpu: float
    call: float
    call_cpu: float
    found: int


def child(model: str, folder: str, output: str) -> None:
    """Predict, and print what it took."""
    began, cpu = time.perf_counter(), time.process_time()
    found = retinanet.predict(model, [folder], output=output, pictures=False, device="cpu")
    print(time.perf_counter() - began, time.process_time() - cpu, sum(len(one.detections) for one in found))


def run(model: Path, folder: Path, output: Path) -> Run:
    """The same in a process of its own."""
    shutil.rmtree(output, ignore_errors=True)
    command = [sys.executable, __file__, "--child", str(model), str(folder), str(output)]
    began, before = time.perf_counter(), os.times()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    process, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    seconds, call_cpu, found = done.stdout.split()[-3:]
    return Run(process, cpu, float(seconds), float(call_cpu), int(found))


def copies(data: str, folder: Path, count: int) -> Path:
    """A folder of so many files."""
    images = find_images([data])
    folder.mkdir()
    for number in range(count):
        image = images[number % len(images)]
        shutil.copy(image, folder / f"{number:05d}{image.suffix}")
    return folder


def report(name: str, runs: list[Run], first: list[Run]) -> None:
    """Medians, and how many times as fast as the first kind."""
    process, call = median(one.process for one in runs), median(one.call for one in runs)
    times = median(one.process for one in first) / process, median(one.call for one in first) / call
    busy = median(one.process_cpu / one.process for one in runs), median(one.call_cpu / one.call for one in runs)
    numbers = f"{process:>9.1f}{times[0]:>7.2f}{busy[0]:>7.2f}{call:>11.1f}{times[1]:>7.2f}{busy[1]:>7.2f}"
    print(f"{name:<16}{numbers}{runs[0].found:>10}")


def main() -> None:
    if "--child" in sys.argv:
        child(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("data")
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        exported = options.model / "openvino-int8"
        if exported_file(exported) is None:
            exported = Path(scratch) / "openvino-int8"
            retinanet.export(
                str(options.model),
                format="openvino",
                precision="int8",
                calibrate=options.data,
                output=str(exported),
            )
        folder = copies(options.data, Path(scratch) / "images", options.images)
        models = {"torch fp32": options.model, "OpenVINO int8": exported}
        runs: dict[str, list[Run]] = {name: [] for name in models}
        for number in range(options.rounds):
            for name, model in models.items():
                runs[name].append(run(model, folder, Path(scratch) / "out"))
                print(f"round {number + 1}, {name}: {runs[name][-1].process:.1f} s", file=sys.stderr, flush=True)
    print(f"{'; '.join(describe_machine().values())}; {options.images} images; medians of {options.rounds} rounds")
    print(f"{'':<16}{'process':>9}{'times':>7}{'cores':>7}{'predict':>11}{'times':>7}{'cores':>7}{'objects':>10}")
    for name, found in runs.items():
        report(name, found, runs["torch fp32"])


if __name__ == "__main__":
    main()
