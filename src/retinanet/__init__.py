"""RetinaNet: dense object detection with focal loss (Lin et al. 2017, arXiv 1708.02002)."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinanet.benchmark.run import benchmark
    from retinanet.data.dataset import load_dataset
    from retinanet.data.transforms import Augment
    from retinanet.diagnose.check import check
    from retinanet.diagnose.run import diagnose
    from retinanet.diagnose.why import why
    from retinanet.evaluate.run import evaluate
    from retinanet.export.run import export
    from retinanet.model.postprocess import Postprocess
    from retinanet.model.retinanet import RetinaNet
    from retinanet.predict.predictor import Predictor
    from retinanet.predict.run import predict
    from retinanet.train.config import ImageConfig, LossConfig, OptimConfig, RunConfig
    from retinanet.train.run import train
    from retinanet.types import Detections, UserError
    from retinanet.weights.convert import convert

__version__ = "0.1.0"
__all__ = [
    "Augment",
    "Detections",
    "ImageConfig",
    "LossConfig",
    "OptimConfig",
    "Postprocess",
    "Predictor",
    "RetinaNet",
    "RunConfig",
    "UserError",
    "benchmark",
    "check",
    "convert",
    "diagnose",
    "evaluate",
    "export",
    "load_dataset",
    "predict",
    "train",
    "why",
]

_HOME = {
    "Augment": "data.transforms",
    "Detections": "types",
    "ImageConfig": "train.config",
    "LossConfig": "train.config",
    "OptimConfig": "train.config",
    "Postprocess": "model.postprocess",
    "Predictor": "predict.predictor",
    "RetinaNet": "model.retinanet",
    "RunConfig": "train.config",
    "UserError": "types",
    "benchmark": "benchmark.run",
    "check": "diagnose.check",
    "convert": "weights.convert",
    "diagnose": "diagnose.run",
    "evaluate": "evaluate.run",
    "export": "export.run",
    "load_dataset": "data.dataset",
    "predict": "predict.run",
    "train": "train.run",
    "why": "diagnose.why",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: torch takes seconds, ``retinanet --help`` must not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(ModuleType):
    """This package: its functions train, evaluate, predict, export and benchmark are named like rooms.

    Whoever imports a module of such a room makes Python set the room as attribute here. It must not hide the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
