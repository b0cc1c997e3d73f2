"""Every mistake of the list in the first issue, through the command line: code 2, one message, nothing written."""

import json
import pickle
import shutil
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from retinanet.cli.main import main


def tree(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refused(tmp_path, monkeypatch, capfd):
    """Runs a command in tmp_path and checks all that every refusal has in common; returns its message."""
    monkeypatch.chdir(tmp_path)

    def run(command, *words):
        before = tree(tmp_path)
        capfd.readouterr()
        code = main([command, *map(str, words)])
        out, err = capfd.readouterr()
        assert code == 2, err
        lines = [line for line in err.splitlines() if line.strip()]
        assert len(lines) == 1 and lines[0].startswith(f"retinanet {command}: "), err
        assert "Traceback" not in err and out == ""
        assert tree(tmp_path) == before, "something was written"
        return lines[0]

    return run


@pytest.fixture
def train_refused(refused, tiny_words):
    return lambda data, *words: refused("train", data, "--output", "out", *tiny_words, *words)


def has(message, *parts):
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{missing} not in {message}"


def save_scene(folder, name="a.png"):
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (60, 40), (90, 120, 30)).save(folder / name)


def coco(folder, annotations, images=2):
    """A data set of images a.png, b.png, ... of 60 x 40; the annotations are of class 1 on image 1 if not told."""
    entries = []
    for number in range(images):
        save_scene(folder, f"{chr(97 + number)}.png")
        entries.append({"id": number + 1, "file_name": f"{chr(97 + number)}.png", "width": 60, "height": 40})
    rows = [{"id": 5 + number, "image_id": 1, "category_id": 1, **row} for number, row in enumerate(annotations)]
    content = {"images": entries, "annotations": rows, "categories": [{"id": 1, "name": "cell"}]}
    (folder / "boxes.json").write_text(json.dumps(content, indent=1))
    return folder


def voc(folder, body):
    save_scene(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    (folder / "Annotations" / "a.xml").write_text(body)
    return folder


def yolo(folder, label="0 0.5 0.5 0.2 0.2", config="names: [cell]\ntrain: images\nval: images\n"):
    save_scene(folder / "images")
    (folder / "labels").mkdir()
    (folder / "labels" / "a.txt").write_text(label)
    (folder / "data.yaml").write_text(config)
    return folder


def csv(folder, *lines):
    save_scene(folder)
    (folder / "boxes.csv").write_text("\n".join(lines) + "\n")
    return folder


GOOD = {"bbox": [10, 10, 20, 20]}


# A missing path, and a format that is none of the four


def test_missing_paths(refused, train_refused, trained, data):
    has(train_refused("nowhere"), "nowhere: no such file or folder", "Expected the path of a data set")
    has(refused("evaluate", trained, "nowhere"), "nowhere: no such file or folder")
    has(refused("evaluate", "nowhere", data), "no model in nowhere")
    has(refused("predict", "nowhere", data / "test", "--output", "out"), "no model in nowhere")
    has(refused("predict", trained, "nowhere.png", "--output", "out"), "no image at nowhere.png")
    has(refused("predict", trained, "scans/*.png", "--output", "out"), "no image at scans/*.png")
    has(train_refused(data, "--weights", "backbone.safetensors"), "no file backbone.safetensors")
    has(train_refused(data, "--config", "none.yaml"), "none.yaml")
    has(train_refused(data, "--val-split", "minival"), "no split 'minival'", "train")


def test_a_format_that_is_none_of_the_four(train_refused, refused, trained, tmp_path):
    (tmp_path / "stuff").mkdir()
    (tmp_path / "stuff" / "notes.txt").write_text("hello")
    for message in (train_refused("stuff"), refused("evaluate", trained, "stuff")):
        has(message, "stuff: is none of the four known formats", "COCO:", "Pascal VOC:", "YOLO:", "CSV:")


# Broken JSON, XML, YAML, CSV, with its line


def test_broken_json(train_refused, tmp_path):
    folder = coco(tmp_path / "set", [GOOD])
    text = (folder / "boxes.json").read_text()
    line = text[: text.index('"annotations"')].count("\n") + 1
    (folder / "boxes.json").write_text(text.replace('"annotations":', '"annotations"'))
    has(train_refused("set"), "boxes.json", f"line {line}", "broken JSON")


def test_broken_xml(train_refused, tmp_path):
    voc(tmp_path / "set", "<annotation>\n<filename>a.png</filename>\n<object>\n</annotation>\n")
    has(train_refused("set"), "a.xml", "line 4", "broken XML")


def test_broken_yaml(train_refused, tmp_path):
    yolo(tmp_path / "set", config="names: [cell]\ntrain: images\nval: [images\n")
    has(train_refused("set/data.yaml"), "data.yaml", "line", "broken YAML")


def test_broken_yolo_label(train_refused, tmp_path):
    yolo(tmp_path / "set", label="0 0.5 0.5 0.2 0.2\n0 0.5 half 0.2 0.2\n")
    has(train_refused("set"), "a.txt", "line 2", "Expected five numbers")


@pytest.mark.parametrize(
    "lines",
    [
        ("image_path,xmin,ymin,xmax,ymax,label", "a.png,1,2,10,20,cell", "a.png,1,two,10,20,cell"),
        ("a.png,1,2,10,20,cell", "a.png,3,2,10,20,cell", "a.png,1,two,10,20,cell"),
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "a.png,60,40,cell,1,2,9,9", "a.png,60,40,cell,1,two,9,9"),
    ],
)
def test_broken_csv(train_refused, tmp_path, lines):
    csv(tmp_path / "set", *lines)
    has(train_refused("set"), "boxes.csv", "line 3", "two")


