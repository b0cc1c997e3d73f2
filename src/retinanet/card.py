"""The model card: what the files of a model folder say about the model, as README.md with front matter for a hub.

Nothing is invented: what the files do not say is left out.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from retinanet.errors import UserError
from retinanet.files import write_atomically
from retinanet.plotting.html import Table
from retinanet.spec import CONFIG, TENSORS
from retinanet.types import DEFAULT_THRESHOLD
from retinanet.yaml_files import dump_plain, read_mapping

CARD = "README.md"
OURS = (
    "<!-- retinanet writes this card from the files of the model folder. Without this line it is yours, and stays. -->"
)
REPORTS = {  # files that a card is made from, with entries without which a file is something else
    "evaluation.json": ("ap", "ap50", "ap75", "images", "boxes", "classes"),
    "diagnosis.json": ("errors",),
    "benchmark.json": ("rows",),
}
Values = Mapping[str, Any]


def write_card(
    folder: Path, *, repository: str | None = None, license: str | None = None, reports: Sequence[str] = ()
) -> str:
    """Write the card of a model folder, unless its README.md is somebody's own.

    Args:
        folder: with a ``config.json`` of ours.
        repository: ``owner/name`` on a hub, which the card then shows how to load.
        license: its identifier on the hub, such as ``apache-2.0``; by default the one that the card names already.
        reports: folders with an evaluation.json, diagnosis.json or benchmark.json of this model.

    Returns:
        The text of README.md.

    Raises:
        UserError: a report cannot be used, the README.md is somebody's own and a licence is given, or it cannot be
            written.
    """
    path, there = folder / CARD, ""
    with suppress(OSError, UnicodeDecodeError):
        there = path.read_text(encoding="utf-8")
    if os.path.exists(path) and OURS not in there:
        if license or reports:
            raise UserError(f"{path} is not written by retinanet: write the licence and the results there yourself")
        return there
    known = re.search(r"^license: (\S+)$", there, re.MULTILINE)
    try:
        text = make_card(folder, repository, license or (known[1] if known else None), reports)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"no card can be made of {folder}: an entry of its files is not what it should be ({error})"
        ) from None
    write_atomically(path, text)
    return text


def make_card(folder: Path, repository: str | None, license: str | None, reports: Sequence[str]) -> str:
    """The text of a card; see :func:`write_card`."""
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    found = [(Path(place), _read_reports(Path(place), folder, config, repository)) for place in reports]
    for place, report in found:
        if not report:
            raise UserError(f"--reports {place}: expected a folder with {', '.join(REPORTS)}")
    known = [_read_reports(folder, folder, config, repository), *(report for _, report in found)]
    measured = [report["evaluation.json"] for report in known if "evaluation.json" in report]
    name = (repository or folder.resolve().name).rpartition("/")[2]
    parts = [
        f"---\n{dump_plain(_front_matter(name, license, measured))}---\n{OURS}",
        f"# {_text(name)}",
        _describe_model(config),
        _describe_use(repository or folder.resolve().name, bool(repository)),
        _describe_precision(config, measured),
        _describe_thresholds(config, measured),
        *(_describe_calibration(report["diagnosis.json"]) for report in known if "diagnosis.json" in report),
        *(_describe_speed(report["benchmark.json"]) for report in known if "benchmark.json" in report),
        _describe_training(folder, config),
        _describe_data(config),
        _describe_plan(config),
        f"## Licence\n\n`{license}`, as the owner of the model states." if license else "",
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _read_reports(place: Path, folder: Path, config: Values, repository: str | None) -> dict[str, Values]:
    """The reports in a folder that are about this model; in the model's own folder others are passed over.

    Raises:
        UserError: a report elsewhere is about another model.
    """
    reports: dict[str, Values] = {}
    for name, needed in REPORTS.items():
        values: Any = None
        with suppress(OSError, ValueError, RecursionError):
            values = json.loads((place / name).read_text(encoding="utf-8"))
        if not isinstance(values, Mapping) or any(values.get(entry) is None for entry in needed):
            continue
        about = values.get("about") or {}
        if "run" in about:  # of the training: of this model as long as the numbers are its own
            same, model = values["ap"] == (config.get("metrics") or {}).get("AP"), "another model"
        else:
            words = shlex.split(str(about.get("command", "")))
            model = str(about.get("model") or "".join(words[2:3]))
            same = os.path.realpath(model) == os.path.realpath(folder) or model == repository
        if same:
            reports[name] = values
        elif place != folder:
            raise UserError(f"--reports {place / name} is about {model}, not about {folder}")
    return reports


def _front_matter(name: str, license: str | None, measured: Sequence[Values]) -> dict[str, Any]:
    """What a hub reads; https://huggingface.co/docs/hub/model-cards has the names."""
    tags = ["object-detection", "retinanet"]
    front = {"library_name": "retinanet", "pipeline_tag": "object-detection", "tags": tags}
    results = []
    for values in measured:
        kinds = {"map": ("AP, IoU 0.50 to 0.95", "ap"), "map_50": ("AP50", "ap50"), "map_75": ("AP75", "ap75")}
        data, task = _name_data(values), {"type": "object-detection", "name": "Object detection"}
        metrics = [{"type": kind, "name": text, "value": values[key]} for kind, (text, key) in kinds.items()]
        results.append({"task": task, "dataset": {"type": data.partition(" ")[0], "name": data}, "metrics": metrics})
    return {
        **({"license": license} if license else {}),
        **front,
        **({"model-index": [{"name": name, "results": results}]} if results else {}),
    }


