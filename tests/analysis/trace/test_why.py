"""``why``: which data set an image belongs to, what is written, and the shares over a data set."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from retinanet.analysis.trace.outcomes import FOUND, GATES, Rival
from retinanet.analysis.trace.shares import Shares, name_size, section
from retinanet.analysis.trace.why import find_annotated, trace_sample, why
from retinanet.data.dataset import load_dataset
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.inference.predictor import Predictor
from retinanet.plotting.html import render_page

RULE = {"score": 0.0, "device": "cpu"}


def test_the_report_of_one_image(trained, data, tmp_path):
    image = data / "test" / "test_0.png"
    result = why(str(trained), str(image), output=str(tmp_path / "why"), **RULE)
    sample = next(one for one in load_dataset(data, "test").samples if one.path == image)
    known = sample.target.boxes[~sample.target.ignore]
    assert [one.box for one in result.boxes] == [pytest.approx(box, abs=1e-3) for box in known.tolist()]
    assert result.size == sample.size == (64, 80) and result.class_names == ("disc", "square")
    written = json.loads((tmp_path / "why" / "why.json").read_text())
    assert [one["gate"] for one in written["boxes"]] == [one.gate for one in result.boxes]
    assert written["about"]["score"] == 0.0 and sum(written["counts"].values()) == 2 and len(written["detections"]) > 5
    page = (tmp_path / "why" / "report.html").read_text()
    found, false = written["counts"].get("found", 0), sum(one.false for one in result.detections)
    headline = f"{found} of 2 objects found, {2 - found} missed, {false} false detections above score 0."
    assert written["verdict"]["headline"] == headline and headline in page
    assert page.index('class="headline"') < page.index('class="gallery"') < page.index("<details")
    assert "Every annotated box" in page and "best anchor IoU" in page and "<script" not in page
    with Image.open(tmp_path / "why" / "why.png") as picture:
        assert picture.width == 15 * 80 and picture.height > 15 * 64  # enlarged to 900, and a legend

    found = Predictor.load(trained, device="cpu")(image)
    assert [one.score for one in result.detections] == pytest.approx(found.scores.tolist(), abs=1e-5)
    boxes = torch.tensor([one.box for one in result.detections])
    torch.testing.assert_close(boxes, found.boxes, rtol=0, atol=1e-2)


def test_results_are_replaced_only_when_asked(trained, data, tmp_path):
    image, output = str(data / "test" / "test_0.png"), tmp_path / "why"
    output.mkdir()
    (output / "why.json").write_text("mine")
    with pytest.raises(UserError, match="holds results already"):
        why(str(trained), image, output=str(output), **RULE)
    assert (output / "why.json").read_text() == "mine"
    why(str(trained), image, output=str(output), overwrite=True, **RULE)
    assert json.loads((output / "why.json").read_text())["about"]["image"] == image


def test_the_data_set_is_the_nearest_folder_that_has_the_image(data_copy, tmp_path):
    image = data_copy / "val" / "val_2.png"
    dataset, index = find_annotated(image, None)
    assert dataset.samples[index].path == image and len(dataset) == 3
    assert (
        find_annotated(image, data_copy / "annotations" / "instances_val.json")[0].samples[0].path.parent.name == "val"
    )

    link = tmp_path / "elsewhere" / "val_2.png"
    link.parent.mkdir()
    link.symlink_to(image)
    dataset, index = find_annotated(link, None)
    assert dataset.samples[index].path == image


def test_what_is_nearer_but_lacks_the_image_is_passed_over(data_copy):
    """A label folder of another kind beside the image is a data set too, but not the image's."""
    image = data_copy / "test" / "test_1.png"
    (data_copy / "test" / "other.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\ntest_0.png,1,1,9,9,disc\n")
    dataset, index = find_annotated(image, None)
    assert dataset.samples[index].path == image and len(dataset) == 3


def test_an_image_that_is_not_in_the_data_set(trained, data_copy, tmp_path):
    stranger = data_copy / "test" / "test_9.png"
    shutil.copy(data_copy / "test" / "test_0.png", stranger)
    with pytest.raises(
        UserError, match=r"is not among the 12 annotated images .*The nearest names there: .*test_\d.png"
    ):
        why(str(trained), str(stranger), output=str(tmp_path / "why"))
    with pytest.raises(UserError, match=r"test_0\.png: is not among the 3 annotated.*val_0\.png.*--data PATH"):
        find_annotated(data_copy / "test" / "test_0.png", data_copy / "annotations" / "instances_val.json")
    assert not (tmp_path / "why").exists()


