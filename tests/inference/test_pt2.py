"""Programs of torch.export, by the rules of all exported models."""

import io
import json
import pickle
import shutil
import subprocess
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.cli.main import main
from retinanet.errors import UserError
from retinanet.evaluation.evaluate import evaluate
from retinanet.images.preprocess import Preprocess
from retinanet.inference.exported import Card
from retinanet.inference.predictor import Predictor
from retinanet.spec import ModelSpec

CARD = Card(ModelSpec(("spot",), Preprocess(short=32, long=64)))


class Peak(torch.nn.Module):
    """One box, the whole image, scored by its brightest value."""

    def __init__(self):
        super().__init__()
        self.white = torch.nn.Parameter(torch.tensor([255.0]), requires_grad=False)

    def forward(self, images, sizes):
        peak = images.amax((1, 2, 3)).float() / self.white
        sides = sizes.flip(1).float()
        boxes = torch.cat([sides * 0, sides], dim=1)[:, None]
        return boxes, peak[:, None], (peak[:, None] * 0).long(), (peak * 0 + 1).long()


@pytest.fixture(scope="module")
def program():
    number, height, width = (torch.export.Dim(name) for name in ("N", "H", "W"))
    example = (torch.zeros(2, 3, 32, 64, dtype=torch.uint8), torch.tensor([[32, 64], [30, 60]]))
    return torch.export.export(Peak(), example, dynamic_shapes=({0: number, 2: height, 3: width}, {0: number}))


def saved(program, path, **extra):
    program.example_inputs = None  # as our export does it
    torch.export.save(program, path, extra_files=extra)
    return path


def test_detections_are_those_of_the_program(program, tmp_path):
    file = saved(program, tmp_path / "model.pt2", **{"retinanet.json": CARD.to_json()})
    predictor = Predictor.load(file, batch_size=2, trust=True)
    assert predictor.backend.name == "torch.export fp32" and predictor.class_names == ("spot",)
    images = [np.full((10 * n, 20, 3), 50 * n, np.uint8) for n in range(1, 6)]
    for image, found in zip(images, predictor(images), strict=True):
        assert found.boxes.tolist() == [[0, 0, 20, image.shape[0]]] and found.labels.tolist() == [0]
        assert isinstance(found.boxes, np.ndarray) and found.scores == pytest.approx(image.max() / 255)


def test_a_file_has_to_be_named_and_trusted(program, tmp_path):
    file = saved(program, tmp_path / "model.pt2", **{"retinanet.json": CARD.to_json()})
    for trust in (False, True):
        with pytest.raises(UserError, match=r"the file itself must be named.*model\.pt2 as the model, with --trust"):
            Predictor.load(tmp_path, trust=trust, trust_code=trust)
    for trust_code in (False, True):
        with pytest.raises(UserError, match=r"model\.pt2: loading a pt2 file can run code.*pass --trust"):
            Predictor.load(file, trust_code=trust_code)


