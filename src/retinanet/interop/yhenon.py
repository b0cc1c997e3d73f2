"""yhenon/pytorch-retinanet (commit 0348a9d): ``torch.save(model.state_dict())`` of its training script's model."""

from __future__ import annotations

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.interop.files import WeightsFile
from retinanet.interop.source import Settings, Source, Tensors, by_prefix
from retinanet.model.postprocess import Postprocess, PostprocessCompat

NAMES = {
    **{name: f"backbone.body.{name}" for name in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")},
    "fpn.P3_1": "fpn.lateral.p3",
    "fpn.P4_1": "fpn.lateral.p4",
    "fpn.P5_1": "fpn.lateral.p5",
    "fpn.P3_2": "fpn.output.p3",
    "fpn.P4_2": "fpn.output.p4",
    "fpn.P5_2": "fpn.output.p5",
    "fpn.P6": "fpn.output.p6",
    "fpn.P7_2": "fpn.output.p7",
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
