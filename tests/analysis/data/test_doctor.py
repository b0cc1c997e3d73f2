"""The data doctor finds every planted defect, at its place, and nothing else; and nothing in a clean set."""

import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from retinanet.analysis.data.doctor import examine, section
from retinanet.analysis.data.findings import DoctorReport
from retinanet.analysis.data.images import difference_hash, exif_orientation
from retinanet.analysis.data.pictures import CUT, picture_findings
from retinanet.data.dataset import training_datasets
from retinanet.data.faults import KINDS, Fault
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.plotting.draw import FALSE

FORMS = ("coco", "voc", "yolo", "csv")
TRAINING = Preprocess(short=40, long=60)  # the images as they are


def look(data, **options):
    return examine(data, **{"preprocess": TRAINING, "workers": 2, **options})


def found(data, **options):
    """Kind and place of every finding, the place without the folder."""
    return [(one.kind, one.where.replace(str(data), "").lstrip("/")) for one in look(data, **options).findings]


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_found_in_a_clean_set(scene, tmp_path, form):
    report = look(scene.write(form, tmp_path))
    assert report.findings == () and not report.stops and report.groups() == {}
    assert (report.images, report.boxes, report.classes) == (18, 36, 2)
    assert report.splits == {"train": 12, "val": 6}
    assert report.per_class == {name: {"train": 12, "val": 6} for name in ("cat", "dog")}
    assert "0 errors, 0 warnings, 0 notes" in report.summary()


# Boxes that are planted into the first image to train on, and where each format says it is.
THIRD = {
    "coco": "annotations/train.json, annotation 3",
    "voc": "Annotations/train0.xml, object 3 ({})",
    "yolo": "labels/train/train0.txt, line 3",
    "csv": "train.csv, line 3",
}
BOXES = {
    "not-finite-box": ["cat", math.nan, 5, 20, 20],
    "degenerate-box": ["cat", 20, 5, 12, 20],
    "outside-box": ["dog", 70, 5, 80, 20],
    "over-edge-box": ["dog", 50, 5, 66, 15],
    "tiny-box": ["cat", 30, 30, 33, 36],
    "whole-image-box": ["cat", 0, 0, 60, 40],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", BOXES)
def test_a_planted_box(scene, tmp_path, form, kind):
    scene.splits["train"][0].boxes.append(BOXES[kind])
    report = look(scene.write(form, tmp_path))
    (one,) = report.findings
    assert one.kind == kind and one.where == f"{tmp_path}/{THIRD[form].format(BOXES[kind][0])}"
    assert one.image.name == "train0.png" and one.severity == KINDS[kind].severity
    if kind == "not-finite-box":
        assert one.box is None
    else:
        assert one.box == pytest.approx(BOXES[kind][1:], abs=1e-3)


def twin(shot, name=None, shift=0):
    first = shot.boxes[0]
    return [name or first[0], first[1], first[2], first[3] + shift, first[4]]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "name", "shift"),
    [("duplicate-box", "cat", 0), ("conflicting-box", "dog", 0), ("near-duplicate-box", "cat", 1)],
)
def test_a_box_beside_its_twin(scene, tmp_path, form, kind, name, shift):
    shot = scene.splits["train"][0]
    shot.boxes[0][1:] = [3, 3, 23, 23]  # one pixel more is an IoU of 20 / 21
    shot.boxes.append(twin(shot, name, shift))
    assert found(scene.write(form, tmp_path)) == [(kind, THIRD[form].format(name))]


def test_boxes_of_an_iou_below_the_limit_and_of_other_classes_are_no_twins(scene, tmp_path):
    shot = scene.splits["train"][0]
    shot.boxes[0][1:] = [3, 3, 23, 23]
    shot.boxes += [["cat", 3, 3, 26, 23], ["dog", 3, 3, 24, 23]]  # 20 / 23 = 0.87; 20 / 21 of another class
    assert found(scene.write("coco", tmp_path)) == []


