"""The fixed copy loads without a fault, holds what can be kept, and the source stays as it was."""

import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.analysis.data.doctor import examine
from retinanet.analysis.data.fix import ACCOUNT, turned, write_fixed_copy
from retinanet.data.dataset import load_dataset, splits
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess

FORMS = ("coco", "voc", "yolo", "csv")
STAYS = {
    "outside-image",
    "near-duplicate-box",
    "conflicting-box",
    "empty-image",
    "unused-image",
    "turned-image",
    "rare-class",
}


def look(data):
    return examine(data, preprocess=Preprocess(short=40, long=60), workers=2)


def fingerprint(root):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()}


def fixed(data, output):
    """The copy, after checking what holds for every copy."""
    before = fingerprint(data)
    copy = write_fixed_copy(data, output, look(data))
    assert copy == output and fingerprint(data) == before
    again = look(copy)
    assert not again.stops and {one.kind for one in again.findings} <= STAYS
    for split in (*splits(copy), None):
        dataset = load_dataset(copy, split, strict=True)
        assert dataset.skipped == ()
        for i in range(len(dataset)):
            assert dataset[i].image is not None  # of the declared size
    return copy


def contents(root, split):
    """Image name -> its boxes with their class names, sorted."""
    dataset = load_dataset(root, split)
    return {
        sample.path.name: sorted(
            (dataset.class_names[label], *np.round(box, 3))
            for label, box in zip(sample.target.labels.tolist(), sample.target.boxes.tolist(), strict=True)
        )
        for sample in dataset.samples
    }


def expected(shots):
    return {shot.name: sorted((name, *map(float, box)) for name, *box in shot.boxes) for shot in shots}


@pytest.mark.parametrize("form", FORMS)
def test_a_clean_set_is_copied_as_it_is(scene, tmp_path, form):
    copy = fixed(scene.write(form, tmp_path / "set"), tmp_path / "copy")
    assert splits(copy) == ("train", "val")
    for split, shots in scene.splits.items():
        found, wanted = contents(copy, split), expected(shots)
        assert found.keys() == wanted.keys()
        for name in wanted:
            for (label, *box), (other, *corners) in zip(found[name], wanted[name], strict=True):
                assert label == other and box == pytest.approx(corners, abs=1e-3)
    assert (copy / ACCOUNT).read_text().splitlines()[:2] == [
        f"A fixed copy of {tmp_path / 'set'}: 18 images, 36 boxes. The images stay there.",
        "Nothing had to be fixed.",
    ]


@pytest.mark.parametrize("form", FORMS)
def test_faulty_boxes_and_images_are_left_out_and_told(scene, tmp_path, form):
    train = scene.splits["train"]
    Shot = type(train[0])
    train[0].boxes += [
        ["cat", 70, 5, 80, 20],
        ["dog", 20, 5, 12, 20],
        ["cat", float("nan"), 1, 2, 3],
        train[0].boxes[0],
    ]
    train[1].boxes.append(["dog", 50, 5, 66, 15])
    data = scene.write(form, tmp_path / "set")
    paths = {path.name: path for path in data.rglob("*.png")}
    paths["train3.png"].write_text("no image")
    paths["train4.png"].write_bytes(paths["val4.png"].read_bytes())
    if form != "yolo":
        paths["val3.png"].unlink()
    copy = fixed(data, tmp_path / "copy")
    wanted = expected([shot for shot in train if shot.name not in ("train3.png", "train4.png")])
    wanted |= expected([Shot("train0.png", train[0].boxes[:2])])
    wanted |= expected([Shot("train1.png", [*train[1].boxes[:2], ["dog", 50, 5, 60, 15]])])
    found = contents(copy, "train")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert [row[0] for row in found[name]] == [row[0] for row in wanted[name]]
        assert np.allclose([row[1:] for row in found[name]], [row[1:] for row in wanted[name]], atol=1e-3)
    assert contents(copy, "val").keys() == expected(scene.splits["val"]).keys() - (
        set() if form == "yolo" else {"val3.png"}
    )
    account = (copy / ACCOUNT).read_text()
    for text in ("box left out", "duplicate box left out", "box clipped", "train3.png", "train4.png, it is in another"):
        assert text in account
    assert "3 x box left out" in account and "1 x box clipped" in account


