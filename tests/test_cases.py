"""What other tools write in place of the four formats: set right with a note, refused with the reason, never wrong.

One row of ``CASES`` per situation. Each is written anew: six images of 96 x 72 pixels (a split to validate on has
others) with three coloured shapes, bolts and nuts. A set counts as read right where every object lies on a shape of its
class and ends where the shape ends.

Situations that need more than files are held elsewhere:

* unexpected errors, killed workers, full disks and shared memory, scripts without a main guard, the permissions of a
  model: training/test_ending.py (``test_an_exception``, ``test_the_parent_is_killed``, ``test_a_worker_is_killed``,
  ``test_the_shared_memory_is_full``, ``test_the_disk_is_full``, ``test_the_disk_is_full_at_the_state``,
  ``test_a_script_without_a_main_guard``, ``test_the_model_has_the_permissions_that_the_umask_leaves``); a model of
  another user: test_model_folder.py (``test_files_that_may_not_be_read``);
* other data or more epochs on ``--resume``: training/test_output.py (``test_a_run_does_not_go_on_with_other_data``),
  test_resume.py (``test_a_run_goes_on_only_as_it_began``);
* a batch norm with one value: training/test_run.py (``test_a_batch_norm_with_one_value_per_channel``); a damaged image
  before the first step: ``test_a_damaged_image_is_found_before_the_first_step`` there; AP without objects:
  test_loop.py (``test_a_validation_set_without_objects_keeps_the_last_model``);
* more than 100 objects: inference/test_run.py (``test_the_limit_of_detections_and_a_score_without_effect_are_told``),
  evaluation/test_report.py (``test_what_ap_could_not_count_is_told``);
* letters that a font lacks: plotting/test_draw.py (``test_names_are_drawn_with_their_letters_or_as_a_number``); names
  of modules: test_public.py; every depth and band of image files: images/test_io.py.
"""

import json
import re
import shutil
import struct
from collections.abc import Callable, Sequence
from functools import cache, partial
from io import BytesIO
from math import pi
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from retinanet.analysis.data.doctor import examine
from retinanet.analysis.data.fix import write_fixed_copy
from retinanet.cli.main import main
from retinanet.data.dataset import hold_out, load_dataset, training_datasets
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.inference.predictor import to_array
from retinanet.model.presets import Architecture
from retinanet.spec import ModelSpec
from retinanet.training.check import check

WIDTH, HEIGHT = 96, 72
COLOURS = {"bolt": (250, 180, 200), "nut": (20, 40, 60)}  # on patches of grey
EITHER = {"tree", "hardware"}
CHINESE = {"bolt": "\u87ba\u6813", "nut": "\u87ba\u6bcd"}


def shapes(n):
    """Three objects of image ``n``: class, x1, y1, x2, y2. They are apart, and touch no edge."""
    dice = np.random.default_rng(n)
    objects = []
    for i in range(3):
        x, y = 32 * i + int(dice.integers(2, 7)), int(dice.integers(3, 24))
        corners = (x, y, x + int(dice.integers(14, 24)), y + int(dice.integers(16, 40)))
        objects.append((("bolt", "nut")[(n + i) % 2], *corners))
    return objects


@cache
def picture(n, suffix=".png", empty=False):
    """The bytes of image ``n``; a TIFF has the grey values as 12 bits in 16."""
    patches = np.random.default_rng(n).integers(95, 150, (9, 12)).repeat(8, 0).repeat(8, 1)
    pixels = np.stack([patches] * 3, 2).astype(np.uint8)
    for name, x1, y1, x2, y2 in [] if empty else shapes(n):
        pixels[y1:y2, x1:x2] = COLOURS[name]
    stream = BytesIO()
    array = (pixels.mean(2) * 16).astype(np.uint16) if suffix == ".tif" else pixels
    Image.fromarray(array).save(stream, format={".tif": "TIFF", ".avif": "AVIF", ".webp": "WEBP"}.get(suffix, "PNG"))
    return stream.getvalue()


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def paint(path, n, empty=False):
    return write(path, picture(n, path.suffix, empty))


def fields(n):
    """The objects of image ``n`` for the formats: in pixels from 0, from 1 (``first``, ``m``), as fractions (``r``)."""
    for i, (name, x1, y1, x2, y2) in enumerate(shapes(n)):
        w, h = x2 - x1, y2 - y1
        values = {"n": n, "i": 3 * n + i, "name": name, "label": int(name == "nut"), "w": w, "h": h}
        values |= {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "first_x": x1 + 1, "first_y": y1 + 1}
        values |= {"cx": x1 + w / 2, "cy": y1 + h / 2, "mx": (x1 + 1 + x2) / 2, "my": (y1 + 1 + y2) / 2}
        values |= {"side_w": w - 1, "side_h": h - 1}  # of pixels counted from 1, the last included
        across = {"x1": x1, "x2": x2, "cx": x1 + w / 2, "w": w}
        down = {"y1": y1, "y2": y2, "cy": y1 + h / 2, "h": h}
        values |= {f"r{key}": value / WIDTH for key, value in across.items()}
        yield values | {f"r{key}": value / HEIGHT for key, value in down.items()}


def builder(write_set):
    """Makes ``write_set(root, **options)`` to ``options -> root -> the set is written``."""
    return lambda **options: lambda root: write_set(root, **options)


