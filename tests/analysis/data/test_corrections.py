"""What a person accepts is changed in the copy, and nothing else; a row that does not fit is refused with its line."""

import csv

import pytest

from retinanet.analysis.data.corrections import NEEDED, Correction, correct_splits, name_image, read_corrections
from retinanet.analysis.data.doctor import examine, read_splits
from retinanet.analysis.data.fix import ACCOUNT, write_fixed_copy
from retinanet.data.dataset import load_dataset
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess

OLD, NEW = ("cat", (1.0, 2.0, 11.0, 12.0)), ("dog", (20.0, 20.0, 30.0, 32.0))


def write(path, rows, mark=","):
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream, delimiter=mark)
        writer.writerow([*NEEDED, "reason"])
        writer.writerows(rows)
    return path


def fields(entry):
    return [""] * 5 if entry is None else [entry[0], *entry[1]]


@pytest.mark.parametrize("mark", [",", ";", "\t"])
def test_accepted_rows_are_read(tmp_path, mark):
    rows = [
        ["yes", "a.png", *fields(OLD), *fields(None), "why, so"],
        ["", "b.png", *fields(OLD), *fields(NEW), ""],
        ["No", "b.png", *fields(OLD), *fields(NEW), ""],
        ["Y", "'=b.png", *fields(None), *fields(NEW), ""],
    ]
    path = write(tmp_path / "suspects.csv", rows, mark)
    assert read_corrections(path) == [
        Correction(f"{path}, line 2", "a.png", OLD, None),
        Correction(f"{path}, line 5", "=b.png", None, NEW),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (["maybe", "a.png", *fields(OLD), *fields(None)], "line 2: accept is 'maybe'"),
        (["yes", "a.png", *fields(None), *fields(None)], "line 2: no class and box"),
        (["yes", "a.png", "cat", 5, 2, 1, 12, *fields(None)], "line 2: cat, 5, 2, 1, 12 is no class and box"),
        (["yes", "a.png", "cat", "x", 2, 1, 12, *fields(None)], "is no class and box"),
        (["yes", "a.png", "", 1, 2, 3, 4, *fields(None)], "is no class and box"),
    ],
)
def test_a_row_that_is_not_understood(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_corrections(write(tmp_path / "suspects.csv", [[*row, ""]]))


def test_a_table_of_something_else(tmp_path):
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"other.csv: the columns accept, image.* are missing"):
        read_corrections(tmp_path / "other.csv")


@pytest.mark.parametrize("form", ["coco", "voc", "yolo", "csv"])
def test_corrections_are_applied_and_nothing_else(scene, tmp_path, form):
    data = scene.write(form, tmp_path / "data")
    before = load_dataset(data, "train")

    def entry(sample, row):
        label, box = int(sample.target.labels[row]), sample.target.boxes[row].tolist()
        return before.class_names[label], tuple(round(side, 2) for side in box)

    samples = sorted(before.samples, key=lambda sample: sample.path.name)
    removed, changed, moved, added = samples[:4]
    dog = {"cat": "dog", "dog": "cat"}[entry(changed, 0)[0]]
    new = (dog, entry(changed, 0)[1])
    place, extra = ("dog", (40.0, 20.0, 50.0, 30.0)), ("cat", (3.0, 20.0, 13.0, 31.0))
    corrections = [
        Correction("line 2", name_image(removed.path, data), entry(removed, 1), None),
        Correction("line 3", name_image(changed.path, data), entry(changed, 0), new),
        Correction("line 4", name_image(moved.path, data), entry(moved, 1), place),
        Correction("line 5", name_image(added.path, data), None, extra),
    ]
    report = examine(data, preprocess=Preprocess(short=40, long=60), workers=2)
    copy = write_fixed_copy(data, tmp_path / "copy", report, corrections)
    after = {sample.path.name: sample for sample in load_dataset(copy, "train").samples}

    def entries(sample):
        rows = zip(sample.target.labels.tolist(), sample.target.boxes.tolist(), strict=True)
        return sorted((before.class_names[label], tuple(round(side, 2) for side in box)) for label, box in rows)

    for sample in samples:
        expected = entries(sample)
        for one in corrections:
            if one.image == name_image(sample.path, data):
                expected = [*[other for other in expected if other != one.old], *([one.new] if one.new else [])]
        assert entries(after[sample.path.name]) == sorted(expected)
    account = (copy / ACCOUNT).read_text()
    assert [account.count(f"\n{what}: ") for what in ("removed", "corrected", "added")] == [1, 2, 1]


def test_a_correction_of_other_data_is_refused(scene, tmp_path):
    data = scene.write("coco", tmp_path / "data")
    parts = read_splits(data, [])
    image = name_image(parts[0].images[0].path, data)
    for one, message in (
        (Correction("s.csv, line 2", "other.png", OLD, None), r"line 2: .* lacks other.png"),
        (Correction("s.csv, line 3", image, ("cat", (50.0, 1.0, 59.0, 9.0)), None), "line 3: .* has no annotation cat"),
        (
            Correction("s.csv, line 4", image, None, ("bird", (50.0, 1.0, 59.0, 9.0))),
            "no class 'bird'",
        ),
    ):
        with pytest.raises(UserError, match=message):
            correct_splits(parts, [one], data)
