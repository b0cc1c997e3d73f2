"""``predict``: which images, which files, and nothing half done."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.cli.main import main
from retinanet.data.dataset import load_dataset
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.inference import pictures as pictures_module
from retinanet.inference.documents import CSV_COLUMNS, Prediction, make_coco_document, make_csv_document
from retinanet.inference.paths import find_images, name_pictures
from retinanet.inference.predictor import Predictor
from retinanet.model_folder import write_thresholds
from retinanet.plotting.marks import class_colour
from retinanet.prediction import predict
from retinanet.types import Detections


@pytest.fixture
def pictures(tmp_path):
    """Files in folders, under names that invite mistakes."""
    root = tmp_path / "pictures"
    for name in ("b.png", "a.JPG", "deep/er/c.tif", "deep/d.webp", "v1.0/e.bmp", "[x]*.png", "notes.txt"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".txt":
            path.write_text("no image")
        else:
            Image.new("RGB", (20, 10)).save(path)
    return root


def names(paths, root):
    return [str(path.relative_to(root)) for path in paths]


def test_a_folder_is_searched_with_its_subfolders(pictures):
    found = find_images([str(pictures)])
    assert names(found, pictures) == ["[x]*.png", "a.JPG", "b.png", "deep/d.webp", "deep/er/c.tif", "v1.0/e.bmp"]


def test_patterns(pictures):
    assert names(find_images([f"{pictures}/?.png"]), pictures) == ["b.png"]
    assert names(find_images([f"{pictures}/**/*.tif"]), pictures) == ["deep/er/c.tif"]
    assert names(find_images([f"{pictures}/[[]x]*.png"]), pictures) == ["[x]*.png"]


def test_a_file_is_itself_whatever_its_name(pictures):
    assert names(find_images([f"{pictures}/[x]*.png"]), pictures) == ["[x]*.png"]


def test_each_image_once_in_the_order_given(pictures, monkeypatch):
    monkeypatch.chdir(pictures)
    given = ["deep/d.webp", "./b.png", "b.png", str(pictures / "b.png"), "deep/../b.png", "deep", "*.png"]
    assert [path.name for path in find_images(given)] == ["d.webp", "b.png", "c.tif", "[x]*.png"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("none.png", "no image at none.png: expected a file, a folder or a pattern"),
        ("*.gif", r"no image at \*.gif"),
        ("empty", "no image in the folder empty: looked for .jpg"),
        ("https://example.org/a.jpg", "https://example.org/a.jpg is an address"),
    ],
)
def test_what_names_no_image_is_told(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    Image.new("RGB", (2, 2)).save("good.png")
    with pytest.raises(UserError, match=words):
        find_images(["good.png", given])
    with pytest.raises(UserError, match="no image given"):
        find_images([])


def test_pictures_get_different_names():
    given = [
        Path(name) for name in ("p/a.jpg", "p/a.png.jpg", "p/a.png", "p/q/a.jpg", "p/q/b.tif", "p/a.tif", "p/a_.tif")
    ]
    found = name_pictures(given)
    assert list(found) == given and len(set(found.values())) == len(given)
    assert found[given[0]] == "a.png" and found[given[3]] == str(Path("q/a.png"))
    assert all(name.endswith(".png") and ".." not in name for name in found.values())


@pytest.fixture(scope="module")
def predicted(trained, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("predicted") / "out"
    found = predict(str(trained), [str(data / "test")], output=str(folder), score=0.001, batch_size=2, device="cpu")
    return found, folder


def test_detections_are_those_of_the_predictor(predicted, trained, data):
    found, _ = predicted
    paths = sorted((data / "test").glob("*.png"))
    assert [one.path for one in found] == paths and {one.size for one in found} == {(64, 80)}
    predictor = Predictor.load(trained, device="cpu", batch_size=2)
    for one, wanted in zip(found, predictor(paths), strict=True):
        kept = wanted.above(0.001)
        assert len(kept) > 0 and torch.equal(one.detections.boxes, kept.boxes)
        assert torch.equal(one.detections.scores, kept.scores)


def test_the_json_is_a_data_set(predicted):
    found, folder = predicted
    dataset = load_dataset(folder / "detections.json", strict=True)
    assert dataset.class_names == ("disc", "square") and len(dataset) == 3
    for sample, one in zip(dataset.samples, found, strict=True):
        assert sample.path.resolve() == one.path.resolve() and sample.size == one.size
        torch.testing.assert_close(sample.target.boxes.float(), one.detections.boxes, rtol=0, atol=1e-3)
        assert torch.equal(sample.target.labels, one.detections.labels)
    scores = [row["score"] for row in json.loads((folder / "detections.json").read_text())["annotations"]]
    assert scores == pytest.approx([score for one in found for score in one.detections.scores.tolist()])


def test_the_csv_has_a_row_per_detection(predicted):
    found, folder = predicted
    with (folder / "detections.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    wanted = [(one, row) for one in found for row in one.detections.to_dicts()]
    assert len(rows) == len(wanted)
    for row, (one, detection) in zip(rows, wanted, strict=True):
        assert row["image_path"] == str(one.path) and row["label"] == detection["name"]
        assert [float(row[side]) for side in CSV_COLUMNS[1:5]] == pytest.approx(detection["box"], abs=0.006)
        assert float(row["score"]) == pytest.approx(detection["score"], abs=6e-5)


def test_the_pictures_show_the_boxes(predicted):
    found, folder = predicted
    drawn = sorted((folder / "pictures").iterdir())
    assert [path.name for path in drawn] == [f"{one.path.stem}.png" for one in found]
    for path, one in zip(drawn, found, strict=True):
        picture = Image.open(path)
        assert picture.mode == "RGB" and picture.size[0] >= 80
        assert picture.tobytes() != Image.open(one.path).convert("RGB").resize(picture.size).tobytes()


def test_nothing_else_is_left(predicted):
    _, folder = predicted
    assert sorted(path.name for path in folder.iterdir()) == ["detections.csv", "detections.json", "pictures"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def two():
    box = torch.tensor([[1.0, 2.0, 3.5, 5.0]])
    some = Detections(box, torch.tensor([0.75]), torch.tensor([1]), ("a", "b"))
    none = Detections(box[:0], torch.zeros(0), torch.zeros(0, dtype=torch.int64), ("a", "b"))
    return [Prediction(Path("x/one, two.png"), (10, 20), none), Prediction(Path("x/y.png"), (30, 40), some)]


def test_an_image_without_detections_has_a_row_and_an_entry(tmp_path, monkeypatch):
    assert make_csv_document(two()).splitlines()[1:] == [
        '"x/one, two.png",,,,,,',
        "x/y.png,1.00,2.00,3.50,5.00,b,0.7500",
    ]
    monkeypatch.chdir(tmp_path)
    document = make_coco_document(two(), ("a", "b"), Path("out"))
    assert [image["file_name"] for image in document["images"]] == ["../x/one, two.png", "../x/y.png"]
    assert document["annotations"] == [
        {"id": 1, "image_id": 2, "category_id": 2, "bbox": [1, 2, 2.5, 3], "score": 0.75, "area": 7.5, "iscrowd": 0}
    ]
    (tmp_path / "x").mkdir()
    for one in two():
        Image.new("RGB", one.size[::-1]).save(one.path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "d.csv").write_text(make_csv_document(two()).replace("x/", "../x/"))
    (tmp_path / "out" / "d.json").write_text(json.dumps(document))
    for name in ("d.csv", "d.json"):
        dataset = load_dataset(tmp_path / "out" / name, class_names=("a", "b"), strict=True)
        assert [len(sample.target) for sample in dataset.samples] == [0, 1]


def test_without_pictures(trained, data, tmp_path):
    image = str(data / "test" / "test_0.png")
    predict(str(trained), [image], output=str(tmp_path), pictures=False, device="cpu", score=1.0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detections.csv", "detections.json"]
    assert json.loads((tmp_path / "detections.json").read_text())["annotations"] == []


def test_each_class_has_the_threshold_of_the_model(trained, data, tmp_path):
    """Half of the discs and a quarter of the squares are above it; a score that is given wins."""
    model, paths = tmp_path / "model", sorted((data / "test").glob("*.png"))
    shutil.copytree(trained, model, ignore=shutil.ignore_patterns("*.pt"))
    everything = Predictor.load(trained, device="cpu", batch_size=8)(paths)
    scores, labels = (torch.cat([getattr(one, kind) for one in everything]) for kind in ("scores", "labels"))
    limits = [float(scores[labels == label].quantile(share)) for label, share in ((0, 0.5), (1, 0.75))]
    thresholds = dict(zip(("disc", "square"), limits, strict=True))
    write_thresholds(model, thresholds)

    def shown(folder, model, **options):
        options = {"output": str(tmp_path / folder), "device": "cpu", "pictures": False, **options}
        found = predict(str(model), [str(data / "test")], **options)
        written = json.loads((tmp_path / folder / "detections.json").read_text())["annotations"]
        assert len(written) == sum(len(one.detections) for one in found)
        rows = [row for one in found for row in one.detections.to_dicts()]
        return [(row["label"], row["score"]) for row in rows]

    def expected(least):
        rows = zip(labels.tolist(), scores.tolist(), strict=True)
        return [(label, score) for label, score in rows if score >= least[label]]

    assert 0 < len(expected(limits)) < len(labels)
    assert shown("model", model) == expected(limits)
    assert shown("given", model, score=0.005) == expected([0.005, 0.005]) != expected(limits)
    assert shown("zero", model, score=0.0) == expected([0, 0])
    assert shown("none", trained) == expected([0.3, 0.3])
    by_hand = Predictor.load(model, device="cpu")
    kept = [one.above(by_hand.thresholds) for one in by_hand(paths)]
    assert [(row["label"], row["score"]) for one in kept for row in one.to_dicts()] == expected(limits)
    write_thresholds(model, {"disc": limits[0]})
    assert shown("half", model) == expected([limits[0], 0.3])


def test_results_are_not_overwritten_unasked(trained, data, tmp_path):
    image, mine = str(data / "test" / "test_0.png"), tmp_path / "pictures" / "mine.txt"
    mine.parent.mkdir()
    for content in ("detections.json", "detections.csv"):
        (tmp_path / content).write_text("earlier")
        with pytest.raises(UserError, match=r"holds results already.*--overwrite"):
            predict(str(trained), [image], output=str(tmp_path), device="cpu")
        assert (tmp_path / content).read_text() == "earlier"
        (tmp_path / content).unlink()
    mine.write_text("kept")
    (tmp_path / "detections.json").write_text("earlier")
    predict(str(trained), [image], output=str(tmp_path), device="cpu", overwrite=True)
    assert json.loads((tmp_path / "detections.json").read_text())["images"] and mine.read_text() == "kept"


@pytest.mark.parametrize("options", [{}, {"tile": 64, "overlap": 16}])
def test_images_that_cannot_be_read_are_left_out_and_told(trained, data, tmp_path, options):
    """The header of one is whole, so it is noticed only after others have been predicted."""
    scans, out = Path(shutil.copytree(data / "test", tmp_path / "scans")), tmp_path / "out"
    cut, text = scans / "test_1.png", scans / "a.png"
    cut.write_bytes(cut.read_bytes()[:-2000])
    text.write_text("hello")
    predictions = predict(str(trained), [str(scans)], output=str(out), device="cpu", batch_size=2, **options)
    good = [scans / "test_0.png", scans / "test_2.png"]
    assert [prediction.path for prediction in predictions] == good and set(predictions.failed) == {cut, text}
    assert "truncated" in predictions.failed[cut] and "is not an image" in predictions.failed[text]
    written = json.loads((out / "detections.json").read_text())["images"]
    assert [Path(image["file_name"]).name for image in written] == [path.name for path in good]
    assert sorted(path.name for path in (out / "pictures").iterdir()) == [path.name for path in good]


@pytest.mark.parametrize("before", [False, True])
def test_where_no_image_can_be_read_everything_stays_as_it_was(trained, data, tmp_path, before):
    scans, out = tmp_path / "scans", tmp_path / "out"
    scans.mkdir()
    (scans / "a.png").write_bytes((data / "test" / "test_0.png").read_bytes()[:-2000])
    if before:
        out.mkdir()
        (out / "detections.csv").write_text("earlier")
    with pytest.raises(UserError, match=r"a\.png: the image is truncated"):
        predict(str(trained), [str(scans)], output=str(out), device="cpu", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == (["out", "scans"] if before else ["scans"])
    if before:
        assert [path.name for path in out.iterdir()] == ["detections.csv"]
        assert (out / "detections.csv").read_text() == "earlier"


def test_the_command_lists_what_could_not_be_read(trained, data, tmp_path, capsys):
    bad = tmp_path / "bad\x1b[31m.png"
    bad.write_text("hello")
    words = [str(trained), str(data / "test" / "test_0.png"), str(bad), "--output", str(tmp_path / "out")]
    assert main(["predict", *words, "--device", "cpu", "--pictures", "false"]) == 1
    printed = capsys.readouterr()
    assert "objects in 1 images; detections.json and .csv are in" in printed.out
    assert "1 of 2 images could not be read:" in printed.err and r"bad\x1b[31m.png: is not an image" in printed.err
    assert "\x1b[31m" not in printed.err


def test_files_without_an_image_are_refused_before_the_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures_module, "Predictor", None)
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(UserError, match=r"text\.png: is not an image"):
        predict("none", [str(tmp_path / "text.png")], output=str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_hidden_files_are_left_out_and_other_kinds_are_counted(pictures, caplog):
    for name in ("._b.png", ".ipynb_checkpoints/b.png", "deep/x.HEIC", "deep/y.heic", "f.jfif", "g.JPE"):
        path = pictures / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"no image")
    paths = names(find_images([str(pictures)]), pictures)
    assert paths == ["[x]*.png", "a.JPG", "b.png", "deep/d.webp", "deep/er/c.tif", "f.jfif", "g.JPE", "v1.0/e.bmp"]
    assert f"3 files of other kinds (.heic, .txt) were left out of {pictures}" in caplog.text


def test_cells_that_a_spreadsheet_would_compute_are_quoted():
    formulas = ("=1+1", "+a", "-b", "@c", "d=1")
    boxes = torch.zeros(5, 4)
    detections = Detections(boxes, torch.ones(5), torch.arange(5), formulas)
    rows = list(csv.DictReader(make_csv_document([Prediction(Path("=x.png"), (1, 1), detections)]).splitlines()))
    assert [row["label"] for row in rows] == ["'=1+1", "'+a", "'-b", "'@c", "d=1"]
    assert {row["image_path"] for row in rows} == {"'=x.png"}


def test_the_limit_of_detections_and_a_score_without_effect_are_told(trained, data, tmp_path, caplog):
    model = tmp_path / "model"
    detector = Detector.load(trained)
    rule = replace(detector.spec.postprocess, max_detections=2, score=0.01)
    detector.with_spec(postprocess=rule, thresholds={"disc": 0.0, "square": 0.0}).save(model)
    image = str(data / "test" / "test_0.png")
    predictions = predict(str(model), [image], output=str(tmp_path / "out"), device="cpu", pictures=False, score=0.0)
    assert len(predictions[0].detections) == 2
    assert f"{image}: 2 detections, the most that the model reports" in caplog.text
    assert "--score 0 has no effect below 0.01" in caplog.text
    caplog.clear()
    predictor = Predictor.load(model, device="cpu")
    predictor(image), predictor([image])
    assert caplog.text.count("an image holds 2 detections, the most") == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"score": 1.5}, "--score is between 0 and 1, got 1.5"),
        ({"batch_size": 0}, "batch_size is at least 1"),
        ({"device": "abacus"}, "abacus"),
        ({"output": "file"}, "--output file is a file"),
        ({"output": "file/out"}, "out cannot be written: .*file is a file"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(trained, data, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    with pytest.raises(UserError, match=words):
        predict(str(trained), [str(data / "test" / "test_0.png")], **{"output": "out", "device": "cpu", **options})
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and Path("file").read_text() == "mine"


def test_dots_in_a_path_do_not_lead_out_of_the_output(tmp_path):
    paths = [tmp_path / "in" / "a" / "1.png", tmp_path / "in" / "a" / ".." / ".." / "other" / "1.png"]
    assert name_pictures(paths) == {paths[0]: "in/a/1.png", paths[1]: "other/1.png"}


def test_an_image_that_is_read_is_never_replaced(tmp_path):
    path = tmp_path / "out" / "pictures" / "1.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (20, 10), "red").save(path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="would replace an image"):
        predict("no model is needed", [str(path)], output=str(tmp_path / "out"), overwrite=True)
    assert path.read_bytes() == before


def test_pictures_of_others_are_kept_unless_asked_for(tmp_path):
    Image.new("RGB", (20, 10)).save(tmp_path / "1.png")
    other = tmp_path / "out" / "pictures" / "1.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"mine")
    with pytest.raises(UserError, match="--overwrite"):
        predict("no model is needed", [str(tmp_path / "1.png")], output=str(tmp_path / "out"))
    assert other.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"workers": 0}, "--workers is at least 1, got 0"),
        ({"tile_scale": 2.0}, "--tile_scale is for images that are cut into windows; give --tile too"),
        ({"tile": 8}, "^tile is at least 32"),
        ({"mode": "throughput"}, "mode throughput is for exported models"),
    ],
)
def test_options_that_make_no_sense(trained, data, tmp_path, options, words):
    with pytest.raises(UserError, match=words):
        predict(str(trained), [str(data / "test")], output=str(tmp_path / "out"), device="cpu", **options)
    assert not list(tmp_path.iterdir())


def test_workers_change_nothing(trained, data, predicted, tmp_path):
    found, folder = predicted
    options = {"output": str(tmp_path / "out"), "score": 0.001, "batch_size": 2, "device": "cpu", "workers": 5}
    again = predict(str(trained), [str(data / "test")], **options)
    assert [one.path for one in again] == [one.path for one in found]
    assert (tmp_path / "out" / "detections.csv").read_bytes() == (folder / "detections.csv").read_bytes()
    for path in (folder / "pictures").iterdir():
        assert path.read_bytes() == (tmp_path / "out" / "pictures" / path.name).read_bytes()


def test_one_tile_is_the_whole_image(trained, data, predicted, tmp_path):
    found, folder = predicted
    options = {"output": str(tmp_path / "out"), "score": 0.001, "batch_size": 2, "device": "cpu", "tile": 80}
    tiled = predict(str(trained), [str(data / "test")], **options, overlap=10)
    for one, other in zip(tiled, found, strict=True):
        assert one.size == other.size and one.detections.names == other.detections.names
        torch.testing.assert_close(one.detections.boxes, other.detections.boxes, rtol=0, atol=1e-3)
    for path in (folder / "pictures").iterdir():
        assert Image.open(path).size == Image.open(tmp_path / "out" / "pictures" / path.name).size


def test_pictures_of_large_images_are_small(trained, data, tmp_path, monkeypatch):
    """What was found lies where it lies in the image, made smaller."""
    large = Image.open(data / "test" / "test_0.png").convert("RGB").resize((160, 128))
    large.save(tmp_path / "large.png")
    monkeypatch.setattr(pictures_module, "OVERVIEW", 40)
    monkeypatch.setattr("retinanet.detections.LEGIBLE", 1)
    options = {"output": str(tmp_path / "out"), "device": "cpu", "tile": 96, "overlap": 32, "tile_scale": 1.0}
    (found,) = predict(str(trained), [str(tmp_path / "large.png")], **options, score=0.0)
    assert len(found.detections) > 0 and found.size == (128, 160)
    assert float(torch.as_tensor(found.detections.boxes)[:, 2].max()) > 40
    picture = Image.open(tmp_path / "out" / "pictures" / "large.png")
    assert picture.size == (40, 32)
    colours = {tuple(pixel) for row in np.asarray(picture) for pixel in row}
    assert colours & {class_colour(label) for label in found.detections.labels.tolist()}


def test_a_full_disk_leaves_nothing_behind(trained, data, tmp_path, monkeypatch):
    def full(self, *_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\)"):
        predict(str(trained), [str(data / "test")], output=str(tmp_path / "out"), device="cpu", score=0.0)
    assert not list(tmp_path.iterdir())


def test_one_image_need_not_be_in_a_list(trained, data, tmp_path):
    image = data / "test" / "test_0.png"
    results = [
        predict(str(trained), images, output=str(tmp_path / str(number)), pictures=False)
        for number, images in enumerate((str(image), image, [image]))
    ]
    assert [len(result) for result in results] == [1, 1, 1]
