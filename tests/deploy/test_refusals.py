"""Exports that fail: a message that says what to do, and nothing left behind."""

import shutil
import sys

import numpy as np
import onnx
import pytest

from retinanet.cli.main import main
from retinanet.deploy import onnx as deploy_onnx
from retinanet.deploy.export import export
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.inference.predictor import Predictor
from retinanet.spec import SUFFIXES


def test_a_wrong_graph_is_refused_and_nothing_is_left(model, converted_once, tmp_path, monkeypatch):
    """Boxes a pixel to the right."""

    def shift(detector, card, real=deploy_onnx.to_onnx):
        graph = (wrong := real(detector, card)).graph
        (node,) = (node for node in graph.node if "boxes" in node.output)
        node.output[list(node.output).index("boxes")] = "right"
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32([1, 0, 1, 0]), "pixel"))
        graph.node.append(onnx.helper.make_node("Add", ["right", "pixel"], ["boxes"]))
        return wrong

    monkeypatch.setattr(deploy_onnx, "to_onnx", shift)
    with pytest.raises(UserError, match=r"differs from the network, so it was not saved: .*largest difference 1 px"):
        export(str(model), format="onnx", output=str(tmp_path / "deep" / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def full_disk(monkeypatch, exported):
    """Half of a file is written before the disk is full."""
    exported("onnx")  # made while there is room

    def write(detector, card, file, images, **options):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(deploy_onnx, "write_model", write)


def test_a_full_disk_leaves_nothing(full_disk, model, tmp_path):
    with pytest.raises(UserError, match=r"out cannot be written .*No space left on device.*nothing was kept"):
        export(str(model), format="onnx", output=str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", SUFFIXES)
def test_files_that_cannot_grow(model, converted_once, tmp_path, form):
    """The real writers, which tell of it each in its way."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(UserError, match=r"out cannot be written .*nothing was kept"):
            # the heads alone, where nothing is kept of an earlier conversion: the weights fill the file
            export(str(model), format=form, raw=form == "pt2", output=str(tmp_path / "out"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_outlives_a_failure(full_disk, exported, model, tmp_path):
    folder = shutil.copytree(exported("onnx").folder, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for overwrite, words in ((False, "holds an export already.*--overwrite"), (True, "nothing was kept")):
        with pytest.raises(UserError, match=words):
            export(str(model), format="onnx", output=str(folder), overwrite=overwrite)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert list(tmp_path.iterdir()) == [folder]


def test_an_earlier_export_is_replaced(exported, model, tmp_path, converted_once):
    folder = shutil.copytree(exported("openvino").folder, tmp_path / "out")
    export(str(model), format="onnx", output=str(folder), overwrite=True)
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "export.txt", "export.json"}


def test_folders_of_other_things_are_not_touched(model, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("dear diary")
    for target in (tmp_path / "mine", tmp_path / "mine" / "notes.txt", model):
        with pytest.raises(UserError, match="holds files that are not an export"):
            export(str(model), format="onnx", output=str(target), overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "dear diary"


def test_compile_without_a_compiler(model, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(UserError, match=r"--compile needs a C\+\+ compiler"):
        export(str(model), format="pt2", compile=True, output=str(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []


BAD = [
    ({"format": "onnx", "precision": "int8"}, r"int8 needs images.*--calibrate"),
    ({"format": "onnx", "calibrate": "x"}, r"--calibrate is for int8; fp32 needs none"),
    ({"format": "onnx", "precision": "bf16"}, r"bf16 is not available with --format onnx.*openvino has"),
    ({"format": "pt2", "precision": "int8"}, r"int8 is not available with --format pt2.*openvino and onnx"),
    ({"format": "onnx", "precision": "fp16"}, r"fp16 is not available"),
    ({"format": "onnx", "compile": True}, r"--compile is for pt2"),
    ({"format": "onnx", "raw": True, "verify": "x"}, r"--verify needs detections"),
    ({"format": "tflite"}, r"--format is onnx, openvino, pt2; got 'tflite'"),
    ({"format": "onnx", "precision": "int8", "calibrate": "none"}, r"there is no none"),
    ({"format": "onnx", "verify": "none"}, r"there is no none"),
    ({"format": "onnx", "precision": "int8", "calibrate": ".", "samples": 0}, r"--samples is at least 1"),
    ({"format": "onnx", "precision": "int8", "calibrate": "."}, r"there are no images in \."),
    ({"format": "onnx", "precision": "int8", "calibrate": "broken"}, r"bad\.png"),
]


@pytest.mark.parametrize(("options", "words"), BAD, ids=[words for _, words in BAD])
def test_options_that_cannot_be(model, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    if options.get("calibrate") == "broken":
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "bad.png").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=words):
        export(str(model), output="out", **options)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("package", "imported_by", "options"),
    [
        ("onnxscript", "retinanet.deploy.onnx", {"format": "onnx"}),
        ("openvino", None, {"format": "openvino"}),
        ("nncf", "retinanet.deploy.quantise", {"format": "openvino", "precision": "int8"}),
    ],
)
def test_packages_that_are_missing(
    model, labelled, converted_once, tmp_path, monkeypatch, package, imported_by, options
):
    if imported_by:
        monkeypatch.delitem(sys.modules, imported_by)
    monkeypatch.setitem(sys.modules, package, None)
    calibrate = str(labelled / "train") if "precision" in options else None
    with pytest.raises(UserError, match=rf'(?i){package}.*pip install "retinanet\[export\]"'):
        export(str(model), output=str(tmp_path / "out"), calibrate=calibrate, **options)
    assert list(tmp_path.iterdir()) == []


def test_images_padded_to_16(build, tmp_path):
    build(rule=Preprocess(short=96, long=192, multiple=16)).save(tmp_path / "m")
    with pytest.raises(UserError, match=r"pads to multiples of 16\. Set preprocess\.multiple to 32"):
        export(str(tmp_path / "m"), format="pt2")
    assert not (tmp_path / "m" / "pt2-fp32").exists()


def test_an_exported_model_cannot_be_exported_again(exported, tmp_path):
    with pytest.raises(UserError, match="is an exported model"):
        export(exported("onnx").folder, format="openvino", output=str(tmp_path / "out"))
    with pytest.raises(UserError, match="is an exported model"):
        Detector.load(exported("onnx").folder)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "DATA", "--model", "MODEL", "--output", "out"],
        ["diagnose", "MODEL", "DATA", "--output", "out"],
        ["export", "MODEL", "--format", "onnx", "--output", "out"],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_need_the_network(exported, labelled, tmp_path, monkeypatch, capfd, words):
    monkeypatch.chdir(tmp_path)
    real = {"MODEL": exported("onnx").folder, "DATA": str(labelled)}
    assert main([real.get(word, word) for word in words]) == 2
    message = capfd.readouterr().err
    assert "is an exported model" in message and "Traceback" not in message
    assert list(tmp_path.iterdir()) == []


def test_the_command(model, exported, tmp_path, capfd, monkeypatch, converted_once):
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(model), "--format", "onnx", "--output", "out"]) == 0
    out = capfd.readouterr().out
    assert "retinanet predict out IMAGES" in out and "detections match, 0 only in one" in out
    for words, part in (
        (["--format", "tflite"], "tflite"),
        ([], "format"),
        (["--format", "onnx", "--precision", "bf16"], "bf16"),
        (["--format", "onnx", "--output", "out"], "--overwrite"),
    ):
        assert main(["export", str(model), *words]) == 2
        err = capfd.readouterr().err
        assert part in err and "Traceback" not in err
    with pytest.raises(SystemExit) as done:
        sys.exit(main(["export", "--help"]))
    assert done.value.code == 0 and "--calibrate" in capfd.readouterr().out


def test_overwrite_never_takes_other_files_with_it(exported, model, tmp_path):
    (tmp_path / "project").mkdir()
    for name in ("model.onnx", "export.json", "a.py"):
        (tmp_path / "project" / name).write_text("precious")
    with pytest.raises(UserError, match="holds files that are not an export"):
        export(str(model), format="onnx", output=str(tmp_path / "project"), overwrite=True)
    assert len(list((tmp_path / "project").iterdir())) == 3


def test_weights_that_were_not_copied_are_named(exported, tmp_path):
    folder = shutil.copytree(exported("openvino").folder, tmp_path / "out")
    (folder / "model.bin").unlink()
    with pytest.raises(UserError, match=r"model\.bin is missing: the weights of model\.xml"):
        Predictor.load(folder)
