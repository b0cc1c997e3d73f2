"""A model ready to use: images in, detections in pixels of the original images out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.errors import UserError, suggest
from retinanet.images.io import to_array
from retinanet.images.tiling import choose_tiling, usual_overlap
from retinanet.inference.backend import Backend, Mode, Prepared
from retinanet.inference.exported import open_exported
from retinanet.inference.stream import stream_detections
from retinanet.options import explain_unknown_options
from retinanet.spec import ModelSpec, exported_file
from retinanet.types import DEFAULT_THRESHOLD, Detections

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)


class Predictor:
    """Finds objects in images.

    Args:
        backend: what runs the model.
        batch_size: images per forward pass.
        tile: side of the windows that larger images are cut into, in their pixels; by default as the model was trained,
            and 0 shows all images whole.
        overlap: pixels that neighbouring windows share; by default the model's, else 128.
    """

    def __init__(
        self, backend: Backend, *, batch_size: int = 8, tile: int | None = None, overlap: int | None = None
    ) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is at least 1, got {batch_size}")
        self.backend = backend
        self.batch_size = batch_size
        self.tiling = choose_tiling(backend.spec.tiling, tile, overlap, usual_overlap)
        self._warned = False  # of an image whose detections are as many as the model reports

    @classmethod
    @explain_unknown_options
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        batch_size: int = 8,
        precision: Literal["fp32", "bf16"] = "fp32",
        mode: Mode = "latency",
        compile: bool = False,
        tile: int | None = None,
        overlap: int | None = None,
        trust: bool = False,
        trust_code: bool = False,
        cache: str | Path | None = None,
        cores: int | None = None,
    ) -> Predictor:
        """A predictor from an exported model, a model folder or a name.

        An exported model needs its runtime, numpy and Pillow: neither torch nor timm is imported for it.

        Args:
            model: an exported model (its file, or the folder that has model.xml or model.onnx); a model folder; or a
                name (see :func:`retinanet.interop.pretrained.model_folder`).
            device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``; an exported model runs on the CPU.
            batch_size: images per forward pass.
            precision: of a model folder: ``bf16`` where the device computes in it, else fp32 with a warning. That of an
                exported model was settled when it was exported.
            mode: of an exported model: ``latency``, one forward pass at a time on all cores; ``throughput``, one image
                per core at a time, which is faster for many images.
            compile: of a model folder: compile the network first, which takes minutes.
            tile: see :class:`Predictor`.
            overlap: likewise.
            trust: of a pt2 file: open it, though torch evaluates expressions in it, which can run code.
            trust_code: of a pt2 file that has pickled or compiled parts: load them as well, which runs code.
            cache: of an OpenVINO model: folder in which the compiled graph is kept, which makes the next start shorter.
                OpenVINO does not check what it finds there.
            cores: that an exported model may use; by default all of this process. (A model folder uses the threads of
                torch.)

        Raises:
            UserError: there is no usable model, it is not trusted, there is no such device, or this kind of model does
                not have an option.
        """
        if precision not in ("fp32", "bf16") or mode not in ("latency", "throughput"):
            raise UserError(f"precision is fp32 or bf16, mode latency or throughput; got {precision!r} and {mode!r}")
        if file := exported_file(model):
            if cache is not None and file.suffix != ".xml":
                raise UserError(f"cache is for OpenVINO models; {file} needs none")
            kept = None if cache is None else Path(cache)
            backend: Backend = open_exported(file, mode, trust=trust, trust_code=trust_code, cache=kept, cores=cores)
            _check_exported(backend, file, device, precision, compile)
            return cls(backend, batch_size=batch_size, tile=tile, overlap=overlap)
        if mode == "throughput" or cache is not None:
            option = "cache" if cache is not None else "mode throughput"
            raise UserError(f"{option} is for exported models; make one with: retinanet export MODEL")
        from retinanet.detector import Detector
        from retinanet.inference.torch_backend import TorchBackend

        backend = TorchBackend(Detector.load(model), device=device, precision=precision, compile=compile)
        return cls(backend, batch_size=batch_size, tile=tile, overlap=overlap)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.backend.spec.class_names

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The score from which on ``predict`` shows a detection, by class name; 0.3 where the model holds none."""
        stored = self.backend.spec.thresholds
        return {name: stored.get(name, DEFAULT_THRESHOLD) for name in self.class_names}

    @overload
    def __call__(
        self,
        images: str | Path | Image.Image | NDArray[np.uint8] | Tensor,
        score: float | Mapping[str, float] | None = None,
    ) -> Detections: ...

    @overload
    def __call__(self, images: Sequence[Any], score: float | Mapping[str, float] | None = None) -> list[Detections]: ...

    def __call__(self, images: Any, score: float | Mapping[str, float] | None = None) -> Detections | list[Detections]:
        """Detections in one image, or in each image of a list: all that the model reports.

        That is what AP counts, from the model's own threshold (``postprocess.score``, usually 0.05) on. The command
        ``predict`` shows fewer: ``predictor(image, score=predictor.thresholds)``. An image that is larger than the tile
        of the model is cut into windows.

        Args:
            images: a path, a picture of Pillow, an array (H, W, 3) uint8 RGB, a tensor (3, H, W) uint8 RGB, or a list
                of these.
            score: leave out detections below this score, or below the threshold of their class.

        Returns:
            Boxes in pixels of the original image, best score first; they keep a reference to what ``images`` names.

        Raises:
            UserError: an image cannot be read, or is of another shape or type; or there is no such score or class.
        """
        self._check_score(score)
        if isinstance(images, list | tuple):
            pairs = zip(images, self.stream(images), strict=True)
            found = [replace(detections, image=image) for image, detections in pairs]
            return found if score is None else [detections.above(score) for detections in found]
        one = self.at_once(images) if self.tiling is None else self.tiled(images, **vars(self.tiling))
        one = replace(one, image=images)
        return one if score is None else one.above(score)

    def _check_score(self, score: float | Mapping[str, float] | None) -> None:
        """Refuse a score that cannot be meant, before an image is read."""
        named = score if isinstance(score, Mapping) else {} if score is None else {"": score}
        for name, value in named.items():
            if name and name not in self.class_names:
                raise UserError(f"score: there is no class {name!r}{suggest(name, self.class_names)}")
            if not isinstance(value, Real) or not 0 <= value <= 1:
                raise UserError(f"score: expected a number from 0 to 1, or thresholds by class name; got {value!r}")

    def at_once(self, image: Any) -> Detections:
        """Detections in one image that is shown to the network whole, however large it is."""
        return self._warn_at_limit(self.backend.run([self._prepare(image)])[0])

    def stream(self, images: Iterable[Any], *, workers: int | None = None) -> Generator[Detections]:
        """Detections in each of any number of images, in their order; see :meth:`attempt`.

        Raises:
            UserError: an image cannot be used; when its turn comes, so the detections of those before it are there.
        """
        return self._raise_errors(self.attempt(images, workers=workers))

    def attempt(
        self,
        images: Iterable[Any],
        *,
        workers: int | None = None,
        tiles: Mapping[str, Any] | None = None,
        progress: Callable[..., Any] | None = None,
    ) -> Generator[Detections | UserError]:
        """Detections in each of any number of images, in their order, or what is wrong with an image.

        Threads read and resize the next images while the network runs on the last ones; only a few batches of resized
        images are held at any time. A forward pass has images whose network input has one size, so that none changes
        what is found in another, and one image where the model runs several calls at once.

        Args:
            images: see :meth:`__call__`.
            workers: threads that read and resize; by default as many as there are cores.
            tiles: options of :meth:`tiled`, where images are cut into windows; by default the predictor's own.
            progress: likewise; called with how many images are done, and of the next one how many windows of how many.

        Yields:
            Detections, or a UserError where an image cannot be read or is of another shape or type.
        """
        if workers is not None and workers < 1:
            raise UserError(f"workers is at least 1, got {workers}")
        if self.tiling is not None:
            return self._attempt_tiled(images, tiles or vars(self.tiling), progress)
        return stream_detections(self.backend, self._prepare, images, batch_size=self.batch_size, workers=workers)

    def is_at_limit(self, detections: Detections) -> bool:
        """Whether there are as many detections in an image as the model reports at most, and the last is shown too."""
        return self.backend.spec.is_at_limit(detections)

    def tiled(
        self,
        image: Any,
        *,
        tile: int | tuple[int, int] = 1024,
        overlap: int = 128,
        merge: Literal["nms", "nmm"] = "nmm",
        scale: float | None = None,
        progress: Callable[..., Any] | None = None,
    ) -> Detections:
        """Detections in one large image, tile by tile; see :func:`retinanet.inference.tiled.predict_tiled`."""
        from retinanet.inference.tiled import predict_tiled

        return predict_tiled(self, image, tile=tile, overlap=overlap, merge=merge, scale=scale, progress=progress)

    def _attempt_tiled(
        self, images: Iterable[Any], tiles: Mapping[str, Any], progress: Callable[..., Any] | None
    ) -> Generator[Detections | UserError]:
        """One image after the other; what is read ahead are the windows of one image."""
        for number, image in enumerate(images):
            try:
                yield self.tiled(image, **tiles, progress=progress and partial(progress, number))
            except UserError as error:
                yield error

    def _prepare(self, image: Any) -> Prepared:
        return self.backend.prepare(to_array(image))

    def _raise_errors(self, results: Generator[Detections | UserError]) -> Generator[Detections]:
        with closing(results):
            for result in results:
                if isinstance(result, UserError):
                    raise result
                yield self._warn_at_limit(result) if self.tiling is None else result  # its windows were looked at

    def _warn_at_limit(self, detections: Detections) -> Detections:
        if not self._warned and self.is_at_limit(detections):
            self._warned = True
            _log.warning("an image holds %s", describe_limit(self.backend.spec))
        return detections


def describe_limit(spec: ModelSpec) -> str:
    """What to say where an image has as many detections as a model reports at most."""
    return (
        f"{spec.postprocess.max_detections} detections, the most that the model reports of an image, so objects may be "
        "missing. Set postprocess.max_detections in the config.json of the model (export it again where it is "
        "exported), or cut the image into windows (--tile)"
    )


def _check_exported(backend: Backend, file: Path, device: str, precision: str, compile: bool) -> None:
    """Options that only a model folder has are refused by name."""
    if device not in ("auto", "cpu"):
        raise UserError(f"device {device!r} cannot be used: {file} is an exported model, which runs on the CPU")
    if compile:
        raise UserError(f"compile is for model folders; {file} is an exported model, which is compiled already")
    if precision == "bf16" and not backend.name.endswith("bf16"):
        raise UserError(
            f"precision bf16 cannot be used: {file} is {backend.name}; the precision of an exported model is settled "
            "by: retinanet export MODEL --precision bf16"
        )