def test_faults_of_the_files_are_left_out(scene, tmp_path):
    data = scene.write("coco", tmp_path / "set")
    file = data / "annotations/train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["category_id"] = 9
    content["annotations"][2]["bbox"] = [1, 2]
    content["annotations"][4]["image_id"] = 99
    content["annotations"][7]["area"] = 33.5
    content["annotations"][9]["iscrowd"] = 1
    content["images"].append({"id": 12, "file_name": "train0.png", "width": 60, "height": 40})
    file.write_text(json.dumps(content))
    copy = fixed(data, tmp_path / "copy")
    dataset = load_dataset(copy, "train")
    assert [len(sample.target) for sample in dataset.samples] == [1, 1, 1, *[2] * 8]  # the twelfth shared its id
    assert dataset.samples[3].areas[1] == 33.5 and dataset.samples[4].target.ignore.tolist() == [False, True]
    account = (copy / ACCOUNT).read_text()
    assert "annotation 1: category id 9" in account and account.count("its id stands for two") == 2


def test_sizes(scene, tmp_path):
    """Swapped, resized, resized with another shape, and swapped with boxes that do not fit then."""
    scene.splits["train"][0].boxes = [["cat", 5, 6, 30, 38]]
    data = scene.write("coco", tmp_path / "set")
    for number, size in enumerate([(40, 60), (120, 80), (120, 100), (40, 60)]):
        path = data / f"train/train{number}.png"
        with Image.open(path) as picture:
            picture.resize(size).save(path)
    scene.splits["train"][3].boxes[1][3] = 55
    scene.splits["train"][0].boxes = [["cat", 5, 6, 30, 38]]
    scene._coco(data, "train", scene.splits["train"])
    found = contents(fixed(data, tmp_path / "copy"), "train")
    assert found.keys() == {f"train{number}.png" for number in (0, 1, *range(4, 12))}
    assert found["train0.png"] == [("cat", 5.0, 6.0, 30.0, 38.0)]
    wanted = sorted((name, *(2.0 * side for side in box)) for name, *box in scene.splits["train"][1].boxes)
    assert found["train1.png"] == wanted


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_boxes_turn_with_the_exif_rotation(scene, tmp_path, orientation):
    data = scene.write("coco", tmp_path / "set")
    name, x1, y1, x2, y2 = scene.splits["train"][2].boxes[0]
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[y1:y2, x1:x2] = 255
    note = Image.Exif()
    note[0x0112] = orientation
    Image.fromarray(pixels).save(data / "train/train2.png", exif=note)
    copy = fixed(data, tmp_path / "copy")
    dataset = load_dataset(copy, "train")
    sample = dataset[2]
    assert sample.path.name == "train2.png" and sample.size == (60, 40) and dataset.class_names[0] == name
    left, top, right, bottom = map(int, sample.target.boxes[0].tolist())
    white = torch.zeros_like(sample.image)
    white[:, top:bottom, left:right] = 255
    assert torch.equal(sample.image, white)
    assert np.array_equal(turned(np.array([[x1, y1, x2, y2]]), orientation, (40, 60)), [[left, top, right, bottom]])


def test_an_unsplit_set_stays_unsplit(scene, tmp_path):
    data = scene.write("coco", tmp_path / "set")
    (data / "annotations/val.json").unlink()
    (data / "annotations/train.json").rename(data / "annotations/boxes.json")
    copy = fixed(data, tmp_path / "deep" / "copy")
    assert splits(copy) == () and len(load_dataset(copy)) == 12


def test_the_output_has_to_be_free_and_elsewhere(scene, tmp_path):
    data = scene.write("coco", tmp_path / "set")
    report = look(data)
    for inside in (data, data / "copy", data / "train" / ".." / "copy"):
        with pytest.raises(UserError, match="lies in the data set"):
            write_fixed_copy(data, inside, report)
    with pytest.raises(UserError, match="not empty"):
        write_fixed_copy(data, tmp_path, report)
    (tmp_path / "empty").mkdir()
    assert write_fixed_copy(data, tmp_path / "empty", report) == tmp_path / "empty"


