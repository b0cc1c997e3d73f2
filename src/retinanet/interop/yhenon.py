"""yhenon/pytorch-retinanet (commit 0348a9d): ``torch.save(model.state_dict())`` of its training script's model."""

from __future__ import annotations

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.interop.files import WeightsFile
from retinanet.interop.source import RESNET, Settings, Source, Tensors, by_prefix
from retinanet.model.postprocess import Postprocess, PostprocessCompat

NAMES = {
    **{name: f"backbone.body.{name}" for name in RESNET},
    **{f"fpn.P{level}_1": f"fpn.lateral.p{level}" for level in (3, 4, 5)},
    **{f"fpn.P{level}_2": f"fpn.output.p{level}" for level in (3, 4, 5, 7)},
    "fpn.P6": "fpn.output.p6",
    **{f"classificationModel.conv{i + 1}": f"heads.cls.conv.{i}" for i in range(4)},
    "classificationModel.output": "heads.cls.output",
    **{f"regressionModel.conv{i + 1}": f"heads.box.conv.{i}" for i in range(4)},
    "regressionModel.output": "heads.box.output",
}


def settings(file: WeightsFile, tensors: Tensors, class_names: tuple[str, ...]) -> Settings:
    """What yhenon's code does with its weights; neither deltas nor candidates nor detections have a limit there."""
    return Settings(
        lattice=AnchorLattice(),
        coder=BoxCoder(std=(0.1, 0.1, 0.2, 0.2), clamp=80.0),  # exp(80) is about what float32 holds
        preprocess=Preprocess(short=608, long=1024, compat=PreprocessCompat(margin=1, resampling="normalised")),
        postprocess=Postprocess(topk=1_000_000, max_detections=100_000, compat=PostprocessCompat(clip="half")),
        loss={"box": "smooth_l1", "box_weight": 0.25, "forced": "off", "normaliser": "image"},
    )


SOURCE = Source(
    name="yhenon",
    marks=("fpn.P3_1.weight", "classificationModel.output.weight", "regressionModel.output.weight"),
    rename=lambda key: by_prefix(key, NAMES),
    left_out={},
    settings=settings,
)
