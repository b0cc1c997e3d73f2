"""The tables and the figure of the paper on your data: is focal loss what makes one stage good enough?

    python benchmarks/paper.py TABLE DATA BACKBONE.safetensors [--seeds 0 1 2] [--short 384] [--long 512]
        [--epochs 12] [--model lite] [--parts 0.5 0.75 1] [--output runs/paper]

TABLE is 1a (cross entropy, balanced by alpha), 1b (focal loss for several gamma, each with the paper's best alpha), 1c
(scales and ratios of the anchors), 1d (online hard example mining) or 2 (figure 2: AP against time for torchvision's
detectors and ours, at three sizes of images, parts of the sides). Figure 4 is in the report of ``retinanet diagnose``.

Matching, box loss, post-processing and, except in 1c, anchors are the paper's in the tables 1; the optimiser and its
schedule are those of the default recipe, the same in every row. DATA has a split ``test`` and one of ``trainval`` and
``train``, BACKBONE the ImageNet weights of timm's tf_efficientnet_lite0. A run that is complete is not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from peers import Schedule, build_peer, run_peer
from retinanet import Predictor, load_dataset
from retinanet.deploy.measure import describe_machine, time_in_turns
from retinanet.images.preprocess import Preprocess
from retinanet.losses.config import CLASSIC, LossConfig
from retinanet.model.backbone import Backbone
from retinanet.model.presets import preset
from retinanet.training.config import PostprocessConfig
from settings import Setting

PAPER = replace(CLASSIC, forced="off")
ALPHAS = (None, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
GAMMAS = ((0.0, 0.75), (0.1, 0.75), (0.2, 0.75), (0.5, 0.5), (1.0, 0.25), (2.0, 0.25), (5.0, 0.25))
ANCHORS = ((1, 1), (2, 1), (3, 1), (1, 3), (2, 3), (3, 3), (4, 3))  # scales and ratios
PEERS = {"fasterrcnn": "Faster R-CNN", "retinanet": "torchvision's RetinaNet", "fcos": "FCOS", "ssd": "SSD"}


def _row(loss: LossConfig = PAPER, **options: Any) -> dict[str, Any]:
    """The paper's loss, and boxes of detections that are their own."""
    return {"loss": loss, "postprocess": PostprocessConfig(vote=0.0), **options}


def _lattice(scales: int, ratios: int) -> dict[str, Any]:
    """The paper's anchors of so many scales and ratios; four scales are quarters of an octave."""
    parts = max(scales, 3)
    chosen = {"scales": [2 ** (k / parts) for k in range(scales)], "ratios": [0.5, 1.0, 2.0] if ratios == 3 else [1.0]}
    return _row(architecture={"anchors": chosen})


def _mined(batch: int, nms: float, ratio: float | None = None) -> dict[str, Any]:
    mining = {"ohem_batch": batch, "ohem_nms": nms, "ohem_ratio": ratio}
    return _row(loss=replace(PAPER, classification="ohem", **mining))


TABLES: dict[str, dict[str, dict[str, Any]]] = {
    "1a": {f"alpha {alpha}": _row(replace(PAPER, gamma=0.0, alpha=alpha)) for alpha in ALPHAS},
    "1b": {f"gamma {gamma:g} alpha {a}": _row(replace(PAPER, gamma=gamma, alpha=a)) for gamma, a in GAMMAS},
    "1c": {f"{scales} scales {ratios} ratios": _lattice(scales, ratios) for scales, ratios in ANCHORS},
    "1d": {
        **{f"OHEM {batch} nms {nms}": _mined(batch, nms) for nms in (0.7, 0.5) for batch in (128, 256, 512)},
        **{f"OHEM 1:3 {batch} nms 0.5": _mined(batch, 0.5, 3.0) for batch in (128, 256, 512)},
        "focal": _row(),
    },
}


def draw_curve(setting: Setting, peers: list[str], parts: list[float]) -> None:
    """Figure 2: train everything at each size, time all of a size in turns, and draw AP against milliseconds."""
    backbone = preset(setting.model).backbone
    plain = Backbone(name=backbone)
    train_split, test_split = setting.splits
    first = load_dataset(setting.data, train_split)
    sets = (first, load_dataset(setting.data, test_split, class_names=first.class_names))
    image = sets[1][0].image
    assert image is not None
    points: dict[str, list[tuple[float, float]]] = {}
    for part in parts:
        size = replace(setting, short=round(setting.short * part), long=round(setting.long * part))
        preprocess = Preprocess(short=size.short, long=size.long, mean=plain.mean, std=plain.std)
        steps: dict[str, Callable[[], Any]] = {}
        scores: dict[str, list[float]] = {}
        for seed in setting.seeds:
            scores.setdefault("ours", []).append(size.measure("default", seed, {})["AP"])
            for kind in peers:
                folder = size.folder(kind, seed)
                how = Schedule(epochs=size.epochs, seed=seed)
                values = run_peer(kind, sets, backbone, setting.backbone, preprocess, how, folder)
                scores.setdefault(PEERS[kind], []).append(values["AP"])
        for kind in peers:
            model = build_peer(kind, len(first.class_names), backbone, setting.backbone, preprocess).eval()
            trained = size.folder(kind, setting.seeds[0]) / "model.pt"
            model.load_state_dict(torch.load(trained, weights_only=True))
            steps[PEERS[kind]] = _detector_of(model.to(memory_format=torch.channels_last), image, preprocess)
        predictor = Predictor.load(size.folder("default", setting.seeds[0]) / "last")
        steps["ours"] = lambda predictor=predictor: predictor(image)
        times = time_in_turns(steps, 15)
        for name, values in scores.items():
            points.setdefault(name, []).append((1000 * times[name].median, sum(values) / len(values)))
        print(json.dumps({"short": size.short, **{name: points[name][-1] for name in points}}), flush=True)
    _save_figure(points, setting.output / f"{setting.data.name}-figure2.png")
    print(describe_machine())


def _detector_of(model: torch.nn.Module, image: torch.Tensor, preprocess: Preprocess) -> Callable[[], Any]:
    """From the pixels of the file to detections, as our predictor goes."""

    def detect() -> Any:
        with torch.inference_mode():
            return model([preprocess.resize(image).float() / 255])

    return detect


def _save_figure(points: dict[str, list[tuple[float, float]]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for name, curve in points.items():
        axes.plot(*zip(*curve, strict=True), marker="o", label=name, linewidth=2 if name == "ours" else 1)
    axes.set(xlabel="milliseconds per image on this CPU", ylabel="AP")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("table", choices=[*TABLES, "2"])
    Setting.add_arguments(parser, "runs/paper")
    parser.add_argument("--peers", nargs="+", default=list(PEERS), choices=PEERS, metavar="PEER", help="of figure 2")
    parser.add_argument("--parts", type=float, nargs="+", default=[0.5, 0.75, 1.0], help="sizes of figure 2")
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="of the table, by default all")
    options = parser.parse_args()
    setting = Setting.of(options)
    if options.table == "2":
        draw_curve(setting, options.peers, options.parts)
        return
    rows = TABLES[options.table]
    if unknown := set(options.rows or ()) - set(rows):
        raise SystemExit(f"table {options.table} has no row {unknown.pop()!r}; its rows: {', '.join(map(repr, rows))}")
    setting.measure_all({name: rows[name] for name in options.rows or rows})


if __name__ == "__main__":
    main()
