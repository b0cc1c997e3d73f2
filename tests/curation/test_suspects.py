"""The command from end to end: what it writes, what it says of the model, and what it refuses."""

import csv
import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from retinanet import check, load_dataset, suspects
from retinanet.cli.main import main
from retinanet.curation.folds import draw_folds, make_coco
from retinanet.errors import UserError
from retinanet.inference.predictor import Predictor
from retinanet.types import Detections

LEFT_OUT = 2  # rows of the annotations of the second image with objects


@pytest.fixture
def oracle(data, monkeypatch):
    """A stand-in for prediction: it finds every true object of the images, by their names, nearly in place."""
    truth = {sample.path.name: sample.target for sample in load_dataset(data, "train").samples}

    def stream(self, images, *, workers=None):
        for path in images:
            target = truth[Path(path).name]
            scores = torch.full((len(target),), 0.9)
            yield Detections(target.boxes.float() + 0.2, scores, target.labels, self.class_names)

    monkeypatch.setattr(Predictor, "stream", stream)


def spoil(data_copy):
    """One annotation dropped and one given the other class; the boxes of the two as xyxy."""
    path = data_copy / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    sound = [row for row in content["annotations"] if not row["iscrowd"]]
    dropped, swapped = sound[4], sound[8]
    content["annotations"].remove(dropped)
    swapped["category_id"] = {3: 7, 7: 3}[swapped["category_id"]]
    path.write_text(json.dumps(content))
    return [[x, y, x + w, y + h] for x, y, w, h in (dropped["bbox"], swapped["bbox"])], swapped["id"]


def test_planted_mistakes_are_listed_accepted_and_put_right(trained, data, data_copy, oracle, tmp_path):
    (dropped, swapped), number = spoil(data_copy)
    out = tmp_path / "out"
    result = suspects(str(trained), str(data_copy), output=str(out), score=0.1)  # of 13 objects little is known
    assert {one.kind for one in result.found} == {"missing", "class"}
    by_kind = {one.kind: one for one in result.found}
    assert by_kind["class"].where.endswith(f"instances_train.json, annotation {number}")
    assert list(by_kind["class"].old[1]) == swapped and by_kind["missing"].old is None
    assert by_kind["missing"].new[1] == pytest.approx(dropped, abs=0.5)
    document = json.loads((out / "suspects.json").read_text())
    assert [row["kind"] for row in document["suspects"]] == [one.kind for one in result.found]
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg") == 2 and "suspects.csv" in page
    assert "suspects.csv" in result.summary()

    with (out / "suspects.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    with (out / "suspects.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0])
        writer.writeheader()
        writer.writerows({**row, "accept": "yes"} for row in rows)
    how = {"suspects": str(out / "suspects.csv"), "output": str(tmp_path / "check"), "model": str(trained)}
    check(str(data_copy), fix=str(tmp_path / "copy"), **how)
    before, after = (load_dataset(path, "train").samples for path in (data, tmp_path / "copy"))
    for one in before:
        other = next(sample for sample in after if sample.path.name == one.path.name)
        assert sorted(one.target.labels.tolist()) == sorted(other.target.labels.tolist())
        ours, theirs = (sorted(target.boxes.tolist()) for target in (one.target, other.target))
        assert ours == [pytest.approx(box, abs=0.5) for box in theirs]


def test_it_says_whether_the_model_learned_from_the_images(trained, data, oracle, tmp_path):
    result = suspects(str(trained), str(data), output=str(tmp_path / "one"))
    assert "the model learned from 6 of these 6 images" in result.notes[0]
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained / name, bare)
    result = suspects(str(bare), str(data), output=str(tmp_path / "two"))
    assert "does not say what it learned from" in result.notes[0]


def test_it_says_that_the_model_did_not_learn_from_others(trained, data, tmp_path):
    result = suspects(str(trained), str(data), split="test", output=str(tmp_path / "out"))
    assert result.notes == ("the model did not learn from images of these names",)


