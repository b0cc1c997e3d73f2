"""``benchmark``: every way to run a model on this machine, in one table."""

from __future__ import annotations

import inspect
import shlex
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image

from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.data.objects import Data, is_object, name_data
from retinanet.deploy.benchmark_table import RESULTS, BenchmarkResult, Row
from retinanet.deploy.competitors import DEFAULT, NAMES, Competitor, prepare_competitor, use_file
from retinanet.deploy.export import SAMPLES
from retinanet.deploy.measure import Spread, describe_machine, peak_memory, take_turns, time_in_turns
from retinanet.deploy.parity import spread_evenly
from retinanet.errors import UserError
from retinanet.evaluation.coco import CocoMetrics, coco_metrics
from retinanet.files import check_output_folder
from retinanet.images.arrays import pad_arrays
from retinanet.images.io import image_size, read_pixels
from retinanet.inference.backend import Backend, count_cores
from retinanet.inference.exported import open_exported
from retinanet.inference.predictor import Predictor
from retinanet.interop.pretrained import model_folder
from retinanet.model_folder import read_spec
from retinanet.options import explain_unknown_options, split_words
from retinanet.plotting.html import format_number
from retinanet.spec import check_model_first, exported_file

Seconds = dict[str, float]  # of the stages of one call
ROUNDS = 3  # passes over the files for images/s
MEMORY_IMAGES = 4


@explain_unknown_options
def benchmark(
    model: str,
    data: Data,
    *,
    split: str = "test",
    backends: list[str] | None = None,
    repeats: int = 20,
    images: int = 16,
    batch_size: int = 8,
    calibrate: str | None = None,
    heads: bool = False,
    output: str | None = None,
    trust: bool = False,
    trust_code: bool = False,
    overwrite: bool = False,
) -> BenchmarkResult:
    """Measure every way to run a model on this CPU: AP, latency by stage, images per second, memory and size.

    All take turns in one process, after a warm-up, and medians are reported. Exports that lie in the model folder are
    used as they are, except pt2 files; the others are made and thrown away. torchvision's own RetinaNet takes part with
    the same weights where it has such a network.

    Args:
        model: model folder, torchvision/NAME or a hub repository; or an exported model, which is measured alone.
        data: annotated images; in Python a data set object too, see ``train``.
        split: the part of the data to measure on.
        backends: some of torchvision, torch-fp32, torch-bf16, torch-compiled, onnx-fp32, onnx-int8, openvino-fp32,
            openvino-bf16, openvino-int8, pt2-fp32; by default all but torch-compiled and pt2-fp32.
        repeats: how often the latency of one image is measured.
        images: how many images of the split are used to time; AP is measured on all.
        batch_size: images per forward pass where many are predicted with torch.
        calibrate: images for int8, where it has to be exported; by default the training split of data.
        heads: time exported graphs without post-processing too, which tells it apart; each is exported once more.
        output: folder for benchmark.json and benchmark.md; by default nothing is written.
        trust: open a pt2 file that is given as the model; torch evaluates expressions in it, which can run code.
        trust_code: load a pt2 file with pickled or compiled parts as well, which runs code.
        overwrite: replace the results of an earlier benchmark in output.

    Raises:
        UserError: unusable model or data, an unknown backend or none that can run here, or results are there already.
    """
    command = _repeat_command(locals())
    backends = split_words([backends] if isinstance(backends, str) else backends or ())
    check_model_first(model, data)
    _check(repeats, images, batch_size, backends)
    if output is not None:
        check_output_folder(Path(output), RESULTS, overwrite=overwrite)
    file = exported_file(model)
    home = Path(model) if file else model_folder(model) or Path(model)
    spec = open_exported(file, trust=trust, trust_code=trust_code).spec if file else read_spec(home)
    dataset = load_dataset(data, split, class_names=spec.class_names)
    threads = torch.get_num_threads()
    torch.set_num_threads(count_cores())
    try:
        with tempfile.TemporaryDirectory(prefix="retinanet-benchmark-") as scratch:
            left_out: dict[str, str] = {}
            if file:
                competitors = [use_file(Path(model).name, file, trust=trust, trust_code=trust_code)]
            else:
                calibrate = calibrate or _find_calibration(data, Path(scratch) / "calibration")
                competitors, left_out = _prepare(home, backends or DEFAULT, calibrate, Path(scratch), heads=heads)
            chosen = _find_files(dataset, images, Path(scratch) / "images")
            rows = _measure(competitors, dataset, chosen, repeats=repeats, batch_size=batch_size)
    finally:
        torch.set_num_threads(threads)
    about = {
        "command": command,
        "images": f"{len(dataset)} of {name_data(data)}, {split}; {len(chosen)} of them timed, {repeats} repeats",
        **describe_machine(),
    }
    result = BenchmarkResult(rows, left_out, about)
    if output is not None:
        result.save(Path(output))
    return result


