"""What has to be known about a code base before its weights can be read, and what the tensors themselves tell.

Every adapter (torchvision.py, yhenon.py, detectron2.py, mmdetection.py, odtk.py) makes one :class:`Source`. Nothing
else in the package asks where weights came from.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.interop.files import WeightsFile
from retinanet.model.postprocess import Postprocess

Tensors = Mapping[str, Tensor]
Three = tuple[float, float, float]
CLS, BOX = "heads.cls.output", "heads.box.output"
RESNET = ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")  # what timm and torchvision call its parts

# blocks of the four stages, shape (out, in of a group) of the first 3x3 convolution of a bottleneck -> timm's name
BACKBONES = {
    ((2, 2, 2, 2), None): "resnet18",
    ((3, 4, 6, 3), None): "resnet34",
    ((3, 4, 6, 3), (64, 64)): "resnet50",
    ((3, 4, 23, 3), (64, 64)): "resnet101",
    ((3, 8, 36, 3), (64, 64)): "resnet152",
    ((3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    ((3, 4, 23, 3), (128, 4)): "resnext101_32x4d",
    ((3, 4, 23, 3), (256, 4)): "resnext101_64x4d",
    ((3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    ((3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128)): "wide_resnet101_2",
}
GIVE_ANCHORS = (
    "Give those that the model was trained with, in its order: --architecture.anchors.ratios '[0.5, 1.0, 2.0]' "
    "--architecture.anchors.scales '[1.0, 1.5]' --architecture.anchors.sizes '[32, 64, 128, 256, 512]'"
)


@dataclass(frozen=True)
class Settings:
    """What the weights of one file imply beyond the shapes of their tensors.

    Attributes:
        lattice: the anchors, in our order of templates.
        coder: what the box outputs mean.
        preprocess: how images became the network's input.
        postprocess: how its output became detections.
        architecture: fields of ``Architecture`` that no shape tells.
        scale_major: the source counts the templates of a cell by scale and then by ratio; we by ratio, then by scale.
        ratio_order: the ratios in the source's order, where it is not that of ``lattice``.
        templates: the anchors of a cell on each level, (A, 4) in the source's order, where the file holds them.
        class_names: of the slots of the class layer, where the file says them.
        slots: which slots of the class layer are classes, ascending; None for all of them.
        loss: how the source trained, as changes to ``retinanet.losses.config.CLASSIC``.
        remarks: what was concluded from what, for the report.
    """

    lattice: AnchorLattice
    coder: BoxCoder
    preprocess: Preprocess
    postprocess: Postprocess
    architecture: Mapping[str, Any] = field(default_factory=dict)
    scale_major: bool = False
    ratio_order: tuple[float, ...] = ()
    templates: tuple[Tensor, ...] = ()
    class_names: tuple[str, ...] = ()
    slots: tuple[int, ...] | None = None
    loss: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A code base whose weights can be read.

    Attributes:
        name: what ``--source`` calls it.
        marks: keys that a state dict of it has, whatever the backbone, and no other source's has.
        rename: its key -> ours, or None where it has no place in our network.
        left_out: patterns of keys that have none, each with the reason; any other such key is an error.
        settings: what a file implies; it gets the file, the tensors under our names and the names of the classes that
            the user gave, and refuses with :class:`~retinanet.errors.UserError` what cannot be converted.
        measured: whether its own code is at hand, so that every conversion is compared with it (torchvision alone).
    """

    name: str
    marks: tuple[str, ...]
    rename: Callable[[str], str | None]
    left_out: Mapping[str, str]
    settings: Callable[[WeightsFile, Tensors, tuple[str, ...]], Settings]
    measured: bool = False


def by_prefix(key: str, names: Mapping[str, str]) -> str | None:
    """The key with its prefix replaced: names are whole components, ``conv1`` is no prefix of ``conv10.weight``."""
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in names:
            return ".".join([names[prefix], *parts[length:]])
    return None


def backbone(tensors: Tensors) -> str:
    """Timm's name of the backbone, from the tensors under our names.

    Raises:
        UserError: it is no ResNet that timm has.
    """
    found = {match.groups() for key in tensors if (match := re.match(r"backbone\.body\.layer(\d)\.(\d+)\.", key))}
    blocks = tuple(sum(stage == number for stage, _ in found) for number in "1234")
    bottleneck = "backbone.body.layer1.0.conv3.weight" in tensors
    middle = tensors.get("backbone.body.layer1.0.conv2.weight")
    width = tuple(middle.shape[:2]) if bottleneck and middle is not None else None
    name = BACKBONES.get((blocks, width))  # type: ignore[arg-type]
    if name is None:
        raise UserError(
            f"this backbone cannot be converted: its stages have {', '.join(map(str, blocks))} blocks"
            f"{f' of width {width}' if width else ''}. Expected one of {', '.join(BACKBONES.values())}"
        )
    return name


