"""RetinaNet: dense object detection with focal loss (Lin et al. 2017, arXiv 1708.02002)."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retinanet.analysis.diagnose import diagnose
    from retinanet.analysis.trace.why import why
    from retinanet.cluster.job import ClusterConfig
    from retinanet.curation.suggest import suggest
    from retinanet.curation.suspects import suspects
    from retinanet.data.dataset import load_dataset
    from retinanet.data.objects import AnnotatedImages
    from retinanet.data.transforms import Augment
    from retinanet.deploy.benchmark import benchmark
    from retinanet.deploy.export import export
    from retinanet.detections import Detections
    from retinanet.detector import Detector
    from retinanet.errors import UserError
    from retinanet.evaluation.evaluate import evaluate
    from retinanet.inference.predictor import Predictor
    from retinanet.inference.video import VideoConfig
    from retinanet.interop.convert import convert
    from retinanet.interop.hub import push
    from retinanet.model.postprocess import Postprocess
    from retinanet.model.retinanet import RetinaNet
    from retinanet.planning.machine import Machine
    from retinanet.prediction import predict
    from retinanet.serving.serve import serve
    from retinanet.spec import ModelSpec
    from retinanet.training.check import check
    from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, PostprocessConfig, RunConfig
    from retinanet.training.planned import plan
    from retinanet.training.run import train

__version__ = "0.2.0"
__all__ = [
    "AnnotatedImages",
    "Augment",
    "ClusterConfig",
    "Detections",
    "Detector",
    "ImageConfig",
    "LossConfig",
    "Machine",
    "ModelSpec",
    "OptimConfig",
    "Postprocess",
    "PostprocessConfig",
    "Predictor",
    "RetinaNet",
    "RunConfig",
    "UserError",
    "VideoConfig",
    "benchmark",
    "check",
    "convert",
    "diagnose",
    "evaluate",
    "export",
    "load_dataset",
    "plan",
    "predict",
    "push",
    "serve",
    "suggest",
    "suspects",
    "train",
    "why",
]

_HOME = {
    "AnnotatedImages": "data.objects",
    "Augment": "data.transforms",
    "ClusterConfig": "cluster.job",
    "Detections": "detections",
    "Detector": "detector",
    "ImageConfig": "training.config",
    "LossConfig": "training.config",
    "Machine": "planning.machine",
    "ModelSpec": "spec",
    "OptimConfig": "training.config",
    "Postprocess": "model.postprocess",
    "PostprocessConfig": "training.config",
    "Predictor": "inference.predictor",
    "RetinaNet": "model.retinanet",
    "RunConfig": "training.config",
    "UserError": "errors",
    "VideoConfig": "inference.video",
    "benchmark": "deploy.benchmark",
    "check": "training.check",
    "convert": "interop.convert",
    "diagnose": "analysis.diagnose",
    "evaluate": "evaluation.evaluate",
    "export": "deploy.export",
    "load_dataset": "data.dataset",
    "plan": "training.planned",
    "predict": "prediction",
    "push": "interop.hub",
    "serve": "serving.serve",
    "suggest": "curation.suggest",
    "suspects": "curation.suspects",
    "train": "training.run",
    "why": "analysis.trace.why",
}


def __getattr__(name: str) -> Any:
    """A public name, imported when it is first used: torch takes seconds, ``retinanet --help`` must not."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