def _find_files(dataset: DetectionDataset, most: int, folder: Path) -> list[Path]:
    """Files of some of the images; those of an object are written into the folder."""
    chosen = spread_evenly(dataset.samples, most)
    read = dataset.source
    if read is None:
        return [sample.path for sample in chosen]
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(len(chosen))]
    for path, sample in zip(paths, chosen, strict=True):
        Image.fromarray(read(sample.image_id)).save(path)
    return paths


def _find_calibration(data: Data, folder: Path) -> str:
    """What exports to int8 are calibrated with: the data; of an object files of its training images."""
    if not is_object(data):
        return str(data)
    with suppress(UserError):  # who needs them is left out, and says so
        _find_files(load_dataset(data, "train"), SAMPLES, folder)
    return str(folder)


def _prepare(
    home: Path, names: Sequence[str], calibrate: str, scratch: Path, *, heads: bool
) -> tuple[list[Competitor], dict[str, str]]:
    """Who can take part, and why others cannot.

    Raises:
        UserError: nobody can.
    """
    competitors: list[Competitor] = []
    left_out: dict[str, str] = {}
    for name in names:
        _say(f"{name}: getting ready")
        try:
            competitors.append(prepare_competitor(name, home, calibrate, scratch, heads=heads))
        except UserError as error:
            left_out[name] = str(error)
            _say(f"{name}: left out, {error}")
    if not competitors:
        raise UserError("nothing to measure:\n  " + "\n  ".join(f"{name}: {why}" for name, why in left_out.items()))
    return competitors, left_out


def _measure(
    competitors: Sequence[Competitor],
    dataset: DetectionDataset,
    chosen: Sequence[Path],
    *,
    repeats: int,
    batch_size: int,
) -> list[Row]:
    """A row for each competitor."""
    metrics, per_second = _measure_throughput(competitors, dataset, chosen, batch_size)
    latencies = _measure_latencies(competitors, chosen, repeats)
    rows = []
    for competitor in competitors:
        name, times = competitor.name, latencies[competitor.name]
        stages: dict[str, Any] = {stage: median(call[stage] for call in times) for stage in times[0]}
        _say(f"{name}: memory")
        rows.append(
            Row(
                name=name,
                ap=metrics[name].ap,
                ap50=metrics[name].ap50,
                **{"postprocess": None, **stages},
                latency=Spread.of([sum(call.values()) for call in times]),
                images_per_second=per_second[name],
                memory=peak_memory(str(competitor.model), competitor.options, chosen[:MEMORY_IMAGES]),
                size=competitor.size,
            )
        )
    return rows


