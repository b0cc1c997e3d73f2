import json

import pytest
from PIL import Image

from retinanet.data.dataset import load_dataset, splits
from retinanet.errors import UserError


def content(**changes):
    return {
        "images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10}, {"id": 8, "file_name": "b.png"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 5, 4], "area": 11.5, "iscrowd": 0},
            {"id": 2, "image_id": 8, "category_id": 1, "bbox": [0, 0, 9, 9], "area": 60, "iscrowd": 1},
        ],
        "categories": [{"id": 3, "name": "bee"}, {"id": 1, "name": "ant"}],
    } | changes


def write(file, data=None, images=("a.png", "b.png"), folder=None):
    file.parent.mkdir(parents=True, exist_ok=True)
    folder = folder or file.parent
    folder.mkdir(parents=True, exist_ok=True)
    for name in images:
        Image.new("RGB", (20, 10)).save(folder / name)
    file.write_text(json.dumps(content() if data is None else data))
    return file


def test_ids_areas_and_crowds_are_kept(tmp_path):
    dataset = load_dataset(write(tmp_path / "labels.json"))
    assert dataset.class_names == ("ant", "bee") and dataset.category_ids == (1, 3)
    a, b = dataset.samples
    assert (a.image_id, b.image_id) == (7, 8) and a.size == b.size == (10, 20)
    assert a.target.boxes.tolist() == [[1, 2, 6, 6]] and a.target.labels.tolist() == [1] and a.areas.tolist() == [11.5]
    assert b.target.ignore.tolist() == [True] and b.areas.tolist() == [60]


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_train2017.json", "images/train2017"),
        ("annotations/instances_train.json", "images"),
        ("annotations/train.json", "images/train"),
        ("annotations/instances_train.json", "train2017"),
        ("train.json", "train"),
        ("train.json", "images"),
        ("train.json", "."),
        ("train/_annotations.coco.json", "train"),
        ("train/annotations.json", "train/images"),
        ("annotations/train.json", "pictures"),
    ],
)
def test_layouts(tmp_path, file, folder):
    write(tmp_path / file, folder=tmp_path / folder)
    assert splits(tmp_path) == ("train",)
    dataset = load_dataset(tmp_path, "train")
    assert [sample.path.parent.relative_to(tmp_path).as_posix() for sample in dataset.samples] == [folder, folder]
    assert len(load_dataset(tmp_path / file)) == 2


def test_names_with_folders_in_them(tmp_path):
    images = [{"id": 7, "file_name": "deep/a.png"}, {"id": 8, "file_name": "deep\\b.png"}]
    write(tmp_path / "labels.json", content(images=images), folder=tmp_path / "images" / "deep")
    assert [sample.path.name for sample in load_dataset(tmp_path).samples] == ["a.png", "b.png"]


def test_the_image_of_the_own_split_comes_first(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "annotations" / f"instances_{split}.json", folder=tmp_path / "images" / split)
    for split in ("train", "val"):
        assert {sample.path.parent.name for sample in load_dataset(tmp_path, split).samples} == {split}


def test_files_of_other_tasks_are_no_splits(tmp_path):
    for name in ("instances_val2017", "captions_val2017", "person_keypoints_val2017", "instances_train2017"):
        write(tmp_path / "annotations" / f"{name}.json", folder=tmp_path / "val2017")
    assert splits(tmp_path) == ("train", "val")


def test_other_json_files_are_passed_over(tmp_path):
    write(tmp_path / "labels.json")
    (tmp_path / "predictions.json").write_text('[{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 1}]')
    (tmp_path / "empty.json").touch()
    assert splits(tmp_path) == () and len(load_dataset(tmp_path)) == 2


def test_all_splits_together(tmp_path):
    other = content(images=[{"id": 9, "file_name": "c.png"}], annotations=[])
    other["categories"] = [{"id": 2, "name": "cow"}]
    write(tmp_path / "train.json")
    write(tmp_path / "val.json", other, images=["c.png"])
    dataset = load_dataset(tmp_path)
    assert [sample.image_id for sample in dataset.samples] == [7, 8, 9]
    assert dataset.class_names == ("ant", "cow", "bee") and dataset.samples[0].target.labels.tolist() == [2]
    write(tmp_path / "val.json")
    with pytest.raises(UserError, match=r"image id 7 stands for both.*name one split"):
        load_dataset(tmp_path)
    other["categories"] = [{"id": 3, "name": "cow"}]
    write(tmp_path / "val.json", other)
    with pytest.raises(UserError, match=r"val\.json: category 3 is 'cow', but 'bee'.*Name one split"):
        load_dataset(tmp_path)


def test_two_files_for_one_split(tmp_path):
    for name in ("a", "b"):
        write(tmp_path / "train" / f"{name}.json")
    with pytest.raises(UserError, match=r"train: holds 2 COCO files .*a\.json.*b\.json"):
        splits(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"images": [\n{"id": 1},\n}', r"labels\.json, line 3, column 1: broken JSON"),
        ('{"images": [', r"labels\.json, line 1, column 13: broken JSON"),
        ("", r"line 1, column 1: broken JSON"),
        ("[" * 100_000, r"cannot be read as JSON"),
        ('{"images": ' + "1" * 5000 + "}", r"cannot be read as JSON"),
        ("[1, 2]", r"holds a list\. Expected an object"),
        ("null", r"holds a NoneType"),
    ],
)
def test_broken_json(tmp_path, text, message):
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(UserError, match=message):
        load_dataset(tmp_path / "labels.json")
    (tmp_path / "labels.json").rename(tmp_path / "annotations.json")
    with pytest.raises(UserError, match=message.replace("labels", "annotations")):
        load_dataset(tmp_path)


