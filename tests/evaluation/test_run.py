"""``evaluate`` against its parts, put together by hand."""

import json

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.data.dataset import load_dataset
from retinanet.data.loader import evaluation_batches
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.evaluate import evaluate, one_pass
from retinanet.inference.predictor import Predictor
from retinanet.losses.config import LossConfig
from retinanet.losses.detection import DetectionLoss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def report(trained, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    return evaluate(trained, data, split="test", output=folder, batch_size=2, device="cpu"), folder


def test_the_metrics_are_those_of_the_predictor(report, trained, data):
    result, _ = report
    dataset = load_dataset(data, "test")
    detections = Predictor.load(trained, device="cpu", batch_size=2)([sample.path for sample in dataset.samples])
    wanted = coco_metrics(dataset.samples, detections, dataset.class_names, category_ids=dataset.category_ids)
    assert result.metrics.detections == wanted.detections == 60 and result.metrics.images == 3
    assert result.metrics.ap == pytest.approx(wanted.ap, abs=1e-9)
    assert result.metrics.ar == pytest.approx(wanted.ar, abs=1e-9)
    assert result.metrics.ignored == 1  # the crowd
    assert result.images_per_second > 0 and result.about["split"] == "test" and result.about["device"] == "cpu"


def test_the_loss_is_that_of_the_whole_set_at_once(report, trained, data):
    """All images are of one size, so one batch holds them all with the same padding."""
    result, _ = report
    detector = Detector.load(trained)
    dataset = load_dataset(data, "test")
    ((_, batch),) = evaluation_batches(dataset, preprocess=detector.spec.preprocess, batch_size=3, indices=range(3))
    with torch.no_grad():
        losses = LossConfig().build()(detector.raw(batch), batch.targets)
    assert losses.positives > 0
    assert result.loss["classification"] == pytest.approx(float(losses.classification), rel=1e-5)
    assert result.loss["box"] == pytest.approx(float(losses.box), rel=1e-5)
    assert result.loss["total"] == pytest.approx(float(losses.total), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_loss_that_is_normalised_by_image(trained, data, batch_size):
    """However the set is cut into batches, each image's loss is divided by its own positives, and all are averaged."""
    detector, dataset = Detector.load(trained), load_dataset(data, "test")
    criterion = DetectionLoss(normaliser="image")
    found = one_pass(detector, dataset, device=CPU, criterion=criterion, batch_size=batch_size).loss
    ((_, batch),) = evaluation_batches(dataset, preprocess=detector.spec.preprocess, batch_size=3, indices=range(3))
    with torch.no_grad():
        losses = criterion(detector.raw(batch), batch.targets)
    assert found["classification"] == pytest.approx(float(losses.classification), rel=1e-5)
    assert found["box"] == pytest.approx(float(losses.box), rel=1e-5)


def test_the_files_hold_what_was_returned(report, data, capsys):
    result, folder = report
    written = json.loads((folder / "evaluation.json").read_text())
    assert written["ap"] == result.metrics.ap and written["loss"] == dict(result.loss)
    truth = COCO(str(data / "annotations" / "instances_test.json"))
    found = truth.loadRes(str(folder / "predictions.json"))
    assert {row["category_id"] for row in found.dataset["annotations"]} <= {3, 7}
    assert {row["image_id"] for row in found.dataset["annotations"]} == {10, 11, 12}
    judge = COCOeval(truth, found, "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[0] == pytest.approx(result.metrics.ap, abs=1e-9)
    assert judge.stats[8] == pytest.approx(result.metrics.ar[100], abs=1e-9)


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_batches_change_nothing(report, trained, data, batch_size):
    result, _ = report
    other = evaluate(trained, data, split="test", batch_size=batch_size, device="cpu")
    assert other.loss == pytest.approx(dict(result.loss), rel=1e-4)
    assert other.metrics.detections == result.metrics.detections


def test_detections_keep_the_order_of_the_data_set(trained, data):
    detector, dataset = Detector.load(trained), load_dataset(data, "train")
    turned = dataset.subset(range(len(dataset))[::-1], "turned")
    one, two = (one_pass(detector, each, device=CPU, batch_size=4) for each in (dataset, turned))
    for first, second in zip(one.detections, two.detections[::-1], strict=True):
        torch.testing.assert_close(first.scores, second.scores, rtol=1e-4, atol=1e-7)
    assert one.loss == pytest.approx(dict(two.loss), rel=1e-4)


def test_the_criterion_of_the_training_can_be_asked_for(trained, data):
    detector, dataset = Detector.load(trained), load_dataset(data, "val")
    paper = one_pass(detector, dataset, device=CPU, criterion=DetectionLoss()).loss
    doubled = one_pass(detector, dataset, device=CPU, criterion=DetectionLoss(box_weight=2.0)).loss
    assert doubled["box"] == pytest.approx(2 * paper["box"], rel=1e-5)
    assert doubled["total"] == pytest.approx(paper["classification"] + 2 * paper["box"], rel=1e-5)


def test_a_set_without_objects_has_a_loss_and_no_ap(trained, data):
    detector, dataset = Detector.load(trained), load_dataset(data, "val").subset([1], "empty")
    result = one_pass(detector, dataset, device=CPU)
    assert result.loss["box"] == 0 and result.loss["classification"] > 0 and len(result.detections[0]) == 20


def test_an_object_of_a_class_that_the_model_does_not_know(trained, data_copy):
    file = data_copy / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    content["categories"].append({"id": 9, "name": "ring"})
    file.write_text(json.dumps(content))
    evaluate(trained, data_copy, device="cpu")  # declared, but there is none
    content["annotations"][2]["category_id"] = 9
    file.write_text(json.dumps(content))
    with pytest.raises(
        UserError,
        match=r"annotation 3: the model does not know the class 'ring' \(it knows disc",
    ):
        evaluate(trained, data_copy, device="cpu")


def test_labels_go_by_the_names_of_the_model(trained, data_copy, report):
    """The same classes declared in another order are the same classes."""
    file = data_copy / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    content["categories"] = [{"id": 1, "name": "square"}, {"id": 2, "name": "disc"}]
    for entry in content["annotations"]:
        entry["category_id"] = {3: 2, 7: 1}[entry["category_id"]]
    file.write_text(json.dumps(content))
    other = evaluate(trained, data_copy, device="cpu", batch_size=2)
    assert other.metrics.ap == pytest.approx(report[0].metrics.ap, abs=1e-9)
    assert other.loss == pytest.approx(dict(report[0].loss), rel=1e-6)


def test_results_are_not_overwritten_unasked(report, trained, data, tmp_path):
    _, folder = report
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for output in (folder, trained):  # the folder of a run holds the evaluation of the run
        with pytest.raises(UserError, match=r"holds results already.*--overwrite"):
            evaluate(trained, data, output=output, device="cpu")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    evaluate(trained, data, split="val", output=folder, device="cpu", overwrite=True)
    assert json.loads((folder / "evaluation.json").read_text())["about"]["split"] == "val"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file is a file"):
        evaluate(trained, data, output=tmp_path / "file", device="cpu")
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"split": "minitest"}, "no split 'minitest'"),
        ({"batch_size": 0}, "batch_size >= 1"),
        ({"workers": -1}, "workers >= 0"),
        ({"device": "abacus"}, "device 'abacus' cannot be used"),
    ],
)
def test_mistakes_are_told(trained, data, options, words):
    with pytest.raises(UserError, match=words):
        evaluate(trained, data, **{"device": "cpu", **options})
