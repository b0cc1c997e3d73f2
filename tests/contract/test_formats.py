"""What every data format must satisfy, written once: one scene, written in every format and dialect."""

import contextlib
import json
import math
import os
import pickle
import random
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from retinanet.data.check import size_images
from retinanet.data.dataset import load_dataset, splits, training_datasets
from retinanet.data.faults import Fault, Notes
from retinanet.data.formats import read_parts
from retinanet.errors import UserError

CLASSES = ("cat", "dog", "emu")


@dataclass
class Picture:
    """One image of the scene; a box is (class, x1, y1, x2, y2, ignored)."""

    name: str
    size: tuple[int, int]  # height, width
    boxes: list = field(default_factory=list)


def scene():
    return {
        "train": [
            Picture("one.png", (40, 60), [("dog", 5, 4, 25, 30, False), ("cat", 30, 10, 60, 40, False)]),
            Picture("empty.png", (30, 30)),
            Picture("three.png", (64, 32), [("emu", 1, 2, 9, 12, True), ("emu", 8, 20, 30, 60, False)]),
            Picture("four.png", (20, 80), [("cat", 0, 0, 80, 20, False)]),
        ],
        "val": [Picture("five.png", (50, 50), [("dog", 10, 10, 40, 20, False)]), Picture("six.png", (25, 70))],
    }


def save_images(folder, pictures):
    folder.mkdir(parents=True, exist_ok=True)
    for number, picture in enumerate(pictures):
        Image.new("RGB", picture.size[::-1], (number, 100, 200)).save(folder / picture.name)


def coco_json(file, pictures):
    numbers = {name: 5 * (label + 1) for label, name in enumerate(CLASSES)}  # neither dense nor from 0
    ids = [100 + sum(map(ord, picture.name)) for picture in pictures]
    boxes = [(key, *box) for key, picture in zip(ids, pictures, strict=True) for box in picture.boxes]
    content = {
        "images": [
            {"id": key, "file_name": picture.name, "height": picture.size[0], "width": picture.size[1]}
            for key, picture in zip(ids, pictures, strict=True)
        ],
        "annotations": [
            {
                "id": number,
                "image_id": key,
                "category_id": numbers[name],
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "iscrowd": int(ignored),
            }
            for number, (key, name, x1, y1, x2, y2, ignored) in enumerate(boxes)
        ],
        "categories": [{"id": number, "name": name} for name, number in reversed(numbers.items())],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1))


def coco(root, parts):
    for split, pictures in parts.items():
        save_images(root / f"{split}2017" if split else root / "images", pictures)
        coco_json(root / "annotations" / f"instances_{split}2017.json" if split else root / "labels.json", pictures)


def coco_roboflow(root, parts):
    for split, pictures in parts.items():
        save_images(root / split, pictures)
        coco_json(root / split / "_annotations.coco.json", pictures)


def voc_xml(file, picture):
    objects = "".join(
        f"<object><name>{name}</name><difficult>{int(ignored)}</difficult><bndbox><xmin>{x1 + 1}</xmin>"
        f"<ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object>\n"
        for name, x1, y1, x2, y2, ignored in picture.boxes
    )
    size = f"<size><width>{picture.size[1]}</width><height>{picture.size[0]}</height><depth>3</depth></size>"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"<annotation>\n<filename>{picture.name}</filename>\n{size}\n{objects}</annotation>\n")


