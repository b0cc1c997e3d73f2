"""The verdict on a data set, and the pictures of the worst findings."""

import html
import json
import re
import shutil

import pytest

from retinanet import check
from retinanet.analysis.data.doctor import examine
from retinanet.analysis.data.findings import FIXED, judge_data
from retinanet.analysis.data.fix import write_fixed_copy
from retinanet.data.faults import KINDS, Fault
from retinanet.images.preprocess import Preprocess

TINY = {"short": 64, "long": 96, "model": "resnet18"}
NASTY = "<script>alert('1')</script>"


def change(folder, split, edit):
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def read_page(result):
    """The page without its pictures, which are long."""
    return re.sub(r"data:image/\w+;base64,[^\"]*", "", (result.output / "report.html").read_text())


def captions(page):
    found = re.findall(r"<figcaption><b>(.*?)</b>(.*?)</figcaption>", page)
    return [(html.unescape(title), html.unescape(text)) for title, text in found]


def spoil(folder):
    """Two boxes without extent, one outside, a copy across splits, and a class with a name that is a script."""

    def edit(content):
        boxes = content["annotations"]
        boxes[0]["bbox"], boxes[3]["bbox"], boxes[5]["bbox"] = [5, 5, 0, 9], [9, 9, 0, 0], [500, 500, 9, 9]
        content["categories"][0]["name"] = NASTY

    for split in ("train", "val", "test"):
        change(folder, split, edit if split == "train" else lambda c: c["categories"][0].update(name=NASTY))
    shutil.copy(folder / "val" / "val_0.png", folder / "train" / "train_0.png")


def test_a_sound_set(data, tmp_path):
    result = check(str(data), output=str(tmp_path), min_side=1, **TINY)
    verdict = result.verdict
    assert result.doctor.count("error") == 0 and verdict.state in ("good", "fair")
    kinds = {harm.kind for harm in result.doctor.harms()}
    assert kinds <= {"rare-class"}  # 20 boxes of two classes
    assert {number.label: number.value for number in verdict.numbers} == {
        "images": "12",
        "boxes": f"{result.doctor.boxes}",
        "classes": "2",
        "errors": "0",
        "warnings": f"{result.doctor.count('warning')}",
        "boxes with an anchor": f"{100 * result.anchors.covered:.1f} %",
    }
    point = next(point for point in verdict.points if point.about == "Training")
    assert point.sentence.startswith("resnet18 on images of 64 to 96 pixels, 72 epochs") and "train" in point.command
    rows = {label: value for label, value, _ in verdict.plan}
    assert rows["image.short"] == "64" and "sizes" in rows["architecture.anchors"]
    assert result.summary().startswith(f"verdict: {verdict.headline}\n")
    assert json.loads((tmp_path / "check.json").read_text())["verdict"] == verdict.to_dict()


def test_a_set_without_findings_is_sound(data):
    report = examine(data, preprocess=Preprocess(short=64, long=96), min_side=1, pixels=False)
    report = type(report)((), 12, 30, 2, 0.1, report.splits, report.per_class)
    verdict = judge_data(report, None, None, data=str(data))
    assert verdict.state == "good" and verdict.headline.startswith("The data set is sound")
    assert verdict.points[0].sentence == "Nothing." and verdict.points[0].command == ""


def test_a_faulty_set(data_copy, tmp_path):
    """The verdict comes before the pictures, those before the tables; pictures name file and box."""
    spoil(data_copy)
    result = check(str(data_copy), output=str(tmp_path / "out"), **TINY)
    assert result.verdict.state == "fair" and "Usable, with faults" in result.verdict.headline
    worst = result.doctor.harms()[0]
    first = result.verdict.points[0]
    assert first.about == "Fix first" and first.sentence.lower().startswith(KINDS[worst.kind].title)
    assert first.command == (f"retinanet check {data_copy} --fix fixed" if worst.kind in FIXED else "")
    page = read_page(result)
    places = [page.index(mark) for mark in ('class="verdict', 'class="numbers', 'class="gallery', "<nav", "<details")]
    assert places == sorted(places)
    shown = captions(page)
    assert 3 <= len(shown) <= 12
    titles = [title for title, _ in shown]
    assert "Boxes without extent (1 of 2)" in titles and "Boxes outside their image" in titles
    where = dict(shown)["Boxes without extent (1 of 2)"]
    assert where.startswith("annotations/instances_train.json, annotation ") and "(5, 5, 5, 14)" in where
    pair = next(text for title, text in shown if title == "Copies of an image in two splits")
    assert "train/train_0.png" in pair and "val/val_0.png" in pair
    assert page.count("<img") == page.count('alt="') and 'alt=""' not in page
    assert "<script" not in page and html.escape(NASTY, quote=False) in page.replace("&#39;", "'")


