"""``convert``: weights of an older code base -> a model folder, or back, with a report of all that was done."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from retinanet.data.files import read_text
from retinanet.errors import UserError
from retinanet.files import write_tensors
from retinanet.interop import detectron2, mmdetection, odtk, torchvision, yhenon
from retinanet.interop.conversion import Conversion, check_writable, save_conversion
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
    done = convert_weights(file, source=source, class_names=_names(class_names), changes=changes)
    save_conversion(done, target)
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
    tensors, used, left_out = _rename_tensors(file, origin)
    facts = read_architecture(tensors)
    settings = origin.settings(file, tensors, tuple(class_names))
    plan = Architecture(norm="frozen", anchors=settings.lattice, coder=settings.coder, **facts, **settings.architecture)
    plan = with_changes(plan, changes.get("architecture", {}), "architecture")
    order = order_anchors(plan.anchors, scale_major=settings.scale_major, ratio_order=settings.ratio_order)
    check_anchors(tensors, plan.anchors, order, settings.templates)
    slots = count_slots(tensors)
    tensors = reorder_outputs(tensors, order, slots, settings.slots)
    count = slots if settings.slots is None else len(settings.slots)
    names, assumed = name_classes(count, tuple(class_names), settings.class_names)
    settings = replace(settings, remarks=settings.remarks + assumed)
    net = plan.build(len(names))
    filled = _load(net, tensors, used, file, origin)
    theirs = ModelSpec(names, settings.preprocess, settings.postprocess, plan)
    ours = replace(
        theirs,
        preprocess=with_changes(settings.preprocess, changes.get("preprocess", {}), "preprocess"),
        postprocess=with_changes(settings.postprocess, changes.get("postprocess", {}), "postprocess"),
    )
    # Compared as the source runs it: what the user changed has no counterpart there.
    parity = compare(theirs, net.eval(), file, settings.slots) if origin.measured else None
    return Conversion(ours, net.eval(), origin.name, file, used, left_out, filled, settings, parity)


def recognise(file: WeightsFile, name: str | None = None) -> Source:
    """The source of a state dict, by its keys or by name.

    Raises:
        UserError: no such name, or the keys are of no source that is known.
    """
    names = ", ".join(source.name for source in SOURCES)
    if name is not None:
        for source in SOURCES:
            if source.name == name:
                return source
        raise UserError(f"--source {name}: expected one of {names}")
    for source in SOURCES:
        if all(mark in file.tensors for mark in source.marks):
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


def _rename_tensors(file: WeightsFile, origin: Source) -> tuple[dict[str, Tensor], dict[str, str], dict[str, str]]:
    """Tensors under our names, our key -> theirs, and what is left out with the reason.

    Raises:
        UserError: keys that are neither known nor known to have no place.
    """
    tensors: dict[str, Tensor] = {}
    used: dict[str, str] = {}
    left_out: dict[str, str] = {}
    extra: list[str] = []
    for key, value in file.tensors.items():
        reason = next((why for pattern, why in origin.left_out.items() if re.fullmatch(pattern, key)), None)
        ours = origin.rename(key)
        if reason is not None:
            left_out[key] = reason
        elif ours is not None and ours not in tensors:
            tensors[ours], used[ours] = value, key
        else:
            extra.append(f"{key} {tuple(value.shape)}")
    others = [source.name for source in SOURCES if source is not origin and set(source.marks) <= file.tensors.keys()]
    if others:
        raise UserError(f"{file.path}: its keys are those of {others[0]}, not of {origin.name}. Leave out --source")
    if extra:
        raise UserError(
            f"{file.path}: tensors without a place in a RetinaNet of {origin.name}, and nothing is dropped silently; "
            f"{len(extra)} of {len(file.tensors)}:\n  " + "\n  ".join(extra)
        )
    return tensors, used, left_out


def _load(
    net: torch.nn.Module, tensors: Mapping[str, Tensor], used: Mapping[str, str], file: WeightsFile, origin: Source
) -> tuple[str, ...]:
    """Load every tensor; returns the counters that the source does not have.

    Raises:
        UserError: one is missing, extra or of another shape; all are listed.
    """
    wanted = net.state_dict()
    counters = tuple(key for key in wanted if key.endswith("num_batches_tracked") and key not in tensors)
    wrong = [f"{key}: missing" for key in wanted if key not in tensors and key not in counters]
    wrong += [f"{used[key]}: no place in the network" for key in tensors if key not in wanted]
    wrong += [
        f"{used[key]}: shape {tuple(tensors[key].shape)}, expected {tuple(wanted[key].shape)}"
        for key in wanted
        if key in tensors and tensors[key].shape != wanted[key].shape
    ]
    if wrong:
        raise UserError(
            f"{file.path} does not fit a RetinaNet of {origin.name}; wrong tensors, {len(wrong)} in all:\n  "
            + "\n  ".join(wrong)
        )
    net.load_state_dict({**tensors, **{key: torch.zeros_like(wanted[key]) for key in counters}})
    return counters


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
    # Counted again as torchvision's loader will see it; its path is only for messages.
    parity = compare(spec, net, WeightsFile(target, state, {}, "", ()), torchvision.find_slots(spec.class_names))
    write_tensors(target, state)
    return "\n".join(
        [
            f"tensors        {len(state)} written to {target}",
            f"classes        {torchvision.describe_labels(spec.class_names)}",
            f"parity         {parity.summary()}",
            "load it with",
            *(f"    {line}" for line in torchvision.write_instructions(spec, str(target)).splitlines()),
        ]
    )


def _names(given: str | None) -> tuple[str, ...]:
    """Names with commas between, or the lines of a file."""
    if given is None:
        return ()
    names = read_text(Path(given)).splitlines() if os.path.isfile(given) else given.split(",")
    return tuple(name.strip() for name in names if name.strip())