def test_mistakes(trained, data, tmp_path):
    lonely = tmp_path / "a" / "b" / "c" / "d" / "e" / "f" / "g" / "lonely.png"
    lonely.parent.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(lonely)
    for image, match in (
        (lonely, r"lonely.png: no folder around it is a data set .*--data PATH"),
        (tmp_path / "none.png", r"none.png: no such file; expected one annotated image"),
        (data / "test", r"test: is a folder; expected one annotated image"),
    ):
        with pytest.raises(UserError, match=match):
            why(str(trained), str(image), output=str(tmp_path / "why"))
    image = str(data / "test" / "test_0.png")
    with pytest.raises(UserError, match="score threshold must be at least 0 and below 1, got 2"):
        why(str(trained), image, output=str(tmp_path / "why"), score=2)
    with pytest.raises(UserError, match=r"no such file or folder"):
        why(str(trained), image, data=str(tmp_path / "nowhere"), output=str(tmp_path / "why"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; expected the name of a folder"):
        why(str(trained), image, output=str(tmp_path / "file"))


def test_shares_count_every_box_once(trained, data):
    detector, cpu = Detector.load(trained), torch.device("cpu")
    dataset = load_dataset(data, "train", class_names=detector.spec.class_names)
    detector = detector.with_spec(postprocess=replace(detector.spec.postprocess, score=0.01))
    traces = [trace_sample(detector, dataset[index], cpu)[0] for index in range(len(dataset))]
    shares = Shares(dataset.class_names, 0.01)
    for one in traces:
        shares.update(one)
    known = [~sample.target.ignore for sample in dataset.samples]
    assert shares.images == 6 and shares.score == 0.01
    assert shares.boxes == sum(int(mask.sum()) for mask in known) == sum(shares.gates().values())
    assert {g: n for g, n in shares.gates().items() if n} == dict(Counter(b.gate for t in traces for b in t.boxes))
    for label in range(2):
        count = sum(int((s.target.labels[mask] == label).sum()) for s, mask in zip(dataset.samples, known, strict=True))
        assert sum(shares.gates(label=label).values()) == count
    assert sum(shares.gates(size="small").values()) == shares.boxes and shares.gates(size="large")[FOUND] == 0
    kinds = Counter(d.kind for t in traces for d in t.detections)
    assert dict(shares.detections) == dict(kinds)
    plain = json.loads(json.dumps(shares.to_dict(), allow_nan=False))
    assert plain["boxes"] == shares.boxes and sum(plain["detections"].values()) == sum(kinds.values())
    assert sum(one["share"] for one in plain["gates"].values()) == pytest.approx(1)
    assert set(plain["gates"]) == set(GATES) and sum(plain["classes"]["disc"].values()) > 0


def test_the_words_on_shares(trained, data):
    detector = Detector.load(trained)
    sample = load_dataset(data, "test", class_names=detector.spec.class_names)[0]
    one, _ = trace_sample(detector, sample, torch.device("cpu"))
    first, second = one.boxes[:2]
    rival = Rival(first.box, 0, 0.5, 0.6, 0, first.index)
    result = Shares(detector.spec.class_names, 0.25)
    for by in (rival, replace(rival, matched=None)):
        lost = replace(first, gate="suppressed by NMS", by=by)
        low = replace(second, gate="below threshold", best=replace(second.best, score=0.125))
        result.update(replace(one, boxes=(lost, low, replace(second, gate="found"))))
    assert result.crowded == 1 and result.below == [0.125, 0.125]
    lines = result.summary().splitlines()
    assert lines[0] == "2 of 6 boxes found in 2 images at score 0.25"
    assert any("2 suppressed by NMS (33.3%), 1 of them under another object's detection: " in line for line in lines)
    assert any("2 below threshold (33.3%), half of them score 0.125 or less: " in line for line in lines)
    part = section(result, [("a picture", Image.new("RGB", (8, 8)))])
    assert [row[:2] for row in part.tables[0].rows] == [("found", 2), ("below threshold", 2), ("suppressed by NMS", 2)]
    page = render_page("why", [part], {})
    assert "Why boxes were missed" in page and "a picture" in page and page.count("data:image/png") == 1


def test_no_box_at_all():
    shares = Shares(("disc",), 0.5)
    assert shares.summary() == "0 of 0 boxes found in 0 images at score 0.5"
    assert shares.to_dict()["gates"]["found"] == {"boxes": 0, "share": None} and not section(shares).figures


def test_sizes_are_cut_as_coco_does():
    sides = {31.9: "small", 32: "medium", 95.9: "medium", 96: "large", 1e6: "large", 0: "small"}
    assert {side: name_size((5, 5, 5 + side, 5 + side)) for side in sides} == sides
