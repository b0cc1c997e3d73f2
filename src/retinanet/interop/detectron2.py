"""detectron2's RetinaNet (commit 02b5c4e): the model zoo's ``.pkl`` and the ``.pth`` of its trainer."""

from __future__ import annotations

import re
from dataclasses import replace

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.interop.files import WeightsFile
from retinanet.interop.source import (
    Settings,
    Source,
    Tensors,
    backbone,
    by_prefix,
    has_folded_statistics,
    three_numbers,
)
from retinanet.model.postprocess import Postprocess, PostprocessCompat

LATTICE = AnchorLattice(offset=0.0)
CAFFE_MEAN = (103.53, 116.28, 123.675)  # BGR, of pixels in [0, 255]
NAMES = {
    **{f"backbone.fpn_lateral{level}": f"fpn.lateral.p{level}" for level in (3, 4, 5)},
    **{f"backbone.fpn_output{level}": f"fpn.output.p{level}" for level in (3, 4, 5)},
    **{f"backbone.top_block.p{level}": f"fpn.output.p{level}" for level in (6, 7)},
    **{f"head.cls_subnet.{2 * i}": f"heads.cls.conv.{i}" for i in range(4)},  # ReLUs lie between
    "head.cls_score": "heads.cls.output",
    **{f"head.bbox_subnet.{2 * i}": f"heads.box.conv.{i}" for i in range(4)},
    "head.bbox_pred": "heads.box.output",
}
LAYERS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "shortcut": "downsample.0"}
NORMS = {"conv1": "bn1", "conv2": "bn2", "conv3": "bn3", "shortcut": "downsample.1"}


def rename(key: str) -> str | None:
    """A key of detectron2 -> ours; its norms lie inside the convolutions, its res2 is our layer1."""
    if stem := re.fullmatch(r"backbone\.bottom_up\.stem\.conv1\.(norm\.)?(\w+)", key):
        return f"backbone.body.{'bn1' if stem[1] else 'conv1'}.{stem[2]}"
    if block := re.fullmatch(r"backbone\.bottom_up\.res([2-5])\.(\d+)\.(conv[123]|shortcut)\.(norm\.)?(\w+)", key):
        stage, number, layer, norm, kind = block.groups()
        return f"backbone.body.layer{int(stage) - 1}.{number}.{(NORMS if norm else LAYERS)[layer]}.{kind}"
    return by_prefix(key, NAMES)


def settings(file: WeightsFile, tensors: Tensors, class_names: tuple[str, ...]) -> Settings:
    """What detectron2 does with its weights, as far as they tell: the rest of its configuration is not in the file."""
    folded = has_folded_statistics(tensors)
    caffe = folded and backbone(tensors) in ("resnet50", "resnet101", "resnet152")
    mean, std = file.tensors.get("pixel_mean"), file.tensors.get("pixel_std")
    colours = Preprocess(
        mean=CAFFE_MEAN if mean is None else three_numbers(mean),
        std=(1.0, 1.0, 1.0) if std is None else three_numbers(std),
        compat=PreprocessCompat(divisor=1.0, channels="BGR"),
    )
    if colours.mean[0] > colours.mean[2]:  # the means of ImageNet ascend from blue to red
        colours = replace(colours, compat=PreprocessCompat(divisor=1.0))
    remarks = [
        "batch norms without statistics: MSRA's weights, whose bottlenecks stride in the 1x1 convolution"
        if caffe
        else "batch norms with statistics: not MSRA's weights, so bottlenecks are taken to stride in the 3x3 "
        "convolution (RESNETS.STRIDE_IN_1X1 False); else pass --architecture.stride_in_1x1 true",
        f"pixels: {colours.compat.channels}, mean {colours.mean}, std {colours.std}, "
        f"{'the default of detectron2' if mean is None else 'from the file'}",
    ]
    return Settings(
        lattice=LATTICE,
        coder=BoxCoder(),
        preprocess=colours,
        postprocess=Postprocess(compat=PostprocessCompat(clip="after")),
        architecture={"stride_in_1x1": caffe},
        scale_major=True,
        templates=tuple(file.tensors[key] for key in sorted(file.tensors) if "cell_anchors." in key),
        loss={"box": "l1", "forced": "argmax"},
        remarks=tuple(remarks),
    )


SOURCE = Source(
    name="detectron2",
    marks=("head.cls_score.weight", "head.bbox_pred.weight", "backbone.bottom_up.stem.conv1.weight"),
    rename=rename,
    left_out={
        r"pixel_(mean|std)": "read as preprocessing",
        r"anchor_generator\.cell_anchors\.\d+": "compared with our anchors",
    },
    settings=settings,
)