def test_broken_configuration(train_refused, data, tmp_path):
    (tmp_path / "c.yaml").write_text("epochs: 3\noptim: {lr: 1\n")
    has(train_refused(data, "--config", "c.yaml"), "c.yaml", "line")


# A category id or class name that is not declared


def test_undeclared_classes(train_refused, refused, tmp_path, trained):
    coco(tmp_path / "coco", [GOOD, {**GOOD, "category_id": 4}])
    has(train_refused("coco"), "boxes.json", "annotation 6", "category id 4 is not declared", "1 cell")
    yolo(tmp_path / "yolo", label="3 0.5 0.5 0.2 0.2")
    has(train_refused("yolo"), "a.txt", "line 1", "class id 3 is not declared", "cell")
    csv(tmp_path / "csv", "a.png,1,2,10,20,dell")
    (tmp_path / "csv" / "classes.csv").write_text("cell,0\n")
    has(train_refused("csv"), "boxes.csv", "line 1", "class dell is not declared", "cell")
    voc(tmp_path / "voc", VOC_OBJECT.replace("NAME", "dell"))
    has(refused("evaluate", trained, "voc", "--split", "test"), "a.xml", "dell")


VOC_OBJECT = """<annotation><filename>a.png</filename><size><width>60</width><height>40</height></size>
<object><name>NAME</name><bndbox><xmin>2</xmin><ymin>3</ymin><xmax>20</xmax><ymax>30</ymax></bndbox></object>
</annotation>"""


# A box with x2 <= x1, NaN, or wholly outside its image


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([10, 10, 0, 5], "x2 <= x1 or y2 <= y1"),
        ([10, 10, -4, 5], "x2 <= x1 or y2 <= y1"),
        ([float("nan"), 10, 4, 5], "is not finite"),
        ([70, 10, 4, 5], "wholly outside its image of 60 x 40 pixels"),
    ],
)
def test_faulty_boxes(train_refused, tiny_words, tmp_path, capfd, box, reason):
    coco(tmp_path / "set", [GOOD, {"bbox": box}, {**GOOD, "image_id": 2}])
    has(train_refused("set", "--strict"), "boxes.json", "annotation 6", reason, "(1 in all)")
    assert main(["train", "set", "--output", "out", *tiny_words, "--epochs", "1", "--batch-size", "1"]) == 0
    told = capfd.readouterr().err
    has(told, "left out as faulty: 1", "annotation 6", reason)


