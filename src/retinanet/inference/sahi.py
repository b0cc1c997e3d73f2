"""A model for ``sahi``, which cuts large images into slices and joins what is found in them by its own rules."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.exchange import require
from retinanet.inference.predictor import Predictor
from retinanet.types import Detections


def make_sahi_model(model: str | Path | Predictor, *, score: float | None = None, **options: Any) -> Any:
    """A ``sahi.models.base.DetectionModel``, for ``sahi.predict.get_sliced_prediction`` (needs ``pip install sahi``).

    Args:
        model: what :meth:`retinanet.Predictor.load` takes, then every slice is shown whole; or a predictor.
        score: detections below are left out; by default below the threshold of their class.
        options: of :meth:`retinanet.Predictor.load`, such as ``device``.

    Raises:
        UserError: sahi is not installed, or there is no usable model.
    """
    base: Any = require("sahi.models.base", "make_sahi_model()").DetectionModel
    prediction = require("sahi.prediction", "make_sahi_model()").ObjectPrediction
    predictor = model if isinstance(model, Predictor) else Predictor.load(model, tile=0, **options)
    least = predictor.thresholds if score is None else score

    class SahiModel(base):
        """What sahi calls; images are RGB arrays."""

        def load_model(self) -> None:
            self.set_model(predictor)

        def set_model(self, model: Any, **_: Any) -> None:
            self.model = model
            self.category_mapping = {str(label): name for label, name in enumerate(model.class_names)}

        def perform_inference(self, image: np.ndarray) -> None:
            self.perform_batch_inference([image])

        def perform_batch_inference(self, images: list[np.ndarray]) -> None:
            self._original_predictions = self.model([np.ascontiguousarray(image) for image in images], score=least)

        def _create_object_prediction_list_from_original_predictions(
            self, shift_amount_list: Any = None, full_shape_list: Any = None
        ) -> None:
            found: list[Detections] = self._original_predictions
            shifts, shapes = _one_each(shift_amount_list, len(found)), _one_each(full_shape_list, len(found))
            self._object_prediction_list_per_image = [
                [
                    prediction(
                        bbox=list(one.box),
                        category_id=one.label,
                        category_name=one.name,
                        score=one.score,
                        shift_amount=shift or [0, 0],
                        full_shape=shape,
                    )
                    for one in detections
                ]
                for detections, shift, shape in zip(found, shifts, shapes, strict=True)
            ]

    return SahiModel(confidence_threshold=score if score is not None else min(predictor.thresholds.values()))


def _one_each(values: Any, count: int) -> Sequence[Any]:
    """A pair for each image, from one pair, a list of pairs, or None."""
    if not values:
        return [None] * count
    return values if isinstance(values[0], list | tuple) else [values] * count