def annotation(**changes):
    entry = {"id": 5, "image_id": 7, "category_id": 3, "bbox": [1, 2, 5, 4]} | changes
    return {"annotations": [{key: value for key, value in entry.items() if value != "absent"}]}


def image(**changes):
    return {"images": [{"id": 7, "file_name": "a.png", "width": 20, "height": 10} | changes], "annotations": []}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": None}, r"'images' is a NoneType\. Expected a list"),
        ({"annotations": {}}, r"'annotations' is a dict"),
        ({"categories": "ant"}, r"'categories' is a str"),
        ({"images": [3]}, r"entry number 1 of 'images' is a int\. Expected an object"),
        ({"annotations": [{}, None]}, r"entry number 2 of 'annotations' is a NoneType"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, r"category id 1 stands twice \(a, b\)"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]}, r"a is declared 2 times"),
        ({"categories": [{"id": "one", "name": "a"}]}, r"category number 1: expected an id that is a whole number"),
        ({"categories": [{"id": 1}]}, r"category number 1: expected an id .* and a name"),
        ({"categories": [{"id": 1, "name": ""}]}, r"category number 1: expected"),
        ({"categories": [{"id": [1], "name": "a"}]}, r"category number 1: expected"),
        (image(id=None), r"image None: expected an id that is a whole number or a text"),
        (image(id=1.5), r"image 1\.5: expected an id"),
        (image(id=[]), r"image a list: expected an id"),
        (image(file_name=None), r"image 7: has no 'file_name'"),
        (image(file_name=["a.png"]), r"image 7: has no 'file_name'"),
        (image(width="wide"), r"image 7: width wide and height 10 are not the size"),
        (image(height=-5), r"image 7: width 20 and height -5"),
        (image(file_name="bad\0.png"), r"1 of 1 images are missing: .*bad\\x00\.png"),
        (image(file_name="\ud800.png"), r"1 of 1 images are missing: .*\\ud800\.png"),
        ({"images": [image()["images"][0]] * 2, "annotations": []}, r"image id 7 stands for both"),
        (annotation(category_id=9), r"annotation 5: category id 9 is not declared\. Declared are: 1 ant, 3 bee"),
        (annotation(category_id=None), r"annotation 5: category id None is not declared"),
        (annotation(category_id=[3]), r"annotation 5: category id a list is not declared"),
        (annotation(category_id="absent"), r"annotation 5: category id None"),
        (annotation(image_id=99), r"annotation 5: image id 99 is not among the images"),
        (annotation(image_id={}), r"annotation 5: image id a dict is not among the images"),
        (annotation(bbox="absent"), r"annotation 5: 'bbox' is None\. Expected four numbers"),
        (annotation(bbox=[1, 2, 3]), r"annotation 5: 'bbox' is \[1, 2, 3\]\. Expected four numbers"),
        (annotation(bbox=[[1, 2], [3, 4]]), r"annotation 5: 'bbox' is"),
        (annotation(bbox="1 2 3 4"), r"annotation 5: 'bbox' is"),
        (annotation(bbox={"x": 1}), r"annotation 5: 'bbox' is"),
        (annotation(bbox=[1, 2, 3, "four"]), r"annotation 5: 'bbox' is"),
        (annotation(bbox=[1, 2, 3, 10**400]), r"annotation 5: 'bbox' is"),
        (annotation(area="large"), r"annotation 5: 'area' is large\. Expected a number"),
        (annotation(id="absent", category_id=9), r"annotation number 1: category id 9"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path, changes, message):
    write(tmp_path / "labels.json", content(**changes))
    with pytest.raises(UserError, match=message) as error:
        load_dataset(tmp_path)
    assert str(tmp_path) in str(error.value) or "declared 2 times" in message


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_what_is_missing_is_named(tmp_path, key):
    data = content()
    del data[key]
    write(tmp_path / "labels.json", data)
    with pytest.raises(UserError, match=f"labels.json: '{key}' is missing. Expected a list"):
        load_dataset(tmp_path)


def test_one_faulty_annotation_among_thousands_is_named(tmp_path):
    entries = [annotation(id=number)["annotations"][0] for number in range(5000)]
    entries[4321]["bbox"] = [1, 2, 3]
    write(tmp_path / "labels.json", content(annotations=entries))
    with pytest.raises(UserError, match="annotation 4321: 'bbox'"):
        load_dataset(tmp_path)


def test_null_among_the_numbers_counts_as_not_finite(tmp_path):
    write(tmp_path / "labels.json", content(**annotation(bbox=[1, None, 3, 4])))
    dataset = load_dataset(tmp_path)
    assert len(dataset.samples[0].target) == 0 and "not finite" in dataset.skipped[0].sentence
