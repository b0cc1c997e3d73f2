"""What other tools write in place of the four formats: set right with a note, refused with the reason, never wrong.

Cases of the same list that are tested elsewhere: depths, bands and floats of image files in images/test_io.py; two
formats in one folder in data/test_dataset.py; a damaged image among others in training/test_start.py and
inference/test_run.py; what `check` makes of each in analysis/data/test_doctor.py, and --fix in test_fix.py.
"""

import json
import math
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.analysis.data.doctor import examine
from retinanet.analysis.data.fix import write_fixed_copy
from retinanet.data.dataset import hold_out, load_dataset, training_datasets
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess

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
    assert dataset.class_names == ("nut",) and "is not finite" in dataset.skipped[0].sentence


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


def test_faulty_boxes_are_counted_with_the_images_that_they_are_of(tmp_path):
    """An empty box, null, zeros or a row of zeros without a class is one faulty box, not the end of the run."""
    empty = {0: [], 1: None, 2: [0, 0, 0, 0]}
    coco(tmp_path / "coco", bbox=lambda n: empty.get(n, [10, 8, 20, 16]))
    csv_set(tmp_path / "csv", "10,8,30,24,nut")
    with (tmp_path / "csv" / "boxes.csv").open("a") as stream:
        stream.write("0.png,0,0,0,0,\n1.png,0,0,0,0,Tree\n2.png,nan,nan,nan,nan,\n")
    for root in (tmp_path / "coco", tmp_path / "csv"):
        whole = load_dataset(root)
        assert whole.class_names == (("nut",) if root.name == "coco" else ("Tree", "nut"))
        assert {fault.image.name for fault in whole.skipped} == {"0.png", "1.png", "2.png"}
        for part in training_datasets(root):
            names = {sample.path.name for sample in part.samples}
            assert {fault.image.name for fault in part.skipped} == names & {"0.png", "1.png", "2.png"}


