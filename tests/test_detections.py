import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.detections import Detection, Detections
from retinanet.errors import UserError
from retinanet.inference.predictor import Predictor
from retinanet.inference.sahi import make_sahi_model

FOUND = Detections(
    torch.tensor([[10.0, 20, 30, 60], [0.5, 1.25, 2.0, 3.5], [5, 5, 6, 7]]),
    torch.tensor([0.75, 0.5, 0.25]),
    torch.tensor([2, 0, 2]),
    ("ant", "bee", "cow"),
)
NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ("ant",))


def test_names_and_length():
    assert FOUND.names == ["cow", "ant", "cow"] and len(FOUND) == 3
    assert NOTHING.names == [] and len(NOTHING) == 0


def test_above_includes_the_threshold():
    kept = FOUND.above(0.5)
    assert kept.scores.tolist() == [0.75, 0.5] and kept.labels.tolist() == [2, 0]
    assert kept.boxes.tolist() == FOUND.boxes[:2].tolist() and kept.class_names == FOUND.class_names
    assert len(FOUND.above(0.9)) == 0 and len(FOUND.above(0)) == 3


def test_to_dicts():
    assert FOUND.to_dicts()[1] == {"box": [0.5, 1.25, 2.0, 3.5], "score": 0.5, "label": 0, "name": "ant"}
    assert [row["name"] for row in FOUND.to_dicts()] == FOUND.names and NOTHING.to_dicts() == []


def test_to_coco():
    assert FOUND.to_coco(7, (11, 12, 90)) == [
        {"image_id": 7, "category_id": 90, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": 7, "category_id": 11, "bbox": [0.5, 1.25, 1.5, 2.25], "score": 0.5},
        {"image_id": 7, "category_id": 90, "bbox": [5, 5, 1, 2], "score": 0.25},
    ]
    assert [row["category_id"] for row in FOUND.to_coco("a")] == [3, 1, 3]
    assert NOTHING.to_coco(1) == []


def test_to_coco_loses_no_digit():
    """Sides are differences of float32 corners; in float32 they would be rounded again."""
    corners = torch.tensor([[1000.1, 0.1, 1000.3, 777.7]])
    box = Detections(corners, torch.tensor([0.1]), torch.tensor([0]), ("ant",)).to_coco(1)[0]["bbox"]
    exact = corners.double()
    assert box == [*exact[0, :2].tolist(), *(exact[0, 2:] - exact[0, :2]).tolist()]


def test_to_supervision_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs the package supervision: pip install .retinanet.objects"):
        FOUND.to_supervision()


def test_to_supervision(monkeypatch):
    class Stand:
        class Detections:
            def __init__(self, **fields):
                self.fields = fields

    monkeypatch.setitem(sys.modules, "supervision", Stand)
    fields = FOUND.to_supervision().fields
    assert fields["xyxy"].tolist() == FOUND.boxes.tolist() and fields["confidence"].tolist() == [0.75, 0.5, 0.25]
    assert fields["class_id"].tolist() == [2, 0, 2] and fields["data"]["class_name"].tolist() == ["cow", "ant", "cow"]
    assert NOTHING.to_supervision().fields["data"]["class_name"].shape == (0,)


def test_arrays_give_the_numbers_of_tensors(monkeypatch):
    """An exported model finds numpy arrays."""

    class Stand:
        class Detections:
            def __init__(self, **fields):
                self.fields = fields

    monkeypatch.setitem(sys.modules, "supervision", Stand)
    on_threshold = Detections(
        torch.zeros(4, 4), torch.tensor([0.9, 0.7, 0.3, 0.29]), torch.tensor([0, 0, 1, 1]), ("a", "b")
    )
    assert on_threshold.above({"a": 0.9}).scores.tolist() == pytest.approx([0.9, 0.3])  # b: 0.3, the default
    assert on_threshold.above({"a": 0.0, "b": 1.0}).labels.tolist() == [0, 0]
    for found in (FOUND, NOTHING, on_threshold):
        arrays = Detections(found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), found.class_names)
        assert len(arrays) == len(found) and arrays.names == found.names
        assert arrays.to_dicts() == found.to_dicts()
        assert arrays.to_coco(7) == found.to_coco(7)
        for score in (0.0, 0.25, 0.3, 0.5, 0.9, {}, {"a": 0.7, "b": 0.29}):
            assert arrays.above(score).to_dicts() == found.above(score).to_dicts()
        fields, wanted = arrays.to_supervision().fields, found.to_supervision().fields
        assert all((fields[key] == wanted[key]).all() for key in ("xyxy", "confidence", "class_id"))
    tenth = torch.tensor([0.1])
    at = Detections(torch.zeros(1, 4), tenth, torch.zeros(1, dtype=torch.int64), ("ant",))
    arrays = Detections(at.boxes.numpy(), at.scores.numpy(), at.labels.numpy(), at.class_names)
    assert len(at.above(0.1)) == len(arrays.above(0.1)) == 1  # 0.1 as float32 is the limit, not as float64