def test_faulty_boxes_in_an_evaluation(refused, trained, data_copy):
    file = data_copy / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"] = [500, 0, 10, 10]
    file.write_text(json.dumps(content))
    has(refused("evaluate", trained, data_copy, "--strict"), "annotation 1", "wholly outside")
    assert main(["evaluate", str(trained), str(data_copy), "--device", "cpu"]) == 0


@pytest.mark.parametrize("command", ["evaluate", "diagnose"])
def test_images_outside_of_the_data(refused, trained, data_copy, tmp_path, command):
    file = data_copy / "annotations" / "instances_test.json"
    content = json.loads(file.read_text())
    content["images"][0]["file_name"] = str(tmp_path / "other.png")
    file.write_text(json.dumps(content))
    save_scene(tmp_path, "other.png")
    words = (command, trained, data_copy, "--split", "test", "--confine")
    has(refused(*words), "1 of 3 images lie outside of the data set", "other.png", "leave out --confine")


# An image that is missing, truncated, or not an image; one over the pixel limit


def missing(path):
    path.unlink()
    return "images are missing"


def truncated(path):
    path.write_bytes(path.read_bytes()[:-3000])
    return "the image is truncated"


def not_an_image(path):
    path.write_text("hello")
    return "is not an image"


def of_another_size(path):
    Image.new("RGB", (80, 80)).save(path)
    return "annotated as 80 x 64"