@builder
def coco(
    root, name="im{}.png", file="annotations.json", folder=".", numbers=range(6), image="im{}.png", edit=None, **row
):
    """``row`` are changes of every annotation, or functions of it; ``edit`` changes the content of the file."""
    images, rows = [], []
    for n in numbers:
        paint(root / folder / image.format(n), n)
        images.append({"id": n + 1, "file_name": name.format(n), "width": WIDTH, "height": HEIGHT})
        for one in fields(n):
            bbox = [one["x1"], one["y1"], one["w"], one["h"]]
            entry = {"id": one["i"], "image_id": n + 1, "category_id": one["label"] + 1, "bbox": bbox, "iscrowd": 0}
            rows.append(entry | {key: value(entry) if callable(value) else value for key, value in row.items()})
    content = {
        "images": images,
        "annotations": rows,
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }
    if edit:
        edit(content)
    write(root / file, json.dumps(content, indent=1))


@builder
def coco_splits(root, edit):
    """As Roboflow writes it."""
    coco(file="_annotations.coco.json", edit=edit)(root / "train")
    coco(file="_annotations.coco.json", edit=edit, numbers=range(10, 13))(root / "valid")


def corners(x, y, width, height):
    return [x, y, x + width, y + height]


def polygon(row):
    x, y, w, h = row["bbox"]
    return [[x, y, x + w, y, x + w, y + h]]


def categories(*pairs):
    """An edit: the categories are (id, name)."""
    return lambda content: content.update(categories=[{"id": key, "name": name} for key, name in pairs])


def windows_names(content):
    for image in content["images"][3:]:
        image["file_name"] = f"..\\label\\{image['file_name']}"


def root_category(content):
    content["categories"] = [{**entry, "supercategory": "hardware"} for entry in content["categories"]]
    content["categories"].insert(0, {"id": 0, "name": "hardware", "supercategory": "none"})


def twice(content):
    """Every image stands twice, as two people annotated it."""
    images, rows = content["images"], content["annotations"]
    images += [{**image, "id": image["id"] + 100} for image in images]
    rows += [{**row, "id": row["id"] + 100, "image_id": row["image_id"] + 100} for row in rows]


ROW = "im{n}.png,{x1},{y1},{x2},{y2},{name}\n"


@builder
def table(root, row=ROW, head="", more="", folder=".", file="boxes.csv", encoding="utf-8", names=lambda n, name: name):
    """CSV; ``more`` is added as it is, and im6 and im7 are images without objects where it names them."""
    lines = []
    for n in range(6):
        paint(root / folder / f"im{n}.png", n)
        lines += [row.format(**{**one, "name": names(n, one["name"])}) for one in fields(n)]
    for n in (6, 7):
        if f"im{n}.png" in more:
            paint(root / folder / f"im{n}.png", n, empty=True)
    write(root / file, "".join([head, *lines, more]).encode(encoding))


LINE = "{label} {rcx} {rcy} {rw} {rh}\n"
CONFIG = "train: train/images\nval: valid/images\nnames: [bolt, nut]\n"


@builder
def yolo(root, line=LINE, config=CONFIG, folders=("train/images", "valid/images"), image="im{}.png", suffix=".txt"):
    for folder, numbers in zip(folders, (range(6), range(10, 13)), strict=False):
        labels = folder.replace("images", "labels").replace("Images", "Labels")
        for n in numbers:
            file = paint(root / folder / image.format(n), n)
            write(root / labels / f"{file.stem}{suffix}", "".join(line.format(**one) for one in fields(n)))
    if config:
        write(root / "data.yaml", config)


BOX = "<bndbox><xmin>{first_x}</xmin><ymin>{first_y}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox>"
POLYGON = (
    "<polygon><x1>{first_x}</x1><y1>{first_y}</y1><x2>{x2}</x2><y2>{first_y}</y2><x3>{x2}</x3><y3>{y2}</y3></polygon>"
)
TURNED = f"<robndbox><cx>{{mx}}</cx><cy>{{my}}</cy><w>{{side_h}}</w><h>{{side_w}}</h><angle>{pi / 2}</angle></robndbox>"


@builder
def voc(
    root,
    box=BOX,
    images="JPEGImages",
    annotations="Annotations",
    splits=(("", range(6)),),
    image="im{}.png",
    stem="im{}",
    path="im{}.png",
    encoding=None,
    names=lambda n, name: name,
):
    for split, numbers in splits:
        for n in numbers:
            paint(root / images / split / image.format(n), n)
            text = f"<?xml version='1.0' encoding='{encoding}'?>" if encoding else ""
            text += f"<annotation><filename>{path.format(n)}</filename>"
            for one in fields(n):
                text += f"<object><name>{names(n, one['name'])}</name>{box.format(**one)}</object>"
            write(
                root / annotations / split / f"{stem.format(n)}.xml", f"{text}</annotation>".encode(encoding or "utf-8")
            )


@builder
def voc_lists(root, line):
    voc()(root)
    for split, numbers in (("train", range(4)), ("val", range(4, 6))):
        write(root / "ImageSets" / "Main" / f"{split}.txt", "".join(line.format(n) + "\n" for n in numbers))


def then(build, *steps):
    """A builder, and what is done to its folder afterwards."""

    def build_all(root):
        build(root)
        for step in steps:
            step(root)

    return build_all


def file(name, content):
    return lambda root: write(root / name, content)


