"""Every benchmark can be started, and finds the names of the package; torchvision's detectors reach the end."""

import importlib
import runpy
from pathlib import Path

import pytest
import timm
from safetensors.torch import save_file

from retinanet import load_dataset
from retinanet.images.preprocess import Preprocess

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=[path.stem for path in BENCHMARKS])
def test_it_imports_what_exists(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    assert (runpy.run_path(str(path))["__doc__"] or "").strip()


@pytest.mark.parametrize("kind", ["fasterrcnn", "retinanet", "fcos", "ssd"])
def test_detectors_of_torchvision_are_trained_and_measured(kind, data, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS[0].parent)
    peers = importlib.import_module("peers")
    weights = tmp_path / "resnet10t.safetensors"
    save_file(timm.create_model("resnet10t").state_dict(), weights)
    sets, size = [load_dataset(str(data), split) for split in ("train", "test")], Preprocess(short=64, long=96)
    how = peers.Schedule(epochs=1, batch_size=4)
    values = peers.run_peer(kind, sets, "resnet10t", weights, size, how, tmp_path / kind)
    assert 0 <= values["AP"] <= 1 and list(values["classes"]) == list(sets[0].class_names)
    assert peers.run_peer(kind, sets, "resnet10t", weights, size, how, tmp_path / kind) == values  # it is read
