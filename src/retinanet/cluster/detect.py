"""Detections as one more step of somebody's Ray Data pipeline."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from retinanet.cluster.engine import choose_pool, connect, list_nodes
from retinanet.cluster.model import pack_model
from retinanet.cluster.table import detection_columns
from retinanet.errors import UserError
from retinanet.images.io import decode_pixels
from retinanet.inference.pictures import check_options, choose_threshold
from retinanet.types import Detections

ADDED = ("height", "width", "boxes", "scores", "labels", "names", "error")
READING = 1.0  # cores that the tasks that read the data set need at least


def detect(
    dataset: Any,
    model: str,
    *,
    score: float | None = None,
    actors: int | None = None,
    cpus: float = 1.0,
    gpus: float | None = None,
    batch_size: int = 8,
    keep_images: bool = False,
    **load: Any,
) -> Any:
    """A data set of Ray with what is found in its images.

    Args:
        dataset: with a column ``bytes``, the content of image files, as ``ray.data.read_binary_files(...,
            include_paths=True)`` makes it; or ``image``, arrays (H, W, 3) uint8 RGB, as ``ray.data.read_images``. Files
            given as bytes are decoded as ``retinanet.predict`` decodes them: turned upright, 16 bits made 8.
        model: as :func:`retinanet.predict`; it is carried to the machines of the cluster.
        score: detections below this score are left out; by default each class has the threshold that the model holds
            for it, or 0.3.
        actors: how many models work at a time; by default as many as leave a core for reading.
        cpus: cores of an actor.
        gpus: GPUs of an actor; by default one, where the cluster has any.
        batch_size: images per forward pass.
        keep_images: whether ``bytes`` or ``image`` stay in the data set.
        load: further options of :meth:`Predictor.load`: device, precision, tile, overlap, trust.

    Returns:
        The data set, which is computed when it is used, with the columns ``height``, ``width``, ``boxes`` (lists of 4
        float32, xyxy in pixels of the image), ``scores``, ``labels``, ``names`` and ``error``, which is null but where
        an image cannot be read.

    Raises:
        UserError: no usable model, no column with images, a column that has the name of a new one, or a pool that the
            cluster cannot hold.
    """
    check_options(score, None)
    ray = connect()
    packed = pack_model(model)
    names = dataset.columns() or []
    column = next((name for name in ("bytes", "image") if name in names), None)
    if column is None:
        raise UserError(f"the data set has no column bytes or image, only {', '.join(names)}")
    if taken := sorted(set(names) & set(ADDED)):
        raise UserError(f"the data set has a column {taken[0]} already. Rename it: dataset.rename_columns")
    pool = choose_pool(list_nodes(ray), actors=actors, cpus=cpus, gpus=gpus, reading=READING)
    options = {**load, "batch_size": batch_size}
    packed.check(pool.threads, options)
    return dataset.map_batches(
        Finder,
        fn_constructor_args=([ray.put(packed)], options, score, column, keep_images, pool.threads),
        batch_size=4 * batch_size,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=pool.actors),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
    )


class Finder:
    """An actor that adds detections to batches; its arguments are those of :func:`detect`."""

    def __init__(
        self,
        model: Sequence[Any],
        options: Mapping[str, Any],
        score: float | None,
        column: str,
        keep_images: bool,
        threads: int,
    ) -> None:
        import ray

        self.predictor = ray.get(model[0]).load(threads, **options)
        self.least = choose_threshold(self.predictor, score)
        self.column, self.keep_images, self.threads = column, keep_images, threads

    def __call__(self, table: Any) -> Any:
        """A table of pyarrow with the new columns."""
        import pyarrow as pa

        images = self._read(table)
        readable = [image for image in images if not isinstance(image, UserError)]
        results = iter(list(self.predictor.attempt(readable, workers=self.threads)))
        found = [image if isinstance(image, UserError) else next(results) for image in images]
        detections = [one.above(self.least) if isinstance(one, Detections) else None for one in found]
        sizes = [(0, 0) if isinstance(image, UserError) else image.shape[:2] for image in images]
        columns = {
            "height": pa.array([size[0] for size in sizes], pa.int32()),
            "width": pa.array([size[1] for size in sizes], pa.int32()),
            **detection_columns(detections),
            "names": pa.array([[] if one is None else one.names for one in detections], pa.list_(pa.string())),
            "error": pa.array([str(one) if isinstance(one, UserError) else None for one in found], pa.string()),
        }
        kept = table if self.keep_images else table.drop_columns([self.column])
        for name, values in columns.items():
            kept = kept.append_column(name, values)
        return kept

    def _read(self, table: Any) -> list[Any]:
        """The pixels of each image, or what is wrong with it."""
        values = table.column(self.column)
        if self.column == "image":
            return [np.asarray(image) for image in values.combine_chunks().to_numpy(zero_copy_only=False)]
        paths = table.column("path").to_pylist() if "path" in table.column_names else ["the image"] * len(table)
        images: list[Any] = []
        for content, path in zip(values.to_pylist(), paths, strict=True):
            try:
                images.append(decode_pixels(content, os.fspath(path)))
            except UserError as error:
                images.append(error)
        return images
