"""The kinds of input that are changed, and what is done with each."""

import contextlib
import inspect
import io
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mutations import CALL, NASTY, mutate, mutate_json
from PIL import Image, features

import retinanet
from retinanet.analysis.anchors.audit import audit
from retinanet.analysis.anchors.propose import propose
from retinanet.analysis.data.doctor import examine
from retinanet.analysis.data.fix import write_fixed_copy
from retinanet.anchors.lattice import AnchorLattice
from retinanet.cli.arguments import parse
from retinanet.cli.main import ALIASES, COMMANDS, HERE
from retinanet.data.dataset import training_datasets
from retinanet.detector import Detector
from retinanet.digest import seal
from retinanet.errors import UserError
from retinanet.images.io import image_size, read_pixels
from retinanet.images.preprocess import Preprocess
from retinanet.images.windows import ImageWindows
from retinanet.inference.exported import Card, open_exported
from retinanet.interop.convert import convert_weights
from retinanet.interop.files import read_weights
from retinanet.model.presets import Architecture
from retinanet.model_folder import DIGESTS
from retinanet.spec import CONFIG, ModelSpec, exported_file
from retinanet.yaml_files import dump_plain


def picture(form="PNG", mode="RGB", size=(24, 20), **options):
    """A small picture of noise as the bytes of a file."""
    wide = {"I;16": "uint16", "F": "float32", "I": "int32"}
    noise = np.random.default_rng(size[0]).integers(0, 255, (size[1], size[0], 3))
    image = Image.fromarray(noise.astype(np.uint8))
    image = Image.fromarray(noise[..., 0].astype(wide[mode])) if mode in wide else image.convert(mode)
    image.save(file := io.BytesIO(), form, **options)
    return file.getvalue()


IMAGES = {f"i{number}.png": picture(size=(24, 20 + number)) for number in range(5)}


