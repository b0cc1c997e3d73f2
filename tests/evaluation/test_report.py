"""Reports: what a person reads, what a program reads, and files that are whole or not there."""

import contextlib
import io
import json
import math
from dataclasses import replace

import pytest
import torch
from pycocotools.coco import COCO
from rich.console import Console

from retinanet.errors import UserError
from retinanet.evaluation.coco import ClassMetrics, CocoMetrics, SizeMetrics
from retinanet.evaluation.report import CutImages, EvaluationResult, find_cut_images, save_coco_results
from retinanet.model.postprocess import Postprocess
from retinanet.spec import ModelSpec
from retinanet.types import Detections, Sample, Target

NAN = float("nan")
METRICS = CocoMetrics(
    ap=0.5674,
    ap50=0.9126,
    ap75=0.61,
    ar={1: 0.2, 10: 0.55, 100: 0.6},
    small=SizeMetrics(0, NAN, NAN),
    medium=SizeMetrics(12, 0.41, 0.52),
    large=SizeMetrics(30, 0.7, 0.75),
    classes=(
        ClassMetrics("red [b]cell[/b]", 3, 9, 42, 77, 0.5674, 0.9126),
        ClassMetrics("white", 7, 0, 0, 5, NAN, NAN),
    ),
    images=10,
    boxes=42,
    ignored=4,
    detections=82,
)
RESULT = EvaluationResult(
    METRICS,
    loss={"classification": 0.25, "box": 0.125, "total": 0.375},
    images_per_second=12.34,
    about={"model": "runs/[a]", "split": "test"},
)


def samples_and_detections():
    samples = [Sample(f"{i}.jpg", i, (90, 90), Target.empty(), torch.zeros(0)) for i in (11, 5, 8)]
    names = ("a", "b")
    third = torch.tensor([[1 / 3, 2.5, 10.1, 20.7], [0, 0, 4, 4]])
    first = Detections(third, torch.tensor([0.9, 0.1]), torch.tensor([1, 0]), names)
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), names)
    last = Detections(third[1:], torch.tensor([0.7]), torch.tensor([0]), names)
    return samples, [first, none, last]


def row_of(text, name):
    (line,) = [line for line in text.splitlines() if line.strip().startswith(name)]
    return line.split(name, 1)[1].split()


def test_the_table_holds_every_number():
    text = str(RESULT)
    lines = [line.split() for line in text.splitlines()]
    header = lines.index(["AP", "AP50", "AP75", "AR@1", "AR@10", "AR@100"])
    assert lines[header + 2] == ["0.567", "0.913", "0.610", "0.200", "0.550", "0.600"]
    assert row_of(text, "small") == ["0", "-", "-"]
    assert row_of(text, "medium") == ["12", "0.410", "0.520"]
    assert row_of(text, "large") == ["30", "0.700", "0.750"]
    assert row_of(text, "red [b]cell[/b]") == ["9", "42", "77", "0.567", "0.913"]  # brackets are no markup
    assert row_of(text, "white") == ["0", "0", "5", "-", "-"]
    for part in ("model: runs/[a]", "split: test", "10 images, 42 boxes, 4 ignore regions, 82 detections"):
        assert part in text
    assert "12.3 images/s" in text
    assert "loss: classification 0.2500, box 0.1250, total 0.3750" in text
    assert "nan" not in text and "\x1b" not in text


def test_what_was_not_measured_is_not_shown():
    text = str(EvaluationResult(METRICS))
    assert "loss" not in text and "images/s" not in text


def test_what_ap_could_not_count_is_told():
    assert "cannot be measured" not in str(RESULT) and "AP counts" not in str(RESULT)
    nothing = replace(METRICS, boxes=0, images=6, ap=NAN)
    assert "no object in the 6 images: AP cannot be measured" in str(EvaluationResult(nothing))
    many = EvaluationResult(replace(METRICS, limit=375, ap100=0.125))
    text = " ".join(str(many).split())
    assert "AP counts up to 375 detections of an image and class; with 100, as COCO counts, it is 0.125" in text
    header = next(line.split() for line in str(many).splitlines() if "AR@10" in line)
    assert header[:4] == ["AP", "AP50", "AP75", "AP@100"]
    assert RESULT.to_dict()["limit"] == 100 and many.to_dict()["ap100"] == 0.125
    cut = EvaluationResult(METRICS, cut=CutImages(100, 2, 1, "a.jpg", 375))
    text = " ".join(str(cut).split())
    assert "warning: the model reports at most 100 detections of an image: 2 images hold more objects than that" in text
    assert "and 1 have that many" in text and "worst is image a.jpg with 375 objects" in text
    assert "Raise postprocess.max_detections" in text and cut.to_dict()["cut"]["crowded"] == 2
    assert RESULT.to_dict()["cut"] is None


