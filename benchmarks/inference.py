"""One image of 640 x 640 on the CPU: torchvision's eager RetinaNet against our torch path, OpenVINO and ONNX Runtime.

The network is torchvision's retinanet_resnet50_fpn with 91 classes. Its weights are random; the last layer of the class
subnet is scaled so that a thousandth of the logits pass the score threshold, about as many as in a picture with things
in it. ``convert`` makes a model folder of these weights and the exports are made of that, so that all compute the same.

Timed is what makes detections of an image in memory: for torchvision ``model([image])`` with a float image that its
transform normalises and need not resize; for the others the backend's ``run`` with the same image in uint8, which
pads, normalises, computes the network and does the post-processing. All take turns in one process, which is bound to
so many cores. The share of post-processing is measured inside torch, and with OpenVINO int8 as the time of the whole
graph less that of a graph that ends at the heads, in the same turns.

    python benchmarks/inference.py [--repeats 30] [--threads 2] [--size 640] [--only "OpenVINO int8" ...]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn

from retinanet import convert
from retinanet.data.synthetic import render_scenes
from retinanet.deploy.competitors import TimedPostprocess
from retinanet.deploy.onnx import write_onnx
from retinanet.deploy.openvino import write_openvino
from retinanet.deploy.stopwatch import Seconds, Spread, describe_machine, take_turns
from retinanet.detector import Detector
from retinanet.images.arrays import pad_arrays
from retinanet.images.io import read_pixels
from retinanet.inference.backend import Backend, ExportedModel, count_cores
from retinanet.inference.card import Card
from retinanet.inference.exported import open_exported
from retinanet.inference.torch_backend import TorchBackend

PASSING = 1e-3  # of the logits
PEER = "torchvision fp32"
TARGETS = {  # times as fast as torchvision
    "torch fp32": 1.15,
    "torch bf16": 2.0,
    "OpenVINO fp32": 1.7,
    "OpenVINO bf16": 3.3,
    "OpenVINO int8": 6.0,
    "ONNX Runtime fp32": 1.7,
    "ONNX Runtime int8": None,
}


@dataclass
class Entry:
    """One competitor.

    Attributes:
        call: one image, timed by stage.
        found: detections of it.
    """

    call: Callable[[int], Seconds]
    found: int


@torch.inference_mode()
def peer_model(image: torch.Tensor) -> RetinaNet:
    """Torchvision's model with random weights that find something in an image (3, S, S) float."""
    torch.manual_seed(0)
    size = image.shape[1]
    options = {"weights": None, "weights_backbone": None, "num_classes": 91, "min_size": size, "max_size": size}
    model = retinanet_resnet50_fpn(**options).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.8, 1.2)
    layer = model.head.classification_head.cls_logits
    features = list(model.backbone(model.transform([image])[0].tensors).values())

    def logits() -> torch.Tensor:
        return model.head(features)["cls_logits"].flatten()

    layer.weight.div_(logits().std())
    kept = logits().topk(int(PASSING * logits().numel())).values[-1]
    layer.bias.add_(float(np.log(0.05 / 0.95)) - kept)
    return model


def our_model(model: RetinaNet, size: int, folder: Path) -> Detector:
    """The same weights as a model folder that takes bytes: normalising is part of what is timed, as in torchvision."""
    torch.save(model.state_dict(), folder / "weights.pth")
    changes = {"short": size, "long": size, "compat": {"resampling": "antialiased"}}
    convert(str(folder / "weights.pth"), str(folder / "model"), preprocess=changes)
    return Detector.load(folder / "model")


def graphs(detector: Detector, folder: Path, only: list[str]) -> dict[str, ExportedModel]:
    """The exports that are wanted; those whose name ends in "heads" are without post-processing."""
    data = render_scenes(folder / "scenes", train=24, val=0, test=0)
    images = sorted((data / "train").iterdir())
    made = {}
    wanted = [(name, name, False) for name in only] + [(f"{n} heads", n, True) for n in only if n == "OpenVINO int8"]
    for name, kind, raw in wanted:
        runtime, precision = kind.rsplit(maxsplit=1)
        writer, file = {"OpenVINO": (write_openvino, "model.xml"), "ONNX Runtime": (write_onnx, "model.onnx")}[runtime]
        card = Card(detector.spec, precision=precision, raw=raw)
        path = folder / name.replace(" ", "-") / file
        path.parent.mkdir()
        print(f"writing {name}", flush=True)
        writer(detector, card, path, images, keep_class_output=False)
        made[name] = open_exported(path, raw=raw, trust=True)
    return made


