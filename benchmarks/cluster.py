r"""What ``predict --engine ray`` costs, survives and scales to, on the cores of one machine.

    OMP_NUM_THREADS=1 python benchmarks/cluster.py overhead MODEL IMAGES... [--rounds 3]
    OMP_NUM_THREADS=1 python benchmarks/cluster.py equality MODEL IMAGES... [--count 500] [--actors 1 2]
    OMP_NUM_THREADS=1 python benchmarks/cluster.py faults MODEL IMAGES... [--count N] [--kills 20] [--killed driver ...]
    OMP_NUM_THREADS=1 python benchmarks/cluster.py join MODEL IMAGES... [--count 500]
    OMP_NUM_THREADS=1 python benchmarks/cluster.py scale [--count 100000] [--actors 2 8 32] [--sleep 0.002]

``overhead``: images/s of ``predict`` in throughput mode and of two actors of one core, in turns, medians; neither
counts its start. ``equality``: the rows of 500 images (links to those given, in turn) beside those of ``predict``.
``faults``: the driver, an actor, any process of a worker, or Ray's process for the machine is killed at random moments,
the command is given again where the driver has ended, and the rows are compared likewise. ``join``: a cluster of two
machines, both on this one, one of which dies. ``scale``: a model that sleeps instead of looking, logical cores, and the
driver's memory.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from retinanet import Predictor, predict
from retinanet.cluster import ClusterConfig, iterate_results, read_results
from retinanet.cluster.engine import Pool, connect
from retinanet.cluster.job import open_job
from retinanet.cluster.worker import How
from retinanet.inference.documents import Prediction
from retinanet.inference.paths import find_images
from retinanet.types import Detections


def overhead(options: argparse.Namespace, folder: Path) -> None:
    """Images/s beside ``predict``, in turns."""
    images = [str(path) for path in find_images(options.images)] * options.repeat
    links = link_images(images, folder / "images", len(images))
    predictor = Predictor.load(options.model, mode="throughput")
    alone, together = [], []
    for number in range(options.rounds):
        begun = time.perf_counter()
        for _ in predictor.stream(links):
            pass
        alone.append(len(links) / (time.perf_counter() - begun))
        output, two = str(folder / f"found{number}"), ClusterConfig(actors=2)
        run = predict(options.model, [str(folder / "images")], output=output, engine="ray", cluster=two)
        together.append(run.speed)
        print(f"round {number + 1}: predict {alone[-1]:.2f} images/s, two actors {together[-1]:.2f}", flush=True)
    ratio = statistics.median(two / one for one, two in zip(alone, together, strict=True))
    print(f"median ratio {ratio:.3f} over {options.rounds} rounds of {len(links)} images")


def equality(options: argparse.Namespace, folder: Path) -> None:
    """The rows of more and more actors beside those of ``predict``."""
    link_images([str(path) for path in find_images(options.images)], folder / "images", options.count)
    images = [str(folder / "images")]
    wanted = predict(options.model, images, output=str(folder / "local"), pictures=False)
    for actors in options.actors:
        output, config = str(folder / f"found{actors}"), ClusterConfig(actors=actors)
        predict(options.model, images, output=output, engine="ray", cluster=config)
        print(f"{actors} actors: {compare(output, wanted)}", flush=True)


def join(options: argparse.Namespace, folder: Path) -> None:
    """A cluster of two machines, both here, that is joined by its address; the second dies in the middle."""
    link_images([str(path) for path in find_images(options.images)], folder / "images", options.count)
    wanted = predict(options.model, [str(folder / "images")], output=str(folder / "local"), pictures=False)
    os.environ |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    import ray._private.node
    from ray._private.parameter import RayParams

    where = ["--node-ip-address", "127.0.0.1", "--port", "6399", "--num-cpus", "1", "--include-dashboard", "false"]
    ray_command = Path(sys.executable).parent / "ray"
    subprocess.run([ray_command, "start", "--head", *where], check=True, stdout=subprocess.DEVNULL)
    second = RayParams(  # the command joins no cluster on loopback
        *(), gcs_address="127.0.0.1:6399", node_ip_address="127.0.0.1", num_cpus=1, num_gpus=0, node_manager_port=0
    )
    second.update(min_worker_port=0, max_worker_port=0, include_log_monitor=False, dashboard_agent_listen_port=None)
    node = ray._private.node.Node(second, head=False, shutdown_at_exit=True, spawn_reaper=True)
    for dies in (False, True):
        output = folder / f"found{int(dies)}"
        words = ["predict", options.model, str(folder / "images"), "--engine", "ray", "--address", "127.0.0.1:6399"]
        command = [sys.executable, "-m", "retinanet.cli.main", *words, "--output", str(output)]
        with subprocess.Popen(command) as driver:
            while dies and driver.poll() is None and len(list((output / "parts").glob("part-*"))) < 5:
                time.sleep(0.1)
            if dies and driver.poll() is None:
                node.kill_all_processes(allow_graceful=False)
        told = "the second machine dies" if dies else "two machines"
        print(f"{told}: exit code {driver.returncode}, {compare(output, wanted)}", flush=True)
    subprocess.run([ray_command, "stop", "--force"], check=True, stdout=subprocess.DEVNULL)


VICTIMS = {"driver": "retinanet.cli.main predict", "actor": "MapWorker", "worker": "ray::", "machine": "raylet/raylet"}


def faults(options: argparse.Namespace, folder: Path) -> None:
    """Kill, go on, compare."""
    images = [str(path) for path in find_images(options.images)]
    link_images(images, folder / "images", options.count)
    wanted = predict(options.model, [str(folder / "images")], output=str(folder / "local"), pictures=False)
    dice = random.Random(options.seed)
    for kind in options.killed:
        output, kills, runs = folder / kind, 0, 0
        while True:
            runs += 1
            begun = len(list((output / "parts").glob("part-*")))
            environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
            words = ["predict", options.model, str(folder / "images"), "--output", str(output)]
            command = [sys.executable, "-m", "retinanet.cli.main", *words, "--engine", "ray", "--actors", "2"]
            with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE) as driver:
                while driver.poll() is None:
                    wait = dice.uniform(0.2, 2.0)
                    time.sleep(wait)
                    working = kind == "actor" or len(list((output / "parts").glob("part-*"))) > begun
                    victims = find_processes(driver.pid, VICTIMS[kind])
                    if working and victims and kills < options.kills:
                        try:
                            os.kill(dice.choice(victims), signal.SIGKILL)
                        except ProcessLookupError:
                            continue
                        kills += 1
                        if kind == "driver":
                            driver.wait()
                message = driver.stderr.read().decode() if driver.stderr else ""
            if driver.returncode == 0:
                break
            if kind != "driver":
                print(f"{kind}: the driver ended with {driver.returncode}: {message[-300:]}", flush=True)
        print(f"{kind}: {kills} kills, {runs} runs, {compare(output, wanted)}", flush=True)


def compare(output: str | Path, wanted: Sequence[Prediction]) -> str:
    """How many rows there are, of how many images, and how many are those of ``predict``."""
    rows = list(iterate_results(output))
    pairs = zip(read_results(output), wanted, strict=True)
    equal = sum(same(one.detections, other.detections) for one, other in pairs)
    return f"{len(rows)} rows, {len({row.path for row in rows})} unique, {equal} equal"


def same(one: Detections, other: Detections) -> bool:
    """Whether two detections are the same, bit for bit."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("boxes", "scores", "labels"))