@pytest.mark.parametrize(("last", "full"), [(0.29, 0), (0.31, 1)])
def test_images_of_which_too_little_is_reported_are_counted(make_sample, make_detections, last, full):
    spec = ModelSpec(("a", "b", "c"), postprocess=Postprocess(max_detections=3))
    boxes = [[9.0 * k, 0, 9 * k + 8, 8] for k in range(5)]
    samples = [
        make_sample(boxes, [0] * 5, image_id="crowd"),
        make_sample(boxes, [0] * 5, [False] * 3 + [True] * 2, image_id="enough"),
        make_sample(boxes[:1], [0], image_id="full"),
    ]
    few = make_detections(boxes[:2], [0.9, 0.8], [0, 0])
    found = [few, few, make_detections(boxes[:3], [0.9, 0.8, last], [0, 0, 1])]
    assert find_cut_images(spec, samples, found) == CutImages(3, 1, full, "crowd", 5)
    assert find_cut_images(replace(spec, thresholds={"b": 0.9}), samples, found).full == 0
    assert find_cut_images(replace(spec, postprocess=Postprocess()), samples, found) is None


def test_long_class_names_are_folded_not_cut():
    name = "".join(f"{number:04d}" for number in range(40))
    metrics = replace(METRICS, classes=(replace(METRICS.classes[0], name=name),))
    text = io.StringIO()
    Console(file=text, width=60).print(EvaluationResult(metrics).to_table())
    folded = text.getvalue().split("Class")[1]
    assert name in "".join(line.split()[0] for line in folded.splitlines()[2:] if line.strip())


def test_json_is_valid_and_complete(tmp_path):
    path = tmp_path / "new" / "metrics.json"
    RESULT.to_json(path)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == RESULT.to_dict()
    assert read["ap"] == METRICS.ap and read["ar"] == {"1": 0.2, "10": 0.55, "100": 0.6}
    assert read["small"] == {"boxes": 0, "ap": None, "ar": None}
    assert read["classes"][1]["ap"] is None and read["classes"][0]["category_id"] == 3
    assert read["loss"]["total"] == 0.375 and read["about"]["model"] == "runs/[a]"
    assert EvaluationResult(METRICS, loss={"total": math.inf}).to_dict()["loss"] == {"total": None}


def test_results_load_in_pycocotools(tmp_path):
    samples, detections = samples_and_detections()
    path = tmp_path / "results.json"
    save_coco_results(path, samples, detections, category_ids=(30, 20))
    truth = COCO()
    truth.dataset = {
        "images": [{"id": sample.image_id} for sample in samples],
        "categories": [{"id": 20}, {"id": 30}],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = truth.loadRes(str(path)).dataset["annotations"]
    assert [(row["image_id"], row["category_id"]) for row in loaded] == [(11, 20), (11, 30), (8, 30)]
    # every bit of the float32 numbers survives: read back, they evaluate to the same AP
    assert [row["score"] for row in loaded] == [float(s) for found in detections for s in found.scores]
    x, y, width, height = loaded[0]["bbox"]
    assert torch.equal(torch.tensor([x, y, x + width, y + height]), detections[0].boxes[0])


def test_results_without_detections_are_an_empty_list(tmp_path):
    samples, detections = samples_and_detections()
    save_coco_results(tmp_path / "none.json", samples[1:2], detections[1:2])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_a_number_that_is_not_finite_leaves_the_old_file(tmp_path):
    samples, detections = samples_and_detections()
    path = tmp_path / "results.json"
    save_coco_results(path, samples, detections)
    before = path.read_bytes()
    detections[2] = replace(detections[2], scores=torch.tensor([NAN]))
    with pytest.raises(UserError, match=r"image 8: .* not finite"):
        save_coco_results(path, samples, detections)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize("blocker", ["folder", "file"])
def test_a_path_that_cannot_be_written_is_named(tmp_path, blocker):
    occupied = tmp_path / "occupied"
    if blocker == "folder":
        occupied.mkdir()
        path = occupied
    else:
        occupied.write_text("mine")
        path = occupied / "metrics.json"
    with pytest.raises(UserError, match=r"occupied.* cannot be written \(.+\)\. Choose"):
        RESULT.to_json(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["occupied"]
    assert blocker == "folder" or occupied.read_text() == "mine"


def test_results_need_one_detections_per_sample(tmp_path):
    samples, detections = samples_and_detections()
    with pytest.raises(UserError, match="3 samples but 2 detections"):
        save_coco_results(tmp_path / "r.json", samples, detections[:2])
    assert list(tmp_path.iterdir()) == []
