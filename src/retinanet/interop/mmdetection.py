"""mmdetection 2.x and 3.x: ``configs/retinanet``, backbones in PyTorch's and in Caffe's style."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.interop.files import WeightsFile
from retinanet.interop.source import (
    RESNET,
    Settings,
    Source,
    Tensors,
    Three,
    by_prefix,
    has_folded_statistics,
    three_numbers,
)
from retinanet.model.postprocess import Postprocess

NAMES = {
    **{f"backbone.{name}": f"backbone.body.{name}" for name in RESNET},
    **{f"neck.lateral_convs.{i}.conv": f"fpn.lateral.p{i + 3}" for i in range(3)},
    **{f"neck.fpn_convs.{i}.conv": f"fpn.output.p{i + 3}" for i in range(5)},
    **{f"bbox_head.cls_convs.{i}.conv": f"heads.cls.conv.{i}" for i in range(4)},
    "bbox_head.retina_cls": "heads.cls.output",
    **{f"bbox_head.reg_convs.{i}.conv": f"heads.box.conv.{i}" for i in range(4)},
    "bbox_head.retina_reg": "heads.box.output",
}


def settings(file: WeightsFile, tensors: Tensors, class_names: tuple[str, ...]) -> Settings:
    """What mmdetection does with its weights; the configuration in the file decides where it says something."""
    entries = list(_list_entries(file.meta))
    text = " ".join(f"{name}={value}" for name, value in entries if isinstance(value, str | int | float | bool))
    classes = (value for name, value in entries if name.lower() == "classes" and isinstance(value, list | tuple))
    caffe, why = _style(text, tensors)
    mean, told = _pixels(file, text, "mean", (103.53, 116.28, 123.675) if caffe else (123.675, 116.28, 103.53))
    std, _ = _pixels(file, text, "std", (1.0, 1.0, 1.0) if caffe else (58.395, 57.12, 57.375))
    order = re.search(r"(?:to_rgb|bgr_to_rgb)[\s=:'\"]+(True|False)", text)
    channels: Literal["RGB", "BGR"] = "BGR" if (order[1] == "False" if order else caffe) else "RGB"
    return Settings(
        lattice=AnchorLattice(offset=0.0),
        coder=BoxCoder(clamp_below=True),
        preprocess=Preprocess(
            mean=mean, std=std, compat=PreprocessCompat(divisor=1.0, channels=channels, resampling="plain")
        ),
        postprocess=Postprocess(),
        architecture={"relu_before_p7": False, "stride_in_1x1": caffe},
        class_names=tuple(map(str, next(classes, ()))),  # under CLASSES in 2.x, dataset_meta.classes in 3.x
        loss={"box": "l1", "forced": "reassign"},
        remarks=(
            f"a backbone in {'Caffe' if caffe else 'PyTorch'}'s style: {why}",
            f"pixels: {channels}, mean {mean}, std {std}, {told}",
        ),
    )


def _style(config: str, tensors: Tensors) -> tuple[bool, str]:
    """Whether bottlenecks stride in the 1x1 convolution and pixels are BGR, and how that is known."""
    if said := re.search(r"style[\s=:'\"]+(caffe|pytorch)", config):
        return said[1] == "caffe", "the configuration in the file says so"
    if has_folded_statistics(tensors):
        return True, "its batch norms hold no statistics, as only Caffe's weights do"
    return False, "its batch norms hold statistics"


def _pixels(file: WeightsFile, config: str, name: str, default: Three) -> tuple[Three, str]:
    """The mean or std of the pixels, and where it stands: a tensor of the file, its configuration, or neither."""
    if (tensor := file.tensors.get(f"data_preprocessor.{name}")) is not None:
        return three_numbers(tensor), "from the file's tensors"
    number = r"\s*(-?[\d.]+)\s*"
    if said := re.search(rf"\b{name}\W+[\[(]{number},{number},{number}[\])]", config):
        return (float(said[1]), float(said[2]), float(said[3])), "from the configuration in the file"
    return default, "the default of mmdetection's configurations in this style"


def _list_entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """A value and all that it holds, each with its name; the entries of a list have that of the list."""
    yield name, value
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _list_entries(entry, str(key))
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _list_entries(entry, name)


SOURCE = Source(
    name="mmdetection",
    marks=("bbox_head.retina_cls.weight", "bbox_head.retina_reg.weight", "neck.fpn_convs.0.conv.weight"),
    rename=lambda key: by_prefix(key, NAMES),
    left_out={r"data_preprocessor\.(mean|std)": "read as preprocessing"},
    settings=settings,
)
