"""NVIDIA/retinanet-examples, odtk (commit 65e6310): the ``.pth`` of ``odtk train``."""

from __future__ import annotations

import re
from math import inf
from typing import Any

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.interop.files import WeightsFile
from retinanet.interop.source import Settings, Source, Tensors, by_prefix
from retinanet.model.postprocess import Postprocess, PostprocessCompat

RATIOS = (1.0, 2.0, 0.5)
SCALES = tuple(4 * 2 ** (i / 3) for i in range(3))  # of the stride
NAMES = {
    "features": "backbone.body",
    **{f"lateral{level}": f"fpn.lateral.p{level}" for level in (3, 4, 5)},
    **{f"smooth{level}": f"fpn.output.p{level}" for level in (3, 4, 5)},
    **{f"pyramid{level}": f"fpn.output.p{level}" for level in (6, 7)},
    **{f"cls_head.{2 * i}": f"heads.cls.conv.{i}" for i in range(4)},  # ReLUs lie between
    "cls_head.8": "heads.cls.output",
    **{f"box_head.{2 * i}": f"heads.box.conv.{i}" for i in range(4)},
    "box_head.8": "heads.box.output",
}


def settings(file: WeightsFile, tensors: Tensors, class_names: tuple[str, ...]) -> Settings:
    """What odtk does with its weights; ratios and scales stand in the file."""
    if file.meta.get("angles"):
        raise UserError(
            f"{file.path}: a model of rotated boxes (angles {file.meta['angles']}); only upright boxes are supported"
        )
    ratios = _numbers(file.meta.get("ratios"), RATIOS)
    scales = _numbers(file.meta.get("scales"), SCALES)
    base = scales[0]
    return Settings(
        lattice=AnchorLattice(
            sizes=tuple(base * stride for stride in (8, 16, 32, 64, 128)),
            ratios=tuple(sorted(ratios)),
            scales=tuple(scale / base for scale in scales),
            compat=LatticeCompat(inclusive=True),
        ),
        coder=BoxCoder(clamp=80.0),  # none there; exp(80) is about what float32 holds
        preprocess=Preprocess(multiple=128, compat=PreprocessCompat(rounding="floor")),
        postprocess=Postprocess(compat=PostprocessCompat(clip="half")),
        scale_major=True,
        ratio_order=ratios,
        loss={"box": "smooth_l1", "beta": 0.11, "forced": "off"},
        remarks=(
            f"anchors: ratios {ratios} and scales {tuple(round(scale, 4) for scale in scales)} of the stride, "
            f"{'from the file' if 'ratios' in file.meta else 'the defaults of odtk'}",
        ),
    )


def _numbers(value: Any, default: tuple[float, ...]) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or not value:
        return default
    if not all(isinstance(number, int | float) and 0 < number < inf for number in value):
        raise UserError(f"the file's ratios and scales are {str(value)[:60]}, expected numbers above 0")
    return tuple(float(number) for number in value)


SOURCE = Source(
    name="odtk",
    marks=("cls_head.8.weight", "box_head.8.weight"),
    # the backbone and the pyramid lie under the name of the backbone
    rename=lambda key: by_prefix(re.sub(r"^backbones\.\w+\.", "", key), NAMES),
    left_out={r"backbones\.\w+\.features\.fc\..*": "the classifier of the backbone, which detection has no use for"},
    settings=settings,
)
