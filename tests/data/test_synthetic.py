"""The demo's data set on disk: valid COCO, repeatable, and never over somebody's files."""

import contextlib
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from retinanet.data import synthetic
from retinanet.data.scenes import GLYPHS, plan_scene
from retinanet.data.synthetic import render_scenes
from retinanet.errors import UserError

SMALL = {"train": 10, "val": 2, "test": 0, "size": (80, 96)}


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    return render_scenes(tmp_path_factory.mktemp("demo") / "data", **SMALL)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(rendered, tmp_path):
    assert contents(render_scenes(tmp_path / "again", **SMALL)) == contents(rendered)
    other = contents(render_scenes(tmp_path / "other", **SMALL, seed=1))
    assert other.keys() == contents(rendered).keys()
    assert not any(other[name] == data for name, data in contents(rendered).items())


def test_objects_says_how_many_there_are_in_an_image(tmp_path):
    dense = render_scenes(tmp_path / "dense", train=2, val=0, test=0, size=(80, 96), objects=15)
    rows = json.loads((dense / "annotations" / "instances_train.json").read_text())["annotations"]
    assert [13 <= sum(row["image_id"] == image for row in rows) <= 15 for image in (1, 2)] == [True, True]
    assert render_scenes(dense, train=2, val=0, test=0, size=(80, 96), objects=15) == dense
    with pytest.raises(UserError, match="does not hold the demo data set"):
        render_scenes(dense, train=2, val=0, test=0, size=(80, 96))
    for wrong in (0, 100):
        with pytest.raises(UserError, match=f"of 80 x 96 pixels are 1 to 22, got {wrong}"):
            render_scenes(tmp_path / "wrong", size=(80, 96), objects=wrong)


def test_an_image_does_not_depend_on_how_many_there_are(rendered, tmp_path):
    fewer = contents(render_scenes(tmp_path / "fewer", train=2, val=0, test=1, size=SMALL["size"]))
    for name in ("train/train_00000.jpg", "train/train_00001.jpg"):
        assert fewer[name] == contents(rendered)[name]
    assert sorted(fewer) == [
        "annotations/instances_test.json",
        "annotations/instances_train.json",
        "test/test_00000.jpg",
        "train/train_00000.jpg",
        "train/train_00001.jpg",
    ]


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_files_are_valid_coco(rendered, split):
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(rendered / "annotations" / f"instances_{split}.json"))
    assert len(coco.getImgIds()) == SMALL[split] == len(list((rendered / split).iterdir()))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == [glyph.name for glyph in GLYPHS]
    annotations = coco.dataset["annotations"]
    assert len({annotation["id"] for annotation in annotations}) == len(annotations) > 2
    for index, image in enumerate(coco.dataset["images"]):
        with Image.open(rendered / split / image["file_name"]) as picture:
            assert (picture.width, picture.height, picture.mode) == (image["width"], image["height"], "RGB")
        scene = plan_scene(0, split, index, SMALL["size"])
        mine = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert [annotation["category_id"] - 1 for annotation in mine] == [thing.label for thing in scene.things]
        xywh = np.array([annotation["bbox"] for annotation in mine]).reshape(-1, 4)
        assert np.array_equal(np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1), scene.boxes)
        assert (xywh[:, 2:] > 0).all() and (scene.boxes >= 0).all()
        assert (scene.boxes[:, 2:] <= [image["width"], image["height"]]).all()
        assert all(0 < a["area"] <= w * h and a["iscrowd"] == 0 for a, (_, _, w, h) in zip(mine, xywh, strict=True))


def test_images_without_objects_are_listed(rendered):
    content = json.loads((rendered / "annotations" / "instances_train.json").read_text())
    assert {image["id"] for image in content["images"]} - {a["image_id"] for a in content["annotations"]} == {9}


def test_the_same_data_set_is_used_again_as_it_is(rendered, monkeypatch):
    before = contents(rendered)
    monkeypatch.setattr(synthetic, "paint", None)  # nothing may be drawn
    assert render_scenes(rendered, **SMALL) == rendered
    assert contents(rendered) == before


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "data").mkdir()
    render_scenes(tmp_path / "data", train=1, val=0, test=0, size=(64, 64))
    assert (tmp_path / "data" / "train" / "train_00000.jpg").is_file()


@pytest.mark.parametrize("change", [{"seed": 5}, {"size": (64, 64)}, {"train": 11}, {"test": 1}])
def test_a_folder_with_another_data_set_is_refused(rendered, change):
    before = contents(rendered)
    with pytest.raises(UserError, match="does not hold"):
        render_scenes(rendered, **(SMALL | change))
    assert contents(rendered) == before


@pytest.mark.parametrize("damage", ["missing image", "broken json", "foreign file", "file"])
def test_anything_else_is_refused_and_untouched(tmp_path, damage):
    folder = tmp_path / "data"
    small = {"train": 1, "val": 1, "test": 0, "size": (64, 64)}
    if damage == "foreign file":
        folder.mkdir()
        (folder / "thesis.txt").write_text("mine")
    elif damage == "file":
        folder.write_text("mine")
    else:
        render_scenes(folder, **small)
        if damage == "missing image":
            (folder / "val" / "val_00000.jpg").unlink()
        else:
            (folder / "annotations" / "instances_val.json").write_text("{")
    before = contents(tmp_path)
    with pytest.raises(UserError, match="data"):
        render_scenes(folder, **small)
    assert contents(tmp_path) == before


def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "paint", interrupt)
    with pytest.raises(KeyboardInterrupt):
        render_scenes(tmp_path / "data", train=1, val=0, test=0, size=(64, 64))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"train": -1}, {"train": 0, "val": 0, "test": 0}, {"size": (63, 200)}])
def test_arguments_out_of_range_are_named(tmp_path, wrong):
    with pytest.raises(UserError, match=r"seed|size"):
        render_scenes(tmp_path / "data", **wrong)
    assert not list(tmp_path.iterdir())
