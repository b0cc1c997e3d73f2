import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from retinanet.data.dataset import DetectionDataset, hold_out, load_dataset, splits, training_datasets
from retinanet.errors import UserError
from retinanet.types import Sample, Target

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_bccd = pytest.mark.skipif(not (SHARED / "bccd").is_dir(), reason="../shared/data/bccd is not there")
needs_coco80 = pytest.mark.skipif(not (SHARED / "coco80").is_dir(), reason="../shared/data/coco80 is not there")


@pytest.fixture
def make(tmp_path):
    """Writes a CSV data set of square images; a part is the names of its images."""

    def write(size=(10, 10), **parts):
        for split, names in parts.items():
            for name in names:
                Image.new("RGB", size).save(tmp_path / f"{name}.png")
            (tmp_path / f"{split}.csv").write_text("".join(f"{name}.png,1,1,8,9,cell\n" for name in names))
        return tmp_path

    return write


def names_of(dataset):
    return "".join(sorted(sample.path.stem for sample in dataset.samples))


@needs_bccd
def test_bccd():
    assert set(splits(SHARED / "bccd")) == {"train", "val", "test", "trainval"}
    parts = {split: load_dataset(SHARED / "bccd", split) for split in ("train", "val", "test", "trainval", None)}
    assert {split: len(part) for split, part in parts.items()} == {
        "train": 205,
        "val": 87,
        "test": 72,
        "trainval": 292,
        None: 364,
    }
    assert all(part.class_names == ("Platelets", "RBC", "WBC") for part in parts.values())
    assert sum(len(sample.target) for sample in parts[None].samples) == 4886
    assert [fault.where.split("/")[-1] for fault in parts["trainval"].skipped] == [
        "BloodImage_00338.xml, object 13 (RBC)",
        "BloodImage_00343.xml, object 4 (RBC)",
    ]
    with pytest.raises(UserError, match=r"BloodImage_00338\.xml, object 13 .* x2 <= x1"):
        load_dataset(SHARED / "bccd", "val", strict=True)
    sample = parts["test"][0]
    assert sample.size == (480, 640) and sample.image.shape == (3, 480, 640)


@needs_coco80
def test_coco80():
    dataset = load_dataset(SHARED / "coco80", "train")
    assert splits(SHARED / "coco80") == ("train",) and len(dataset) == len(load_dataset(SHARED / "coco80")) == 80
    assert len(dataset.class_names) == 80 and dataset.category_ids[-1] == 90 and dataset.class_names[-1] == "toothbrush"
    assert sum(len(sample.target) for sample in dataset.samples) == 739
    assert sum(int(sample.target.ignore.sum()) for sample in dataset.samples) == 8
    assert dataset.skipped == () and "8 of them ignored" in dataset.summary()
    content = json.loads((SHARED / "coco80/annotations/instances_train2017.json").read_text())
    by_image = {}
    for entry in content["annotations"]:
        by_image.setdefault(entry["image_id"], []).append(entry)
    for sample in dataset.samples:
        entries = by_image[sample.image_id]
        assert [dataset.category_ids[label] for label in sample.target.labels] == [e["category_id"] for e in entries]
        torch.testing.assert_close(
            sample.areas, torch.tensor([float(entry["area"]) for entry in entries], dtype=torch.float64)
        )
        sides = sample.target.boxes[:, 2:] - sample.target.boxes[:, :2]
        wanted = torch.tensor([entry["bbox"][2:] for entry in entries], dtype=torch.float64)
        torch.testing.assert_close(sides, wanted, rtol=0, atol=1e-9)
    train, val = training_datasets(SHARED / "coco80")
    assert (len(train), len(val)) == (64, 16)
    assert all(dataset[index].image.shape[1:] == dataset.samples[index].size for index in range(0, 80, 10))


def test_paths_that_hold_no_data_set(tmp_path):
    with pytest.raises(UserError, match="no such file or folder"):
        load_dataset(tmp_path / "nowhere")
    for odd in ("a\0b", "x" * 5000):
        with pytest.raises(UserError, match="no such file or folder"):
            load_dataset(odd)
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "package.json").write_text('{"name": "x"}')
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(UserError, match=r"none of the four known formats.*COCO: .*Pascal VOC: .*YOLO: .*CSV: "):
            splits(path)


def test_a_data_set_one_folder_further_down_is_pointed_out(make, tmp_path):
    for folder in (tmp_path / "above" / "a" / "train", tmp_path / "above" / "b"):
        folder.mkdir(parents=True)
    for name in ("one", "two"):  # not usable, but not what was asked for either
        (tmp_path / "above" / "a" / "train" / f"{name}.json").write_text('{"images": []}')
    make(boxes="ab")
    (tmp_path / "boxes.csv").rename(tmp_path / "above" / "b" / "boxes.csv")
    with pytest.raises(UserError, match=r"none of the four.*But .*above/b is a data set: give that path"):
        load_dataset(tmp_path / "above")


def test_two_formats_in_one_folder(make, tmp_path):
    make(boxes="ab")
    (tmp_path / "labels.json").write_text('{"images": [], "annotations": [], "categories": []}')
    with pytest.raises(UserError, match=r"more than one format \(COCO: .*; CSV: .*Give the annotation file"):
        load_dataset(tmp_path)
    assert len(load_dataset(tmp_path / "boxes.csv")) == 2


