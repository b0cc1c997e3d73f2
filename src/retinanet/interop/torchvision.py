"""torchvision's ``retinanet_resnet50_fpn`` and ``_v2``, there and back.

Its key names changed in 2022; both are read. Anchors, strides, resizing and suppression follow its code, so that the
detections are equal (reference: torchvision 0.29, models/detection/retinanet.py, transform.py, anchor_utils.py).
"""

from __future__ import annotations

import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
from torch import Tensor

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.interop.files import WeightsFile
from retinanet.interop.source import (
    CLS,
    Settings,
    Source,
    Tensors,
    by_prefix,
    count_slots,
    read_architecture,
)
from retinanet.model.postprocess import Postprocess, PostprocessCompat
from retinanet.model.presets import Architecture
from retinanet.model.retinanet import RetinaNet
from retinanet.plain import to_plain
from retinanet.spec import ModelSpec

LATTICE = AnchorLattice(offset=0.0, compat=LatticeCompat(rounding="corners", floor_strides=True))
NAMES = {
    "backbone.body": "backbone.body",
    **{f"backbone.fpn.inner_blocks.{i}.0": f"fpn.lateral.p{i + 3}" for i in range(3)},
    **{f"backbone.fpn.layer_blocks.{i}.0": f"fpn.output.p{i + 3}" for i in range(3)},
    "backbone.fpn.extra_blocks.p6": "fpn.output.p6",
    "backbone.fpn.extra_blocks.p7": "fpn.output.p7",
    **{
        f"head.{theirs}_head.conv.{i}.{number}": f"heads.{ours}.{layer}.{i}"
        for theirs, ours in (("classification", "cls"), ("regression", "box"))
        for number, layer in enumerate(("conv", "norm"))
        for i in range(4)
    },
    "head.classification_head.cls_logits": "heads.cls.output",
    "head.regression_head.bbox_reg": "heads.box.output",
}
# Its argument -> ours, a field of the preprocessing or the post-processing.
ARGUMENTS = {
    **{"min_size": "short", "max_size": "long", "image_mean": "mean", "image_std": "std"},
    **{"score_thresh": "score", "nms_thresh": "nms", "topk_candidates": "topk", "detections_per_img": "max_detections"},
}
SLOTS = 91
# First digits of the sha256 of the file that torchvision published as retinanet_resnet50_fpn: it was trained without an
# epsilon in the batch norms, which no tensor tells.
RELEASED_WITHOUT_EPSILON = "eeacb38b"
RESIZE = PreprocessCompat(rounding="floor", resampling="normalised")
PREPROCESS = Preprocess(compat=RESIZE)
POSTPROCESS = Postprocess(max_detections=300, compat=PostprocessCompat(keep_empty=True))


