"""RetinaNet: dense object detection with focal loss (Lin et al. 2017, arXiv 1708.02002)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinanet.data.dataset import load_dataset
    from retinanet.evaluate.run import evaluate
    from retinanet.model.retinanet import RetinaNet
    from retinanet.predict.predictor import Predictor
    from retinanet.predict.run import predict
    from retinanet.train.run import train
    from retinanet.types import Detections, UserError

__version__ = "0.1.0"
__all__ = [
    "Detections",
    "Predictor",
    "RetinaNet",
    "UserError",
    "evaluate",
    "load_dataset",
    "predict",
    "train",
]

_HOME = {
    "Detections": "types",
    "Predictor": "predict.predictor",
    "RetinaNet": "model.retinanet",
    "UserError": "types",
    "evaluate": "evaluate.run",
    "load_dataset": "data.dataset",
    "predict": "predict.run",
    "train": "train.run",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: torch takes seconds, ``retinanet --help`` must not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