def test_near_twins_equal_brute_force(tmp_path):
    dice = np.random.default_rng(0)
    corners = dice.integers(0, 12, (300, 2)) + np.array([5, 5])
    boxes = np.concatenate([corners, corners + dice.integers(60, 70, (300, 2))], axis=1)
    boxes = np.unique(boxes, axis=0)
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 100}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": i % 2, "bbox": [x, y, u - x, v - y]}
            for i, (x, y, u, v) in enumerate(boxes.tolist())
        ],
        "categories": [{"id": 0, "name": "a"}, {"id": 1, "name": "b"}],
    }
    Image.new("RGB", (100, 100)).save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text(json.dumps(content))
    late = set()
    for i, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        for j, (u1, v1, u2, v2) in enumerate(boxes[:i].tolist()):
            both = max(0, min(x2, u2) - max(x1, u1)) * max(0, min(y2, v2) - max(y1, v1))
            union = (x2 - x1) * (y2 - y1) + (u2 - u1) * (v2 - v1) - both
            if (i - j) % 2 == 0 and both / union >= 0.9:
                late.add(i)
    assert 20 < len(late) < len(boxes)
    report = look(tmp_path, pixels=False)
    twins = [one for one in report.findings if one.kind == "near-duplicate-box"]
    assert {int(one.where.rpartition(" ")[2]) for one in twins} == late and len(twins) == len(late)


@pytest.mark.parametrize("form", FORMS)
def test_the_same_box_in_many_images(scene, tmp_path, form):
    for shot in scene.splits["train"][2:7]:
        shot.boxes.append(["dog", 11.5, 20.25, 29, 35])
    places = {
        "coco": "annotations/train.json, annotation 7",
        "voc": "Annotations/train2.xml, object 3 (dog)",
        "yolo": "labels/train/train2.txt, line 3",
        "csv": "train.csv, line 7",
    }
    assert found(scene.write(form, tmp_path / "five")) == [("repeated-box", places[form])]
    scene.splits["train"][2].boxes.pop()
    assert found(scene.write(form, tmp_path / "four")) == []


def test_boxes_that_begin_at_zero_in_pascal_voc(scene, tmp_path):
    scene.splits["train"][0].boxes.append(["cat", -1, 5, 15, 20])
    report = look(scene.write("voc", tmp_path))
    (one,) = report.findings
    assert one.kind == "zero-based" and one.where.endswith("train0.xml, object 3 (cat)")
    assert one.reason == "xmin 0, ymin 6; 1 of 25 boxes of the split begin so"


@pytest.mark.parametrize("form", ["coco", "yolo", "csv"])
def test_coordinates_counted_from_one(scene, tmp_path, form):
    for shot in scene.splits["train"][:8]:
        shot.boxes[0][1] = 1
    scene.splits["train"][3].boxes[1][3] = 61  # the last pixel and one, as width = xmax - xmin + 1 gives
    (one,) = look(scene.write(form, tmp_path / "one")).findings
    assert one.kind == "one-based" and "8 sides of boxes begin exactly at 1 and none at 0; 1 end" in one.reason
    scene.splits["train"][9].boxes[0][1] = 0
    assert [kind for kind, _ in found(scene.write(form, tmp_path / "zero"))] == ["over-edge-box"]


@pytest.mark.parametrize("form", FORMS)
def test_classes(scene, tmp_path, form):
    shots = scene.splits["train"]
    for shot in shots:
        shot.boxes.append([f"{'eel' if shot is not shots[0] else 'fox'}", 12, 24, 23, 36 + shots.index(shot) % 3])
    shots[1].boxes[2][0] = "eel "[: 3 if form in ("voc", "csv") else 4]  # those two strip names
    scene.splits["val"][0].boxes += [["gnu", 20, 20, 33, 36], ["eel", 22, 21, 33, 37]]
    scene.classes += ["eel", "fox", "gnu", "Eel", "hen"]
    shots[2].boxes[2][0] = "Eel"
    shots[1].boxes[2][0] = "eel"
    wanted = {
        ("rare-class", "fox"): "1 boxes in train",
        ("class-not-in-val", "fox"): "no box in val",
        ("class-not-in-train", "gnu"): "no box in train, but 1 in val",
        ("rare-class", "Eel"): "1 boxes in train",
        ("class-not-in-val", "Eel"): "no box in val",
    }
    if form in ("coco", "yolo"):  # the others know no class without a box
        wanted["unseen-class", "hen"] = "no box is of this class"
    similar = {("similar-classes", "eel"), ("similar-classes", "Eel")}
    report = look(scene.write(form, tmp_path))
    given = {(one.kind, one.where.rpartition("class ")[2]): one.reason for one in report.findings}
    assert len(similar & given.keys()) == 1
    assert {key: reason for key, reason in given.items() if key not in similar} == wanted