def chunk(name, content):
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def huge(path):
    """A PNG of 40,000 x 40,000 pixels in a few bytes."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return "over the limit of 200,000,000 pixels"


@pytest.mark.parametrize("spoil", [missing, truncated, not_an_image, of_another_size, huge])
@pytest.mark.parametrize("split", ["train", "val"])
def test_images_to_train_on(train_refused, data_copy, spoil, split):
    image = data_copy / split / f"{split}_2.png"
    words = spoil(image)
    has(train_refused(data_copy), image.name, words)


@pytest.mark.parametrize("spoil", [missing, truncated, not_an_image, of_another_size, huge])
def test_images_to_evaluate_on(refused, trained, data_copy, spoil):
    image = data_copy / "test" / "test_2.png"
    words = spoil(image)
    has(refused("evaluate", trained, data_copy, "--output", "out", "--batch-size", "1"), image.name, words)


def test_images_read_by_another_process(refused, trained, data_copy):
    image = data_copy / "test" / "test_2.png"
    words = truncated(image)
    has(refused("evaluate", trained, data_copy, "--workers", "1"), image, words)


@pytest.mark.parametrize("spoil", [truncated, not_an_image, huge])
def test_images_to_predict_on(refused, trained, data_copy, spoil, tmp_path, capfd):
    """One alone is refused; among others it is named, the results of the others are written, and the code is 1."""
    image = data_copy / "test" / "test_2.png"
    words = spoil(image)
    has(refused("predict", trained, image, "--output", "out"), image, words)
    assert main(["predict", str(trained), str(data_copy / "test"), "--output", "out"]) == 1
    out, err = capfd.readouterr()
    has(err, "1 of 3 images could not be read", image, words)
    assert "in 2 images" in out and len(json.loads((tmp_path / "out" / "detections.json").read_text())["images"]) == 2


# An output folder that holds a finished run


def test_finished_runs_are_not_overwritten(refused, tiny_words, trained, data, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    has(refused("train", data, "--output", "run", *tiny_words), "run already holds a run", "Choose another --output")
    has(refused("evaluate", "run", data, "--output", "run"), "run holds results already", "--overwrite")
    (run / "detections.csv").write_text("mine")
    has(refused("predict", "run", data / "test", "--output", "run"), "run holds results already", "--overwrite")
    has(refused("demo", "--output", "run"), "run is not empty", "choose another --output")


def test_an_output_that_is_a_file(refused, tiny_words, trained, data, tmp_path):
    (tmp_path / "file").write_text("mine")
    has(refused("train", data, "--output", "file", *tiny_words), "file is a file")
    has(refused("train", data, "--output", "file/run", *tiny_words), "file is a file")
    has(refused("evaluate", trained, data, "--output", "file"), "file is a file")
    has(refused("evaluate", trained, data, "--output", "file/out"), "file")
    has(refused("predict", trained, data / "test", "--output", "file"), "file is a file")


# A checkpoint that is truncated, from a newer version, or a pickle


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def shorten(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return folder, "model.safetensors is damaged"


def from_the_future(folder):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "format": 99, "library_version": "7.0"}))
    return folder, "was written by retinanet 7.0 in format 99"


def pickled(folder):
    torch.save({"weights": Bomb()}, folder / "model.pth")
    return folder / "model.pth", "retinanet convert"


def pickled_inside(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb()))
    return folder, "model.safetensors is damaged or was replaced"


def half_a_configuration(folder):
    file = folder / "config.json"
    file.write_text(file.read_text()[:200])
    return folder, "config.json is not valid JSON"


def without_weights(folder):
    (folder / "model.safetensors").unlink()
    return folder, "model.safetensors is missing"


@pytest.mark.parametrize(
    "spoil", [shorten, from_the_future, pickled, pickled_inside, half_a_configuration, without_weights]
)
def test_unusable_checkpoints(refused, trained, data, tmp_path, spoil):
    model, words = spoil(Path(shutil.copytree(trained, tmp_path / "model")))
    has(refused("evaluate", model, data, "--output", "out"), model, words)
    has(refused("predict", model, data / "test", "--output", "out"), model, words)
    has(refused("train", data, "--model", model, "--output", "out", "--run.workers", "0"), model, words)
    assert not (tmp_path / "exploded").exists()


def test_pickled_backbone_weights(train_refused, data, tmp_path):
    torch.save({"conv1.weight": Bomb()}, tmp_path / "backbone.pth")
    has(train_refused(data, "--weights", "backbone.pth"), "backbone.pth is not a readable safetensors file")
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_training_state(refused, trained, tiny_words, data, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    config = (run / "config.yaml").read_text().replace(str(trained), "run")
    (run / "config.yaml").write_text(config)
    (run / "state.pt").write_bytes((run / "state.pt").read_bytes()[:-5000])
    has(refused("train", "--config", "run/config.yaml", "--resume"), "state.pt is damaged", "Start a new run")
    (run / "state.pt").write_bytes(pickle.dumps(Bomb()))
    has(refused("train", "--config", "run/config.yaml", "--resume"), "state.pt is damaged")
    assert not (tmp_path / "exploded").exists()


# A model that does not go with the data or the options


def test_options_that_a_model_folder_cannot_have(refused, trained, data):
    words = ["train", data, "--model", trained, "--output", "out", "--run.workers", "0", "--run.accelerator", "cpu"]
    has(
        refused(*words, "--weights", "backbone.safetensors"),
        "--weights backbone.safetensors",
        trained,
        "Leave out --weights",
    )
    message = refused(*words, "--architecture.backbone", "resnet18")
    has(message, "--architecture.backbone resnet18", f"{trained} has the backbone test_resnet", "train from a preset")
    has(refused(*words, "--architecture.stride_in_1x1", "true"), "trained with False", "Leave it out")
    has(refused(*words, "--architecture.chanels", "8"), "architecture.chanels", "did you mean 'channels'")
    has(refused(*words, "--new_classes"), "unknown option --new_classes")


def test_other_classes(refused, trained, tmp_path):
    coco(tmp_path / "set", [GOOD], images=3)
    has(
        refused("evaluate", trained, "set"),
        "boxes.json, annotation 5",
        "the class 'cell' (it knows disc, square)",
    )


# Arguments in the wrong order


@pytest.mark.parametrize("command", ["evaluate", "diagnose", "benchmark", "predict", "why"])
def test_the_model_comes_first(refused, trained, data, command):
    for_images = command in ("predict", "why")
    message = refused(command, data / "test" / "test_0.png" if for_images else data, trained)
    what = "is an image; the model comes first" if for_images else f"is no model, and {trained} is one; the model comes"
    has(message, what)


# An unknown preset or option


def test_unknown_names(train_refused, refused, trained, data):
    has(train_refused(data, "--model", "resnet51"), "unknown model 'resnet51'", "did you mean 'resnet50'")
    has(train_refused(data, "--epoch", "3"), "unknown option --epoch", "did you mean '--epochs'")
    has(train_refused(data, "--optim.lrr", "3"), "optim.lrr", "did you mean", "optim.lr")
    has(train_refused(data, "--architecture.norms", "batch"), "architecture.norms", "did you mean 'norm'")
    has(train_refused(data, "--architecture.backbone", "resnet10s"), "unknown backbone 'resnet10s'", "resnet10t")
    has(train_refused(data, "--epochs", "abc"), "--epochs", "a whole number", "abc")
    has(refused("evaluate", trained, data, "--splitt", "val"), "unknown option --splitt", "did you mean '--split'")
    has(refused("predict", trained, data, "--scores", "1"), "unknown option --scores", "did you mean '--score'")
    has(refused("predict", trained), "missing: images")


# A loss that is not finite


def test_a_loss_that_is_not_finite(tiny_words, data, tmp_path, capfd):
    words = ["--optim.optimizer", "sgd", "--optim.lr", "1e30", "--optim.clip", "0", "--optim.warmup", "0"]
    assert main(["train", str(data), "--output", str(tmp_path / "out"), *tiny_words, *words]) == 2
    err = capfd.readouterr().err
    message = err.splitlines()[-1]
    has(message, "retinanet train: the", "at step 2", "nonfinite_batch.pt", "train/train_", "lower --optim.lr")
    assert "Traceback" not in err
    saved = torch.load(tmp_path / "out" / "nonfinite_batch.pt", weights_only=True)
    assert len(saved["images"]) == len(saved["paths"]) == 3 and all(path in message for path in saved["paths"])
    assert not (tmp_path / "out" / "config.json").exists()


# XML and YAML are read safely


def test_an_xml_bomb(train_refused, tmp_path):
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 9))
    voc(tmp_path / "set", f'<!DOCTYPE x [<!ENTITY l0 "lol">{entities}]>\n' + VOC_OBJECT.replace("NAME", "&l8;"))
    has(train_refused("set"), "a.xml", "unsafe XML")


def test_xml_that_reads_another_file(train_refused, tmp_path):
    (tmp_path / "secret").write_text("secret words")
    entity = f'<!DOCTYPE x [<!ENTITY s SYSTEM "file://{tmp_path}/secret">]>\n'
    voc(tmp_path / "set", entity + VOC_OBJECT.replace("NAME", "&s;"))
    message = train_refused("set")
    has(message, "a.xml")
    assert "secret words" not in message


def test_yaml_that_runs_code(train_refused, tmp_path):
    code = "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [exploded]]"
    yolo(tmp_path / "set", config=f"names: {code}\ntrain: images\nval: images\n")
    train_refused("set/data.yaml")
    (tmp_path / "c.yaml").write_text(f"model: {code}\n")
    train_refused("set", "--config", "c.yaml")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    "words",
    [
        ("check", "{long}"),
        ("train", "d", "--output", "out", "--config", "{long}"),
        ("evaluate", "{long}", "d"),
        ("convert", "{long}", "out"),
        ("predict", "d", "{long}"),
        ("train", "d", "--output", "out", "--model", "{long}"),
    ],
)
def test_a_name_that_no_file_can_have(refused, words):
    """Path.exists and is_file raise for it."""
    assert "x" * 300 in refused(*(word.format(long="x" * 300) for word in words))
