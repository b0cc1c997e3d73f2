"""Images of several sizes: no batch size, and no other way to run a model, changes what is found in any of them.

Bit for bit it cannot be: torch chooses its convolution kernels by the size of the batch. Boxes agree to a hundredth of
a pixel and scores to 1e-5; padding for a larger neighbour moves scores a thousand times as far.
"""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from retinanet.data.dataset import load_dataset
from retinanet.data.painting import paint
from retinanet.data.scenes import plan_scene
from retinanet.detector import Detector
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.evaluate import evaluate, one_pass
from retinanet.inference.predictor import Predictor
from retinanet.inference.torch_backend import TorchBackend
from retinanet.training import loop
from retinanet.training.log import RunLog

CPU = torch.device("cpu")
SIZES = ((64, 80), (96, 64), (64, 96), (90, 64), (64, 80), (64, 75), (128, 64), (64, 128), (70, 100))


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    """The tiny model, with heads that tell places apart: after two epochs its scores are nearly all the same."""
    folder = tmp_path_factory.mktemp("model")
    detector = Detector.load(trained)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for layer in (detector.net.heads.cls.output, detector.net.heads.box.output):
            spread = torch.randn(layer.weight.shape, generator=generator)
            layer.weight.copy_(spread * (5 if layer.out_channels % 4 else 0.5))
    detector = detector.with_spec(preprocess=replace(detector.spec.preprocess, long=160))
    detector.save(folder)
    return folder


@pytest.fixture(scope="module")
def mixed(model, tmp_path_factory):
    """Rendered scenes of several sizes, annotated with the best detections of the model, image by image."""
    folder = tmp_path_factory.mktemp("mixed")
    predictor = Predictor.load(model, device="cpu")
    images, annotations = [], []
    for index, size in enumerate(SIZES):
        picture = paint(plan_scene(0, "test", index, (128, 128))).crop((0, 0, size[1], size[0]))
        picture.save(folder / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "height": size[0], "width": size[1]})
        for row in predictor(folder / f"{index}.png").to_coco(index)[:6]:
            area = row["bbox"][2] * row["bbox"][3]
            annotations.append({**row, "id": len(annotations) + 1, "area": area, "iscrowd": 0})
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(predictor.class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


def one_by_one(detector, dataset):
    predictor = Predictor(TorchBackend(detector, device="cpu"), batch_size=1)
    return [predictor(sample.path) for sample in dataset.samples]


def assert_alike(found, wanted):
    for one, two in zip(found, wanted, strict=True):
        assert len(two) > 5 and one.labels.tolist() == two.labels.tolist()
        torch.testing.assert_close(one.scores, two.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(one.boxes, two.boxes, rtol=0, atol=0.01)


def test_the_sizes_are_mixed(model, mixed):
    """Some need more padding than others, and some have the same input but other content."""
    rule = Detector.load(model).spec.preprocess
    content = [rule.size(*sample.size) for sample in load_dataset(mixed).samples]
    assert len(set(content)) > len({rule.padded(*size) for size in content}) > 2


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_an_evaluation_finds_what_prediction_finds(model, mixed, batch_size):
    detector, dataset = Detector.load(model), load_dataset(mixed)
    wanted = one_by_one(detector, dataset)
    found = one_pass(detector, dataset, device=CPU, batch_size=batch_size).detections
    assert_alike(found, wanted)
    ap = coco_metrics(dataset.samples, wanted, dataset.class_names).ap
    measured = evaluate(model, mixed, split=None, device="cpu", batch_size=batch_size).metrics.ap
    assert ap > 0.3 and measured == pytest.approx(ap, abs=1e-9)
    streamed = Predictor(TorchBackend(detector, device="cpu"), batch_size=batch_size)
    assert_alike(list(streamed.stream([sample.path for sample in dataset.samples])), wanted)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_validation_in_training_finds_what_prediction_finds(assembled, model, mixed, batch_size):
    training, detector = assembled(batch_size=batch_size, optim={"ema": 0.0}), Detector.load(model)
    training.detector.net.load_state_dict(detector.net.state_dict())
    training.detector = training.detector.with_spec(preprocess=detector.spec.preprocess)
    dataset = training.val_set = load_dataset(mixed)
    wanted = one_by_one(detector, dataset)
    report, found = loop._evaluate(training, RunLog(training.config.folder, total=1))
    assert_alike(found, wanted)
    assert report.metrics.ap == pytest.approx(coco_metrics(dataset.samples, wanted, dataset.class_names).ap, abs=1e-9)


def test_a_watcher_is_told_which_images_it_sees(model, mixed):
    dataset, seen = load_dataset(mixed), []

    def watch(indices, raw, batch, assignment):
        assert [sample.image_id for sample in batch.samples] == [dataset.samples[index].image_id for index in indices]
        seen.extend(indices)

    one_pass(Detector.load(model), dataset, device=CPU, batch_size=3, watch=watch)
    assert sorted(seen) == list(range(len(dataset))) != seen


def test_processes_that_share_the_images_find_the_same(model, mixed, monkeypatch):
    """Two threads stand for two processes; images of one size go to both, so that each has batches of its own."""
    dataset, ranks, meet, shares = load_dataset(mixed), threading.local(), threading.Barrier(2, timeout=60), {}

    def gather(parts, mine):
        shares[ranks.rank] = mine
        meet.wait()
        parts[:] = [shares[0], shares[1]]

    def evaluate_share(rank):
        ranks.rank = rank
        return one_pass(Detector.load(model), dataset, device=CPU, batch_size=3)

    alone = one_pass(Detector.load(model), dataset, device=CPU, batch_size=3)
    for name, fake in {
        "is_initialized": lambda: True,
        "get_rank": lambda: ranks.rank,
        "get_world_size": lambda: 2,
        "all_gather_object": gather,
    }.items():
        monkeypatch.setattr(torch.distributed, name, fake)
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(evaluate_share, range(2)))
    assert len(shares[0][0]) == 5 and len(shares[1][0]) == 4
    for result in results:
        assert_alike(result.detections, alone.detections)
        assert result.loss == pytest.approx(dict(alone.loss), rel=1e-5)
