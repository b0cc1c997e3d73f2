"""The objects found in one image: looked at in a notebook, filtered, drawn, and handed to other tools.

Shapes are those of the legend in :mod:`retinanet.types`. Nothing here needs torch: an exported model finds arrays.
"""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple, overload

from retinanet import exchange
from retinanet.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_THRESHOLD = 0.3  # where neither the user nor the model says from which score on a detection is shown
LEGIBLE = 600  # pixels of the short side that a small picture is enlarged to, so that its labels can be read
COLUMNS = ("x1", "y1", "x2", "y2", "score", "label", "name")
NOTEBOOK, ROWS = 1000, 20  # most pixels of a side of a picture in a notebook, most rows of its table


class Detection(NamedTuple):
    """One object: its box (x1, y1, x2, y2) in pixels, score, label and class name."""

    box: tuple[float, float, float, float]
    score: float
    label: int
    name: str


@dataclass(frozen=True)
class Detections:
    """The objects found in one image, best score first.

    Boxes, scores and labels are tensors on the CPU where a model folder found them, and numpy arrays where an exported
    model did; everything here works on both, and both give the same numbers. Iterating gives a :class:`Detection` for
    each object, as does an index; a slice, a mask or a list of indices gives ``Detections``.

    Attributes:
        boxes: (D, 4) float32 xyxy.
        scores: (D,) float32 in [0, 1].
        labels: (D,) int64 in [0, K).
        class_names: K names.
        image: what a ``Predictor`` was called with (a path, picture, array or tensor), to be drawn on; None elsewhere.
    """

    boxes: Any
    scores: Any
    labels: Any
    class_names: tuple[str, ...]
    image: Any = field(default=None, compare=False)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {name}" for name, count in Counter(self.names).most_common())
        scores = f"; scores {float(self.scores[0]):.2f} to {float(self.scores[-1]):.2f}" if len(self) else ""
        return f"Detections({counts or 'nothing'}{scores})"

    def __iter__(self) -> Iterator[Detection]:
        rows = zip(self.boxes.tolist(), self.scores.tolist(), self.labels.tolist(), self.names, strict=True)
        return (Detection(tuple(box), score, label, name) for box, score, label, name in rows)

    @overload
    def __getitem__(self, which: int) -> Detection: ...

    @overload
    def __getitem__(self, which: Any) -> Detections: ...

    def __getitem__(self, which: Any) -> Detection | Detections:
        if _is_index(which):
            which = int(which)
            if not -len(self) <= which < len(self):
                raise IndexError(f"there are {len(self)} detections, got the index {which}")
            label = int(self.labels[which])
            return Detection(
                tuple(self.boxes[which].tolist()), float(self.scores[which]), label, self.class_names[label]
            )
        return replace(self, boxes=self.boxes[which], scores=self.scores[which], labels=self.labels[which])

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[label] for label in self.labels.tolist()]

    def above(self, score: float | Mapping[str, float]) -> Detections:
        """The detections to show: of at least this score, or of the threshold of their class, 0.3 where it has none.

        Args:
            score: one for all; or thresholds by class name, such as those of a model (``Predictor.thresholds``).

        Raises:
            UserError: it is neither.
        """
        if isinstance(score, Mapping):
            keep = self.labels < 0  # none
            for label, name in enumerate(self.class_names):
                keep = keep | ((self.labels == label) & (self.scores >= score.get(name, DEFAULT_THRESHOLD)))
            return self[keep]
        if not isinstance(score, Real):
            raise UserError(f"score: expected a number from 0 to 1, or thresholds by class name; got {score!r}")
        return self[self.scores >= score]

    def draw(self, image: Any = None, *, zoom: int | None = None, tracks: Sequence[int] | None = None) -> Image:
        """A picture with the boxes, a colour per class, with names and scores.

        Args:
            image: a path, a picture of Pillow, an array (H, W, 3) or a tensor (3, H, W), uint8 RGB; by default the one
                that the predictor was called with.
            zoom: enlarge the picture this many times; by default a small one, until the tags can be read.
            tracks: D numbers of objects followed through a video, written where they are 0 or more.

        Raises:
            UserError: there is no image, it cannot be read, or there are not D tracks.
        """
        from retinanet.images.io import to_array
        from retinanet.plotting.draw import draw_boxes

        if image is None and self.image is None:
            raise UserError("these detections do not know their image: call draw(image)")
        pixels = to_array(self.image if image is None else image)
        zoom = max(1, LEGIBLE // min(pixels.shape[:2])) if zoom is None else zoom
        shown = {"class_names": self.class_names, "scores": self.scores, "tracks": tracks}
        return draw_boxes(pixels, self.boxes, self.labels, zoom=zoom, **shown)

    def to_dicts(self) -> list[dict[str, Any]]:
        """One plain dict per detection: ``box`` (xyxy), ``score``, ``label``, ``name``."""
        return [{**one._asdict(), "box": list(one.box)} for one in self]

    def to_rows(self) -> list[dict[str, Any]]:
        """A flat dict per detection, for tables: ``x1``, ``y1``, ``x2``, ``y2``, ``score``, ``label``, ``name``."""
        return [dict(zip(COLUMNS, (*one.box, one.score, one.label, one.name), strict=True)) for one in self]

    def to_pandas(self) -> Any:
        """A ``pandas.DataFrame`` of :meth:`to_rows`."""
        return exchange.require("pandas", "to_pandas()").DataFrame(self.to_rows(), columns=COLUMNS)

    def to_coco(self, image_id: int | str, category_ids: tuple[int, ...] | None = None) -> list[dict[str, Any]]:
        """COCO results: ``bbox`` is xywh; category ids default to label + 1."""
        ids = category_ids or tuple(range(1, len(self.class_names) + 1))
        xywh = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in self.boxes.tolist()]  # in float64: no digit is lost
        rows = zip(xywh, self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {"image_id": image_id, "category_id": ids[label], "bbox": box, "score": score} for box, score, label in rows
        ]

    def to_supervision(self) -> Any:
        """A ``supervision.Detections`` (needs ``pip install supervision``)."""
        return exchange.to_supervision(self.boxes, self.scores, self.labels, self.names)

    @staticmethod
    def from_supervision(objects: Any, class_names: Sequence[str] | None = None) -> Detections:
        """Of a ``supervision.Detections``, as arrays; its class ids are the labels.

        Args:
            objects: what to read.
            class_names: K names; by default those in its data.

        Raises:
            UserError: class ids are missing, or beyond the names.
        """
        return Detections(*exchange.from_supervision(objects, class_names))

    def to_fiftyone(self, size: tuple[int, int]) -> Any:
        """A ``fiftyone.Detections`` of an image of ``size`` (height, width) (needs ``pip install fiftyone``)."""
        return exchange.to_fiftyone(self.to_dicts(), size)

    @staticmethod
    def from_fiftyone(objects: Any, size: tuple[int, int], class_names: Sequence[str] | None = None) -> Detections:
        """Of a ``fiftyone.Detections``, as arrays; without confidence the score is 1.

        Args:
            objects: what to read.
            size: (height, width) of the image in pixels.
            class_names: K names in the order of their labels; by default the labels that occur, sorted.

        Raises:
            UserError: a label is not among the names.
        """
        return Detections(*exchange.from_fiftyone(objects, size, class_names))

    def to_label_studio(
        self, size: tuple[int, int], *, from_name: str = "label", to_name: str = "image", model_version: str = ""
    ) -> dict[str, Any]:
        """A prediction for a task of Label Studio: ``{"data": {"image": ...}, "predictions": [this]}``.

        Args:
            size: (height, width) of the image in pixels.
            from_name: the name of the tag ``RectangleLabels`` in the labelling configuration.
            to_name: that of its tag ``Image``.
            model_version: shown beside the prediction.
        """
        return exchange.to_label_studio(self.to_dicts(), size, from_name, to_name, model_version)

    @staticmethod
    def from_label_studio(content: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Detections:
        """Of a prediction or an annotation of Label Studio, as arrays; see :meth:`from_fiftyone`."""
        return Detections(*exchange.from_label_studio(content, class_names))

    def _repr_html_(self) -> str:
        """The picture, where the image is known and can still be read, and a table of the best."""
        heads = "".join(f"<th>{head}</th>" for head in ("class", "score", "x1", "y1", "x2", "y2"))
        rows = "".join(
            f"<tr><td>{escape(one.name)}</td><td>{one.score:.2f}</td>"
            f"{''.join(f'<td>{side:.1f}</td>' for side in one.box)}</tr>"
            for one in self[:ROWS]
        )
        more = f"<p>and {len(self) - ROWS} more</p>" if len(self) > ROWS else ""
        table = f"<table><tr>{heads}</tr>{rows}</table>{more}" if len(self) else ""
        return f"<p>{escape(repr(self))}</p>{self._picture_html()}{table}"

    def _picture_html(self) -> str:
        from retinanet.images.io import to_array
        from retinanet.images.windows import ImageWindows, overview

        if self.image is None:
            return ""
        try:
            named = isinstance(self.image, str) or hasattr(self.image, "__fspath__")
            with ImageWindows(self.image if named else to_array(self.image)) as windows:
                pixels, factor = overview(windows, NOTEBOOK)
        except UserError:  # the file may be gone
            return ""
        picture = replace(self, boxes=self.boxes / factor).draw(pixels)
        picture.thumbnail((NOTEBOOK, NOTEBOOK))
        content = io.BytesIO()
        picture.save(content, "JPEG", quality=85)
        return f'<img src="data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode()}" alt="detections">'


def _is_index(which: Any) -> bool:
    """Whether it is one whole number: of Python, or what ``argmax`` of numpy or torch gives."""
    many = tuple(getattr(which, "shape", ())) != ()
    is_bool = isinstance(which, bool) or "bool" in str(getattr(which, "dtype", ""))
    return hasattr(which, "__index__") and not many and not is_bool
