"""Frames per second of ``predict`` on a film, beside decoding alone and the network alone in the same run, in turns.

The film is made of photographs, each of which drifts for some frames, so that no frame is like another. The model is
loaded once; a way is everything from the file to the results.

    python benchmarks/video.py MODEL IMAGES [--frames 60] [--rounds 5]

MODEL is an exported model, IMAGES a folder of photographs. Prints JSON: medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from retinanet import Predictor, UserError, VideoConfig
from retinanet.inference.backend import count_cores
from retinanet.inference.film import FilmReader, import_av
from retinanet.inference.paths import find_videos
from retinanet.inference.tracks import Tracker
from retinanet.inference.video import VideoRun

EVERY, EACH = 5, 5  # one frame of so many; frames of a photograph
SIZE = (640, 480)


def render(images: Path, path: Path, frames: int) -> None:
    """A film of 30 frames/s."""
    photographs = sorted([*images.rglob("*.jpg"), *images.rglob("*.png")])
    if not photographs:
        raise SystemExit(f"no .jpg or .png in {images}")
    with import_av().open(str(path), "w") as film:
        video = film.add_stream("libx264", rate=30, options={"preset": "veryfast", "crf": "20"})
        video.width, video.height, video.pix_fmt = *SIZE, "yuv420p"
        for number in range(frames):
            if number % EACH == 0:
                photograph = photographs[number // EACH % len(photographs)]
                pixels = np.asarray(Image.open(photograph).convert("RGB").resize(SIZE))
            shifted = np.ascontiguousarray(np.roll(pixels, 2 * number, 1))
            frame = import_av().VideoFrame.from_ndarray(shifted, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 30)
            film.mux(video.encode(frame))
        film.mux(video.encode())


def list_ways(predictor: Predictor, film: Path) -> dict[str, Callable[[], object]]:
    """What takes turns."""
    (source,) = find_videos([str(film)])

    def decode() -> list[np.ndarray]:
        with closing(FilmReader(source)) as reader:
            return [frame.pixels for frame in reader.frames(1, threading.Event(), None)]

    def write(pictures: bool, **options: object) -> None:
        detect = predictor.attempt
        with tempfile.TemporaryDirectory() as folder:
            VideoRun(predictor, detect, predictor.thresholds, Path(folder), VideoConfig(**options), pictures).predict(
                source
            )

    in_memory = decode()
    ways: dict[str, Callable[[], object]] = {
        "decoding alone": decode,
        "network alone, frames in memory": lambda: list(predictor.stream(in_memory)),
        "table": partial(write, False),
        "film and table": partial(write, True),
        f"film and table, --every {EVERY}": partial(write, True, every=EVERY),
    }
    with suppress(UserError):
        Tracker(0.3, 30.0)
        ways["film and table, --track"] = partial(write, True, track=True)
    return ways


def main() -> None:
    """Render, take turns, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("images", type=Path)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    predictor = Predictor.load(given.model, mode="throughput")
    with tempfile.TemporaryDirectory() as scratch:
        film = Path(scratch) / "film.mp4"
        render(given.images, film, given.frames)
        ways = list_ways(predictor, film)
        ways["network alone, frames in memory"]()  # warm-up
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(given.rounds):
            for name, run in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    seconds = {name: np.median(values, axis=0) for name, values in spent.items()}
    rows = {
        name: {
            "frames_per_second": round(given.frames / wall, 2),
            "cpu_ms_per_frame": round(1000 * cpu / given.frames, 1),
        }
        for name, (wall, cpu) in seconds.items()
    }
    about = {"model": given.model, "frames": given.frames, "rounds": given.rounds, "cores": count_cores()}
    print(json.dumps({**about, "backend": predictor.backend.name, "ways": rows}, indent=1))


if __name__ == "__main__":
    main()
