"""``convert``: weights of an older code base -> a model folder, or back, with a report of all that was done."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from retinanet.data.files import read_text
from retinanet.errors import UserError
from retinanet.files import check_writable, write_tensors
from retinanet.interop import detectron2, mmdetection, odtk, torchvision, yhenon
from retinanet.interop.conversion import Conversion
from retinanet.interop.files import WeightsFile, read_weights
from retinanet.interop.parity import compare
from retinanet.interop.source import (
    Source,
    check_anchors,
    count_slots,
    order_anchors,
    read_architecture,
    reorder_outputs,
)
from retinanet.losses.config import CLASSIC
from retinanet.model.backbone import list_misfits
from retinanet.model.presets import Architecture
from retinanet.model_folder import read_model
from retinanet.options import explain_unknown_options
from retinanet.plain import with_changes
from retinanet.spec import CONFIG, ModelSpec

COCO_CLASSES = 80
SOURCES = (torchvision.SOURCE, yhenon.SOURCE, detectron2.SOURCE, mmdetection.SOURCE, odtk.SOURCE)


@explain_unknown_options
def convert(
    weights: str,
    output: str,
    *,
    source: str | None = None,
    to: str | None = None,
    class_names: str | None = None,
    architecture: dict[str, Any] | None = None,
    preprocess: dict[str, Any] | None = None,
    postprocess: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Make a model folder of RetinaNet weights from torchvision, yhenon, detectron2, mmdetection or odtk; or go back.

    The report, which is returned, says which tensors were used and which not, what was concluded from the file, and the
    difference from the source's own results where that is measured. It is saved beside the model.

    Args:
        weights: a weights file, or torchvision:NAME for weights that torchvision publishes; with --to a model folder.
        output: folder of the model, new; with --to the file to write.
        source: whose weights they are, where their keys do not tell.
        to: torchvision writes the model in output as a state dict for torchvision.
        class_names: names of the classes with commas between, or a text file with one a line; by default those in the
            file, or COCO's where there are 80.
        architecture: what the tensors do not tell, such as norm_eps or anchors, where it is not the source's default.
        preprocess: likewise for the input, such as short and long.
        postprocess: likewise for the detections, such as score and nms.
        overwrite: replace what is in output.

    Raises:
        UserError: the file cannot be read safely, is of no known source, or does not fit; nothing has been written.
    """
    target = Path(output)
    if to is not None:
        options = {"source": source, "class_names": class_names, "architecture": architecture}
        options |= {"preprocess": preprocess, "postprocess": postprocess}
        if given := [name for name, value in options.items() if value]:
            raise UserError(f"--to writes the model as it is; leave out --{', --'.join(given)}")
        return to_torchvision_file(weights, target, to, overwrite=overwrite)
    if os.path.isfile(Path(weights) / CONFIG):
        raise UserError(f"{weights} is a model folder already. To write it for torchvision, add --to torchvision")
    if os.path.isfile(target):
        raise UserError(f"{target} is a file; expected the name of a folder for the model")
    if os.path.exists(target / CONFIG) and not overwrite:
        raise UserError(f"{target} is a model already. Name another folder, or pass --overwrite to replace it")
    if run := [name for name in ("state.pt", "config.yaml") if os.path.exists(target / name)]:
        raise UserError(f"{target} is the folder of a training run ({run[0]} is there). Name another folder")
    check_writable(target)
    file = read_weights(torchvision.download_torchvision(weights) or weights)
    changes = {"architecture": architecture or {}, "preprocess": preprocess or {}, "postprocess": postprocess or {}}
    names = class_names or ""
    lines = read_text(Path(names)).splitlines() if os.path.isfile(names) else names.split(",")
    names_given = [name.strip() for name in lines if name.strip()]
    done = convert_weights(file, source=source, class_names=names_given, changes=changes)
    done.save(target)
    return f"{done.report()}\nsaved          {target}"


def convert_weights(
    file: WeightsFile,
    *,
    source: str | None = None,
    class_names: Sequence[str] = (),
    changes: Mapping[str, Mapping[str, Any]] | None = None,
) -> Conversion:
    """The detector of a weights file, with parity measured where it can be.

    Args:
        file: as read.
        source: name of its source, or None to recognise it by its keys.
        class_names: of its classes, in the order of its outputs.
        changes: fields of ``architecture``, ``preprocess`` and ``postprocess`` that are not the source's defaults.

    Raises:
        UserError: unknown source; a key that is missing, extra or misshapen (all are listed).
    """
    changes = changes or {}
    origin = recognise(file, source)
    used, left_out = _rename_keys(file, origin)
    tensors = {ours: file.tensors[theirs] for ours, theirs in used.items()}
    facts = read_architecture(tensors)
    settings = origin.settings(file, tensors, tuple(class_names))
    plan = Architecture(norm="frozen", anchors=settings.lattice, coder=settings.coder, **facts, **settings.architecture)
    plan = with_changes(plan, changes.get("architecture", {}), "architecture")
    order = order_anchors(plan.anchors, scale_major=settings.scale_major, ratio_order=settings.ratio_order)
    check_anchors(tensors, plan.anchors, order, settings.templates)
    slots = settings.slots or tuple(range(count_slots(tensors)))
    tensors = reorder_outputs(tensors, order, slots)
    names, assumed = name_classes(len(slots), tuple(class_names), settings.class_names)
    settings = replace(settings, remarks=settings.remarks + assumed)
    net = plan.build(len(names))
    wanted = net.state_dict()
    filled = tuple(key for key in wanted if key.endswith("num_batches_tracked") and key not in tensors)
    tensors |= {key: torch.zeros_like(wanted[key]) for key in filled}
    if wrong := list_misfits(tensors, wanted, used):
        raise UserError(
            f"{file.path} does not fit a RetinaNet of {origin.name}; wrong tensors, {len(wrong)} in all:\n  "
            + "\n  ".join(wrong)
        )
    net.load_state_dict(tensors)
    loss = with_changes(CLASSIC, settings.loss, "loss")
    theirs = ModelSpec(names, settings.preprocess, settings.postprocess, plan, loss=loss)
    ours = replace(
        theirs,
        preprocess=with_changes(settings.preprocess, changes.get("preprocess", {}), "preprocess"),
        postprocess=with_changes(settings.postprocess, changes.get("postprocess", {}), "postprocess"),
    )
    # Compared as the source runs it: what the user changed has no counterpart there.
    parity = compare(theirs, net.eval(), file.tensors, settings.slots) if origin.measured else None
    return Conversion(ours, net.eval(), origin.name, file, used, left_out, filled, settings, parity)