def read_architecture(tensors: Tensors) -> dict[str, Any]:
    """The fields of ``Architecture`` that the shapes of the tensors tell.

    Raises:
        UserError: the backbone or the heads are of no kind that this network has.
    """
    outputs = [f"{layer}.{kind}" for layer in (CLS, BOX) for kind in ("weight", "bias")]
    wanted = ("fpn.lateral.p5.weight", "fpn.output.p6.weight", *outputs)
    if absent := ", ".join(key for key in wanted if key not in tensors):
        raise UserError(f"this is not a complete RetinaNet: it lacks the tensors that are called {absent} here")
    channels, c5 = tensors["fpn.lateral.p5.weight"].shape[:2]
    return {
        "backbone": backbone(tensors),
        "channels": int(channels),
        "depth": len([key for key in tensors if re.fullmatch(r"heads\.cls\.conv\.\d+\.weight", key)]),
        "head_norm": "group" if any(key.startswith("heads.cls.norm.") for key in tensors) else "none",
        "p6_from": "C5" if tensors["fpn.output.p6.weight"].shape[1] == c5 else "P5",
    }


def count_slots(tensors: Tensors) -> int:
    """How many classes the class layer has outputs for.

    Raises:
        UserError: the two output layers are over different numbers of anchors, or their biases do not fit them.
    """
    for layer in (CLS, BOX):
        has, need = tensors[f"{layer}.bias"].shape, tensors[f"{layer}.weight"].shape[:1]
        if has != need:
            raise UserError(f"the tensor called {layer}.bias here has the shape {tuple(has)}, expected {tuple(need)}")
    outputs, boxes = (tensors[f"{layer}.weight"].shape[0] for layer in (CLS, BOX))
    if boxes % 4 or outputs % (boxes // 4):
        raise UserError(
            f"the box layer has {boxes} outputs, 4 for each anchor of a cell, and the class layer {outputs}, no "
            "multiple of as many anchors: not the heads of a RetinaNet"
        )
    return int(outputs // (boxes // 4))


def check_anchors(
    tensors: Tensors, lattice: AnchorLattice, order: tuple[int, ...], templates: tuple[Tensor, ...]
) -> None:
    """The heads have to be over as many anchors as the lattice, and anchors in the file have to be the lattice's.

    Args:
        tensors: under our names.
        lattice: the anchors that are assumed.
        order: for each template of the lattice the source's.
        templates: those of the file, or none.

    Raises:
        UserError: they are not.
    """
    anchors = tensors[f"{BOX}.weight"].shape[0] // 4
    if anchors != lattice.num_anchors:
        raise UserError(
            f"the heads have {anchors} anchors per cell, but {lattice.num_anchors} are assumed. {GIVE_ANCHORS}"
        )
    for level, (theirs, ours) in enumerate(zip(templates, lattice.templates(), strict=False)):
        if theirs.shape != ours.shape or not torch.allclose(theirs[list(order)].float(), ours, atol=1e-3):
            raise UserError(f"the file's anchors are not the assumed ones, first on level P{level + 3}. {GIVE_ANCHORS}")


def order_anchors(lattice: AnchorLattice, *, scale_major: bool, ratio_order: tuple[float, ...] = ()) -> tuple[int, ...]:
    """For each of our templates that of a source, which counts by scale outside or has its ratios in another order."""
    # Ratios that the user named stand for those of the file, in the order in which they were trained.
    ratios = ratio_order if sorted(ratio_order) == sorted(lattice.ratios) else lattice.ratios
    scales = len(lattice.scales)
    return tuple(
        scale * len(ratios) + ratios.index(ratio) if scale_major else ratios.index(ratio) * scales + scale
        for ratio in lattice.ratios
        for scale in range(scales)
    )


def reorder_outputs(tensors: Tensors, order: tuple[int, ...], keep: tuple[int, ...]) -> dict[str, Tensor]:
    """The tensors with the outputs of both heads in our order of anchors, and only the class slots to keep.

    Args:
        tensors: under our names; class outputs (A*slots, ...), box outputs (A*4, ...).
        order: for each of our templates the source's.
        keep: slots of the class layer, ascending.
    """
    assert list(keep) == sorted(keep), "slots are kept in their order"
    changed = dict(tensors)
    for layer, rows in ((CLS, keep), (BOX, range(4))):
        for kind in ("weight", "bias"):
            value = tensors[f"{layer}.{kind}"].unflatten(0, (len(order), -1))  # (A*k, ...) -> (A, k, ...)
            changed[f"{layer}.{kind}"] = value[list(order)][:, list(rows)].flatten(0, 1).contiguous()
    return changed


def three_numbers(value: Tensor) -> Three:
    """A tensor of 3 values, the mean or std of pixels -> its numbers, as they were written."""
    first, second, third = (round(number, 4) for number in value.flatten().tolist())
    return first, second, third


def has_folded_statistics(tensors: Tensors) -> bool:
    """Whether the batch norms of the backbone hold no statistics: the MSRA weights of Caffe and Detectron have none."""
    mean = tensors.get("backbone.body.layer1.0.bn1.running_mean")
    return mean is not None and not torch.any(mean)