def test_out_of_fold(trained, data, tmp_path):
    how = {"output": str(tmp_path / "out"), "folds": 2, "epochs": 1, "score": 0.0}
    result = suspects(str(trained), str(data), **how)
    assert result.images == 6 and result.found
    (folder,) = (tmp_path / "out" / "folds").iterdir()
    models = [folder / f"fold{number}" for number in (1, 2)]
    judged = [{sample.path.name for sample in load_dataset(f"{model}-data").samples} for model in models]
    assert judged[0] | judged[1] == {f"train_{n}.png" for n in range(6)} and len(judged[0]) == len(judged[1]) == 3
    assert not judged[0] & judged[1]  # each learns from what the other judges
    stamps = [(model / "model.safetensors").stat().st_mtime_ns for model in models]
    again = suspects(str(trained), str(data), **how, overwrite=True)
    assert [(model / "model.safetensors").stat().st_mtime_ns for model in models] == stamps
    assert again.found == result.found


def test_the_plan_of_the_first_fold_is_that_of_all(trained, data, tmp_path, monkeypatch):
    given = []

    def learn(data, run, *, resume, **options):
        given.append((options.get("budget"), options.get("plan")))
        shutil.copytree(trained, run)

    monkeypatch.setattr("retinanet.curation.folds.train", learn)
    suspects(str(data), folds=3, budget="5m", output=str(tmp_path / "out"))
    (folder,) = (tmp_path / "out" / "folds").iterdir()
    assert given == [("5m", None)] + 2 * [(None, str(folder / "fold1" / "plan.yaml"))]


def test_copies_are_in_one_fold(tmp_path):
    for number in range(9):
        Image.new("RGB", (8, 8), (number // 3 * 50, 0, 0)).save(tmp_path / f"{number}.png")
    paths = sorted(tmp_path.glob("*.png"))
    assert sorted(draw_folds(paths, 3)) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    with pytest.raises(UserError, match="--folds 4: expected at least 2, and at most the 3 different images"):
        draw_folds(paths, 4)


def test_what_is_written_for_a_fold_is_what_was_read(data, tmp_path):
    before = load_dataset(data, "train")
    (tmp_path / "annotations").mkdir()
    file = tmp_path / "annotations" / "instances_train.json"
    file.write_text(make_coco(before.samples, before.class_names), encoding="utf-8")
    after = load_dataset(tmp_path, "train")
    assert after.class_names == before.class_names
    for one, other in zip(before.samples, after.samples, strict=True):
        assert (one.path.resolve(), one.size) == (other.path.resolve(), other.size)
        assert all(
            torch.equal(*pair) for pair in zip(vars(one.target).values(), vars(other.target).values(), strict=True)
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL"], "expected a model and data"),
        (["MODEL", "nowhere"], "nowhere: no such file or folder"),
        (["nowhere", "DATA"], "nowhere"),
        (["DATA", "MODEL"], "the model comes first"),
        (["MODEL", "DATA", "--split", "tset"], "there is no split 'tset'"),
        (["MODEL", "DATA", "--score", "7"], "--score is between 0 and 1"),
        (["MODEL", "DATA", "--budget", "3m"], "give --folds 3 too"),
        (["DATA", "--folds", "1"], "--folds 1: expected at least 2"),
        (["MODEL", "EMPTY"], "none of the four known formats"),
        (["MODEL", "BARE"], "has an annotated object"),
        (["MODEL", "OTHER"], "the model does not know the class 'bird'"),
    ],
)
def test_mistakes_are_told_in_a_sentence(trained, data, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    content = json.loads((data / "annotations" / "instances_train.json").read_text())
    for image in content["images"]:
        image["file_name"] = str(data / "train" / image["file_name"])
    for name, change in (("bare", {"annotations": []}), ("other", {"categories": [{"id": 3, "name": "bird"}]})):
        kept = [row for row in content["annotations"] if row["category_id"] == 3]
        (tmp_path / name / "annotations").mkdir(parents=True)
        text = json.dumps({**content, "annotations": kept, **change})
        (tmp_path / name / "annotations" / "instances_train.json").write_text(text)
    places = {"MODEL": trained, "DATA": data, **{name.upper(): tmp_path / name for name in ("empty", "bare", "other")}}
    assert main(["suspects", *(str(places.get(word, word)) for word in words), "--output", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out" / "suspects.csv").exists()