def voc(root, parts):
    for split, pictures in parts.items():
        save_images(root / "JPEGImages", pictures)
        for picture in pictures:
            voc_xml((root / "Annotations" / picture.name).with_suffix(".xml"), picture)
        if split:
            (root / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
            names = [Path(picture.name).stem for picture in pictures]
            (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")


def voc_flat(root, parts):
    for split, pictures in parts.items():
        save_images(root / split, pictures)
        for picture in pictures:
            voc_xml((root / split / picture.name).with_suffix(".xml"), picture)


def yolo_labels(folder, pictures, bare=False):
    folder.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        height, width = picture.size
        lines = [
            f"{CLASSES.index(name)} {(x1 + x2) / 2 / width!r} {(y1 + y2) / 2 / height!r} "
            f"{(x2 - x1) / width!r} {(y2 - y1) / height!r}\n"
            for name, x1, y1, x2, y2, _ in picture.boxes
        ]
        if lines or not bare:
            (folder / picture.name).with_suffix(".txt").write_text("".join(lines))


def yolo(root, parts):
    for split, pictures in parts.items():
        save_images(root / "images" / split, pictures)
        yolo_labels(root / "labels" / split, pictures)
    keys = "".join(f"{split}: images/{split}\n" for split in parts if split) or "train: images\n"
    names = "".join(f"  {label}: {name}\n" for label, name in enumerate(CLASSES))
    (root / "data.yaml").write_text(f"path: .\n{keys}nc: 3\nnames:\n{names}")


def yolo_lists(root, parts):
    """Split by text files, names as a list, and no label file for an image without objects."""
    for split, pictures in parts.items():
        save_images(root / "images", pictures)
        yolo_labels(root / "labels", pictures, bare=True)
        (root / f"{split}.txt").write_text("".join(f"./images/{picture.name}\n" for picture in pictures))
    keys = "".join(f"{split}: {split}.txt\n" for split in parts)
    (root / "data.yaml").write_text(f"{keys}names: [{', '.join(CLASSES)}]\n")


def yolo_folders(root, parts):
    """No data.yaml: folders, and classes.txt."""
    for split, pictures in parts.items():
        save_images(root / "images" / split, pictures)
        yolo_labels(root / "labels" / split, pictures)
    (root / "classes.txt").write_text("\n".join(CLASSES))


def csv_of(line, header=""):
    def write(root, parts):
        for split, pictures in parts.items():
            save_images(root / "images", pictures)
            lines = [
                line(picture, *box) for picture in pictures for box in (picture.boxes or [("", "", "", "", "", False)])
            ]
            root.mkdir(parents=True, exist_ok=True)
            (root / f"{split or 'boxes'}.csv").write_text(header + "".join(lines))

    return write


csv_headerless = csv_of(lambda p, name, x1, y1, x2, y2, _: f"images/{p.name},{x1},{y1},{x2},{y2},{name}\n")
csv_sized = csv_of(
    lambda p, name, x1, y1, x2, y2, _: f"{p.name},{p.size[1]},{p.size[0]},{name},{x1},{y1},{x2},{y2}\n",
    "filename,width,height,class,xmin,ymin,xmax,ymax\n",
)
csv_named = csv_of(
    lambda p, name, x1, y1, x2, y2, _: f"{name};{y2};{x2};{y1};{x1};more;{p.name}\n",
    "Label;ymax;xmax;ymin;xmin;remark;image_path\n",
)

SPLIT = {f.__name__: f for f in (coco, coco_roboflow, voc, voc_flat, yolo, yolo_lists, yolo_folders)}
SPLIT |= {"csv_headerless": csv_headerless, "csv_sized": csv_sized, "csv_named": csv_named}
WHOLE = {name: write for name, write in SPLIT.items() if name not in ("coco_roboflow", "yolo", "yolo_lists")}
KNOWS_IGNORE = ("coco", "coco_roboflow", "voc", "voc_flat")


@pytest.fixture(params=SPLIT)
def form(request):
    return request.param


@pytest.fixture(params=WHOLE)
def unsplit(request):
    return request.param


def check(dataset, pictures, form):
    """The data set holds the pictures, box for box."""
    assert dataset.class_names == CLASSES
    found = {sample.path.name: sample for sample in dataset.samples}
    assert len(found) == len(dataset) == len(pictures) and set(found) == {picture.name for picture in pictures}
    assert len({sample.image_id for sample in dataset.samples}) == len(pictures)
    for picture in pictures:
        sample, target = found[picture.name], found[picture.name].target
        assert sample.size == picture.size and sample.image is None
        boxes = torch.tensor([box[1:5] for box in picture.boxes], dtype=torch.float64).reshape(-1, 4)
        assert target.boxes.shape == boxes.shape and target.boxes.dtype == torch.float64
        torch.testing.assert_close(target.boxes, boxes, rtol=0, atol=1e-4 if "yolo" in form else 0)
        assert target.labels.dtype == torch.int64
        assert [CLASSES[label] for label in target.labels] == [box[0] for box in picture.boxes]
        assert target.ignore.tolist() == [box[5] and form in KNOWS_IGNORE for box in picture.boxes]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        torch.testing.assert_close(sample.areas, areas, rtol=1e-4, atol=0)


def test_the_splits_of_the_files(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    assert sorted(splits(tmp_path)) == ["train", "val"]
    for split, pictures in scene().items():
        dataset = load_dataset(tmp_path, split)
        check(dataset, pictures, form)
        assert dataset.skipped == () and split in dataset.name
    check(load_dataset(tmp_path), [*scene()["train"], *scene()["val"]], form)
    train, val = training_datasets(tmp_path)
    check(train, scene()["train"], form)
    check(val, scene()["val"], form)


def test_category_ids(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    assert load_dataset(tmp_path, "train").category_ids == ((5, 10, 15) if "coco" in form else (1, 2, 3))


def test_an_item_has_its_pixels_also_from_a_worker(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    dataset = load_dataset(tmp_path, "train")
    loader = DataLoader(dataset, batch_size=None, num_workers=1 if form == "coco" else 0)
    for sample, plain in zip(loader, dataset.samples, strict=True):
        assert sample.image.shape == (3, *plain.size) and sample.path == plain.path
        torch.testing.assert_close(sample.target.boxes, plain.target.boxes)


def test_a_data_set_survives_pickling(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    dataset = pickle.loads(pickle.dumps(load_dataset(tmp_path, "train")))
    check(dataset, scene()["train"], form)


def test_an_unknown_split_names_those_that_exist(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    with pytest.raises(UserError, match=r"no split 'test'.*train.*val"):
        load_dataset(tmp_path, "test")


def test_a_fifth_is_held_out_where_there_are_no_splits(tmp_path, unsplit):
    pictures = [Picture(f"{number}.png", (10, 10), [("cat", 1, 1, 9, 9, False)]) for number in range(20)]
    pictures[3].boxes = [("dog", 1, 1, 9, 9, False), ("emu", 2, 2, 9, 9, False)]
    WHOLE[unsplit](tmp_path / "a", {"": pictures})
    WHOLE[unsplit](tmp_path / "b", {"": pictures[::-1]})
    assert splits(tmp_path / "a") == ()
    check(load_dataset(tmp_path / "a"), pictures, unsplit)
    parts = {split: load_dataset(tmp_path / "a", split) for split in ("train", "val", "test")}
    names = {split: {sample.path.name for sample in part.samples} for split, part in parts.items()}
    assert (len(names["train"]), len(names["val"])) == (16, 4) and names["val"] == names["test"]
    assert names["train"] | names["val"] == {picture.name for picture in pictures}
    moved = load_dataset(tmp_path / "b", "val")
    assert {sample.path.name for sample in moved.samples} == names["val"]
    train, val = training_datasets(tmp_path / "a")
    assert [len(train), len(val)] == [16, 4] and train.class_names == val.class_names == CLASSES
    with pytest.raises(UserError, match=r"no split 'fold1'.*none of its own"):
        load_dataset(tmp_path / "a", "fold1")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((30, 5, 10, 20), "x2 <= x1"),
        ((10, 20, 30, 20), "y2 <= y1"),
        ((math.nan, 5, 20, 20), "not finite"),
        ((5, 5, math.inf, 20), "not finite"),
        ((70, 5, 90, 20), "wholly outside its image of 60 x 40 pixels"),
        ((-30, -30, -5, -5), "wholly outside"),
    ],
)
def test_faulty_boxes_are_left_out_and_told_or_refused(tmp_path, form, box, reason):
    parts = scene()
    parts["train"][0].boxes.append(("emu", *box, False))
    SPLIT[form](tmp_path, parts)
    dataset = load_dataset(tmp_path, "train")
    check(dataset, scene()["train"], form)
    message = dataset.skipped[0].sentence
    assert reason in message or "not finite" in message  # YOLO writes infinity as centre and width: not a number
    place = {"coco": "annotation 2", "voc": "one.xml, object 3 (emu)", "yolo": "one.txt, line 3", "csv": "line "}
    assert place[form.partition("_")[0]] in message
    assert "left out as faulty: 1" in dataset.summary() and message in dataset.summary()
    with pytest.raises(UserError) as refused:
        load_dataset(tmp_path, "train", strict=True)
    assert message in str(refused.value) and "strict" in str(refused.value)
    load_dataset(tmp_path, "val", strict=True)


def test_boxes_over_the_edge_are_clipped(tmp_path, form):
    parts = scene()
    parts["train"][0].boxes = [("dog", -7, -9, 25, 30, False), ("cat", 30, 10, 99, 44, False)]
    SPLIT[form](tmp_path, parts)
    dataset = load_dataset(tmp_path, "train", strict=True)
    found = next(sample for sample in dataset.samples if sample.path.name == "one.png")
    wanted = torch.tensor([[0, 0, 25, 30], [30, 10, 60, 40]], dtype=torch.float64)
    torch.testing.assert_close(found.target.boxes, wanted, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.areas, torch.tensor([750, 900], dtype=torch.float64), rtol=1e-4, atol=0)


def test_the_classes_asked_for_decide_the_labels(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    dataset = load_dataset(tmp_path, "train", class_names=("fox", "emu", "cat", "dog"))
    assert dataset.class_names == ("fox", "emu", "cat", "dog") and len(set(dataset.category_ids)) == 4
    found = {sample.path.name: sample.target.labels.tolist() for sample in dataset.samples}
    assert found == {"one.png": [3, 2], "empty.png": [], "three.png": [1, 1], "four.png": [2]}
    with pytest.raises(UserError, match=r"(annotation|object|line) \d.*emu"):
        load_dataset(tmp_path, "train", class_names=("cat", "dog"))
    with pytest.raises(UserError, match=r"cat.* 2 times"):
        load_dataset(tmp_path, "train", class_names=("cat", "dog", "cat"))


def test_missing_images_are_counted(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    for name in ("one.png", "three.png"):
        next(tmp_path.rglob(name)).unlink()
    with pytest.raises(UserError, match=r"2 (of 4 images are missing.*one\.png.*three\.png|label files have no image)"):
        load_dataset(tmp_path, "train")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_in_place_of_a_file_is_not_waited_for(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    for file in sorted(tmp_path.rglob("*.*")):
        if file.suffix in (".json", ".xml", ".txt", ".yaml", ".csv"):
            content = file.read_bytes()
            file.unlink()
            os.mkfifo(file)
            told = told_of(tmp_path)
            with pytest.raises(UserError) as refused:
                load_dataset(file)
            assert "named pipe" in f"{told} {refused.value}" or "csv" in form or "no class names" in told, file
            file.unlink()
            file.write_bytes(content)
    check(load_dataset(tmp_path, "train"), scene()["train"], form)


def told_of(path):
    faults = []
    with contextlib.suppress(UserError):
        read_parts(path, faults.append)
    return " ".join(map(str, faults))


def every_fault(path):
    """The faults of all splits, collected."""
    faults = []
    for part in read_parts(path, faults.append).values():
        size_images(part.images, faults.append)
    return [str(fault) for fault in faults]


def test_a_clean_set_has_no_faults_to_collect(tmp_path, form):
    SPLIT[form](tmp_path, scene())
    assert every_fault(tmp_path) == []
    parts = read_parts(tmp_path, Notes())
    found = {name: {image.path.name for image in part.images} for name, part in parts.items()}
    assert found == {split: {picture.name for picture in pictures} for split, pictures in scene().items()}
    assert len(parts["train"].boxes.labels) == 5 and parts["train"].class_names == CLASSES


def test_damaged_annotations_raise_nothing_but_user_errors(tmp_path, form):
    """And what training is refused for is among the faults that are collected."""
    SPLIT[form](tmp_path, scene())
    dice = random.Random(form)
    files = sorted(file for file in tmp_path.rglob("*") if file.suffix in (".json", ".xml", ".txt", ".yaml", ".csv"))
    rubbish = [b"", b"\0", b"\xff", b"[", b"}", b"<", b'"', b":", b"-", b"nan", b"null", b"1e999", b"\n", b",", b"&a;"]
    for _ in range(60):
        file = dice.choice(files)
        whole = file.read_bytes()
        start = dice.randrange(len(whole) + 1)
        end = dice.choice([len(whole), start, min(len(whole), start + dice.randrange(12))])
        file.write_bytes(whole[:start] + dice.choice(rubbish) + whole[end:])
        for split in ("train", None):
            try:
                load_dataset(tmp_path, split)
            except UserError as error:
                assert len(str(error)) > 20
                if isinstance(error, Fault) and split == "train":
                    assert str(error) in every_fault(tmp_path)
        file.write_bytes(whole)


def test_a_spawned_worker_is_sent_no_tensors(tmp_path):
    """Each would cost a file handle, and a data set of thousands of images would run out of them."""
    coco(tmp_path, scene())
    sent = bytes(ForkingPickler.dumps(load_dataset(tmp_path, "train")))
    assert b"numpy" in sent and b"rebuild_tensor" not in sent and b"rebuild_storage" not in sent