def test_a_notebook_shows_it_in_a_line():
    assert repr(FOUND) == "Detections(2 cow, 1 ant; scores 0.75 to 0.25)"
    assert repr(NOTHING) == "Detections(nothing)"


def test_indexing_and_iterating():
    first = Detection((10.0, 20.0, 30.0, 60.0), 0.75, 2, "cow")
    assert FOUND[0] == first and FOUND[-1].score == 0.25 and next(iter(FOUND)) == first and len(list(FOUND)) == 3
    assert FOUND[0].box[2] == 30 and FOUND[0].name == "cow"
    assert all(FOUND[which] == FOUND[1] for which in (np.int64(1), np.array(1), torch.tensor(1)))  # as argmax gives
    assert len(FOUND[torch.tensor([1])]) == len(FOUND[np.array([1])]) == 1
    for which in (slice(1, 3), [1, 2], torch.tensor([False, True, True]), np.array([False, True, True])):
        assert FOUND[which].to_dicts() == FOUND.to_dicts()[1:]
    with pytest.raises(IndexError, match="there are 3 detections, got the index 3"):
        FOUND[3]
    assert list(NOTHING) == []


def test_rows_and_a_data_frame(monkeypatch):
    assert FOUND.to_rows()[1] == {"x1": 0.5, "y1": 1.25, "x2": 2.0, "y2": 3.5, "score": 0.5, "label": 0, "name": "ant"}
    pandas = pytest.importorskip("pandas")
    assert FOUND.to_pandas().to_dict("records") == FOUND.to_rows()
    assert list(NOTHING.to_pandas().columns) == list(FOUND.to_rows()[0]) and isinstance(
        NOTHING.to_pandas(), pandas.DataFrame
    )
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"pip install .retinanet.objects.*pandas alone"):
        FOUND.to_pandas()