@pytest.mark.parametrize(
    ("header", "line"),
    [
        ("img_file,xmin,ymin,xmax,ymax,label\n", "10,8,30,24,nut"),
        ("Location;x1;y1;x2;y2;class_name\n", "10;8;30;24;nut"),
        ("path\tLeft\tTop\tRight\tBottom\tname\r\n", "10\t8\t30\t24\tnut\r"),
        ("", '"10"," 8","30.0","24","nut "'),
        ("index", "10,8,30,24,nut"),  # that of pandas, as a first column
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_other_programs(tmp_path, header, line, encoding):
    csv_set(tmp_path, "")
    mark = next((mark for mark in ";\t" if mark in line), ",")
    index, header = header == "index", header.removeprefix("index")
    text = header + "".join(f"{f'{n},' if index else ''}{n}.png{mark}{line}\n" for n in range(6))
    (tmp_path / "boxes.csv").write_bytes(text.encode(encoding))
    assert_right(load_dataset(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_json_of_programs_on_windows(tmp_path, encoding):
    file = coco(tmp_path) / "labels.json"
    file.write_bytes(file.read_text().replace("\n", "\r\n").encode(encoding))
    assert_right(load_dataset(tmp_path))


@pytest.mark.parametrize("encoding", ["gb2312", "GBK", "Shift_JIS", "UTF-16"])
def test_voc_in_other_encodings_and_named_otherwise(tmp_path, encoding):
    box = "<bndbox><xmin>11</xmin><ymin>9</ymin><xmax>30</xmax><ymax>24</ymax></bndbox>"
    for n in range(6):
        save(tmp_path / "images" / f"{n}.png", n)
        (tmp_path / "Annotations").mkdir(exist_ok=True)
        text = f"<?xml version='1.0' encoding='{encoding}'?><annotation><filename>C:\\set\\{n}.png</filename>"
        text += f"<object><name>\u7802</name>{box}</object></annotation>"
        (tmp_path / "Annotations" / f"label{n}.xml").write_bytes(text.encode(encoding))
    dataset = load_dataset(tmp_path)
    assert_right(dataset)
    assert dataset.class_names == ("\u7802",) and dataset.notes == ()  # no image is told to have no XML file


@pytest.mark.parametrize("line", ["0.0\t{}\t{}\t{}\t{}", "  0 {}  {} {} {}   ", "0 {} {} {} {}\r"])
def test_yolo_lines_with_tabs_blanks_and_fractions(tmp_path, line):
    assert_right(load_dataset(yolo(tmp_path, line.format(*CENTRE.split()[1:])), "train"), 3)


def test_yolo_without_names_and_without_test_images(tmp_path):
    yolo(tmp_path, CENTRE, "test: ../test/images\n")
    assert_right(training_datasets(tmp_path)[0], 3)
    (tmp_path / "data.yaml").write_text("train: train/images\nval: val/images\nnc: 2\n")
    with pytest.raises(UserError, match=r"data\.yaml: says how many classes .*names: \[cat, dog\].*2 in all"):
        load_dataset(tmp_path, "train")


def test_validation_images_without_objects_are_told(tmp_path):
    yolo(tmp_path, CENTRE)
    for file in (tmp_path / "val" / "labels").iterdir():
        file.write_text("")
    train, val = training_datasets(tmp_path)
    assert "no object in the 3 validation images: AP cannot be measured" in val.summary() and not train.notes


def test_class_names_that_differ_in_capitals_are_told(tmp_path):
    names = [{"id": 1, "name": "Nut"}, {"id": 2, "name": "nut "}]
    assert "class Nut: also spelled nut" in load_dataset(coco(tmp_path, categories=names)).summary()


def test_images_with_many_objects_are_told(tmp_path):
    root = csv_set(tmp_path, "10,8,30,24,nut")
    (root / "boxes.csv").write_text("".join(f"0.png,{x},8,{x + 9},24,nut\n" for x in np.arange(0, 40.4, 0.4)))
    assert "1 images hold more than 100 objects, up to 101" in load_dataset(root).summary()


def test_images_outside_of_the_data_set_are_told_or_refused(tmp_path):
    """By their names, and with ``confine`` through links as well."""
    inside = coco(tmp_path / "set")
    load_dataset(inside, confine=True)
    for n in range(6):
        save(tmp_path / "other" / f"{n}.jpg", n)
    for name in ("../other/{}.jpg", str(tmp_path / "other" / "{}.jpg")):
        coco(inside, name)
        (note,) = load_dataset(inside).notes
        assert "6 of 6 images lie outside of the data set" in note and "other/0.jpg" in note
        with pytest.raises(UserError, match=r"set: 6 of 6 images lie outside of the data set.*leave out --confine"):
            training_datasets(inside, confine=True)
    (inside / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    coco(inside, "linked/{}.jpg")
    assert load_dataset(inside).notes == ()
    with pytest.raises(UserError, match="6 of 6 images lie outside"):
        load_dataset(inside, confine=True)
    check = partial(examine, inside, preprocess=Preprocess(), workers=1)
    coco(inside, "../other/{}.jpg")
    report = check()
    assert "outside-image" in report.groups()
    with pytest.raises(UserError, match="6 of 6 images lie outside"):
        check(confine=True)
    account = write_fixed_copy(inside, tmp_path / "copy", report) / "fixed.txt"
    assert "named where they are: " in account.read_text()


def test_label_files_outside_of_the_data_set_are_not_read(tmp_path):
    """Those of YOLO lie where the images do, and what is wrong in one would be told with its lines."""
    root = yolo(tmp_path / "set", CENTRE)
    secret = yolo(tmp_path / "other", "my secret line") / "val"
    (root / "data.yaml").write_text(f"train: train/images\nval: {secret}/images\nnames: [nut]\n")
    with pytest.raises(UserError, match="secret"):
        load_dataset(root, "val")
    for read in (partial(load_dataset, split="val"), training_datasets, partial(examine, preprocess=Preprocess())):
        with pytest.raises(UserError, match="3 of 3 images lie outside") as error:
            read(root, confine=True)
        assert "secret" not in str(error.value)
    assert len(load_dataset(root, "train", confine=True)) == 3


def test_addresses_keep_both_slashes_in_the_findings(tmp_path):
    report = examine(coco(tmp_path, "https://example.org/{}.png"), preprocess=Preprocess(), pixels=False)
    missing = report.groups()["missing-image"]
    assert [fault.where for fault in missing] == [f"https://example.org/{n}.png" for n in range(6)]
    assert "not fetched from URLs" in missing[0].remedy
