"""Models by name; nothing is downloaded: files are planted where downloads would put them."""

import hashlib
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import pytest
import torch
from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights

from retinanet import evaluate
from retinanet.cli.main import main
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.interop import convert as conversion
from retinanet.interop.pretrained import model_folder
from retinanet.interop.torchvision import download_torchvision

NAME = "retinanet_resnet50_fpn"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A torch hub and a cache of its own."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(conversion, "compare", lambda *_: None)
    torch.hub.set_dir(str(tmp_path / "torch" / "hub"))
    yield tmp_path
    torch.hub._hub_dir = None


@pytest.fixture
def planted(home):
    """torchvision's file, with random weights, where torchvision itself would keep it."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    torch.manual_seed(0)
    net = retinanet_resnet50_fpn(weights=None, weights_backbone=None)
    file = Path(torch.hub.get_dir()) / "checkpoints" / RetinaNet_ResNet50_FPN_Weights.COCO_V1.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(net.state_dict(), file)
    return net, file


def test_torchvision_by_name(planted, home, capsys):
    net, file = planted
    assert download_torchvision(f"torchvision:{NAME}") == download_torchvision(f"torchvision/{NAME}") == file
    model = Detector.load(f"torchvision/{NAME}").net
    assert not model.training and torch.equal(model.backbone.body.conv1.weight, net.backbone.body.conv1.weight)
    digits = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    (kept,) = (home / "cache" / "retinanet").glob(f"*/*{digits}")
    assert (kept / "conversion.txt").is_file() and model_folder(f"torchvision/{NAME}") == kept
    before = (kept / "model.safetensors").stat().st_mtime_ns
    assert len(Detector.load(f"torchvision/{NAME}").spec.class_names) == 80
    assert (kept / "model.safetensors").stat().st_mtime_ns == before  # converted once
    assert main(["convert", "--from", f"torchvision:{NAME}", str(home / "coco")]) == 0
    assert "80 kept" in capsys.readouterr().out and (home / "coco" / "config.json").is_file()


def test_without_a_network(home, monkeypatch, capsys):
    """What was tried and where to put the file."""

    def offline(url, *_args, **_options):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    assert main(["convert", f"--from=torchvision:{NAME}_v2", str(home / "coco")]) == 2
    error = capsys.readouterr().err
    assert "tried https://download.pytorch.org/models/retinanet_resnet50_fpn_v2_coco-5905b1c5.pth" in error
    assert "no route to host" in error and f"put the file at {home / 'torch'}" in error and len(error.splitlines()) == 1
    assert not (home / "coco").exists()


def test_a_damaged_download_is_not_kept(home, monkeypatch):
    def other(url, target, hash_prefix=None, **_options):
        raise RuntimeError(f'invalid hash value (expected "{hash_prefix}", got "00")')

    monkeypatch.setattr(torch.hub, "download_url_to_file", other)
    with pytest.raises(UserError, match=r"invalid hash value \(expected .eeacb38b."):
        model_folder(f"torchvision/{NAME}")


def test_folders_presets_and_slips(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert model_folder(trained) == trained and model_folder("lite") is None
    (tmp_path / "runs").mkdir()
    assert model_folder("runs/cels") is None  # a slip in a local path is not looked up elsewhere
    with pytest.raises(UserError, match="no model in runs/cels: expected a folder"):
        Detector.load("runs/cels")


@pytest.mark.parametrize("slip", ["runs/cels", "run/cells", "./runs/cell", "runs/cells/bset", "Runs/cells/best/"])
def test_a_slip_in_a_local_path_is_told_and_asks_nobody(tmp_path, monkeypatch, slip):
    def ask(*_args, **_options):
        raise AssertionError("a hub was asked")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", ask)
    (tmp_path / "runs" / "cells" / "best").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"no model in {slip}; did you mean runs/cells(/best)?\?"):
        model_folder(slip)
    for other in (
        "somewhere/model.pth",
        "./somebody",
        "../somewhere/else",
        "somebody/cells/",
        "runs/other",
        "modle/last",
        "a\\b",
    ):
        assert model_folder(other) is None, other
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert model_folder("runs/cells") is None


def test_a_hub_repository(trained, tmp_path, monkeypatch):
    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(trained)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    net = Detector.load("somebody/cells").net
    assert asked == [("somebody/cells", None, ["config.json", "model.safetensors"])] and not net.training
    model_folder("somebody/cells@v1.0")
    model_folder("somebody/cells@refs/pr/1")
    assert [revision for _, revision, _ in asked[1:]] == ["v1.0", "refs/pr/1"]
    for other in ("somebody/cells@", "somebody@v1/cells", "runs/cells@v1", "somebody/cells@v1/model.pth"):
        assert model_folder(other) is None, other
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: str(tmp_path))
    with pytest.raises(UserError, match=r"the hub repository somebody/cells holds no config\.json"):
        model_folder("somebody/cells")


def test_a_hub_repository_out_of_reach(tmp_path, monkeypatch):
    def offline(*_args, **_options):
        raise OSError("no\nroute")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"no model in somebody/cells.*could not be fetched \(OSError: no route\)"):
        Detector.load("somebody/cells")


def test_evaluate_and_predict_take_names(trained, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_args, **_options: str(trained))
    assert evaluate("somebody/shapes", data, split="test", device="cpu").metrics.ap >= 0
    assert main(["predict", "somebody/shapes", f"{data}/test", "--output", "out", "--device", "cpu"]) == 0
