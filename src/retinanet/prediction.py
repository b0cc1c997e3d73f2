"""``predict``: find objects in images or videos, here or on a cluster, and write what was found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from retinanet.cluster.job import ClusterConfig, ClusterRun, run_job
from retinanet.errors import UserError
from retinanet.inference.backend import Mode
from retinanet.inference.documents import Predictions
from retinanet.inference.paths import find_videos
from retinanet.inference.pictures import (
    Inputs,
    check_options,
    choose_threshold,
    find_inputs,
    list_tile_options,
    predict_images,
)
from retinanet.inference.predictor import Predictor
from retinanet.inference.video import VideoConfig, VideoRun, check_video_options, predict_videos
from retinanet.options import explain_unknown_options
from retinanet.plain import find_differences
from retinanet.spec import check_model_first, exported_file


@explain_unknown_options
def predict(
    model: str,
    images: list[str],
    *,
    output: str = "predictions",
    score: float | None = None,
    pictures: bool = True,
    batch_size: int = 8,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    mode: Mode | None = None,
    compile: bool = False,
    workers: int | None = None,
    tile: int | None = None,
    overlap: int | None = None,
    merge: Literal["nms", "nmm"] = "nmm",
    tile_scale: float | None = None,
    trust: bool = False,
    trust_code: bool = False,
    overwrite: bool = False,
    engine: Literal["local", "ray"] = "local",
    cluster: ClusterConfig = ClusterConfig(),
    video: VideoConfig = VideoConfig(),
) -> Predictions | ClusterRun:
    """Find objects in images or videos; write annotated pictures or films, and tables of the detections.

    Images give detections.json (COCO) and detections.csv, a video NAME.csv, NAME.json (counts) and NAME.mp4. What
    cannot be read is left out and told. In a CSV file a name that a spreadsheet would take for a formula has an
    apostrophe in front. With ray the images are shared among machines, or the cores of this one: the results are
    Parquet files in output/parts, without pictures, and the same call goes on with a job that was interrupted.

    Args:
        model: model folder, exported model, torchvision/NAME or a hub repository.
        images: files, folders (searched with their subfolders, without hidden ones) and patterns such as
            "scans/*.png"; videos: files, patterns, "camera", "/dev/video1", "rtsp://..."; with ray also "s3://...".
        output: folder for the results, made if need be; with ray also an address.
        score: detections below it are left out; by default each class has the threshold that the model holds, or 0.3.
        pictures: whether to write annotated pictures or films.
        batch_size: images per forward pass.
        device: auto, cpu, cuda, cuda:1, mps; an exported model runs on the CPU.
        precision: in which a model folder computes; bf16 where the device has it. That of an exported model is settled.
        mode: of an exported model; throughput, the default for more than one image or tile, gives a core to each image,
            latency all cores to one image at a time.
        compile: compile the network of a model folder first, which takes minutes.
        workers: threads that read, and as many that draw; by default one per core.
        tile: cut images into windows of this many pixels, where they are far larger than what the model sees; by
            default the windows that it was trained on, if it was. 0 shows images whole.
        overlap: pixels that neighbouring windows share; by default the model's, else 128.
        merge: of detections of one object in several windows nms keeps the best, nmm joins them.
        tile_scale: how much windows are enlarged for the model; by default as the model says that training images were.
        trust: open a pt2 file of somebody you trust: torch evaluates expressions in it, which can run code.
        trust_code: load a pt2 file with pickled or compiled parts as well, which runs code.
        overwrite: replace the results of an earlier prediction in output.
        engine: local, or ray for a Ray cluster.
        cluster: how the cluster is used.
        video: what is done with videos.

    Returns:
        An entry for each image; ``failed`` says what could not be read, ``videos`` what is in videos. Of ray a summary.

    Raises:
        UserError: no usable model, no readable image, an option that does not fit, or results are there already.
    """
    images = [str(name) for name in ([images] if isinstance(images, str | Path) else images)]  # one may come alone
    check_model_first(model, next(iter(images), ""))
    check_options(score, workers)
    how: dict[str, Any] = {"batch_size": batch_size, "device": device, "precision": precision, "tile": tile}
    how |= {"overlap": overlap, "trust": trust, "trust_code": trust_code}
    _check_engine(engine, images, {"mode": mode, "compile": compile, "workers": workers}, cluster, video)
    if engine == "ray":
        shown: dict[str, Any] = {"score": score, "merge": merge, "tile_scale": tile_scale}
        return run_job(model, images, output=output, load=how, cluster=cluster, overwrite=overwrite, **shown)
    inputs = find_inputs(images, Path(output), video, pictures=pictures, overwrite=overwrite)
    how |= {"mode": mode or _choose_mode(model, inputs, tile), "compile": compile}
    predictor = Predictor.load(model, **how)
    tiling, least = list_tile_options(predictor, merge, tile_scale), choose_threshold(predictor, score)
    if inputs.videos:
        detect = partial(predictor.attempt, workers=workers, tiles=tiling)
        return predict_videos(VideoRun(predictor, detect, least, Path(output), video, pictures), inputs.videos)
    return predict_images(predictor, inputs, Path(output), least, tiling, workers)


def _choose_mode(model: str, inputs: Inputs, tile: int | None) -> Mode:
    """Whether an exported model works on several images at once."""
    many = bool(inputs.videos) or len(inputs.sizes) > 1 or bool(tile)
    return "throughput" if many and exported_file(model) else "latency"


def _check_engine(
    engine: str, images: Sequence[str], local: Mapping[str, Any], cluster: ClusterConfig, video: VideoConfig
) -> None:
    """Refuse options of the one engine that are given with the other; ``local`` has those that a cluster lacks."""
    if engine == "ray":
        if given := [name for name, value in local.items() if value]:
            raise UserError(f"--{given[0]} is not for --engine ray, whose actors compute on the cores that --cpus says")
        if videos := find_videos(images):
            raise UserError(f"{videos[0].shown} is a video, and --engine ray is for images. Leave --engine out")
        check_video_options(video, given=False)
    elif changed := find_differences(cluster):
        raise UserError(f"--{next(iter(changed))} is for --engine ray")