def find_processes(pid: int, name: str) -> list[int]:
    """A process and those under it whose title holds a text, but Ray's own agents and workers without work."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(stat.read_text().rsplit(")", 1)[1].split()[1]), []).append(int(stat.parent.name))
        except OSError:
            continue
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        todo += children.get(one, [])
        try:
            title = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if name in title and not any(word in title for word in ("IDLE", "Agent")):
            found.append(one)
    return found


def link_images(images: Sequence[str], folder: Path, count: int) -> list[str]:
    """A folder with ``count`` links to images, in turn."""
    folder.mkdir(parents=True)
    links = [folder / f"{number:06d}{Path(images[number % len(images)]).suffix}" for number in range(count)]
    for number, link in enumerate(links):
        link.symlink_to(Path(images[number % len(images)]).absolute())
    return [str(link) for link in links]


@dataclass(frozen=True)
class Sleeper:
    """A model that sleeps instead of looking."""

    seconds: float
    sha256: str = "0"

    def load(self, threads: int, **options: Any) -> Any:
        """Something like a predictor."""
        nothing = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("x",))

        def attempt(images: Iterator[Path], *, workers: int | None = None) -> Iterator[Detections]:
            for _ in images:
                time.sleep(self.seconds)
                yield nothing

        spec = SimpleNamespace(thresholds={}, is_at_limit=lambda found: False)
        return SimpleNamespace(attempt=attempt, tiling=None, backend=SimpleNamespace(spec=spec))


def scale(options: argparse.Namespace, folder: Path) -> None:
    """100,000 images over more and more logical actors."""
    (folder / "images").mkdir()
    places = []
    for number in range(options.count):
        place = folder / "images" / f"{number // 1000:03d}" / f"{number:06d}.png"
        if number % 1000 == 0:  # a file of its own for each thousand: a disk allows so many links only
            place.parent.mkdir()
            Image.new("RGB", (8, 8)).save(place)
        else:
            os.link(place.parent / f"{number // 1000 * 1000:06d}.png", place)
        places.append(str(place))
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    import ray

    ray.init(address="local", num_cpus=max(options.actors), include_dashboard=False, log_to_driver=False)
    connect()
    for actors in options.actors:
        model, how, peak = Sleeper(options.sleep), How({}), Peak()
        job = open_job(str(folder / f"found{actors}"), places, model, how, overwrite=False)  # type: ignore[arg-type]
        header = {"format": 1, "class_names": ["x"], "model_sha256": "0", "library_version": "0"}
        with peak:
            run = job.run(ray, model, how, header, Pool(actors), None)
        share = run.speed * options.sleep / actors
        print(
            f"{actors} actors: {run.images} images in {run.seconds:.1f} s, {run.speed:.0f} images/s, {share:.2f} of"
            f" what the sleep allows; driver {peak.first:.0f} MB at first, {peak.most:.0f} MB at most, "
            f"{peak.last:.0f} MB at the end",
            flush=True,
        )


class Peak(threading.Thread):
    """The resident memory of this process, looked at ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.last = self.most = 0.0
        self.going = True

    def run(self) -> None:
        """Look until the block is left."""
        while self.going:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.last = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
            self.first = self.first or self.last
            self.most = max(self.most, self.last)
            time.sleep(0.1)

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *error: object) -> None:
        self.going = False
        self.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["overhead", "equality", "faults", "join", "scale"])
    parser.add_argument("model", nargs="?")
    parser.add_argument("images", nargs="*")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=1, help="times that the images are predicted in a round")
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--killed", nargs="+", default=list(VICTIMS), choices=list(VICTIMS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--actors", type=int, nargs="+", default=None)
    parser.add_argument("--sleep", type=float, default=0.002)
    options = parser.parse_args()
    options.count = options.count or (100_000 if options.what == "scale" else 500)
    options.actors = options.actors or ([2, 8, 32] if options.what == "scale" else [1, 2])
    folder = Path(tempfile.mkdtemp(prefix="retinanet-cluster-"))
    try:
        parts = {"overhead": overhead, "equality": equality, "faults": faults, "join": join, "scale": scale}
        parts[options.what](options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