@cache
def coco_slots() -> dict[int, str]:
    """COCO's category ids -> its 80 class names, ascending; ids between 1 and 90, with gaps."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights  # a second to import

    slots = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # id -> name, "N/A" in the gaps
    return {slot: name for slot, name in enumerate(slots) if name not in ("__background__", "N/A")}


def download_torchvision(name: str) -> Path | None:
    """The file of ``torchvision:NAME`` (or ``torchvision/NAME``), downloaded if it is not there yet.

    It lies where torchvision itself keeps it.

    Returns:
        The file, or None where the name is not torchvision's.

    Raises:
        UserError: torchvision has no such RetinaNet, or its file cannot be had; the message says where to put it.
    """
    asked = re.fullmatch(r"torchvision[:/](.+)", name)
    if asked is None or os.path.exists(name):
        return None
    from torchvision.models import detection  # a second to import

    published = {
        "retinanet_resnet50_fpn": detection.RetinaNet_ResNet50_FPN_Weights.COCO_V1,
        "retinanet_resnet50_fpn_v2": detection.RetinaNet_ResNet50_FPN_V2_Weights.COCO_V1,
    }
    if asked[1] not in published:
        raise UserError(f"torchvision publishes {' and '.join(published)}; there is no {asked[1]!r}")
    url = published[asked[1]].url
    file = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
    if os.path.isfile(file):
        return file
    digits = re.search(r"-([a-f0-9]+)\.", file.name)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(file), hash_prefix=digits[1] if digits else None)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"torchvision's weights could not be downloaded: tried {url} ({error}). On a machine with a network "
            f"download that address, and put the file at {file}; or convert it from where it is: "
            f"retinanet convert {file.name} FOLDER"
        ) from None
    return file


def rename(key: str) -> str | None:
    """A key of torchvision, old or new -> ours."""
    return by_prefix(modernise_key(key), NAMES)


def modernise_key(key: str) -> str:
    """A key of before 2022 as it is called since: ``conv.2.weight`` was convolution 1 of a tower, after its ReLU."""
    if old := re.fullmatch(r"(head\.\w+_head\.conv)\.(\d+)\.(weight|bias)", key):
        return f"{old[1]}.{int(old[2]) // 2}.0.{old[3]}"
    if old := re.fullmatch(r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d)\.(weight|bias)", key):
        return f"{old[1]}.0.{old[2]}"
    return key


def settings(file: WeightsFile, tensors: Tensors, class_names: tuple[str, ...]) -> Settings:
    """What torchvision's code does with its weights."""
    names, slots, remark = _classes(count_slots(tensors), class_names)
    released = file.sha256.startswith(RELEASED_WITHOUT_EPSILON)
    remarks = [remark]
    if read_architecture(tensors)["p6_from"] == "P5" and not released:
        remarks.append(
            "epsilon of the batch norms: 1e-5 assumed. If the model was made with weights=COCO_V1 and fine-tuned, it "
            "is 0: pass --architecture.norm_eps 0"
        )
    return Settings(
        lattice=LATTICE,
        coder=BoxCoder(),
        preprocess=PREPROCESS,
        postprocess=POSTPROCESS,
        architecture={"norm_eps": 0.0} if released else {},
        class_names=names,
        slots=slots,
        loss={
            "box": "giou" if read_architecture(tensors)["head_norm"] == "group" else "l1",
            "forced": "argmax",
            "normaliser": "image",
        },
        remarks=tuple(remarks),
    )


def _classes(count: int, given: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[int, ...] | None, str]:
    """Names of the classes, their slots, and how that was concluded: a slot 0 for background is a habit, not a rule."""
    coco = coco_slots()
    if count == SLOTS and len(given) in (0, len(coco)):
        dropped = ", ".join(str(slot) for slot in range(SLOTS) if slot not in coco)
        names = given or tuple(coco.values())
        return names, tuple(coco), f"91 slots are COCO's category ids: 80 kept, no classes in {dropped}"
    if count == 1 or len(given) == count:
        return given, None, f"{'1 slot, a class' if count == 1 else f'{count} slots, each a class'}"
    if given and len(given) == count - 1:
        return given, tuple(range(1, count)), f"{count} slots: 0 is the background and left out, {count - 1} classes"
    said = f"{len(given)} names were given" if given else "no names were given"
    raise UserError(
        f"the class layer has {count} slots and torchvision does not say whether slot 0 is a class or the background; "
        f"{said}. Pass --class_names with {count - 1} names if slot 0 is the background (torchvision's habit), with "
        f"{count} if it is a class (DeepForest)"
    )


SOURCE = Source(
    name="torchvision",
    marks=("head.classification_head.cls_logits.weight", "backbone.fpn.extra_blocks.p6.weight"),
    rename=rename,
    left_out={},
    settings=settings,
    measured=True,
)