class Case(NamedTuple):
    """A situation and what has to come of it.

    Attributes:
        build: writes it into a folder; an image or path that it returns is read in place of a data set.
        says: pattern of the error with which training refuses it; or patterns of the lines below the summaries of what
            is trained and validated on, one for each line; or of what a command says.
        parts: (images, objects) to train on and to validate on; by default all of the builder.
        found: the kinds that ``check`` finds beside rare classes; None where it refuses the set as training does.
        exact: every box lies on a shape.
        fixed: objects in the copy of ``check --fix``, or pattern of the error; None where it is not tried.
        words: a command in place of training, of the folder and a model; what it returns is ``code``.
    """

    name: str
    build: Callable[[Path], object]
    says: str | Sequence[str] = ()
    parts: Sequence[tuple[int, int]] | None = None
    classes: Sequence[str] = ("bolt", "nut")
    found: str | None = ""
    exact: bool = True
    fixed: int | str | None = None
    words: Callable[[Path, Path], Sequence[str]] | None = None
    code: int = 0


HELD_OUT, SPLITS = ((5, 15), (1, 3)), ((6, 18), (3, 9))
FOUR = ((4, 12), (2, 6))
ELSEWHERE = {"says": ["6 names lead nowhere, and were found by the end"], "found": "found-elsewhere"}
KEYPOINTS = {
    "says": ["18 lines hold keypoints behind the box", "9 lines hold keypoints behind the box"],
    "found": "keypoints",
}
TREES = {"parts": ((6, 15), (2, 3)), "classes": ("Tree",), "found": "empty-image"}
UNKNOWN = "is none of the four known formats"
TREE = {"row": "im{n}.png,{x1},{y1},{x2},{y2},Tree\n", "head": "image_path,xmin,ymin,xmax,ymax,label\n"}
GREY = np.linspace(0, 4000, 20 * 30).reshape(20, 30)

PROGRAMS = {  # other heads, marks and quotes of CSV
    "img_file": ("img_file,x1,y1,x2,y2,class_name\n", ROW),
    "location": ("location , x1, y1, x2, y2, class_name\n", ROW.replace(",", ", ")),
    "semicolons": ("Location;x1;y1;x2;y2;class_name\n", ROW.replace(",", ";")),
    "tabs": ("path\tLeft\tTop\tRight\tBottom\tname\r\n", ROW.replace(",", "\t").replace("\n", "\r\n")),
    "quotes": ("", '"im{n}.png","{x1}"," {y1}","{x2}.0",{y2},"{name} "\n'),
    "index": ("", "{i}," + ROW),
}


def save(name, pixels):
    def build(root):
        Image.fromarray(pixels).save(root / name)
        return root / name

    return build


