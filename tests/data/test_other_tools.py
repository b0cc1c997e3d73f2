"""What other tools write in place of the four formats: set right with a note, refused with the reason, never wrong."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.dataset import hold_out, load_dataset, training_datasets
from retinanet.errors import UserError

BOX = (10.0, 8.0, 30.0, 24.0)  # x1, y1, x2, y2 on images of 60 x 40


def save(path, number=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    dice = np.random.default_rng(number)
    Image.fromarray(dice.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)


def coco(root, name="{}.png", categories=None, folder=".", **changes):
    """Six images with a box each; ``changes`` are made to every annotation, the id of which they may take."""
    x1, y1, x2, y2 = BOX
    images = [{"id": n, "file_name": name.format(n), "width": 60, "height": 40} for n in range(6)]
    rows = []
    for n in range(6):
        row = {"id": n, "image_id": n, "category_id": 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "iscrowd": 0, **changes}
        rows.append({key: value(n) if callable(value) else value for key, value in row.items()})
        save(root / folder / f"{n}.png", n)
    content = {"images": images, "annotations": rows, "categories": categories or [{"id": 1, "name": "nut"}]}
    (root / "labels.json").write_text(json.dumps(content))
    return root


def csv_set(root, line, header=""):
    for n in range(6):
        save(root / f"{n}.png", n)
    (root / "boxes.csv").write_text(header + "".join(f"{n}.png,{line}\n" for n in range(6)))
    return root


def yolo(root, line, config="", names="[nut, bolt]"):
    for split in ("train", "val"):
        for n in range(3):
            save(root / split / "images" / f"{n}.png", n + 10 * (split == "val"))
            (root / split / "labels").mkdir(exist_ok=True)
            (root / split / "labels" / f"{n}.txt").write_text(f"{line}\n")
    (root / "data.yaml").write_text(f"train: train/images\nval: val/images\nnames: {names}\n{config}")
    return root


def boxes(dataset):
    return torch.cat([sample.target.boxes for sample in dataset.samples])


def assert_right(dataset, count=6):
    """Every image has the one box, which is an object."""
    assert len(dataset) == count and not any(sample.target.ignore.any() for sample in dataset.samples)
    torch.testing.assert_close(boxes(dataset), torch.tensor([BOX] * count, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {"iscrowd": "0"},
        {"iscrowd": "false"},
        {"category_id": "1"},
        {"category_id": 1.0},
        {"image_id": str},
        {"bbox": None, "segmentation": [[10, 8, 30, 8, 30, 24]]},
        {"bbox": [0, 0, 0, 0], "segmentation": [[10, 8, 30, 8, 30, 24], [20, 9, 25, 9, 25, 12]]},
    ],
)
def test_coco_with_text_for_numbers_and_outlines_for_boxes(tmp_path, changes):
    dataset = load_dataset(coco(tmp_path, **changes))
    assert_right(dataset)
    assert ("6 annotations have polygons and no box" in dataset.summary()) == ("segmentation" in changes)


def test_coco_crowds_as_text_and_ids_as_fractions(tmp_path):
    dataset = load_dataset(coco(tmp_path, iscrowd=lambda n: "1" if n else "0"))
    assert [sample.target.ignore.tolist() for sample in dataset.samples] == [[False]] + [[True]] * 5
    with pytest.raises(UserError, match="'iscrowd' is maybe"):
        load_dataset(coco(tmp_path, iscrowd="maybe"))
    assert_right(load_dataset(coco(tmp_path, categories=[{"id": 1.0, "name": "nut"}])))


def test_a_root_category_is_no_class(tmp_path):
    names = [{"id": 0, "name": "all", "supercategory": "none"}, {"id": 1, "name": "nut", "supercategory": "all"}]
    dataset = load_dataset(coco(tmp_path, categories=names))
    assert dataset.class_names == ("nut",) and "category 0 (all)" in dataset.notes[0]
    used = load_dataset(coco(tmp_path, categories=names, category_id=lambda n: n % 2))
    assert used.class_names == ("all", "nut") and not used.notes


@pytest.mark.parametrize(
    "name",
    [
        "/home/other/set/images/{}.png",
        "D:\\set\\images\\{}.png",
        "..\\upload\\{}.png",
        "/data/local-files/?d=shots/{}%2Epng",
        "{}.PNG",
        "{}",
    ],
)
def test_images_are_found_by_the_end_of_their_names(tmp_path, name):
    dataset = load_dataset(coco(tmp_path, name, folder="deep/er"))
    assert_right(dataset)
    assert "6 names lead nowhere" in dataset.notes[0] and "deep/er/0.png" in dataset.notes[0]


def test_an_image_of_another_split_or_of_two_places_is_not_taken(tmp_path):
    coco(tmp_path, folder="train")
    (tmp_path / "labels.json").rename(tmp_path / "val.json")
    shutil.move(tmp_path / "train", tmp_path / "deep" / "train")
    with pytest.raises(UserError, match=r"6 of 6 images are missing") as error:
        load_dataset(tmp_path, "val")
    assert "remove" not in str(error.value)
    shutil.copytree(tmp_path / "deep" / "train", tmp_path / "deep" / "one")
    shutil.copytree(tmp_path / "deep" / "train", tmp_path / "deep" / "two")
    with pytest.raises(UserError, match="6 of 6 images are missing"):
        load_dataset(tmp_path, "val")
    with pytest.raises(UserError, match=r"https://example\.org/0\.png.*not fetched from URLs"):
        load_dataset(coco(tmp_path / "url", "https://example.org/{}.png"))


@pytest.mark.parametrize(
    "line", ["10,8,30,24,nut\nextra.png,0,0,0,0,Tree", "10,8,30,24,nut\nextra.png,nan,nan,nan,nan,nan"]
)
def test_csv_rows_of_images_without_objects(tmp_path, line):
    save(tmp_path / "extra.png", 99)
    csv_set(tmp_path, "10,8,30,24,nut")
    with (tmp_path / "boxes.csv").open("a") as stream:
        stream.write(line.partition("\n")[2] + "\n")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("nut",) and dataset.skipped == ()
    assert [len(sample.target) for sample in dataset.samples] == [1] * 6 + [0]


def test_a_faulty_row_names_no_class(tmp_path):
    csv_set(tmp_path, "10,8,30,24,nut")
    with (tmp_path / "boxes.csv").open("a") as stream:
        stream.write("0.png,nan,8,30,24,nan\n")
    dataset = load_dataset(tmp_path)
    assert dataset.class_names == ("nut",) and "is not finite" in dataset.skipped[0]


def test_csv_comments_and_a_header_of_the_class_file(tmp_path):
    csv_set(tmp_path, "10,8,30,24,nut", "# by a tool\n")
    (tmp_path / "classes.csv").write_text("class_name,id\nnut,0\n")
    assert_right(load_dataset(tmp_path))


def test_fractions_in_place_of_pixels_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"boxes\.csv, line 1: all 6 boxes lie within 1 x 1 pixel"):
        load_dataset(csv_set(tmp_path, "0.1,0.2,0.5,0.6,nut"))


def test_corners_in_place_of_sides_are_told(tmp_path):
    x1, y1, x2, y2 = 40, 20, 55, 35
    dataset = load_dataset(coco(tmp_path, bbox=[x1, y1, x2, y2]))
    assert "6 of 6 boxes reach over the right or lower edge" in dataset.notes[0] and "corners" in dataset.notes[0]


CENTRE = f"0 {20 / 60} {16 / 40} {20 / 60} {16 / 40}"  # BOX


@pytest.mark.parametrize(
    ("points", "config"),
    [
        (" 0.3 0.4 0.31 0.4 0.32 0.4 0.33 0.4 0.34 0.4", ""),
        (" -1.0" * 10, ""),
        (" 0.9 0.9 2" * 4, "kpt_shape: [4, 3]\n"),
        (" 0.9 0.9" * 2, "kpt_shape: [2, 2]\n"),
    ],
)
def test_yolo_keypoints_are_no_polygons(tmp_path, points, config):
    dataset = load_dataset(yolo(tmp_path, CENTRE + points, config), "train")
    assert_right(dataset, 3)
    assert "3 lines hold keypoints behind the box" in dataset.notes[0]


def test_a_yolo_polygon_of_seven_corners_is_one(tmp_path):
    corners = [(20 + 10 * math.cos(angle), 16 + 8 * math.sin(angle)) for angle in np.linspace(0, 6, 7)]
    line = "0 " + " ".join(f"{x / 60} {y / 40}" for x, y in corners)
    dataset = load_dataset(yolo(tmp_path, line), "train")
    xs, ys = zip(*corners, strict=True)
    assert boxes(dataset)[0].tolist() == pytest.approx([min(xs), min(ys), max(xs), max(ys)]) and not dataset.notes


def test_yolo_pixels_and_confidences_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"0\.txt, line 1: 3 of 3 boxes are twice as large.*pixels"):
        training_datasets(yolo(tmp_path, "0 20 16 20 16"))
    with pytest.raises(UserError, match=r"0\.txt, line 1: 3 lines have a sixth number"):
        training_datasets(yolo(tmp_path, f"{CENTRE} 0.83"))


def test_yolo_names_in_other_cases_of_letters(tmp_path):
    yolo(tmp_path, CENTRE)
    for split in ("train", "val"):
        for file in (tmp_path / split / "labels").iterdir():
            file.rename(file.with_suffix(".TXT"))
        (tmp_path / split / "labels").rename(tmp_path / split / "Labels")
        (tmp_path / split / "images").rename(tmp_path / split / "Images")
    (tmp_path / "obj.names").write_text("nut\nbolt\n")
    config = "train: train\\Images\nval: /content/parts/val/Images\nnames: obj.names\n"
    (tmp_path / "data.yaml").write_text(config)
    train, val = training_datasets(tmp_path)
    assert_right(train, 3)
    assert_right(val, 3)
    assert train.class_names == ("nut", "bolt") and "'/content/parts/val/Images'" in val.notes[0]


def test_yolo_lists_of_another_machine(tmp_path):
    yolo(tmp_path, CENTRE)
    (tmp_path / "list.txt").write_text("".join(f"/home/other/train/images/{n}.png\n" for n in range(3)))
    (tmp_path / "data.yaml").write_text("train: list.txt\nval: val/images\nnames: [nut]\n")
    train, _ = training_datasets(tmp_path)
    assert_right(train, 3)
    assert {sample.path.parent for sample in train.samples} == {tmp_path / "train" / "images"}


def test_yolo_images_that_share_a_label_file_or_have_none(tmp_path):
    yolo(tmp_path, CENTRE)
    folder = tmp_path / "train" / "images"
    save(folder / "0.jpg", 50)
    assert "0.png and 0.jpg share it" in load_dataset(tmp_path, "train").summary()
    (folder / "0.jpg").unlink()
    for n in range(50, 53):
        save(folder / f"{n}.png", n)
    assert "3 of 6 images have no label file, for instance 50.png" in load_dataset(tmp_path, "train").summary()
    (tmp_path / "train" / "labels" / "50.txt").touch()
    (tmp_path / "train" / "labels" / "51.txt").touch()
    assert load_dataset(tmp_path, "train").notes == ()


def test_hidden_folders_and_links(tmp_path):
    yolo(tmp_path, CENTRE)
    folder = tmp_path / "train" / "images"
    save(folder / ".ipynb_checkpoints" / "0-checkpoint.png")
    save(folder / "._0.png")
    assert len(load_dataset(tmp_path, "train")) == 3
    (tmp_path / "store").mkdir()
    save(tmp_path / "store" / "far.png", 60)
    (folder / "part").symlink_to(tmp_path / "store", target_is_directory=True)
    assert len(load_dataset(tmp_path, "train")) == 4


def test_pictures_that_are_not_read_are_counted(tmp_path):
    yolo(tmp_path, CENTRE)
    for n in (0, 1):
        (tmp_path / "train" / "images" / f"{n}.heic").touch()
    assert "2 files of other kinds (.heic) were left out" in load_dataset(tmp_path, "train").summary()


@pytest.mark.parametrize(
    ("element", "outline"),
    [
        ("<polygon><x1>11</x1><y1>9</y1><x2>30</x2><y2>9</y2><x3>30</x3><y3>24</y3></polygon>", True),
        ("<robndbox><cx>20.5</cx><cy>16.5</cy><w>15</w><h>19</h><angle>1.5707963</angle></robndbox>", True),
        ("<bndbox><xmin>11</xmin><ymin>9</ymin><xmax>30</xmax><ymax>24</ymax></bndbox>", False),
    ],
)
def test_voc_outlines_and_folders_of_splits(tmp_path, element, outline):
    for split in ("train", "val"):
        for n in range(2):
            save(tmp_path / "images" / split / f"{n}.png", n + 10 * (split == "val"))
            file = tmp_path / "annotations" / split / f"{n}.xml"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"<annotation><object><name>nut</name>{element}</object></annotation>")
    train, val = training_datasets(tmp_path)
    assert_right(train, 2)
    assert_right(val, 2)
    assert train.samples[0].path == tmp_path / "images" / "train" / "0.png"
    assert ("2 objects have an outline" in train.summary()) == outline


@pytest.mark.parametrize("line", ["{}.png", "images/{}.jpg", "C:\\set\\{}.png", "{} 1"])
def test_voc_lists_of_files_and_paths(tmp_path, line):
    for n in range(3):
        save(tmp_path / "JPEGImages" / f"{n}.png", n)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        (tmp_path / "Annotations" / f"{n}.xml").write_text(
            "<annotation><object><name>nut</name><bndbox><xmin>11</xmin><ymin>9</ymin><xmax>30</xmax><ymax>24</ymax>"
            "</bndbox></object></annotation>"
        )
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("".join(line.format(n) + "\n" for n in range(3)))
    assert_right(load_dataset(tmp_path, "train"), 3)


def test_training_on_nothing_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match=r"not one image to train on has a box: all 6 boxes were left out\. .*line 1"):
        training_datasets(csv_set(tmp_path / "csv", "30,24,10,8,nut"))
    with pytest.raises(UserError, match=r"that is an object: all 6 are ignore regions"):
        training_datasets(coco(tmp_path / "crowd", iscrowd=1))
    (tmp_path / "none").mkdir()
    root = coco(tmp_path / "none")
    content = json.loads((root / "labels.json").read_text())
    (root / "labels.json").write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(UserError, match=r"none: not one image to train on has a box\. Check"):
        training_datasets(root)
    assert len(load_dataset(root)) == 6  # it may be looked at, and predicted on


def test_validating_on_what_is_trained_on_is_told(tmp_path):
    yolo(tmp_path, CENTRE)
    (tmp_path / "data.yaml").write_text("train: train/images\nval: train/images\nnames: [nut]\n")
    _, val = training_datasets(tmp_path)
    assert "3 of 3 validation images are training images" in val.summary()


def test_copies_stay_on_one_side_of_the_hold_out(tmp_path):
    coco(tmp_path)
    for n in range(6):
        shutil.copy(tmp_path / f"{n}.png", tmp_path / f"copy of {n}.png")
    content = json.loads((tmp_path / "labels.json").read_text())
    again = [
        {**image, "id": image["id"] + 6, "file_name": f"copy of {image['file_name']}"} for image in content["images"]
    ]
    (tmp_path / "labels.json").write_text(json.dumps({**content, "images": content["images"] + again}))
    whole = load_dataset(tmp_path)
    for seed in range(10):
        train, val = hold_out(whole, seed=seed)
        names = [{sample.path.name.removeprefix("copy of ") for sample in part.samples} for part in (train, val)]
        assert names[0].isdisjoint(names[1]) and len(val) == 2 and len(train) == 10


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("set.zip", "PK", r"set\.zip is an archive\. Unpack"),
        ("a.tfrecord", "x", "is a TFRecord"),
        ("obj.data", "classes = 2\nnames = obj.names\n", "is a darknet obj.data"),
        ("a.xml", "<annotations><image/></annotations>", "CVAT's own XML"),
        ("a.json", '{"shapes": [], "imagePath": "a.png"}', "is a labelme file"),
        ("a.json", '{"a.png9": {"regions": []}}', "VGG Image Annotator"),
        ("a.json", '[{"annotations": [{"coordinates": {}}]}]', "is a CreateML file"),
        ("a.csv", "ImageID,Source,LabelName\n", "is an Open Images table"),
        ("a.csv", "photo,xmin,ymin,xmax,ymax,label\n", r"Nearest comes .*a\.csv, line 1: .*image_path missing"),
    ],
)
def test_exports_of_other_tools_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path)