def _describe_model(config: Values) -> str:
    names, size, tiling = config["class_names"], config["preprocess"], config.get("tiling")
    shown = ", ".join(map(_text, names[:20])) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    view = f"images of {size['short']} to {size['long']} pixels"
    if tiling:
        view = f"windows of {tiling['tile']} pixels, shown at {size['short']}; larger images are cut into them"
    return (
        f"A RetinaNet ([Lin et al. 2017](https://arxiv.org/abs/1708.02002)) that finds objects of "
        f"{len(names)} {'class' if len(names) == 1 else 'classes'} in images: {shown}. Its backbone is "
        f"`{config['architecture']['backbone']}`; it sees {view}, and reports at most "
        f"{config['postprocess']['max_detections']} objects of {'a window' if tiling else 'an image'}. The files are "
        f"`{CONFIG}` and `{TENSORS}`; they hold no code. They were written by retinanet {config['library_version']}."
    )


def _describe_use(name: str, on_hub: bool) -> str:
    where = "" if on_hub else f" `{name}` is this folder."
    pin = f" `{name}@REVISION` is a fixed state of it, by a tag or a commit." if on_hub else ""
    return (
        f"## Use\n\nWith the Python package `retinanet`.{where}{pin}\n\n```python\nfrom retinanet import Predictor\n\n"
        f"predictor = Predictor.load({json.dumps(name)})\n"
        'detections = predictor("image.jpg").above(predictor.thresholds)  # boxes, scores, labels, class names\n```\n\n'
        f"```\nretinanet predict {shlex.quote(name)} image.jpg --output out\n```"
    )


def _describe_precision(config: Values, measured: Sequence[Values]) -> str:
    columns = ("Measured on", "Images", "Objects", "AP", "AP50", "AP75")
    rows = [
        (_text(_name_data(one)), one["images"], one["boxes"], one["ap"], one["ap50"], one["ap75"]) for one in measured
    ]
    metrics = config.get("metrics") or {}
    if not rows and metrics.get("AP") is not None:
        rows = [(_text(metrics.get("data", "")), None, None, metrics["AP"], metrics.get("AP50"), None)]
    if not rows:
        return ""
    note = "AP is that of COCO: the mean over classes and over IoU 0.50 to 0.95."
    if rows and (not measured or any("run" in (one.get("about") or {}) for one in measured)):
        note += f" By {rows[0][0]} the epoch was chosen, which may make its AP a little too good."
    return f"## Average precision\n\n{Table(columns, rows, note).to_markdown()}"


def _describe_thresholds(config: Values, measured: Sequence[Values]) -> str:
    """The classes, with AP of the last evaluation and the score from which on they are shown."""
    stored = config.get("thresholds") or {}
    ap = {row["name"]: row for row in measured[-1]["classes"]} if measured else {}
    rows = [
        (_text(name), ap.get(name, {}).get("boxes"), ap.get(name, {}).get("ap"), stored.get(name, DEFAULT_THRESHOLD))
        for name in config["class_names"]
    ]
    note = "`predict` shows a detection from that score on."
    if missing := [_text(name) for name in config["class_names"] if name not in stored]:
        which = "of every class" if not stored else f"of {', '.join(missing)}"
        note += f" That {which} is the default, {DEFAULT_THRESHOLD}, which nobody measured."
    where = f" on {_text(_name_data(measured[-1]))}" if measured else ""
    columns = ("Class", f"Objects{where}", f"AP{where}", "Shown from")
    return f"## Classes and thresholds\n\n{Table(columns, rows, note).to_markdown()}"