def test_other_spellings_of_a_split(make):
    root = make(training="abc", valid="de")
    assert names_of(load_dataset(root, "train")) == "abc" and names_of(load_dataset(root, "val")) == "de"
    assert names_of(load_dataset(root, "valid")) == "de"
    train, val = training_datasets(root)
    assert (names_of(train), names_of(val)) == ("abc", "de")


def test_a_file_is_the_split_that_its_name_says(make):
    root = make(train="abcde", val="fg")
    assert splits(root / "val.csv") == ("val",)
    assert names_of(load_dataset(root / "val.csv")) == names_of(load_dataset(root / "val.csv", "val")) == "fg"
    with pytest.raises(UserError, match="no split 'train'"):
        load_dataset(root / "val.csv", "train")
    train, val = training_datasets(root / "train.csv")
    assert len(train) == 4 and sorted(names_of(train) + names_of(val)) == list("abcde")


def test_test_images_are_not_validated_on_unasked(make):
    root = make(train="abcde", test="fg")
    train, val = training_datasets(root)
    assert len(train) == 4 and sorted(names_of(train) + names_of(val)) == list("abcde")
    train, val = training_datasets(root, val_split="test")
    assert (names_of(train), names_of(val)) == ("abcde", "fg")


def test_no_validation_on_images_of_an_asked_for_training_split(make):
    root = make(trainval="abcdef", val="ef", train="abcd", test="gh")
    train, val = training_datasets(root)
    assert (names_of(train), names_of(val)) == ("abcd", "ef")
    train, val = training_datasets(root, train_split="trainval")
    assert len(train) == 5 and sorted(names_of(train) + names_of(val)) == list("abcdef")
    train, val = training_datasets(root, train_split="trainval", val_split="val")
    assert (names_of(train), names_of(val)) == ("abcdef", "ef")


def test_trainval_alone_is_trained_on_and_unknown_splits_are_asked_for(make):
    root = make(trainval="abcde", test="fg")
    train, val = training_datasets(root)
    assert sorted(names_of(train) + names_of(val)) == list("abcde") and len(val) == 1


def test_splits_of_unknown_use(make):
    root = make(fold1="ab", fold2="cd")
    with pytest.raises(UserError, match=r"no split to train on. It has: fold1, fold2"):
        training_datasets(root)
    train, val = training_datasets(root, train_split="fold2", val_split="fold1")
    assert (names_of(train), names_of(val)) == ("cd", "ab")


@pytest.mark.parametrize("asked", [{"train_split": "train"}, {"val_split": "val"}, {}])
def test_a_hold_out_can_be_asked_for_by_name(make, asked):
    train, val = training_datasets(make(boxes="abcdefghij"), **asked)
    assert (len(train), len(val)) == (8, 2) and sorted(names_of(train) + names_of(val)) == list("abcdefghij")


def test_the_hold_out_depends_on_names_and_seed_alone(make):
    whole = load_dataset(make(boxes="abcdefghijklmnopqrst"))
    turned = whole.subset(range(len(whole))[::-1], "turned")
    assert names_of(hold_out(whole)[1]) == names_of(hold_out(turned)[1])
    assert len({names_of(hold_out(whole, seed=seed)[1]) for seed in range(10)}) > 5


def test_one_image_cannot_be_divided(make):
    root = make(boxes="a")
    assert len(load_dataset(root)) == 1
    with pytest.raises(UserError, match="one image cannot be split"):
        load_dataset(root, "train")


def test_no_images_and_no_classes(tmp_path, make):
    (tmp_path / "boxes.csv").write_text("image_path,xmin,ymin,xmax,ymax,label\n")
    with pytest.raises(UserError, match="holds no image"):
        load_dataset(tmp_path)
    make(boxes="a")
    (tmp_path / "boxes.csv").write_text("a.png,,,,,\n")
    with pytest.raises(UserError, match="declares no class"):
        load_dataset(tmp_path)


def sample_of(path, size):
    return Sample(path, 1, size, Target.empty(), torch.zeros(0))


def test_an_image_of_another_size_than_annotated(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    assert DetectionDataset([sample_of(tmp_path / "a.png", (20, 30))], ["x"])[0].image.shape == (3, 20, 30)
    with pytest.raises(UserError, match=r"a\.png: the image is 30 x 20 .* annotated as 20 x 30\. The sides .* EXIF"):
        DetectionDataset([sample_of(tmp_path / "a.png", (30, 20))], ["x"])[0]
    with pytest.raises(UserError, match=r"annotated as 60 x 40\. The image was resized"):
        DetectionDataset([sample_of(tmp_path / "a.png", (40, 60))], ["x"])[0]


def test_an_image_over_the_limit(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match="over the limit of 599 pixels"):
        DetectionDataset([sample_of(tmp_path / "a.png", (20, 30))], ["x"], max_pixels=599)[0]


def test_a_long_list_of_faults_is_cut_in_the_summary(make):
    root = make(boxes="abcdefghij")
    (root / "boxes.csv").write_text("".join(f"{name}.png,5,5,5,5,x\n" for name in "abcdefghij") + "a.png,1,1,2,2,x\n")
    dataset = load_dataset(root)
    assert len(dataset.skipped) == 10 and "10 images (9 without objects), 1 boxes, 1 classes" in dataset.summary()
    assert dataset.summary().count("x2 <= x1") == 5 and dataset.summary().endswith("... and 5 more")
