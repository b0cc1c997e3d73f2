"""Data sets that are objects: what is read of them is what is read of the same data in files."""

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.data.dataset import load_dataset, splits, training_datasets
from retinanet.data.windows import WindowDataset
from retinanet.errors import UserError
from retinanet.images.tiling import Tiling


class Torch(torch.utils.data.Dataset):
    """The samples of a set as torchvision's references have them."""

    def __init__(self, dataset, kind="picture", background=False):
        self.dataset_in_files, self.kind, self.first = dataset, kind, int(background)
        self.class_names = ["__background__"] * background + list(dataset.class_names)

    def __len__(self):
        return len(self.dataset_in_files)

    def __getitem__(self, index):
        sample = self.dataset_in_files[index]
        pixels = sample.image
        image = {
            "picture": lambda: Image.fromarray(pixels.permute(1, 2, 0).numpy()),
            "array": lambda: pixels.permute(1, 2, 0).numpy(),
            "tensor": lambda: pixels,
            "floats": lambda: pixels.float() / 255,
            "path": lambda: str(sample.path),
        }[self.kind]()
        target = {"boxes": sample.target.boxes, "labels": sample.target.labels + self.first}
        return image, {**target, "iscrowd": sample.target.ignore.int(), "area": sample.areas, "image_id": index}


def assert_same(one, other):
    assert one.class_names == other.class_names and len(one) == len(other)
    for index in range(len(one)):
        here, there = one[index], other[index]
        assert torch.equal(here.image, there.image) and here.size == there.size
        assert torch.equal(here.areas, there.areas)
        assert all(
            torch.equal(a, b) for a, b in zip(vars(here.target).values(), vars(there.target).values(), strict=True)
        )


@pytest.mark.parametrize("kind", ["picture", "array", "tensor", "floats", "path"])
@pytest.mark.parametrize("background", [False, True])
def test_a_torch_data_set_is_read_as_its_files_are(data, kind, background):
    files = load_dataset(data, "train")
    assert_same(load_dataset(Torch(files, kind, background)), files)


def test_splits_and_what_is_held_out(data):
    parts = {name: Torch(load_dataset(data, name)) for name in ("train", "val")}
    assert splits(parts) == ("train", "val") and splits(parts["train"]) == ()
    for one, other in zip(training_datasets(parts), training_datasets(data), strict=True):
        assert_same(one, other)
    train, val = training_datasets(parts["train"])
    assert (len(train), len(val)) == (5, 1)
    assert not {sample.path for sample in train.samples} & {sample.path for sample in val.samples}
    subset = torch.utils.data.Subset(parts["train"], [2, 0])
    assert [sample.target.boxes.tolist() for sample in load_dataset(subset).samples] == [
        load_dataset(data, "train").samples[index].target.boxes.tolist() for index in (2, 0)
    ]


def test_windows(data):
    files, tiling = load_dataset(data, "train"), Tiling(tile=48, overlap=16)
    one, other = WindowDataset(load_dataset(Torch(files)), tiling), WindowDataset(files, tiling)
    assert len(one) == len(other) > len(files)
    assert all(torch.equal(one[index].image, other[index].image) for index in range(len(one)))


def test_hugging_face(data):
    datasets = pytest.importorskip("datasets")
    files = load_dataset(data, "train")
    names = list(files.class_names)
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.Sequence(datasets.Sequence(datasets.Value("float64"), length=4)),
                "category": datasets.Sequence(datasets.ClassLabel(names=names)),
                "area": datasets.Sequence(datasets.Value("float64")),
                "iscrowd": datasets.Sequence(datasets.Value("bool")),
            },
        }
    )
    rows = []
    for sample in files.samples:
        boxes = sample.target.boxes
        xywh = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        objects = {"bbox": xywh, "category": sample.target.labels.tolist(), "area": sample.areas.tolist()}
        rows.append({"image": str(sample.path), "objects": {**objects, "iscrowd": sample.target.ignore.tolist()}})
    held = datasets.Dataset.from_list(rows, features=features)
    assert_same(load_dataset(held), files)
    assert_same(load_dataset(datasets.DatasetDict({"train": held}), "train"), files)
    listed = [
        {
            **row,
            "objects": [
                dict(zip(row["objects"], one, strict=True)) for one in zip(*row["objects"].values(), strict=True)
            ],
        }
        for row in rows
    ]

    class Rows(list):
        class_names = names

    assert_same(load_dataset(Rows(listed)), files)