def test_files_that_cannot_be_used(program, tmp_path, capfd):
    good = saved(program, tmp_path / "good.pt2", **{"retinanet.json": CARD.to_json()}).read_bytes()
    path = tmp_path / "bad.pt2"
    for content in (b"", b"hello", good[:500], good[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pt2 is damaged, or not a model"):
            Predictor.load(path, trust=True)
    with pytest.raises(UserError, match="not a model that retinanet exported"):
        Predictor.load(saved(program, tmp_path / "bare.pt2"), trust=True)
    assert capfd.readouterr() == ("", "")


class Touch:
    """A pickle that makes a file when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def pickled(canary):
    content = io.BytesIO()
    torch.save(Touch(canary), content)
    return content.getvalue()


def pickled_weight(parts, canary, folder):
    config = json.loads(parts["data/weights/model_weights_config.json"])
    (entry,) = config["config"].values()
    entry["use_pickle"] = True
    parts["data/weights/model_weights_config.json"] = json.dumps(config).encode()
    parts[f"data/weights/{entry['path_name']}"] = pickled(canary)


def pickled_object(parts, canary, folder):
    entry = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    parts["data/constants/model_constants_config.json"] = json.dumps({"config": {"x": entry}}).encode()
    parts["data/constants/opaque_obj_0"] = pickle.dumps(Touch(canary))


def pickled_inputs(parts, canary, folder):
    parts["data/sample_inputs/model.pt"] = pickled(canary)


def expression(parts, canary, folder):
    text = parts["models/model.json"].decode()
    graph = json.loads(text)
    code = f"open({str(canary)!r}, 'w') and 1"

    def planted(value):
        if isinstance(value, dict):
            return {k: code if k == "expr_str" else planted(v) for k, v in value.items()}
        return [planted(v) for v in value] if isinstance(value, list) else value

    parts["models/model.json"] = json.dumps(planted(graph)).encode()


def library(parts, canary, folder):
    source = folder / "x.c"
    source.write_text(f'#include <stdio.h>\n__attribute__((constructor)) void f(void) {{ fopen("{canary}", "w"); }}\n')
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", folder / "x.so", source], check=True)
    parts["data/aotinductor/model/x.so"] = (folder / "x.so").read_bytes()
    parts["data/aotinductor/model/x_metadata.json"] = b'{"AOTI_DEVICE_KEY": "cpu"}'


def older_release(parts, canary, folder):
    parts["data/weights/model.pt"] = pickled(canary)


NEEDS_GCC = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
CODE = [pickled_weight, pickled_object, pickled_inputs, older_release, pytest.param(library, marks=NEEDS_GCC)]


@pytest.fixture
def planted(program, tmp_path):
    """Writes an archive in which something makes a file; gives the archive and that file."""
    canary = tmp_path / "canary"

    def plant(how, name="model.pt2"):
        good = saved(program, tmp_path / "good.pt2", **{"retinanet.json": CARD.to_json()})
        with zipfile.ZipFile(good) as archive:
            parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
        how(parts, canary, tmp_path)
        (tmp_path / "exported").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / "exported" / name, "w") as archive:
            for part, content in parts.items():
                archive.writestr(f"model/{part}", content)
        return tmp_path / "exported" / name, canary

    return plant


@pytest.mark.parametrize("how", [*CODE, expression])
@pytest.mark.parametrize("name", ["model.pt2", "model.compiled.pt2"])
def test_no_file_runs_code_unless_it_is_trusted(planted, tmp_path, capsys, how, name):
    file, canary = planted(how, name)
    image = tmp_path / "image.png"
    Image.new("RGB", (20, 10)).save(image)
    for model in (file, file.parent):
        expected = "can run code.*--trust"
        with pytest.raises(UserError, match=expected):
            Predictor.load(model)
        with pytest.raises(UserError, match=expected):
            evaluate(model, tmp_path)
        assert main(["predict", str(model), str(image), "--output", str(tmp_path / "out")]) == 2
        assert "--trust" in capsys.readouterr().err
    (file.parent / "config.json").write_text("{}")  # now it looks like a model folder
    with pytest.raises(UserError, match=r"config\.json"):
        Predictor.load(file.parent, trust=True, trust_code=True)
    assert not canary.exists()


@pytest.mark.parametrize("how", CODE)
def test_code_needs_more_trust_than_a_graph(planted, tmp_path, capsys, how):
    file, canary = planted(how)
    image = tmp_path / "image.png"
    Image.new("RGB", (20, 10)).save(image)
    with pytest.raises(UserError, match=r"^\S+model\.pt2 has pickled or compiled parts.*--trust_code"):
        Predictor.load(file, trust=True)
    assert main(["predict", str(file), str(image), "--output", str(tmp_path / "out"), "--trust"]) == 2
    assert "pass --trust_code as well" in capsys.readouterr().err and not canary.exists()


@pytest.mark.parametrize("how", [*CODE, expression])
def test_the_planted_code_would_have_run(planted, how):
    file, canary = planted(how)
    with suppress(Exception):
        Predictor.load(file, trust=True, trust_code=how is not expression)
    assert canary.exists()