def test_tables_are_folded_below_a_line_that_says_their_point(data_copy, tmp_path):
    spoil(data_copy)
    result = check(str(data_copy), output=str(tmp_path / "out"), **TINY)
    page = read_page(result)
    body = page.split("<nav", 1)[1]
    assert body.count("<table") >= 3 and "<details open" not in page
    assert all("</summary>" in before.rpartition("<details")[2] for before in body.split("<table")[:-1])
    lines = re.findall(r"<summary><span class=\"kind\">\w+</span> (.*?)</summary>", page)
    assert len(lines) == page.count("<details") and all(len(line) > 10 for line in lines)
    assert "details::details-content" in page.split("@media print")[1]  # a print shows them unfolded


def test_no_boxes(data_copy, tmp_path):
    for split in ("train", "val", "test"):
        change(data_copy, split, lambda content: content.update(annotations=[]))
    result = check(str(data_copy), output=str(tmp_path / "out"), **TINY)
    assert result.verdict.state == "bad" and "Not sound" in result.verdict.headline
    assert "No box to learn from" in result.verdict.points[0].sentence
    assert captions(read_page(result)) == []


def test_errors_come_first_and_the_copy_that_fixes_them_is_offered(data_copy, tmp_path):
    (data_copy / "train" / "train_3.png").unlink()
    change(data_copy, "train", lambda content: content["annotations"][0].update(bbox=[5, 5, 0, 9]))
    result = check(str(data_copy), output=str(tmp_path / "my out"), **TINY)
    first, training = result.verdict.points
    assert result.verdict.state == "bad" and first.sentence.startswith("Missing images (1 of 12 images): train/train_3")
    assert first.command == f"retinanet check {data_copy} --fix fixed"
    assert "was not judged" in training.sentence
    write_fixed_copy(data_copy, tmp_path / "fixed", result.doctor)
    assert not {fault.kind for fault in examine_again(tmp_path / "fixed").findings} & FIXED


def examine_again(folder):
    return examine(folder, preprocess=Preprocess(short=64, long=96))


@pytest.mark.parametrize("sentence", ["", "A lite model for 40 epochs, about 50 minutes."])
def test_a_plan_is_shown(data, sentence):
    report = examine_again(data)
    plan = [("epochs", "40", f"few images {NASTY}"), ("batch", "8", "fits")]
    verdict = judge_data(report, None, None, data=str(data), plan=plan, plan_sentence=sentence)
    assert verdict.to_dict()["plan"][0] == {"label": "epochs", "value": "40", "reason": f"few images {NASTY}"}
    assert (verdict.points[-1].sentence == sentence) is bool(sentence)


def test_what_concerns_most_of_the_set_is_most_harmful(data):
    """One image of twelve in two splits weighs more than one box of thirty; an unused file weighs nothing."""
    report = examine_again(data)
    image = data / "train" / "train_0.png"
    faults = (
        Fault("degenerate-box", image, "x", image=image, box=(1, 1, 1, 1)),
        Fault("unused-image", image, "x", image=image),
        Fault("copy-in-splits", image, "x", image=image),
    )
    harms = type(report)(faults, 12, 30, 2, 0.1).harms()
    assert [harm.kind for harm in harms] == ["copy-in-splits", "degenerate-box", "unused-image"]
    assert [harm.share for harm in harms] == pytest.approx([1 / 12, 1 / 30, 0])
    assert harms[0].words == "1 of 12 images"