def test_nothing_left_is_told(scene, tmp_path):
    data = scene.write("coco", tmp_path / "set")
    for path in data.rglob("*.png"):
        path.unlink()
    with pytest.raises(UserError, match="no part of it can be used"):
        write_fixed_copy(data, tmp_path / "copy", look(data))
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("true", "boxes", "kept"),
    [
        # declared 60 x 40 (width x height) in every case
        ((40, 60), [[5, 45, 20, 58], [3, 3, 30, 30]], True),  # swapped: below the declared edge
        ((120, 80), [[70, 50, 110, 75], [5, 5, 20, 20]], True),  # larger, drawn on the true image
        ((120, 80), [[5, 5, 50, 35]], [[10.0, 10.0, 100.0, 70.0]]),  # drawn on the declared one, then enlarged
        ((120, 100), [[70, 50, 110, 95]], True),  # of another shape, drawn on the true image
        ((120, 100), [[5, 5, 50, 35]], None),  # nobody knows
        ((30, 20), [[5, 5, 50, 35], [0, 0, 200, 200]], None),  # on neither
    ],
)
def test_boxes_beyond_a_wrong_declared_size(scene, tmp_path, true, boxes, kept):
    """No box is cut at a size that is not the image's, and none is thrown away for it."""
    scene.splits["train"][0].boxes = [["cat", *box] for box in boxes]
    data = scene.write("coco", tmp_path / "set")
    with Image.open(data / "train/train0.png") as picture:
        picture.resize(true).save(data / "train/train0.png")
    found = contents(fixed(data, tmp_path / "copy"), "train")
    if kept is None:
        assert "train0.png" not in found
    else:
        wanted = boxes if kept is True else kept
        assert found["train0.png"] == sorted(("cat", *map(float, box)) for box in wanted)


def test_what_can_be_converted_is_converted(scene, tmp_path):
    data = scene.write("yolo", tmp_path / "set")
    for file in (data / "labels").rglob("*.txt"):
        rows = [[float(word) for word in line.split()] for line in file.read_text().splitlines()]
        lines = [f"{row[0]:g} {row[1] * 60} {row[2] * 40} {row[3] * 60} {row[4] * 40} 0.9\n" for row in rows]
        file.write_text("".join(lines))
    report = look(data)
    assert {"pixels", "confidence"} <= set(report.groups()) and report.stops
    copy = fixed(data, tmp_path / "copy")
    assert contents(copy, "train") == {shot.name: sorted(map(tuple, shot.boxes)) for shot in scene.splits["train"]}
    account = (copy / ACCOUNT).read_text()
    assert account.startswith(f"A fixed copy of {data}: 18 images, 36 boxes. The images stay there.\n4 x converted")
    assert "seem to be pixels" in account and "have a sixth number" in account


def test_fractions_in_a_csv_file_are_converted(scene, tmp_path):
    for shots in scene.splits.values():
        for shot in shots:
            shot.boxes = [[name, x1 / 60, y1 / 40, x2 / 60, y2 / 40] for name, x1, y1, x2, y2 in shot.boxes]
    data = scene.write("csv", tmp_path / "set")
    assert [kind for kind, faults in look(data).groups().items()] == ["fractions"]
    dataset = load_dataset(fixed(data, tmp_path / "copy"), "train")
    wanted = np.array([box[1:] for box in scene.splits["train"][0].boxes]) * [60, 40, 60, 40]
    np.testing.assert_allclose(dataset.samples[0].target.boxes.numpy(), wanted)


def test_a_copy_that_would_lose_many_boxes_is_refused(scene, tmp_path):
    for shot in scene.splits["train"][:6]:
        shot.boxes[0][1], shot.boxes[0][3] = shot.boxes[0][3], shot.boxes[0][1]
    data = scene.write("csv", tmp_path / "six")
    assert len(load_dataset(data).skipped) == 6
    copy = fixed(data, tmp_path / "copy")
    assert "30 boxes; 6 boxes are lost" in (copy / ACCOUNT).read_text()
    for shot in scene.splits["train"][6:]:
        shot.boxes[0][1], shot.boxes[0][3] = shot.boxes[0][3], shot.boxes[0][1]
    data = scene.write("csv", tmp_path / "twelve")
    with pytest.raises(UserError, match=r"would lose 12 of 36 boxes, .*x2 <= x1"):
        fixed(data, tmp_path / "no copy")
    assert not (tmp_path / "no copy").exists()


def test_a_copy_without_a_split_or_with_spoilt_boxes_is_refused(scene, tmp_path):
    data = scene.write("yolo", tmp_path / "set")
    config = (data / "data.yaml").read_text()
    (data / "data.yaml").write_text(config.replace("images/val", "images/train"))
    with pytest.raises(UserError, match="would hold no image of train"):
        fixed(data, tmp_path / "copy")
    for shots in scene.splits.values():
        for shot in shots:
            shot.boxes = [[name, x1, y1, x1 + x2, y1 + y2] for name, x1, y1, x2, y2 in shot.boxes]
    data = scene.write("coco", tmp_path / "corners")
    with pytest.raises(UserError, match=r"boxes reach over the right or lower edge.*No fixed copy was written"):
        fixed(data, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