def peer_entry(model: RetinaNet, image: torch.Tensor) -> Entry:
    """Torchvision as its users call it; where its heads are done is noted on the way."""
    marks: dict[str, float] = {}
    model.head.register_forward_hook(lambda *_: marks.update(heads=time.perf_counter()))

    @torch.inference_mode()
    def call(_: int) -> Seconds:
        began = time.perf_counter()
        model([image])
        ended = time.perf_counter()
        return {"all": ended - began, "post": ended - marks["heads"]}

    with torch.inference_mode():
        return Entry(call, len(model([image])[0]["boxes"]))


def our_entry(backend: Backend, pixels: np.ndarray, inner: Mapping[str, float]) -> Entry:
    """A backend; resizing, of which there is none here, would be left out."""
    prepared = backend.prepare(pixels)

    def call(_: int) -> Seconds:
        began = time.perf_counter()
        backend.run([prepared])
        took = time.perf_counter() - began
        return {"all": took, **({"post": inner["postprocess"]} if "postprocess" in inner else {})}

    return Entry(call, len(backend.run([prepared])[0]))


def heads_entry(model: ExportedModel, pixels: np.ndarray) -> Entry:
    """A graph without post-processing."""
    prepared = model.prepare(pixels)

    def call(_: int) -> Seconds:
        began = time.perf_counter()
        model.graph(*pad_arrays(model.spec.preprocess, [prepared.pixels]))
        return {"all": time.perf_counter() - began}

    return Entry(call, 0)


def entries(only: list[str], size: int, folder: Path) -> dict[str, Entry]:
    """All competitors, on one rendered scene of the right size."""
    scene = render_scenes(folder / "image", train=1, val=0, test=0, size=(size, size), seed=1)
    pixels = read_pixels(next((scene / "train").iterdir()))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    model = peer_model(image)
    detector = our_model(model, size, folder)
    found = {PEER: peer_entry(model, image)}
    for name in (name for name in only if name.startswith("torch ")):
        inner: dict[str, float] = {}
        timed = TimedPostprocess(**vars(detector.spec.postprocess), inner=inner)
        backend = TorchBackend(detector.with_spec(postprocess=timed), device="cpu", precision=name.split()[1])
        found[name] = our_entry(backend, pixels, inner)
    exported = [name for name in only if not name.startswith("torch ")]
    for name, graph in graphs(detector, folder, exported).items():
        found[name] = heads_entry(graph, pixels) if name.endswith("heads") else our_entry(graph, pixels, {})
    return found


def report(found: Mapping[str, Entry], taken: Mapping[str, list[Seconds]]) -> None:
    """Medians and quartiles in ms, ratios, targets and the share of post-processing."""
    print(f"{'':<20}{'median':>9}{'quartiles':>19}{'ratio':>8}{'target':>8}{'boxes':>7}{'post, ms':>10}{'share':>8}")
    spreads = {name: Spread.of([1e3 * call["all"] for call in calls]) for name, calls in taken.items()}
    for name, entry in found.items():
        if name.endswith("heads"):
            continue
        own, target = spreads[name], TARGETS.get(name)
        heads = spreads.get(f"{name} heads")
        post = own.median - heads.median if heads else None
        if "post" in taken[name][0]:
            post = Spread.of([1e3 * call["post"] for call in taken[name]]).median
        ratio = spreads[PEER].median / own.median
        text = f"{name:<20}{own.median:>9.1f}{f'{own.low:.1f} to {own.high:.1f}':>19}{ratio:>8.2f}"
        text += f"{target or '':>8}{entry.found:>7}"
        print(text + ("" if post is None else f"{post:>10.2f}{post / own.median:>8.1%}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2, help="cores")
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--only", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="NAME")
    options = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.threads])  # of which the runtimes take all
    torch.set_num_threads(count_cores())
    with tempfile.TemporaryDirectory() as scratch:
        found = entries(options.only, options.size, Path(scratch))
        calls = {name: entry.call for name, entry in found.items()}
        take_turns(calls, 2)  # warm-up
        taken = take_turns(calls, options.repeats)
    print(f"{'; '.join(describe_machine().values())}; {options.repeats} repeats")
    report(found, taken)


if __name__ == "__main__":
    main()
