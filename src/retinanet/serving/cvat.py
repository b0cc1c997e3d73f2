"""A model for CVAT's automatic annotation: ``cvat-cli task auto-annotate ID --function-module retinanet.serving.cvat``.

The function module protocol asks for ``create``, whose options come from the command line, and for an object with
``spec`` and ``detect``: https://docs.cvat.ai/docs/api_sdk/sdk/auto-annotation/.
"""

from __future__ import annotations

from typing import Any

from PIL import Image

from retinanet.errors import UserError
from retinanet.inference.predictor import Predictor


class Function:
    """A detection function of CVAT around a predictor.

    Args:
        predictor: the model.
        score: the least score of what is annotated; by default the model's threshold for each class, or what CVAT asks
            for.
        auto_annotation: the module ``cvat_sdk.auto_annotation``.
    """

    def __init__(self, predictor: Predictor, score: float | None, auto_annotation: Any) -> None:
        self._predictor = predictor
        self._score = score
        self._cvat = auto_annotation
        names = predictor.class_names
        labels = [auto_annotation.label_spec(name, label, type="rectangle") for label, name in enumerate(names)]
        self.spec = auto_annotation.DetectionFunctionSpec(labels=labels)

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The boxes of an image as shapes of CVAT, in pixels of the upright image.

        Args:
            context: of the call; its ``conf_threshold`` is the least score, where it has one.
            image: as CVAT loads it.
        """
        asked = getattr(context, "conf_threshold", None)
        score = self._score if asked is None else asked
        detections = self._predictor(image)
        shown = detections.above(self._predictor.thresholds if score is None else score)
        return [self._cvat.rectangle(row["label"], row["box"]) for row in shown.to_dicts()]


def create(model: str, score: float | None = None, device: str = "auto") -> Function:
    """What ``cvat-cli`` calls, with its options ``-p model=str:FOLDER -p score=float:0.5``.

    Args:
        model: exported model, model folder, torchvision/NAME or a hub repository.
        score: see :class:`Function`.
        device: auto, cpu, cuda, cuda:1, mps; an exported model runs on the CPU.

    Raises:
        UserError: there is no usable model, or CVAT's SDK is not installed.
    """
    try:
        import cvat_sdk.auto_annotation as auto_annotation
    except ImportError:
        raise UserError("cvat_sdk is not installed. Install CVAT's tools: pip install cvat-cli") from None
    return Function(Predictor.load(model, device=device), score, auto_annotation)