def to_torchvision(spec: ModelSpec, net: RetinaNet) -> dict[str, Tensor]:
    """The weights of a detector under torchvision's names, for its ``load_state_dict(strict=True)``.

    COCO's 80 classes go to their 91 slots, others to slots 1 to K, as torchvision's users number them. The unused
    slots between have zero weights and the bias of the prior.

    Raises:
        UserError: torchvision has no such network.
    """
    _check_buildable(spec)
    theirs = {ours: name for name, ours in NAMES.items()}
    slots = find_slots(spec.class_names)
    unused = {"weight": 0.0, "bias": float(torch.logit(torch.tensor(spec.architecture.prior)))}
    converted = {}
    for key, value in net.state_dict().items():
        value = value.detach().cpu()
        if key.startswith(f"{CLS}."):
            per_anchor = value.unflatten(0, (-1, len(slots)))  # (A*K, ...) -> (A, K, ...)
            shape = (len(per_anchor), slots[-1] + 1, *per_anchor.shape[2:])
            spread = per_anchor.new_full(shape, unused[key.rpartition(".")[2]])
            spread[:, list(slots)] = per_anchor
            value = spread.flatten(0, 1)
        name = by_prefix(key, theirs)
        assert name is not None, key
        converted[name] = value.contiguous()
    return converted


def find_slots(class_names: tuple[str, ...]) -> tuple[int, ...]:
    """The slot of each class in torchvision's class layer."""
    coco = coco_slots()
    return tuple(coco) if class_names == tuple(coco.values()) else tuple(range(1, len(class_names) + 1))


def write_instructions(spec: ModelSpec, file: str) -> str:
    """The lines of Python that build the same detector in torchvision, from the file of converted weights."""
    name = "retinanet_resnet50_fpn_v2" if spec.architecture.head_norm == "group" else "retinanet_resnet50_fpn"
    arguments = {"weights": None, "weights_backbone": None, "num_classes": find_slots(spec.class_names)[-1] + 1}
    defaults = detector_arguments(replace(spec, preprocess=PREPROCESS, postprocess=POSTPROCESS))
    arguments |= {key: value for key, value in detector_arguments(spec).items() if value != defaults[key]}
    given = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
    lines = [
        "import torch",
        f"from torchvision.models.detection import {name}",
        f"model = {name}({given})",
        f"model.load_state_dict(torch.load({file!r}, weights_only=True))",
    ]
    if spec.architecture.norm_eps is not None:
        lines += [
            "for module in model.modules():",
            f"    if isinstance(module, torch.nn.BatchNorm2d): module.eps = {spec.architecture.norm_eps}",
        ]
    return "\n".join(lines)


def detector_arguments(spec: ModelSpec) -> dict[str, Any]:
    """What torchvision's RetinaNet takes beside the network."""
    fields = vars(spec.preprocess) | vars(spec.postprocess)
    return {name: to_plain(fields[ours]) for name, ours in ARGUMENTS.items()}


def _check_buildable(spec: ModelSpec) -> None:
    """A detector that torchvision's two functions do not build."""
    network = spec.architecture
    any_value = ("frozen_stages", "norm_eps", "prior", "head_norm", *ARGUMENTS.values())
    any_value += ("norm",) if network.norm != "group" else ()
    theirs = Architecture(anchors=LATTICE, p6_from="P5" if network.head_norm == "none" else "C5")
    pairs = ((network, theirs), (spec.preprocess, PREPROCESS), (spec.postprocess, POSTPROCESS))
    other = [
        f"{name} {has!r}, not {getattr(need, name)!r}"
        for part, need in pairs
        for name, has in vars(part).items()
        if name not in any_value and has != getattr(need, name)
    ]
    if other:
        raise UserError(
            f"torchvision has no such RetinaNet: {'; '.join(other)}. Only models that came from torchvision, trained "
            "further or not, go back to it"
        )


def describe_labels(class_names: tuple[str, ...]) -> str:
    """How torchvision's labels are numbered for these classes, in a sentence."""
    slots = find_slots(class_names)
    kind = "COCO's category ids" if slots[-1] > len(slots) else "0 is the background"
    return f"{len(slots)}, labels {slots[0]} to {slots[-1]} ({kind})"