def make_formats():
    """A data set of each format, by its name."""
    boxes = [(number, name, 2 + number, 3, 12, 15 + number) for number in range(5) for name in ("cat", "dog")]
    coco = {
        "images": [{"id": i, "file_name": f"i{i}.png", "width": 24, "height": 20 + i} for i in range(5)],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [
            {
                "id": n,
                "image_id": i,
                "category_id": 1 if name == "cat" else 3,
                "bbox": [x, y, u - x, v - y],
                "area": 99.5,
            }
            | {"iscrowd": n % 5 // 4, "segmentation": [[x, y, u, y, u, v]]}
            for n, (i, name, x, y, u, v) in enumerate(boxes)
        ],
    }
    voc, yolo = {}, {}
    for i in range(5):
        own = [box[1:] for box in boxes if box[0] == i]
        objects = "".join(
            f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>{x}</xmin><ymin>{y}</ymin><xmax>{u}</xmax>"
            f"<ymax>{v}</ymax></bndbox></object>\n"
            for name, x, y, u, v in own
        )
        size = f"<size><width>24</width><height>{20 + i}</height><depth>3</depth></size>"
        voc[f"Annotations/i{i}.xml"] = f"<annotation><filename>i{i}.png</filename>{size}\n{objects}</annotation>\n"
        yolo[f"labels/i{i}.txt"] = "".join(
            f"{int(name == 'dog')} {(x + u) / 48:.3f} {(y + v) / 56:.3f} {(u - x) / 24:.3f} {(v - y) / 28:.3f}\n"
            for name, x, y, u, v in own
        )
    lists = {"ImageSets/Main/train.txt": "i0\ni1\ni2\ni3\n", "ImageSets/Main/val.txt": "i4\n"}
    rows = [f"i{i}.png,{x},{y},{u},{v},{name}\n" for i, name, x, y, u, v in boxes]
    document = {"path": ".", "train": "images", "val": "val.txt", "nc": 2, "names": ["cat", "dog"]}
    texts = {
        "coco": {"annotations.json": json.dumps(coco)},
        "voc": voc | lists,
        "yolo": yolo | {"data.yaml": dump_plain(document), "val.txt": "images/i4.png\n"},
        "csv": {"boxes.csv": "image,xmin,ymin,xmax,ymax,label\n" + "".join(rows)},
        "plain csv": {"train.csv": "".join(rows[:8]), "val.csv": "".join(rows[8:]), "classes.csv": "cat,0\ndog,1\n"},
    }
    folders = {"voc": "JPEGImages/", "yolo": "images/"}
    return {
        form: {name: text.encode() for name, text in files.items()}
        | {folders.get(form, "") + name: content for name, content in IMAGES.items()}
        for form, files in texts.items()
    }


FORMATS = make_formats()


def change_format(rng):
    files = FORMATS[rng.choice(sorted(FORMATS))]
    texts = {name: content for name, content in files.items() if not name.endswith(".png")}
    return mutate(rng, files) if rng.random() < 0.15 else files | mutate(rng, texts)


def use_format(folder):
    """Load for training, and check as the command does, without drawing; a sound set is fixed as well."""
    preprocess, lattice = Preprocess(short=32, long=64), AnchorLattice()
    with contextlib.suppress(UserError):
        train, val = training_datasets(folder)
        for dataset in (train, val):
            dataset.summary()
            dataset[len(dataset) - 1]
        audit(train.samples, train.class_names, lattice=lattice, preprocess=preprocess)
        if int(folder.parent.name.split("-")[1]) % 5 == 0:  # it takes most of the time
            propose(train.samples, train.class_names, lattice=lattice, preprocess=preprocess)
    report = examine(folder, preprocess=preprocess, workers=1)
    str(report.summary()).encode("utf-8", "surrogatepass")
    json.dumps(report.to_dict())
    write_fixed_copy(folder, folder.with_name("fixed"), report)


PICTURES = {
    **{f"{mode}.png".replace(";", ""): picture(mode=mode) for mode in ("RGB", "L", "I;16", "P", "RGBA", "1", "LA")},
    **{f"{mode}.jpg": picture("JPEG", mode) for mode in ("RGB", "L", "CMYK")},
    "exif.jpg": picture("JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0\0\0\0\0\0\0"),
    **{f"{mode}.tif".replace(";", ""): picture("TIFF", mode) for mode in ("RGB", "F", "I;16", "RGBA", "1", "CMYK")},
    **{f"{name}.tiff": picture("TIFF", compression=name) for name in ("tiff_lzw", "jpeg", "tiff_deflate", "packbits")},
    **{f"a.{name}": picture(form) for name, form in (("webp", "WEBP"), ("gif", "GIF"), ("bmp", "BMP"), ("ppm", "PPM"))},
    **({"a.jp2": picture("JPEG2000")} if features.check("jpg_2000") else {}),
}


def change_image(rng):
    name = rng.choice(sorted(PICTURES))
    return mutate(rng, {name: PICTURES[name]})


def use_image(folder):
    for path in folder.iterdir():
        with contextlib.suppress(UserError):
            image_size(path)
        read_pixels(path, max_pixels=1_000_000)
        with ImageWindows(path) as windows:
            windows.read(0, 0, min(64, windows.size[0]), min(64, windows.size[1]))


def make_model():
    torch.manual_seed(0)
    made = Architecture(backbone="test_resnet", channels=16, depth=1)
    spec = ModelSpec(
        ("cat", "dog"), Preprocess(short=32, long=64), architecture=made, thresholds={"cat": 0.3}, scale=1.5
    )
    return Detector(spec, made.build(2))


MODEL = make_model()
MODEL.save(Path("model"))
WEIGHTS = {path.name: path.read_bytes() for path in Path("model").iterdir()}
SETTINGS = json.loads(WEIGHTS[CONFIG])


def change_model(rng):
    files = dict(WEIGHTS)
    if rng.random() < 0.8:  # or no other change to the weights would be seen
        files[CONFIG] = json.dumps({name: value for name, value in SETTINGS.items() if name != DIGESTS}).encode()
    if rng.random() < 0.7:
        return files | {CONFIG: mutate_json(rng, files[CONFIG])}
    return mutate(rng, files)


def use_model(folder):
    Detector.load(folder)


def list_options(name):
    """A configuration file of a command: the defaults of its options, and something for what has none."""
    function, given = getattr(retinanet, name), {"images": "[x]", "format": "onnx"}
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        parse(function, ["--print_config"], positionals=COMMANDS[name].positionals, usage="")
    text = printed.getvalue()
    for key, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty:
            text = text.replace(f"{key}: null\n", f"{key}: {given.get(key, 'x')}\n", 1)
    return text


OPTIONS = {name: list_options(name) for name in COMMANDS if name not in HERE}


def change_options(rng):
    """A configuration file and a command line, in which texts name what may be code."""
    name = rng.choice(sorted(OPTIONS))
    files = mutate(rng, {"c.yaml": OPTIONS[name].encode()})
    lines = [line.partition(":")[0].strip() for line in OPTIONS[name].splitlines()]
    words = []
    for _ in range(rng.choice((0, 0, 0, 1, 2))):
        option = rng.choice(("--", "--", "-", "")) + rng.choice(
            (*lines, "architecture.x", "image.class_path", "config", "x" * 3000, "")
        )
        nasty = json.dumps(rng.choice((*NASTY, CALL)))
        value = rng.choice((nasty, str(rng.choice(NASTY)), "{x: [" + str(CALL) + "]}", "[" * 3000))
        words += rng.choice(([f"{option}={value}"], [option, value], [option], [value]))
    return files | {"words": json.dumps([name, *words]).encode()}


def use_options(folder):
    name, *words = json.loads((folder / "words").read_bytes())
    files = [path for path in sorted(folder.iterdir()) if path.name != "words"]
    words += [word for path in files for word in ("--config", str(path))]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        parse(
            getattr(retinanet, name), words, positionals=COMMANDS[name].positionals, usage="", aliases=ALIASES.get(name)
        )


CARD = Card(MODEL.spec, weights_sha256="0" * 64).to_json()
EXPORTS = {}  # by the option --runtimes: real files; no pt2, which is opened only for those who are trusted


def make_exports():
    from retinanet.deploy.export import export

    for form in ("onnx", "openvino"):
        export("model", format=form, output=form)
        EXPORTS[form] = {
            path.name: path.read_bytes() for path in Path(form).iterdir() if path.name.startswith("model.")
        }


def change_export(rng):
    if EXPORTS and rng.random() < 0.3:
        return mutate(rng, EXPORTS[rng.choice(sorted(EXPORTS))])
    return {"card.json": mutate_json(rng, CARD.encode())}


def use_export(folder):
    card = folder / "card.json"
    if card.is_file():
        Card.from_json(card.read_text("utf-8", "surrogateescape"), card)
    for path in sorted(folder.iterdir()):
        if path.name.endswith((".onnx", ".xml")) and path.is_file():
            with contextlib.suppress(UserError):
                open_exported(path)
            weights = [other for other in path.parent.glob("*.bin") if other.is_file()]
            seal(path, *weights)  # as whoever changed the files may do
            open_exported(path)
    exported_file(folder)


def make_weights():
    """Files of weights of every sort; one has the names of a RetinaNet of torchvision, and layers that are too thin."""
    state = OrderedDict(("layer." + name, torch.ones(2, 3)) for name in ("weight", "bias"))
    wrapped = {
        "state_dict": state,
        "epoch": 3,
        "args": SimpleNamespace(lr=0.1),
        "optimizer": {"state": {0: torch.ones(2)}},
    }
    arrays = {"model": {name: value.numpy() for name, value in state.items()}, "lr": np.float64(0.5), "__author__": "x"}
    from torchvision.models.detection import retinanet_resnet50_fpn

    with torch.device("meta"):
        names = retinanet_resnet50_fpn(weights=None, weights_backbone=None).state_dict()
    thin = {name: torch.zeros([-(-side // 128) for side in value.shape]) for name, value in names.items()}
    files = {"thin.pth": io.BytesIO(), "wrapped.pth": io.BytesIO(), "old.pkl": io.BytesIO()}
    torch.save(thin, files["thin.pth"])
    torch.save(wrapped, files["wrapped.pth"])
    torch.save(state, files["old.pkl"], _use_new_zipfile_serialization=False)
    contents = {name: file.getvalue() for name, file in files.items()}
    contents |= {f"arrays{protocol}.pkl": pickle.dumps(arrays, protocol) for protocol in (2, 4, 5)}
    return contents | {"model.safetensors": WEIGHTS["model.safetensors"]}


FOREIGN = make_weights()


def change_weights(rng):
    name = rng.choice(sorted(FOREIGN))
    return mutate(rng, {name: FOREIGN[name]})


def use_weights(folder):
    for path in folder.iterdir():
        weights = read_weights(path)
        with contextlib.suppress(UserError):
            convert_weights(weights)


KINDS = {  # name: (how to change an input, what to do with it, MB of memory that this may take)
    "format": (change_format, use_format, 4000),  # an image of 200 million pixels is allowed
    "image": (change_image, use_image, 500),
    "options": (change_options, use_options, 500),
    "weights": (change_weights, use_weights, 1000),
    "model": (change_model, use_model, 1000),
    "export": (change_export, use_export, 2000),
}
TURNS = "format image options format weights format image model export options weights image".split()  # noqa: SIM905