def test_drawing(tmp_path):
    pixels = np.full((300, 400, 3), 200, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    pictures = [FOUND.draw(image, zoom=1) for image in (pixels, torch.from_numpy(pixels).permute(2, 0, 1))]
    pictures += [replace(FOUND, image=tmp_path / "a.png").draw(zoom=1), FOUND.draw(Image.fromarray(pixels), zoom=1)]
    assert len({picture.tobytes() for picture in pictures}) == 1 and pictures[0].size == (400, 300)
    assert pictures[0].tobytes() != pixels.tobytes() and FOUND.draw(pixels).size == (800, 600)
    with pytest.raises(UserError, match=r"call draw\(image\)"):
        FOUND.draw()


def test_what_a_notebook_shows(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (40, 30)).save(path)
    named = replace(FOUND, image=str(path), class_names=("<b>", "bee", "cow"))
    page = named._repr_html_()
    assert "data:image/jpeg;base64," in page and "&lt;b&gt;" in page and "<b>" not in page and page.count("<tr>") == 4
    path.unlink()
    assert "<img" not in named._repr_html_() and "<table>" in named._repr_html_()
    assert NOTHING._repr_html_() == "<p>Detections(nothing)</p>"
    many = FOUND[[0] * 50]
    assert "and 30 more" in many._repr_html_()


def test_supervision_and_back():
    pytest.importorskip("supervision")
    for found in (FOUND, NOTHING):
        back = Detections.from_supervision(found.to_supervision(), found.class_names)
        assert back.to_dicts() == found.to_dicts() and back.class_names == found.class_names
    other = Detections.from_supervision(FOUND.to_supervision())
    assert other.names == FOUND.names and other.class_names == ("ant", "class 1", "cow")
    with pytest.raises(UserError, match="there are 1 class names"):
        Detections.from_supervision(FOUND.to_supervision(), ("ant",))


def chance(count=500, width=1037, height=713):
    """Boxes as a model gives them: any float32 corners inside the image."""
    dice = np.random.default_rng(0)
    corners = np.sort(dice.uniform(0, 1, (count, 2, 2)), axis=1).reshape(-1, 4) * [width, height, width, height]
    scores = np.sort(dice.uniform(0, 1, count).astype(np.float32))[::-1].copy()
    return Detections(corners.astype(np.float32), scores, dice.integers(0, 3, count), ("ant", "bee", "cow"))


def test_label_studio_and_back():
    for found, size in ((FOUND, (64, 48)), (NOTHING, (5, 7)), (chance(), (713, 1037))):
        content = json.loads(json.dumps(found.to_label_studio(size, model_version="m")))
        assert Detections.from_label_studio(content, found.class_names).to_dicts() == found.to_dicts()
    content = FOUND.to_label_studio((64, 48))
    for one in content["result"]:
        del one["score"]
    assert Detections.from_label_studio(content).scores.tolist() == [1.0, 1.0, 1.0]  # an annotation
    with pytest.raises(UserError, match="'cow' is not among the class names, did you mean 'cows'"):
        Detections.from_label_studio(content, ("ant", "cows"))
    content["result"][0]["value"]["rotation"] = 10
    with pytest.raises(UserError, match="turned by 10 degrees"):
        Detections.from_label_studio(content)
    with pytest.raises(UserError, match="a list under 'result'"):
        Detections.from_label_studio({})


def test_fiftyone_and_back(monkeypatch):
    class Stand:
        class Detection:
            def __init__(self, **fields):
                vars(self).update(fields)

        class Detections(Detection):
            pass

    monkeypatch.setitem(sys.modules, "fiftyone", Stand)  # the real one starts a database when it is imported
    for found, size in ((FOUND, (64, 48)), (NOTHING, (5, 7)), (chance(), (713, 1037))):
        objects = found.to_fiftyone(size)
        assert Detections.from_fiftyone(objects, size, found.class_names).to_dicts() == found.to_dicts()
    assert FOUND.to_fiftyone((64, 40)).detections[0].bounding_box == [0.25, 0.3125, 0.5, 0.625]
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    with pytest.raises(UserError, match="pip install fiftyone"):
        FOUND.to_fiftyone((64, 48))


def test_a_predictor_leaves_out_low_scores_and_names_its_image(trained, data):
    predictor, path = Predictor.load(trained, device="cpu"), data / "val" / "val_0.png"
    every = predictor(path)
    middle = float(every.scores[len(every) // 2])
    assert predictor(path, score=middle).to_dicts() == every.above(middle).to_dicts() and every.image == path
    assert [one.to_dicts() for one in predictor([path, path], score=middle)] == [every.above(middle).to_dicts()] * 2
    assert predictor(path, score=predictor.thresholds).to_dicts() == every.above(predictor.thresholds).to_dicts()
    assert every.draw().size[0] >= 80 and "<img" in every._repr_html_()


def test_sahi_finds_what_the_predictor_finds(trained, data):
    pytest.importorskip("sahi")
    from sahi.predict import get_prediction, get_sliced_prediction

    predictor, path = Predictor.load(trained, device="cpu"), data / "val" / "val_0.png"
    wanted = predictor(path, score=0.01).to_dicts()
    model = make_sahi_model(trained, score=0.01, device="cpu")
    found = get_prediction(str(path), model).object_prediction_list
    assert [(one.bbox.to_xyxy(), one.score.value, one.category.name) for one in found] == [
        (row["box"], row["score"], row["name"]) for row in wanted
    ]
    sliced = get_sliced_prediction(str(path), model, slice_height=48, slice_width=48, verbose=0)
    assert sliced.object_prediction_list
    assert max(one.bbox.maxx for one in sliced.object_prediction_list) > 48  # slices are moved to their places


def test_sahi_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "sahi.models.base", None)
    with pytest.raises(UserError, match=r"needs the package sahi: pip install .retinanet.objects"):
        make_sahi_model("model")