class Items(list):
    class_names = ("a", "b")


PIXELS = np.zeros((30, 40, 3), np.uint8)
GOOD = {"boxes": [[1, 2, 11, 12]], "labels": [1]}


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (5, r"Items\[0\]: expected \(image, target\) with a mapping"),
        ((PIXELS, {"boxes": [[1, 2, 3, 4]]}), r"Items\[0\]: the target has no 'labels', only boxes"),
        ((PIXELS, {**GOOD, "labels": [2]}), r"labels go from 2 to 2, and the 2 class names are for 0 to 1"),
        ((PIXELS, {**GOOD, "labels": [1, 1]}), r"labels have the shape \(2,\); expected \(1,\)"),
        ((PIXELS, {**GOOD, "boxes": [1, 2, 3]}), r"boxes have the shape \(3,\); expected \(M, 4\)"),
        ((PIXELS, {**GOOD, "boxes": "x"}), r"boxes are no numbers: 'x'"),
        (("none.png", GOOD), r"none.png: no such image file"),
        ((PIXELS[0], GOOD), r"expected an image, got ndarray of shape \(40, 3\)"),
        (
            {"image": PIXELS, "objects": {"bbox": [[1, 2, 3, 4]], "category": ["c"]}},
            r"\[0\]: the class 'c' is not among",
        ),
        ({"image": PIXELS, "objects": {"box": []}}, "its objects have box; expected bbox and category"),
    ],
)
def test_items_that_are_no_annotated_images(item, message):
    with pytest.raises(UserError, match=message):
        load_dataset(Items([item]))


def test_other_mistakes():
    with pytest.raises(UserError, match=r"Items does not say what its classes are called.*dataset.class_names = "):
        load_dataset(type("Items", (list,), {})([(PIXELS, GOOD)]))
    with pytest.raises(UserError, match=r"data is a path, or has __len__ and __getitem__"):
        load_dataset(5)
    dark = load_dataset(Items([(PIXELS.astype(np.float32) - 1, GOOD)]))
    with pytest.raises(UserError, match=r"an image of floats is in \[0, 1\], this one in \[-1, -1\]"):
        dark[0]
    faulty = load_dataset(Items([(PIXELS, {"boxes": [[1, 2, 11, 12], [5, 5, 5, 9]], "labels": [0, 1]})]))
    assert len(faulty.skipped) == 1 and "Items[0]" in faulty.skipped[0].sentence


def drop_names(report):
    """The numbers of an evaluation without the time, what it was of, and the ids of COCO, which an object has not."""
    numbers = {key: value for key, value in report.to_dict().items() if key not in ("about", "images_per_second")}
    return {**numbers, "classes": [{**row, "category_id": 0} for row in numbers["classes"]]}


def test_train_plan_and_evaluate_give_what_the_files_give(data, tiny, tmp_path):
    """Two steps on the object leave the weights of two steps on the files; the run resumes from the object alone."""
    import retinanet
    from retinanet.model_folder import read_model

    held = {name: Torch(load_dataset(data, name)) for name in ("train", "val", "test")}
    first = retinanet.train(held, str(tmp_path / "object"), **tiny(epochs=1))
    other = retinanet.train(str(data), str(tmp_path / "files"), **tiny(epochs=1))
    (_, one), (_, two) = (read_model(tmp_path / name) for name in ("object", "files"))
    assert all(torch.equal(one.state_dict()[key], value) for key, value in two.state_dict().items())
    assert first.ap == other.ap
    here, there = (retinanet.evaluate(tmp_path / "object", one, device="cpu") for one in (held, data))
    assert here.about["data"] == "dict"
    here, there = (drop_names(report) for report in (here, there))
    assert here == there
    machine = retinanet.Machine(memory=16, disk=100)  # what is free changes from one moment to the next, and is told
    plans = [retinanet.plan(one, timed=False, device="cpu", machine=machine) for one in (held, str(data))]
    assert plans[0].to_dict()["options"] == plans[1].to_dict()["options"]

    again = retinanet.train(held, str(tmp_path / "object"), resume=True, **tiny(epochs=1))
    assert again.steps == first.steps
    held["train"] = torch.utils.data.Subset(held["train"], [1, 0, 2, 3, 4, 5])
    with pytest.raises(UserError, match="the data are not those that the run"):
        retinanet.train(held, str(tmp_path / "object"), resume=True, **tiny(epochs=1))