def _measure_throughput(
    competitors: Sequence[Competitor], dataset: DetectionDataset, chosen: Sequence[Path], batch_size: int
) -> tuple[dict[str, CocoMetrics], dict[str, float]]:
    """AP on all images, which warms up too; then images per second, end to end."""
    metrics, streams = {}, {}
    for competitor in competitors:
        size = 1 if competitor.options.get("compile") else batch_size  # each size of a batch would be compiled
        predictor = Predictor(competitor.load("throughput"), batch_size=size)
        _say(f"{competitor.name}: AP on {len(dataset)} images")
        detections = list(predictor.stream(map(dataset.find_image, dataset.samples)))
        metrics[competitor.name] = coco_metrics(
            *(dataset.samples, detections, dataset.class_names),
            category_ids=dataset.category_ids,
            cap=predictor.backend.spec.postprocess.max_detections,
        )
        _say(f"{competitor.name}: AP {format_number(metrics[competitor.name].ap, 4)}")
        streams[competitor.name] = lambda predictor=predictor: deque(predictor.stream(chosen), maxlen=0)
    _say(f"all in turn: images per second, {ROUNDS} rounds of {len(chosen)} images")
    spreads = time_in_turns(streams, ROUNDS, warm_up=0)
    return metrics, {name: len(chosen) / seconds.median for name, seconds in spreads.items()}


def _measure_latencies(
    competitors: Sequence[Competitor], chosen: Sequence[Path], repeats: int
) -> dict[str, list[Seconds]]:
    """The stages of one image at a time; the images take turns too."""

    def measure_in_round(competitor: Competitor, backend: Backend) -> Callable[[int], Seconds]:
        return lambda number: time_one_image(competitor, backend, chosen[number % len(chosen)])

    calls: dict[str, Callable[[int], Seconds]] = {}
    for competitor in competitors:
        _say(f"{competitor.name}: warm-up")
        backend = competitor.load("latency")
        for path in {backend.spec.preprocess.size(*image_size(path)): path for path in chosen}.values():
            for _ in range(2):  # one image of each size: some runtimes settle on a size when they first see it
                time_one_image(competitor, backend, path)
        calls[competitor.name] = measure_in_round(competitor, backend)
    _say(f"all in turn: latency of one image, {repeats} rounds")
    return take_turns(calls, repeats)


def time_one_image(competitor: Competitor, backend: Backend, path: Path) -> Seconds:
    """Seconds of the stages from a file to its detections: read, resize, network and, where known, postprocess."""
    began = time.perf_counter()
    pixels = read_pixels(path)
    read = time.perf_counter()
    prepared = backend.prepare(pixels)
    resized = time.perf_counter()
    backend.run([prepared])
    ended = time.perf_counter()
    start, network_end = competitor.ends.get("resize", resized), competitor.ends.get("network")
    stages = {"read": read - began, "resize": start - read, "network": ended - start}
    if competitor.heads is not None:  # the graph without post-processing, from the same input
        began_heads = time.perf_counter()
        competitor.heads(*pad_arrays(backend.spec.preprocess, [prepared.pixels]))
        network_end = min(ended, start + time.perf_counter() - began_heads)
    if network_end is not None:
        stages |= {"network": network_end - start, "postprocess": ended - network_end}
    return stages


def _check(repeats: int, images: int, batch_size: int, backends: Sequence[str] | None) -> None:
    if min(repeats, images, batch_size) < 1:
        raise UserError(
            f"--repeats, --images and --batch_size are at least 1, got {repeats}, {images} and {batch_size}"
        )
    if unknown := [name for name in backends or () if name not in NAMES]:
        raise UserError(f"--backends: there is no {', '.join(unknown)}. Expected some of {', '.join(NAMES)}")


def _repeat_command(arguments: Mapping[str, Any]) -> str:
    """The command that does the same, without what concerns only the files it writes."""
    words = ["retinanet", "benchmark", arguments["model"], name_data(arguments["data"])]
    usual = {name: parameter.default for name, parameter in inspect.signature(benchmark).parameters.items()}
    for name, value in arguments.items():
        if name not in ("model", "data", "output", "overwrite") and value != usual[name]:
            text = f"[{','.join(value)}]" if isinstance(value, list) else str(value)
            words += [f"--{name}"] if value is True else [f"--{name}", text]
    return shlex.join(str(word) for word in words)


def _say(text: str) -> None:
    print(f"benchmark: {text}", file=sys.stderr, flush=True)