def _describe_calibration(values: Values) -> str:
    overall = ((values["errors"].get("calibration") or {}).get("overall")) or {}
    if overall.get("ece") is None or overall.get("bias") is None:
        return ""
    side = "above" if overall["bias"] >= 0 else "below"
    return (
        f"## Calibration\n\nOn {_text(_name_data(values))} the expected calibration error of the scores is "
        f"{overall['ece']:.3f}; they lie {abs(overall['bias']):.3f} {side} the share of detections that is right on "
        "average."
    )


def _describe_speed(values: Values) -> str:
    columns = ("Run as", "AP", "One image, ms", "Images/s", "Memory, MB", "Files, MB")
    rows = []
    for row in values["rows"]:
        milliseconds, megabytes = row["latency"]["median"] * 1e3, row["size"] / 1e6
        rows.append((row["name"], row["ap"], milliseconds, row["images_per_second"], row["memory"], megabytes))
    about = values.get("about") or {}
    machine = "; ".join(str(about[key]) for key in ("machine", "versions", "date") if key in about)
    return f"## Speed\n\n{Table(columns, rows, _text(machine), (0, 4, 1, 1, 0, 1)).to_markdown()}"


def _describe_training(folder: Path, config: Values) -> str:
    """The main options of the run, whose folder this is."""
    options: Values = {}
    with suppress(UserError):
        options = read_mapping(folder / "config.yaml")
    names = ("model", "recipe", "epochs", "batch_size", "seed")
    said = [f"{name} {_text(Path(str(options[name])).name)}" for name in names if options.get(name) is not None]
    if not said:
        return ""
    epoch = (config.get("metrics") or {}).get("epoch")
    best = f"; the weights are those after epoch {epoch}" if epoch else ""
    return f"## Training\n\nOne training with one seed: {', '.join(said)}{best}."


def _describe_data(config: Values) -> str:
    data = config.get("data") or {}
    facts = data.get("fingerprint") or {}
    if not facts:
        return ""
    count = sum(facts["classes"].values())
    lines = [
        f"* trained on {_text(data['train'])}: {facts['images']:,} images, {count:,} objects",
        f"* chosen by {_text(data['validation'])}: {facts['val_images']:,} images",
        *(f"* {_text(name)}: {boxes:,} objects to train on" for name, boxes in facts["classes"].items()),
    ]
    for title, key in (
        ("short side of images", "short"),
        ("side of objects", "side"),
        ("objects of an image", "objects"),
    ):
        spread = facts[key]
        lines.append(f"* {title}: {spread['median']:.4g}, for most {spread['low']:.4g} to {spread['high']:.4g}")
    if facts.get("copies"):
        lines.append(f"* {facts['copies']:,} validation images are copies of training images")
    lines.append(f"* SHA-256 of the names, sizes and annotations: `{data['sha256']}`")
    return "## Data\n\n" + "\n".join(lines)


def _describe_plan(config: Values) -> str:
    plan = config.get("plan") or {}
    rows = [
        (name, _text(json.dumps(choice["value"], ensure_ascii=False)), _text(choice["reason"]))
        for name, choice in plan.items()
        if isinstance(choice, Mapping) and {"value", "reason"} <= choice.keys()
    ]
    return f"## Plan\n\n{Table(('Option', 'Value', 'Why'), rows).to_markdown()}" if rows else ""


def _name_data(values: Values) -> str:
    """The data of a report, without the folders of the machine that it was made on."""
    about = values.get("about") or {}
    name = os.path.basename(str(about.get("data", "")).rstrip("/\\"))
    return f"{name} {about.get('split', '')}".strip()


def _text(value: object) -> str:
    """A text in which Markdown sees nothing but letters; Table takes care of ``|``."""
    return re.sub(r"([\\`*_\[\]<>#~])", r"\\\1", " ".join(str(value).split()))
