"""``diagnose``: the parts agree with each other and with ``evaluate``, and thresholds reach ``predict``."""

import json
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from retinanet import diagnose, evaluate
from retinanet.analysis.diagnose import _criterion_of_training
from retinanet.anchors.atss import ATSS
from retinanet.cli.main import main
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.losses.config import LossConfig
from retinanet.spec import ModelSpec


@pytest.fixture(scope="module")
def diagnosed(trained, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnosed")
    return diagnose(str(trained), str(data), split="test", output=str(folder), batch_size=2, device="cpu"), folder


def test_the_parts_agree(diagnosed, trained, data):
    result, _ = diagnosed
    report = evaluate(trained, data, split="test", batch_size=2, device="cpu")
    objects = report.metrics.boxes if hasattr(report.metrics, "boxes") else None
    assert result.errors.errors.ap50 == pytest.approx(report.metrics.ap50, abs=1e-9)
    assert objects in (None, result.missed.boxes)
    assert len(result.anchors) == result.missed.boxes == sum(curve.objects for curve in result.errors.curves)
    assert len(result.anchors.inputs) == result.missed.images == 3
    # the classification loss of both, by their own sums
    positives = result.anchors.positives.sum()
    assert result.focal.loss / positives == pytest.approx(report.loss["classification"], rel=1e-4)


def test_files(diagnosed):
    result, folder = diagnosed
    assert sorted(path.name for path in folder.iterdir()) == ["diagnosis.json", "report.html"]
    numbers = json.loads((folder / "diagnosis.json").read_text())
    assert numbers.keys() == {"about", "verdict", "errors", "missed", "focal", "anchors", "thresholds"}
    assert numbers["about"]["split"] == "test" and numbers["thresholds"] is None
    page = (folder / "report.html").read_text()
    assert page.index('class="headline"') < page.index('class="gallery"') < page.index("<details")
    assert numbers["verdict"]["headline"] in page and "<script" not in page
    assert page.count("<h2") >= 7 and page.count("data:image/png") >= 10 and page.count("data:image/jpeg") >= 1
    assert str(folder / "report.html") in result.summary()


def test_thresholds_reach_predict(trained, data, tmp_path, capsys):
    """The tiny model finds nothing right; so what it finds is taken for the truth, and it is diagnosed by that."""
    model, cpu = shutil.copytree(trained, tmp_path / "model"), ["--device", "cpu"]
    command = ["diagnose", str(model), str(data), "--split", "test", "--write-thresholds", *cpu]
    assert main([*command, "--output", str(tmp_path / "none")]) == 0
    assert "no thresholds were stored" in capsys.readouterr().out and Detector.load(model).spec.thresholds == {}
    truth = tmp_path / "truth"
    assert main(["predict", str(model), str(data), "--output", str(truth), "--score", "0.0", *cpu]) == 0
    command = ["diagnose", str(model), str(truth / "detections.json"), "--split", "train", "--write-thresholds", *cpu]
    assert main([*command, "--output", str(tmp_path / "out")]) == 0
    assert "thresholds stored in the model" in capsys.readouterr().out
    thresholds = Detector.load(model).spec.thresholds
    assert thresholds and set(thresholds) <= {"disc", "square"}
    folder = str(tmp_path / "found")
    assert main(["predict", str(model), f"{data}/test", "--output", folder, "--device", "cpu"]) == 0
    found = json.loads((tmp_path / "found" / "detections.json").read_text())
    names = {row["id"]: row["name"] for row in found["categories"]}
    assert all(row["score"] >= thresholds[names[row["category_id"]]] for row in found["annotations"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valx"}, "there is no split 'valx'"),
        ({"batch_size": 0}, "expected batch_size >= 1"),
        ({"gamma": -1.0}, "gamma"),
        ({"output": "{folder}"}, "holds results already"),
        ({"model": "nowhere"}, "no model in nowhere"),
    ],
)
def test_mistakes(options, message, diagnosed, trained, data, tmp_path):
    given = {"model": str(trained), "data": str(data), "output": str(tmp_path / "out"), "device": "cpu", **options}
    given["output"] = given["output"].format(folder=diagnosed[1])
    with pytest.raises(UserError, match=message):
        diagnose(given.pop("model"), given.pop("data"), **given)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("lost", "twice", "way"), [(3, 1, "higher"), (0, 2, "lower"), (0, 0, ""), (2, 2, "")])
def test_one_advice_on_the_nms_threshold(diagnosed, lost, twice, way):
    result, _ = diagnosed
    totals = {**result.errors.shown.totals, "duplicate": twice}
    errors = SimpleNamespace(shown=SimpleNamespace(totals=totals), summary=str, curves=())
    missed = replace(result.missed, crowded=lost)
    summary = replace(result, errors=errors, missed=missed, thresholds=None).summary()
    assert [line for line in summary.splitlines() if line.endswith(" one")] == (
        [
            f"NMS threshold (postprocess.nms): {lost} boxes were suppressed under another object's detection, and "
            f"{twice} detections are duplicates at the thresholds, so try a {way} one"
        ]
        if way
        else []
    )


@pytest.mark.parametrize(
    ("known", "given", "expected"),
    [
        (LossConfig(alpha=None, gamma=1), (None, None), (None, 1)),
        (LossConfig(), (None, None), (None, 2)),
        (LossConfig(alpha=0.5, gamma=1), (0.75, None), (0.75, 1)),
        (LossConfig(classification="ohem"), (None, None), (0.25, 2)),
        (None, (None, 0.5), (0.25, 0.5)),
    ],
)
def test_the_loss_is_that_of_the_training(known, given, expected):
    detector = Detector(ModelSpec(("a",), loss=known), None)
    loss = _criterion_of_training(detector, *given).classification
    assert (loss.alpha, loss.gamma) == expected


def test_the_anchors_are_those_that_training_gave_a_box():
    detector = Detector(ModelSpec(("a",), loss=LossConfig(matching="atss", cells=4)), None)
    assert _criterion_of_training(detector, None, None).matcher == ATSS(4)