def float_tiff(bits, bands):
    """A TIFF of floats that Pillow does not read, by hand."""

    def build(root):
        length = 2 * bands * bits // 8
        tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, 1 if bands == 1 else 2), (273, 8)]
        tags += [(277, bands), (278, 1), (279, length), (339, 3)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        start = struct.pack("<I", 8 + length)
        return write(
            root / "a.tif", b"II*\0" + start + bytes(length) + struct.pack("<H", len(tags)) + entries + bytes(4)
        )

    return build


def link(root):
    """A folder of images elsewhere, linked into those to train on."""
    paint(root.parent / "store" / "im20.png", 20)
    paint(root.parent / "store" / "im21.png", 21)
    (root / "train" / "images" / "part").symlink_to(root.parent / "store", target_is_directory=True)
    for n in (20, 21):
        write(root / "train" / "labels" / "part" / f"im{n}.txt", "".join(LINE.format(**one) for one in fields(n)))


def unlabelled(root, labelled=()):
    """Five more images to train on, of which those ``labelled`` have an empty label file and the others none."""
    for n in range(20, 25):
        paint(root / "train" / "images" / f"im{n}.png", n, empty=True)
        if n in labelled:
            write(root / "train" / "labels" / f"im{n}.txt", "")


def mixed_folder(root):
    for n, suffix in enumerate((".jfif", ".jpe", ".avif")):
        write(root / f"photo{suffix}", picture(n, suffix))
    write(root / "z.png", picture(3)[:-200])
    for name in ("._a.webp", "b.heic", "c.HEIC"):
        write(root / name, "no image")


def command(words):
    return lambda root, model: [
        word.replace("MODEL", str(model)).replace("DATA", str(root)) for word in f"{words} --device cpu".split()
    ]


EVALUATE = command("evaluate MODEL DATA --split train")

# fmt: off
CASES = [
    # COCO: names of images
    Case("coco_case_ext", coco(name="im{}.PNG"), **ELSEWHERE),
    Case("coco_cvat_deep", coco(file="annotations/instances_Train.json", folder="images/Train/Data"), **ELSEWHERE),
    Case("coco_ls_local_url",
         coco(name="/data/local-files/?d=shots/my%20photo%20{}.png", folder="images", image="my photo {}.png"),
         **ELSEWHERE),
    Case("coco_ls_relative", coco(name="..\\..\\media\\upload\\4\\im{}.png", folder="images"), **ELSEWHERE),
    Case("coco_mixed_windows", coco(edit=windows_names), ["3 names lead nowhere"], found="found-elsewhere"),
    Case("coco_no_ext", coco(name="im{}"), **ELSEWHERE),
    Case("coco_abs_other", coco(name="/home/other/set/images/im{}.png", folder="deep/images"), **ELSEWHERE),
    Case("coco_abs_windows", coco(name="D:\\set\\images\\im{}.png", folder="images"), **ELSEWHERE),
    Case("coco_url", coco(name="https://example.org/im{}.png"),
         r"6 of 6 images are missing: https://example\.org/im0\.png, .*not fetched from URLs",
         found="missing-image outside-image"),
    # COCO: boxes and numbers
    Case("coco_empty_bbox", coco(bbox=lambda row: {0: [], 4: None, 8: [0, 0, 0, 0]}.get(row["id"], row["bbox"])),
         ["annotation 0: .* is not finite", "annotation 4: .* is not finite", "annotation 8: .* has x2 <= x1"],
         parts=((5, 12), (1, 3)), found="not-finite-box degenerate-box"),
    Case("coco_float_category",
         coco(category_id=lambda row: float(row["category_id"]), edit=categories((1.0, "bolt"), (2.0, "nut")))),
    Case("coco_no_boxes", coco(edit=lambda content: content.update(annotations=[])),
         r"coco_no_boxes: not one image to train on has a box\. Check",
         found="nothing-to-learn empty-image unseen-class"),
    Case("coco_all_zero_bbox", coco(bbox=[0, 0, 0, 0], segmentation=polygon),
         ["18 annotations have polygons and no box"], found="outline"),
    Case("coco_xyxy", coco(bbox=lambda row: corners(*row["bbox"])),
         ["7 of 18 boxes reach over the right or lower edge of their image. Are these the corners"],
         found="corners over-edge-box", exact=False, fixed="Are these the corners.*No fixed copy was written"),
    Case("coco_seg_only", coco(bbox=None, segmentation=polygon), ["18 annotations have polygons and no box"],
         found="outline", fixed=18),
    Case("coco_string_category", coco(category_id=lambda row: str(row["category_id"])), fixed=18),
    Case("coco_string_image", coco(image_id=lambda row: str(row["image_id"]))),
    Case("coco_crowd_string", coco(iscrowd="0")),
    Case("coco_crowd_false", coco(iscrowd="false")),
    Case("coco_crowd_some", coco(iscrowd=lambda row: str(int(row["id"] % 3 == 2))), parts=((5, 10), (1, 2))),
    Case("coco_crowd_unclear", coco(iscrowd="maybe"), "annotation 0: 'iscrowd' is maybe",
         found="broken-annotation empty-image unseen-class"),
    Case("coco_crowd_all", coco(iscrowd=1), "that is an object: all 18 are ignore regions",
         found="nothing-to-learn unseen-class"),
    # COCO: classes, splits and files
    Case("coco_cat_case",
         coco(category_id=lambda row: row["category_id"] + 2 * (row["image_id"] > 3),
         edit=categories((1, "Bolt"), (2, "nut"), (3, "bolt "), (4, "nut "))),
         ["class Bolt: also spelled bolt ", "class nut: also spelled nut "], classes=("Bolt", "nut", "bolt ", "nut "),
         found="similar-classes"),
    Case("coco_roboflow_root", coco_splits(edit=root_category), [r"category 0 \(hardware\) is the supercategory"] * 2,
         parts=SPLITS, found="root-category"),
    Case("coco_root_used", coco(category_id=lambda row: row["category_id"] * (row["id"] % 3 != 2), edit=root_category),
         classes=("hardware", "bolt", "nut")),
    Case("coco_negatives_only",
         coco_splits(edit=lambda content: len(content["images"]) == 3 and content.update(annotations=[])),
         ["no object in the 3 validation images: AP cannot be measured"], parts=((6, 18), (3, 0)),
         found="empty-image class-not-in-val"),
    Case("coco_images_split_missing",
         then(coco(file="annotations/instances_train.json", folder="train"),
         coco(file="annotations/instances_val.json", folder="train", numbers=range(2))),
         ["2 of 2 validation images are training images"], parts=((6, 18), (2, 6)), found="same-file-in-splits",
         fixed=18),
    Case("coco_annotators7", coco(numbers=range(7), edit=twice), parts=((10, 30), (4, 12)), found="same-file-twice"),
    Case("coco_dense",
         table(more="".join(f"im0.png,{x},{y},{x + 2},{y + 2},nut\n" for x in range(0, 96, 3) for y in range(0, 12,
         3))), ["1 images hold more than 100 objects, up to 131"], parts=((5, 143), (1, 3)), exact=False,
         found="many-objects"),
    *(Case(f"coco_{encoding}",
         then(coco(),
         partial(lambda root,
         encoding: write(root / "annotations.json",
         (root / "annotations.json").read_text().replace("\n", "\r\n").encode(encoding)),
         encoding=encoding))) for encoding in ("utf-8-sig", "utf-16")),
    # CSV
    Case("csv_classes_header", then(table(), file("classes.csv", "class_name,id\nbolt,0\nnut,1\n"))),
    Case("csv_comment", table(head="# made with a tool\n")),
    Case("csv_class_case", table(names=lambda n, name: f" {name.title()} " if n else name),
         ["class Bolt: also spelled bolt", "class Nut: also spelled nut"], classes=("Bolt", "Nut", "bolt", "nut"),
         found="similar-classes"),
    Case("csv_deepforest_empty", table(**TREE, more="im6.png,0,0,0,0,Tree\nim7.png,0,0,0,0,Tree\n"), **TREES),
    Case("csv_nan", table(**TREE, more="im6.png,nan,nan,nan,nan,nan\nim7.png,nan,nan,nan,nan,nan\n"), **TREES),
    Case("csv_zero_noclass", table(**TREE, more="im6.png,0,0,0,0,\nim7.png,0,0,0,0,\n"), **TREES),
    Case("csv_zero_beside_boxes",
         table(more="im0.png,0,0,0,0,\nim1.png,0,0,0,0,Tree\nim2.png,nan,nan,nan,nan,\nim3.png,nan,8,30,24,nan\n"),
         ["line 19: .* has x2 <= x1", "line 20: .* has x2 <= x1", "line 21: .* is not finite",
         "line 22: .* is not finite"], classes=("Tree", "bolt", "nut"),
         found="not-finite-box degenerate-box unseen-class"),
    *(Case(f"csv_{name}_{encoding}", table(row=row, head=head, encoding=encoding)) for name,
         (head, row) in PROGRAMS.items() for encoding in ("utf-8", "utf-8-sig", "utf-16") ),
    Case("csv_openimages", file("a.csv", "ImageID,Source,LabelName\n"), f"{UNKNOWN}.*a.csv is an Open Images table",
         found=None),
    Case("csv_xywh", table(row="im{n}.png,{x1},{y1},{w},{h},{name}\n", head="filename,x,y,width,height,class\n"),
         r"Nearest comes .*boxes\.csv, line 1: .* xmin, ymin, xmax, ymax missing", found=None),
    Case("csv_photo", table(head="photo,xmin,ymin,xmax,ymax,label\n"),
         r"Nearest comes .*boxes\.csv, line 1: .*image_path missing", found=None),
    Case("csv_windows_abs", table(row="C:\\Users\\me\\set\\images\\" + ROW, folder="images"), **ELSEWHERE),
    Case("csv_url", table(row="https://example.org/set/" + ROW),
         r"6 of 6 images are missing: https://example\.org/set/im0\.png, .*not fetched from URLs",
         found="missing-image unseen-class outside-image"),
    Case("csv_relative", table(row="im{n}.png,{rx1},{ry1},{rx2},{ry2},{name}\n", head=TREE["head"]),
         r"boxes\.csv, line 2: all 18 boxes lie within 1 x 1 pixel", found="fractions", fixed=18),
    Case("csv_normalised_name", table(row="im{n}.png,{rx1},{ry1},{rx2},{ry2},{name}\n"),
         r"boxes\.csv, line 1: all 18 boxes lie within 1 x 1 pixel", found="fractions", fixed=18),
    Case("csv_swapped_minmax", table(row="im{n}.png,{x2},{y2},{x1},{y1},{name}\n"),
         r"not one image to train on has a box: all 18 boxes were left out\. .*line 1: box .* has x2 <= x1",
         found="nothing-to-learn degenerate-box unseen-class"),
    # other formats
    Case("cvat_images_xml", file("annotations.xml", "<annotations><image/></annotations>"),
         f"{UNKNOWN}.*annotations.xml is CVAT's own XML. Export", found=None),
    Case("labelme_json", file("im0.json", '{"shapes": [], "imagePath": "im0.png"}'),
         f"{UNKNOWN}.*im0.json is a labelme file. Convert", found=None),
    Case("via_json", file("via.json", '{"im0.png999": {"regions": []}}'),
         f"{UNKNOWN}.*via.json is a file of the VGG Image Annotator. Export", found=None),
    Case("createml_json", file("a.json", '[{"annotations": [{"coordinates": {}}]}]'),
         f"{UNKNOWN}.*a.json is a CreateML file. Export", found=None),
    Case("tfrecord_dir", file("train.tfrecord", "x"), f"{UNKNOWN}.*train.tfrecord is a TFRecord. Export", found=None),
    Case("yolo_zip", file("set.zip", "PK"), f"{UNKNOWN}.*set.zip is an archive. Unpack", found=None),
    Case("yolo_cvat11", file("obj.data", "classes = 2\nnames = data/obj.names\n"),
         f"{UNKNOWN}.*obj.data is a darknet obj.data. Write a data.yaml", found=None),
    Case("mixed_yolo_coco", then(yolo(), coco(folder="images")),
         r"holds more than one format.* Give the annotation file or folder itself\. For instance .*annotations\.json",
         found=None),
    # Pascal VOC
    Case("voc_nested_dirs",
         voc(images="images", annotations="annotations", splits=(("train", range(4)), ("val", range(10, 14)))),
         parts=((4, 12), (4, 12))),
    Case("voc_Nested_dirs", voc(splits=(("train", range(4)), ("test", range(10, 14)))), parts=((3, 9), (1, 3))),
    *(Case(f"voc_{encoding}", voc(encoding=encoding, names=lambda n, name: CHINESE[name]),
         classes=tuple(CHINESE.values())) for encoding in ("GBK", "gb2312", "Shift_JIS", "UTF-16")),
    Case("voc_polygon",
         voc(box=POLYGON,
         images="images", annotations="annotations"), ["18 objects have an outline or a rotated box"],
         found="outline"),
    Case("voc_robndbox",
         voc(box=TURNED,
         images="images", annotations="annotations"), ["18 objects have an outline or a rotated box"],
         found="outline"),
    Case("voc_tiff12", voc(image="im{}.tif", path="im{}.tif")),
    Case("voc_wrong_stem", voc(images="images", annotations="annotations", stem="task_{}", path="C:\\set\\im{}.png")),
    Case("voc_class_case", voc(names=lambda n, name: name.title() if n == 1 and name == "bolt" else name),
         ["class Bolt: also spelled bolt"], classes=("Bolt", "bolt", "nut"), found="similar-classes"),
    Case("voc_imagesets_ext", voc_lists(line="im{}.png"), parts=FOUR),
    Case("voc_imagesets_path", voc_lists(line="images/im{}.jpg"), parts=FOUR),
    Case("voc_imagesets_windows", voc_lists(line="C:\\set\\im{}.png"), parts=FOUR),
    Case("voc_imagesets_flag", voc_lists(line="im{} 1"), parts=FOUR),
    # YOLO: paths
    Case("yolo_backslash", yolo(config=CONFIG.replace("/", "\\"))),
    Case("yolo_checkpoints",
         then(yolo(), lambda root: paint(root / "train/images/.ipynb_checkpoints/im0-checkpoint.png", 0),
         lambda root: paint(root / "train/images/._im0.png", 0))),
    Case("yolo_links", then(yolo(), link), parts=((8, 24), (3, 9))),
    Case("yolo_colab_paths",
         yolo(config=CONFIG.replace(": train", ": /content/parts-1/train").replace(": valid",
         ": /content/parts-1/valid")), ["'/content/parts-1/train/images'", "'/content/parts-1/valid/images'"],
         found="found-elsewhere"),
    Case("yolo_cvat_ultra",
         then(yolo(config="path: .\ntrain: train.txt\nnames: {0: bolt, 1: nut}\n", folders=["images/train"]),
         file("train.txt", "".join(f"data/images/train/im{n}.png\n" for n in range(6)))), **ELSEWHERE, parts=HELD_OUT),
    Case("yolo_list_abs",
         then(yolo(config="train: train.txt\nval: valid/images\nnames: [bolt, nut]\n"),
         file("train.txt", "".join(f"/home/other/train/images/im{n}.png\n" for n in range(6)))), **ELSEWHERE),
    Case("yolo_names_file",
         then(yolo(config=CONFIG.replace("[bolt, nut]", "obj.names\nnc: 2")), file("obj.names", "bolt\nnut\n"))),
    Case("yolo_nc_only", yolo(config=CONFIG.replace("names: [bolt, nut]", "nc: 2")),
         r"data\.yaml: says how many classes .*names: \[cat, dog\].*2 in all", found="class-names"),
    Case("yolo_png_and_jpg", then(yolo(), lambda root: paint(root / "train/images/im0.jpg", 0)),
         [r"im0\.png and im0\.jpg share it"], parts=((7, 21), (3, 9)), found="shared-label copy-in-split"),
    Case("yolo_same_split", yolo(config=CONFIG.replace("valid", "train"), folders=["train/images"]),
         ["6 of 6 validation images are training images"], parts=((6, 18), (6, 18)), found="same-file-in-splits",
         fixed="would hold no image of train"),
    Case("yolo_truncated", then(yolo(), lambda root: write(root / "train/images/im2.png", picture(2)[:-200])),
         r"im2\.png: the image is truncated", found="unreadable-image"),
    Case("yolo_upper_dirs",
         yolo(config=CONFIG.replace("train/i", "Train/I").replace("valid/i", "Valid/I"),
         folders=("Train/Images", "Valid/Images"))),
    Case("yolo_upper_txt", yolo(image="im{}.PNG", suffix=".TXT")),
    Case("yolo_test_missing", yolo(config=CONFIG + "test: ../test/images\n"), found="missing-test"),
    Case("yolo_labels_some_gone", then(yolo(), unlabelled),
         [r"5 of 11 images have no label file, for instance im20\.png"], parts=((11, 18), (3, 9)),
         found="no-label-file empty-image"),
    Case("yolo_labels_empty", then(yolo(), partial(unlabelled, labelled=range(21, 25))), parts=((11, 18), (3, 9)),
         found="empty-image"),
    Case("yolo_heic_mixed", then(yolo(), file("train/images/im20.heic", ""), file("train/images/im21.heic", "")),
         [r"2 files of other kinds \(\.heic\) were left out"], found="other-files"),
    # YOLO: lines
    Case("yolo_labelstudio",
         then(yolo(config="", folders=["images"], image="3ae8f9d5-im{}.png"), file("classes.txt", "bolt\nnut\n"),
         file("notes.json", "{}")), parts=HELD_OUT),
    Case("yolo_tabs", yolo(line="{label}.0\t{rcx}\t{rcy}\t{rw}\t{rh}\n")),
    Case("yolo_blanks", yolo(line="  {label} {rcx}  {rcy} {rw} {rh}   \n")),
    Case("yolo_windows_lines", yolo(line=LINE.replace("\n", "\r\n"))),
    Case("yolo_pixels", yolo(line="{label} {cx} {cy} {w} {h}\n"),
         r"im0\.txt, line 1: 18 of 18 boxes are twice as large .*pixels", found="pixels", fixed=27),
    Case("yolo_conf", yolo(line=LINE.replace("\n", " 0.83\n")),
         r"im0\.txt, line 1: 18 lines have a sixth number.*confidence", found="confidence", fixed=27),
    Case("yolo_face5", yolo(line=LINE.replace("\n", " {rcx} {rcy}" * 5 + "\n")), **KEYPOINTS),
    Case("yolo_face5_hidden", yolo(line=LINE.replace("\n", " -1.0" * 10 + "\n")), **KEYPOINTS),
    Case("yolo_pose4", yolo(line=LINE.replace("\n", " 0.5 0.5 2" * 4 + "\n"), config=CONFIG + "kpt_shape: [4, 3]\n"),
         **KEYPOINTS),
    Case("yolo_pose2", yolo(line=LINE.replace("\n", " 0.9 0.9" * 2 + "\n"), config=CONFIG + "kpt_shape: [2, 2]\n"),
         **KEYPOINTS),
    Case("yolo_polygon7",
         yolo(line="{label} {rx1} {rcy} {rx1} {ry1} {rcx} {ry1} {rx2} {ry1} {rx2} {ry2} {rcx} {ry2} {rx1} {ry2}\n")),
    # images
    Case("images/g16_10bit.png", save("a.png", (GREY / 4).astype(np.uint16))),
    Case("images/g16_12bit.tif", save("a.tif", GREY.astype(np.uint16))),
    Case("images/g16_8bitvalues.tif", save("a.tif", (GREY / 16).astype(np.uint16))),
    Case("images/I;16", lambda root: Image.fromarray(GREY.astype(np.uint16))),
    Case("images/url", lambda root: "https://example.org/a.jpg", r"^https://example\.org/a\.jpg: is an address"),
    Case("images/glob", lambda root: "folder/*.png", r"^folder/\*\.png.*pass glob\.glob"),
    Case("images2/f16.tif", float_tiff(16, 1), r"a\.tif: is a TIFF file with 1 band of floats of 16 bits"),
    Case("images2/f32_rgb.tif", float_tiff(32, 3), r"a\.tif: is a TIFF file with 3 bands of floats of 32 bits"),
    Case("images2/f64.tif", float_tiff(64, 1), r"a\.tif: is a TIFF file with 1 band of floats of 64 bits"),
    # commands
    Case("evaluate coco_no_boxes", coco(edit=lambda content: content.update(annotations=[])),
         ["no object in the 5 images: AP cannot be measured"], words=EVALUATE),
    Case("evaluate csv_deepforest_empty", table(**TREE),
         [r"the model does not know the class 'Tree' \(it knows bolt, nut\)"], words=EVALUATE, code=2),
    Case("evaluate coco_cat_case", coco(edit=categories((1, "Bolt"), (2, "nut"))), ["'Bolt'.*Did you mean 'bolt'"],
         words=EVALUATE, code=2),
    Case("predict with model and image in the wrong order", lambda root: paint(root / "im0.png", 0),
         [r"im0\.png is an image; the model comes first"], words=command("predict DATA/im0.png MODEL"), code=2),
    # folder_jfif, predict_mac, predict_heic, predict_one_bad and --score without effect, all at once
    Case("predict a folder of all kinds", mixed_folder,
         ["objects in 3 images", r"2 files of other kinds \(\.heic\) were left out", "1 of 4 images could not be read",
         r"z\.png: the image is truncated", r"--score 0 has no effect below 0\.05"],
         words=command("predict MODEL DATA --output DATA/out --score 0.0 --pictures false"), code=1),
]
# fmt: on


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The folder of an untrained model of the two classes."""
    spec = ModelSpec(
        tuple(COLOURS),
        Preprocess(short=64, long=96),
        architecture=Architecture(backbone="test_resnet", channels=32, depth=1),
    )
    folder = tmp_path_factory.mktemp("model")
    Detector(spec, spec.architecture.build(2).eval()).save(folder)
    return folder


def assert_right(part, exact=True):
    """Every image can be read, and every box holds a shape of its class and nothing else; how many are objects."""
    assert all(fault.image in {sample.path for sample in part.samples} for fault in part.skipped)
    counted = 0
    for sample, n in zip(part.samples, range(len(part)), strict=True):
        pixels = np.pad(part[n].image.numpy().mean(0), 1, constant_values=120)
        for box, label in zip(sample.target.boxes, sample.target.labels, strict=True) if exact else ():
            x1, y1, x2, y2 = box.round().int().tolist()
            assert np.abs(box.numpy() - (x1, y1, x2, y2)).max() < 1e-3, (sample.path, box)
            name = part.class_names[label].strip().lower()
            name = {value: key for key, value in CHINESE.items()}.get(name, name)
            wanted = [np.mean(colour) for key, colour in COLOURS.items() if name in {key, *EITHER}]
            outside = pixels[y1 : y2 + 2, x1 : x2 + 2].copy()
            inside = outside[1:-1, 1:-1]
            assert any(np.abs(inside - value).max() < 3 for value in wanted), (sample.path, box)
            inside[:] = 120
            assert outside.min() > 90 and outside.max() < 155, (sample.path, box)
        counted += int((~sample.target.ignore).sum())
    return counted


def load(root, exact=True):
    """What is trained and validated on, and the (images, objects) of each, which lie on their shapes."""
    parts = training_datasets(root)
    return parts, tuple((len(part), assert_right(part, exact)) for part in parts)


def assert_loaded(case, root):
    """``train`` and ``check`` say what they have to, and a copy of ``check --fix`` is right."""
    refused = isinstance(case.says, str)
    if refused:
        with pytest.raises(UserError, match=case.says) as error:
            load(root)
        text = str(error.value)
    else:
        parts, counts = load(root, case.exact)
        lines = [line for part in parts for line in part.summary().split("\n  ")[1:]]
        assert len(lines) == len(case.says), lines
        for pattern, line in zip(case.says, lines, strict=True):
            assert re.search(pattern, line), line
        assert counts == (case.parts or (SPLITS if case.name.startswith("yolo") else HELD_OUT))
        assert parts[0].class_names == parts[1].class_names == tuple(case.classes)
        text = "\n".join(lines)
    if case.found is None:
        with pytest.raises(UserError, match=case.says):
            examine(root, preprocess=Preprocess(), workers=1)
        return
    if "nothing-to-learn" in case.found:
        report = check(
            str(root), output=str(root.parent / "report"), workers=1, model="resnet50", short=800, long=1333
        ).doctor
    else:
        report = examine(root, preprocess=Preprocess(), workers=1)
    assert set(report.groups()) - {"rare-class"} == set(case.found.split()), report.summary()
    assert report.stops == refused
    assert "https:/e" not in text + report.summary()
    if isinstance(case.fixed, str):
        with pytest.raises(UserError, match=case.fixed):
            write_fixed_copy(root, root.parent / "copy", report)
    elif case.fixed is not None:
        _, counts = load(write_fixed_copy(root, root.parent / "copy", report))
        assert sum(objects for _, objects in counts) == case.fixed


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(case, tmp_path, request, capsys, caplog):
    root = tmp_path / case.name.split("/")[-1]
    root.mkdir()
    given = case.build(root)
    if case.words:
        assert main(case.words(root, request.getfixturevalue("model"))) == case.code
        said = " ".join("".join([*capsys.readouterr(), caplog.text]).split())
        assert "Traceback" not in said
        for pattern in case.says:
            assert re.search(pattern, said), said
    elif case.name.startswith("images"):
        if isinstance(case.says, str):
            with pytest.raises(UserError, match=case.says):
                to_array(given)
        else:
            assert np.abs(to_array(given) - GREY[..., None] * 255 / 4095).max() < 2
    else:
        assert_loaded(case, root)


def test_an_image_of_another_split_or_of_two_places_is_not_taken(tmp_path):
    coco(folder="train")(tmp_path)
    (tmp_path / "annotations.json").rename(tmp_path / "val.json")
    shutil.move(tmp_path / "train", tmp_path / "deep" / "train")
    with pytest.raises(UserError, match=r"6 of 6 images are missing") as error:
        load_dataset(tmp_path, "val")
    assert "remove" not in str(error.value)
    shutil.copytree(tmp_path / "deep" / "train", tmp_path / "deep" / "one")
    shutil.copytree(tmp_path / "deep" / "train", tmp_path / "deep" / "two")
    with pytest.raises(UserError, match="6 of 6 images are missing"):
        load_dataset(tmp_path, "val")


def test_copies_stay_on_one_side_of_the_hold_out(tmp_path):
    coco()(tmp_path)
    for n in range(6):
        shutil.copy(tmp_path / f"im{n}.png", tmp_path / f"copy of im{n}.png")
    content = json.loads((tmp_path / "annotations.json").read_text())
    again = [
        {**image, "id": image["id"] + 6, "file_name": f"copy of {image['file_name']}"} for image in content["images"]
    ]
    (tmp_path / "annotations.json").write_text(json.dumps({**content, "images": content["images"] + again}))
    whole = load_dataset(tmp_path)
    for seed in range(10):
        train, val = hold_out(whole, seed=seed)
        names = [{sample.path.name.removeprefix("copy of ") for sample in part.samples} for part in (train, val)]
        assert names[0].isdisjoint(names[1]) and len(val) == 2 and len(train) == 10


def test_images_outside_of_the_data_set_are_told_or_refused(tmp_path):
    """By their names, and with ``confine`` through links as well."""
    inside = tmp_path / "set"
    coco()(inside)
    load_dataset(inside, confine=True)
    for n in range(6):
        paint(tmp_path / "other" / f"{n}.png", n)
    for name in ("../other/{}.png", str(tmp_path / "other" / "{}.png")):
        coco(name=name)(inside)
        (note,) = load_dataset(inside).notes
        assert "6 of 6 images lie outside of the data set" in note and "other/0.png" in note
        with pytest.raises(UserError, match=r"set: 6 of 6 images lie outside of the data set.*leave out --confine"):
            training_datasets(inside, confine=True)
    (inside / "linked").symlink_to(tmp_path / "other", target_is_directory=True)
    coco(name="linked/{}.png")(inside)
    assert load_dataset(inside).notes == ()
    with pytest.raises(UserError, match="6 of 6 images lie outside"):
        load_dataset(inside, confine=True)
    look = partial(examine, inside, preprocess=Preprocess(), workers=1)
    coco(name="../other/{}.png")(inside)
    report = look()
    assert "outside-image" in report.groups()
    with pytest.raises(UserError, match="6 of 6 images lie outside"):
        look(confine=True)
    account = write_fixed_copy(inside, tmp_path / "copy", report) / "fixed.txt"
    assert "named where they are: " in account.read_text()


def test_label_files_outside_of_the_data_set_are_not_read(tmp_path):
    """Those of YOLO lie where the images do, and what is wrong in one would be told with its lines."""
    root, other = tmp_path / "set", tmp_path / "other"
    for folder, label in ((root / "train", "0 0.5 0.5 0.25 0.25"), (other / "val", "my secret line")):
        for kind in ("images", "labels"):
            (folder / kind).mkdir(parents=True)
        for name in "abc":
            Image.new("RGB", (40, 40), "white").save(folder / "images" / f"{name}.png")
            (folder / "labels" / f"{name}.txt").write_text(label)
    (root / "data.yaml").write_text(f"train: train/images\nval: {other}/val/images\nnames: [nut]\n")
    with pytest.raises(UserError, match="secret"):
        load_dataset(root, "val")
    for read in (partial(load_dataset, split="val"), training_datasets, partial(examine, preprocess=Preprocess())):
        with pytest.raises(UserError, match="3 of 3 images lie outside") as error:
            read(root, confine=True)
        assert "secret" not in str(error.value)
    assert len(load_dataset(root, "train", confine=True)) == 3