def test_what_shows_images_as_predict_does_reads_them_from_the_object(trained, data):
    """As with an exported model; with a tile that the model was not trained on, the predictor reads the images too."""
    import retinanet

    held = Torch(load_dataset(data, "test"))
    here, there = (retinanet.evaluate(trained, one, tile=48, device="cpu") for one in ({"test": held}, data))
    assert drop_names(here) == drop_names(there)


def test_what_examines_files_examines_objects(trained, data, tmp_path):
    """The same findings; a report names the item."""
    import retinanet

    held = {name: Torch(load_dataset(data, name)) for name in ("train", "val", "test")}
    reports = [retinanet.check(one, output=str(tmp_path / f"c{place}")) for place, one in enumerate((held, str(data)))]
    kinds = [{kind: len(faults) for kind, faults in one.doctor.groups().items()} for one in reports]
    assert kinds[0] == kinds[1] and reports[0].doctor.per_class == reports[1].doctor.per_class
    assert reports[0].anchors.to_dict() == reports[1].anchors.to_dict()
    (empty, *_) = reports[0].doctor.groups()["empty-image"]
    assert str(empty.where) == "dict/train[1]"
    pages = [(tmp_path / f"c{place}" / "report.html").read_text() for place in range(2)]
    assert pages[0].count("<img") == pages[1].count("<img") > 0 and "dict/train[" in pages[0]
    with pytest.raises(UserError, match="--fix copies files, and dict is an object"):
        retinanet.check(held, output=str(tmp_path / "c2"), fix=str(tmp_path / "fixed"))

    here, there = (
        retinanet.diagnose(str(trained), one, split="test", output=str(tmp_path / f"d{place}"), device="cpu").to_dict()
        for place, one in enumerate((held, str(data)))
    )
    assert here == there and "test[" in (tmp_path / "d0" / "report.html").read_text()

    here, there = (
        retinanet.suspects(str(trained), one, output=str(tmp_path / f"s{place}"), score=0.0, device="cpu").found
        for place, one in enumerate((held, str(data)))
    )
    assert [(one.kind, one.score, one.old, one.new) for one in here] == [
        (one.kind, one.score, one.old, one.new) for one in there
    ]
    assert len(here) > 0 and {one.image for one in here} <= {f"dict/train[{index}]" for index in range(6)}
    assert all(one.where.startswith("dict/train[") for one in here if one.old)
    assert (tmp_path / "s0" / "report.html").read_text().count("<img") > 0
    with pytest.raises(UserError, match="--folds trains on files, and dict is an object"):
        retinanet.suspects(data=held, folds=2, output=str(tmp_path / "s2"))


def test_an_exported_model_is_measured_on_objects(trained, data, tmp_path):
    pytest.importorskip("onnxruntime")
    import retinanet

    file = retinanet.export(str(trained), format="onnx", output=str(tmp_path / "onnx")).folder
    held = {"test": Torch(load_dataset(data, "test"))}
    here, there = (drop_names(retinanet.evaluate(str(file), one)) for one in (held, data))
    assert here == there and here["ap"] is not None
    result = retinanet.benchmark(str(file), held, repeats=1, images=2)
    assert result.rows[0].ap == pytest.approx(retinanet.evaluate(str(file), data).metrics.ap, abs=1e-9)
    assert "3 of dict, test; 2 of them timed" in result.about["images"] and result.rows[0].memory > 0


@pytest.mark.parametrize("name", ["a/b", 1, "", "a[0]"])
def test_a_split_is_a_name(name):
    with pytest.raises(UserError, match="a split is a name without slashes"):
        load_dataset({name: Items([(PIXELS, GOOD)])})
    with pytest.raises(UserError, match="holds no split"):
        load_dataset({})