@pytest.mark.parametrize("form", FORMS)
def test_images_missing_damaged_and_unused(scene, tmp_path, form):
    scene.write(form, tmp_path)
    paths = {path.name: path for path in tmp_path.rglob("*.png")}
    paths["train3.png"].unlink()
    wanted = [("missing-image", paths["train3.png"])]
    if form == "yolo":
        wanted = [("label-without-image", tmp_path / "labels/train/train3.txt")]
    damaged = paths["val1.png"].read_bytes()
    paths["val1.png"].write_bytes(damaged[: len(damaged) // 2])
    wanted.append(("unreadable-image", paths["val1.png"]))
    paths["val2.png"].write_text("no image")
    wanted.append(("unreadable-image", paths["val2.png"]))
    if form != "yolo":
        scene_file = paths["val0.png"].with_name("stray.png")
        Image.effect_noise((60, 40), 90).save(scene_file)
        wanted.append(("unused-image", scene_file))
    report = look(tmp_path)
    assert sorted((one.kind, one.where) for one in report.findings) == sorted(
        (kind, str(path)) for kind, path in wanted
    )
    assert report.stops and all(one.image for one in report.findings if one.kind != "label-without-image")


@pytest.mark.parametrize("form", FORMS)
def test_an_image_without_boxes(scene, tmp_path, form):
    scene.splits["val"][1].boxes = []
    report = look(scene.write(form, tmp_path))
    assert [(one.kind, one.image.name) for one in report.findings] == [("empty-image", "val1.png")]
    assert not report.stops


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("splits", [("train", "val"), ("train", "train"), ("val", "val")])
def test_copies_and_pictures_that_look_the_same(scene, tmp_path, form, splits):
    scene.write(form, tmp_path)
    paths = {path.name: path for path in tmp_path.rglob("*.png")}
    whole = {name: path.read_bytes() for name, path in paths.items()}
    paths[f"{splits[1]}2.png"].write_bytes(whole[f"{splits[0]}1.png"])
    kind, name = ("copy-in-splits", "train1.png") if splits[0] != splits[1] else ("copy-in-split", f"{splits[1]}2.png")
    assert found(tmp_path) == [(kind, str(paths[name].relative_to(tmp_path)))]
    with Image.open(paths[f"{splits[0]}1.png"]) as picture:
        picture.point(lambda value: value * 0.9 + 7).save(paths[f"{splits[1]}2.png"])
    assert found(tmp_path) == [(f"near-{kind}", str(paths[name].relative_to(tmp_path)))]
    assert found(tmp_path, pixels=False) == []


def write_list(root, form):
    """Makes val name an image of train, in the way of each format."""
    if form == "coco":
        edit_json(
            root / "annotations/val.json", lambda content: content["images"][0].update(file_name="../train/train4.png")
        )
    elif form == "voc":
        (root / "ImageSets/Main/val.txt").write_text("train4\nval1\nval2\nval3\nval4\nval5\n")
    elif form == "yolo":
        config = root / "data.yaml"
        config.write_text(config.read_text().replace("val: images/val", "val: [images/val, val.txt]"))
        (root / "val.txt").write_text("images/train/train4.png\n")
    else:
        file = root / "val.csv"
        file.write_text(file.read_text().replace("val/val0.png", "train/train4.png"))


@pytest.mark.parametrize("form", FORMS)
def test_one_file_in_two_splits(scene, tmp_path, form):
    write_list(scene.write(form, tmp_path), form)
    report = look(tmp_path)
    kinds = {(one.kind, one.image.name) for one in report.findings}
    unused = set() if form == "yolo" else {("unused-image", "val0.png")}
    assert kinds == {("same-file-in-splits", "train4.png")} | unused
    assert next(one.reason for one in report.findings if "splits" in one.kind) == "is in train and in val"


def test_trainval_is_no_third_split(scene, tmp_path):
    scene.splits["train"][0].boxes.append(["dog", 70, 5, 80, 20])
    scene.write("voc", tmp_path)
    lists = tmp_path / "ImageSets/Main"
    (lists / "trainval.txt").write_text((lists / "train.txt").read_text() + (lists / "val.txt").read_text())
    report = look(tmp_path)
    assert [one.kind for one in report.findings] == ["outside-box"] and report.splits == {"train": 12, "val": 6}


SIDEWAYS = Image.Exif()
SIDEWAYS[0x0112] = 6


@pytest.mark.parametrize(
    ("kind", "size", "exif"),
    [
        ("exif-rotation", (60, 40), 6),
        ("swapped-size", (40, 60), 1),
        ("wrong-size", (120, 80), 1),
        ("turned-image", (40, 60), 6),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_sizes_that_disagree(scene, tmp_path, form, kind, size, exif):
    """COCO and VOC declare 60 x 40; the others declare nothing, so only the EXIF rotation can be told."""
    from_header = form in ("yolo", "csv")
    scene.write(form, tmp_path)
    path = next(tmp_path.rglob("train5.png"))
    picture = Image.open(path).resize(size)
    note = Image.Exif()
    note[0x0112] = exif
    picture.save(path, **({"exif": note} if exif != 1 else {}))
    assert exif_orientation(path) == exif
    kinds = [one.kind for one in look(tmp_path).findings if one.image == path and not one.kind.endswith("box")]
    if from_header:
        kind = {6: "turned-image"}.get(exif)
    assert kinds == ([] if kind is None else [kind])
    if kind is not None and not from_header:
        assert found(tmp_path) == [(kind, str(path.relative_to(tmp_path)))]


def edit_json(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def first_annotation(**changes):
    return lambda content: content["annotations"][0].update(changes)


def shared_id(content):
    content["images"].append({"id": 1, "file_name": "other.png", "width": 60, "height": 40})


COCO_FAULTS = {
    "broken bbox": ("broken-annotation", ", annotation 1", first_annotation(bbox=[1, 2, 3])),
    "no object": ("broken-annotation", "", lambda content: content["annotations"].append(7)),
    "broken area": ("broken-annotation", ", annotation 1", first_annotation(area="large")),
    "class": ("undeclared-class", ", annotation 1", first_annotation(category_id=9)),
    "image": ("unknown-image", ", annotation 1", first_annotation(image_id=99)),
    "size": ("bad-size", ", image 1", lambda content: content["images"][0].update(width=-5)),
    "no file": ("broken-annotation", ", image 1", lambda content: content["images"][0].pop("file_name")),
    "class ids": ("class-names", "", lambda content: content["categories"].append({"id": 0, "name": "ape"})),
    "class name": ("class-names", "", lambda content: content["categories"].append({"id": 7, "name": "cat"})),
    "no list": ("broken-file", "", lambda content: content.update(images=None)),
    "no image": ("empty-set", "", lambda content: content.update(images=[], annotations=[])),
    "listed twice": (
        "same-file-twice",
        "",
        lambda content: content["images"].append({**content["images"][0], "id": 50}),
    ),
}


@pytest.mark.parametrize("name", COCO_FAULTS)
def test_faults_of_coco_files(scene, tmp_path, name):
    kind, place, change = COCO_FAULTS[name]
    scene.write("coco", tmp_path)
    edit_json(tmp_path / "annotations/val.json", change)
    stray = {"no file": {("unused-image", "val/val0.png")}, "listed twice": {("empty-image", "val/val0.png")}}
    rest = set(found(tmp_path)) - stray.get(name, set())
    rest = {(one, where) for one, where in rest if one != "class-not-in-val"}  # of a val without boxes
    where = {"empty-set": "", "same-file-twice": "val/val0.png"}.get(kind, f"annotations/val.json{place}")
    assert rest == {(kind, "" if name == "class name" else where)}


def test_all_faults_of_a_file_are_told_not_the_first(scene, tmp_path):
    scene.write("coco", tmp_path)
    edit_json(
        tmp_path / "annotations/train.json",
        lambda content: (
            [content["annotations"][n].update(category_id=9) for n in (3, 8, 20)]
            + [content["annotations"][n].update(bbox="x") for n in (5, 11)]
        ),
    )
    places = [(kind, where.rpartition(" ")[2]) for kind, where in found(tmp_path) if kind != "rare-class"]
    broken, undeclared = "broken-annotation", "undeclared-class"
    assert places == [(undeclared, "4"), (broken, "6"), (undeclared, "9"), (broken, "12"), (undeclared, "21")]


def test_two_images_of_one_id(scene, tmp_path):
    scene.write("coco", tmp_path)
    Image.effect_noise((60, 40), 90).save(tmp_path / "val/other.png")
    edit_json(tmp_path / "annotations/val.json", shared_id)
    assert found(tmp_path) == [("duplicate-image-id", "val/other.png")]


def test_a_class_of_val_that_train_does_not_declare(scene, tmp_path):
    scene.write("coco", tmp_path)
    edit_json(tmp_path / "annotations/val.json", lambda content: content["categories"].append({"id": 5, "name": "emu"}))
    assert found(tmp_path) == []  # training takes it too, as long as no box is of it
    edit_json(tmp_path / "annotations/val.json", first_annotation(category_id=5))
    assert found(tmp_path) == [("undeclared-class", "annotations/val.json, annotation 1")]


def replace_in(file, old, new):
    def change(root):
        text = (root / file).read_text()
        assert old in text
        (root / file).write_text(text.replace(old, new, 1))

    return change


def remove(file):
    return lambda root: (root / file).unlink()


TEXT_FAULTS = [
    ("coco", "broken-file", "annotations/val.json, line 1,", replace_in("annotations/val.json", '"images"', "images")),
    ("voc", "broken-file", "Annotations/val1.xml, line", replace_in("Annotations/val1.xml", "</size>", "")),
    ("voc", "broken-annotation", "Annotations/val1.xml, object 1", replace_in("Annotations/val1.xml", "xmin>", "x>")),
    ("voc", "bad-size", "Annotations/val1.xml", replace_in("Annotations/val1.xml", "<width>60", "<width>6.5")),
    ("voc", "listed-twice", "ImageSets/Main/val.txt, line 3", replace_in("ImageSets/Main/val.txt", "val2", "val1")),
    ("voc", "missing-file", "Annotations/ape.xml", replace_in("ImageSets/Main/val.txt", "val2", "ape\nval2")),
    ("yolo", "broken-file", "data.yaml, line 4", replace_in("data.yaml", "names: [", "names: [[")),
    ("yolo", "class-names", "data.yaml", replace_in("data.yaml", "names: [cat, dog]", "names: {0: cat, 2: dog}")),
    ("yolo", "missing-file", "data.yaml", replace_in("data.yaml", "val: images/val", "val: images/gone")),
    ("yolo", "broken-annotation", "labels/val/val1.txt, line 1", replace_in("labels/val/val1.txt", "0 0.", "0 x0.")),
    ("yolo", "undeclared-class", "labels/val/val1.txt, line 2", replace_in("labels/val/val1.txt", "\n1 ", "\n2 ")),
    ("yolo", "label-without-image", "labels/val/val1.txt", remove("images/val/val1.png")),
    ("csv", "broken-annotation", "val.csv, line 2", replace_in("val.csv", ",dog", "")),
    ("csv", "broken-annotation", "val.csv, line 3", replace_in("val.csv", "val1.png,", "val1.png,x")),
    ("csv", "broken-file", "val.csv, line 1", replace_in("val.csv", "val/val1.png", '"val/val1.png')),
]  # fmt: skip


@pytest.mark.parametrize(("form", "kind", "place", "spoil"), TEXT_FAULTS, ids=lambda value: str(value)[:30])
def test_faults_of_text_files(scene, tmp_path, form, kind, place, spoil):
    spoil(scene.write(form, tmp_path))
    if (form, kind) == ("voc", "broken-annotation"):
        spoil(tmp_path)  # the closing tag
    given = found(tmp_path)
    unused = {"listed-twice": "JPEGImages/val2.png"}.get(kind)
    if (form, kind) in (("coco", "broken-file"), ("csv", "broken-file"), ("yolo", "missing-file")):  # no val is left
        given = [one for one in given if one[0] != "class-not-in-val"]
    if unused:
        assert given.pop() == ("unused-image", unused)
    assert len(given) == 1 and given[0][0] == kind and given[0][1].startswith(place)


def test_undeclared_classes_of_csv(scene, tmp_path):
    scene.write("csv", tmp_path)
    (tmp_path / "classes.txt").write_text("cat\n")
    given = found(tmp_path)
    assert {kind for kind, _ in given} == {"undeclared-class"} and len(given) == 18
    assert given[0][1] == "train.csv, line 2"


def test_a_path_that_is_no_data_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        look(tmp_path / "nowhere")
    with pytest.raises(UserError, match="none of the four"):
        look(tmp_path)


def test_the_size_that_counts_is_the_one_after_resizing(scene, tmp_path):
    scene.write("coco", tmp_path)
    smallest = min(
        min(x2 - x1, y2 - y1) for shots in scene.splits.values() for s in shots for _, x1, y1, x2, y2 in s.boxes
    )
    assert found(tmp_path, min_side=smallest) == []
    assert found(tmp_path, min_side=smallest, preprocess=Preprocess(short=39, long=60)) != []
    boxes = [box for shots in scene.splits.values() for shot in shots for box in shot.boxes]
    below = [kind for kind, _ in found(tmp_path, min_side=15, preprocess=Preprocess(short=20, long=30))]
    assert below == ["tiny-box"] * sum(min(x2 - x1, y2 - y1) / 2 < 15 for _, x1, y1, x2, y2 in boxes)


def test_the_difference_hash_by_hand():
    ramp = np.tile(np.arange(9, dtype=np.uint8) * 20, (8, 1))
    assert difference_hash(Image.fromarray(ramp)) == 0
    assert difference_hash(Image.fromarray(255 - ramp)) == 2**64 - 1
    ramp[0, 0] = 255  # falls at the very first place
    assert difference_hash(Image.fromarray(ramp)) == 2**63


def test_groups_are_worst_first_and_everything_is_json():
    findings = [Fault(kind, kind, "why", box=(0, 0, math.nan, 1)) for kind in reversed(KINDS)]
    findings.append(Fault("wrong-size", "again", "why"))
    report = DoctorReport(tuple(findings), 3, 2, 1, 0.5, {"": 3}, {"cat": {"": 2}})
    groups = report.groups()
    assert list(groups) == list(KINDS) and len(KINDS) > 40
    assert [kind.severity for kind in KINDS.values()] == sorted(
        (kind.severity for kind in KINDS.values()), key=("error", "warning", "note").index
    )
    assert len(groups["wrong-size"]) == 2 and report.stops
    without = {kind for kind in KINDS if not Fault(kind, kind, "why").remedy}
    assert without == {"class-names", "broken-annotation", "undeclared-class"}  # readers say what they expected
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["findings"][0]["box"] is None


def test_the_page_shows_the_worst_findings(scene, tmp_path):
    """Boxes are red in their place, and named by file and box; nothing is shown of images that are gone."""
    scene.splits["train"][0].boxes.append(BOXES["outside-box"])
    scene.splits["train"][1].boxes += [BOXES["over-edge-box"], BOXES["whole-image-box"]]
    report = look(scene.write("coco", tmp_path))
    pictures = picture_findings(report, tmp_path)
    assert {picture.title for picture in pictures} == {
        KINDS[kind].title.capitalize() for kind in ("outside-box", "over-edge-box", "whole-image-box")
    }
    faults = {fault.where.replace(f"{tmp_path}/", ""): fault for fault in report.findings}
    for picture in pictures:
        where, _, reason = picture.text.partition(": ")
        assert faults[where].reason == reason and picture.image.size == CUT
        red = (np.asarray(picture.image).astype(int) - FALSE[0] == 0).all(2)
        assert red.sum() > 50
    assert [row[:3] for row in section(report).tables[0].rows] == [
        (KINDS[kind].severity, KINDS[kind].title, len(faults)) for kind, faults in report.groups().items()
    ]
    shutil.rmtree(tmp_path / "train")
    assert picture_findings(report, tmp_path) == []


def test_pictures_that_share_the_hash_only_are_not_alike(scene, tmp_path):
    scene.write("coco", tmp_path)
    ramp = np.linspace(20, 200, 60)[None].repeat(40, 0)
    stripes = np.linspace(20, 30, 60)[None] + np.where(np.arange(40) % 10 < 5, 0, 200)[:, None]
    for name, pixels in (("train/train1.png", ramp), ("val/val1.png", stripes), ("train/train2.png", 0.5 * ramp + 9)):
        grey = Image.fromarray(pixels.astype(np.uint8))
        assert difference_hash(grey) == 0
        grey.convert("RGB").save(tmp_path / name)
    assert found(tmp_path) == [("near-copy-in-split", "train/train2.png")]
    for name in ("train/train1.png", "val/val1.png"):  # flat pictures say nothing about each other
        Image.new("RGB", (60, 40), (90, 90, len(name))).save(tmp_path / name)
    assert found(tmp_path) == []


@pytest.mark.parametrize("form", FORMS)
def test_pasted_boxes(scene, tmp_path, form):
    """Four of exactly one size in one image are told; three, or small ones, or of two classes, are not."""
    boxes = [["cat", x, y, x + 17, y + 18] for x, y in ((3, 3), (23, 4), (41, 3), (5, 21))]
    scene.splits["train"][0].boxes = boxes
    scene.splits["train"][1].boxes = [*boxes[:3], ["dog", *boxes[3][1:]]]
    scene.splits["train"][2].boxes = [["cat", 4 * x, 3, 4 * x + 9, 13] for x in range(1, 9, 3)] * 1
    told = [one for one in look(scene.write(form, tmp_path)).findings if one.kind == "pasted-box"]
    assert [one.image.name for one in told] == ["train0.png"] and "4 cat of exactly 17 x 18" in told[0].reason


def test_what_stops_training_and_what_does_not(scene, tmp_path):
    """An error is the sentence with which training stops; a test split that is not there stops nothing."""
    scene.write("yolo", tmp_path)
    config = tmp_path / "data.yaml"
    config.write_text(config.read_text() + "test: ../test/images\n")
    assert [kind for kind, _ in found(tmp_path)] == ["missing-test"]
    training_datasets(tmp_path)
    for file in (tmp_path / "labels").rglob("*.txt"):
        file.write_text("".join(f"{line} 0.5\n" for line in file.read_text().splitlines()))
    report = look(tmp_path)
    with pytest.raises(UserError) as refused:
        training_datasets(tmp_path)
    assert str(refused.value) in {str(fault) for fault in report.findings} and report.stops


def test_images_that_are_almost_black(scene, tmp_path):
    scene.write("csv", tmp_path)
    path = tmp_path / "train" / "train0.png"
    with Image.open(path) as picture:
        picture.point(lambda value: value // 16).save(path)
    assert found(tmp_path) == [("dark-image", "train/train0.png")]