def recognise(file: WeightsFile, name: str | None = None) -> Source:
    """The source of a state dict, by its keys or by name.

    Raises:
        UserError: no such name, or the keys are of another source, or of none that is known.
    """
    names = ", ".join(source.name for source in SOURCES)
    named = [source for source in SOURCES if source.name == name]
    marked = [source for source in SOURCES if file.tensors.keys() >= set(source.marks)]
    if name is not None and not named:
        raise UserError(f"--source {name}: expected one of {names}")
    if named and marked and marked != named:
        raise UserError(f"{file.path}: its keys are those of {marked[0].name}, not of {name}. Leave out --source")
    for source in named or marked:
        return source
    some = ", ".join(list(file.tensors)[:5])
    marks = "; ".join(f"{source.name}: {source.marks[0]}" for source in SOURCES)
    raise UserError(
        f"{file.path}: {len(file.tensors)} tensors ({some}, ...) of no source that is known: expected RetinaNets "
        f"of {names}, which are told by keys such as {marks}"
    )


def name_classes(
    count: int, given: tuple[str, ...], found: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of so many classes: those given, those in the file, COCO's where there are 80, or numbers.

    Returns:
        The names, and a remark for the report where they were assumed.

    Raises:
        UserError: another number of names was given.
    """
    if given:
        if len(given) != count or len(set(given)) != count:
            raise UserError(f"--class_names: the weights have {count} classes, {len(set(given))} different names given")
        return given, ()
    if len(found) == len(set(found)) == count:
        return found, ()
    why = f"the file's {len(set(found))} different names do not fit" if found else "the file names none"
    if count == COCO_CLASSES:
        return tuple(torchvision.coco_slots().values()), (
            f"80 classes, and {why}: COCO's assumed; others with --class_names",
        )
    return tuple(f"class {number}" for number in range(count)), (f"{why}: give them with --class_names",)


def _rename_keys(file: WeightsFile, origin: Source) -> tuple[dict[str, str], dict[str, str]]:
    """Our key -> theirs for what is used, and their key -> the reason for what is left out.

    Raises:
        UserError: keys that are neither known nor known to have no place.
    """
    used: dict[str, str] = {}
    left_out: dict[str, str] = {}
    extra: list[str] = []
    for key, value in file.tensors.items():
        reason = next((why for pattern, why in origin.left_out.items() if re.fullmatch(pattern, key)), None)
        ours = origin.rename(key)
        if reason is not None:
            left_out[key] = reason
        elif ours is not None and ours not in used:
            used[ours] = key
        else:
            extra.append(f"{key} {tuple(value.shape)}")
    if extra:
        raise UserError(
            f"{file.path}: tensors without a place in a RetinaNet of {origin.name}, and nothing is dropped silently; "
            f"{len(extra)} of {len(file.tensors)}:\n  " + "\n  ".join(extra)
        )
    return used, left_out


def to_torchvision_file(weights: str, target: Path, to: str, *, overwrite: bool) -> str:
    """Write a model folder as a state dict for torchvision; returns the report.

    Raises:
        UserError: torchvision has no such detector, or ``target`` cannot be written.
    """
    if to != "torchvision":
        raise UserError(f"--to {to}: models can be written only for torchvision")
    if os.path.isdir(target) or (os.path.exists(target) and not overwrite):
        raise UserError(f"{target} exists already. Name a new file, such as model.pth, or pass --overwrite")
    check_writable(target)
    spec, net = read_model(weights)
    state = torchvision.to_torchvision(spec, net)
    parity = compare(spec, net, state, torchvision.find_slots(spec.class_names))
    write_tensors(target, state)
    lines = [
        f"tensors        {len(state)} written to {target}",
        f"classes        {torchvision.describe_labels(spec.class_names)}",
        f"parity         {parity.summary()}",
        "load it with",
        *(f"    {line}" for line in torchvision.write_instructions(spec, str(target)).splitlines()),
    ]
    return "\n".join(lines)
