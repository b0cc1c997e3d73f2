"""``--json``: standard output is one JSON object, whatever the command and however it ends."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retinanet import __version__
from retinanet.cli.main import COMMANDS, main
from retinanet.interop import yhenon
from retinanet.model.presets import Architecture

HEAD = {"schema", "version", "library_version", "exit_code", "result"}


@pytest.fixture
def record(capfd):
    """Runs a command with ``--json``; returns what it printed, read strictly."""

    def run(*words, code=0):
        capfd.readouterr()
        assert main([str(word) for word in (*words, "--json")]) == code
        out, _ = capfd.readouterr()
        assert out.count("\n") == 1 and out.endswith("}\n")
        made = json.loads(out, parse_constant=pytest.fail)
        assert (made["version"], made["library_version"], made["exit_code"]) == (1, __version__, code)
        return made

    return run


def words_of(data, trained, tmp_path, tiny_words):
    """For each command the words of a small call, and names that its result has."""
    image = data / "test" / "test_0.png"
    return {
        "train": ([data, "--output", tmp_path / "run", *tiny_words, "--epochs", 1], {"folder", "ap", "steps"}),
        "evaluate": ([trained, data, "--device", "cpu"], {"about", "ap", "ap50", "classes", "loss"}),
        "predict": (
            [trained, image, "--output", tmp_path / "out", "--score", 0.01, "--device", "cpu"],
            {"output", "images", "failed"},
        ),
        "check": ([data, "--output", tmp_path / "check"], {"doctor", "anchors", "proposal", "stops", "output"}),
        "plan": ([data, "--timed", "false", "--run.accelerator", "cpu"], {"facts", "options", "memory_gb", "write"}),
        "diagnose": (
            [trained, data, "--output", tmp_path / "diagnosis", "--device", "cpu"],
            {"errors", "missed", "focal", "anchors", "thresholds", "output"},
        ),
        "why": (
            [trained, image, "--output", tmp_path / "why", "--device", "cpu"],
            {"counts", "boxes", "detections", "size", "score", "output"},
        ),
        "suspects": (
            [trained, data, "--output", tmp_path / "suspects", "--device", "cpu"],
            {"suspects", "images", "boxes", "notes", "output"},
        ),
        "suggest": (
            [trained, data / "test", "--output", tmp_path / "next.csv", "--device", "cpu"],
            {"suggestions", "images", "annotated", "output"},
        ),
        "export": (
            [trained, "--format", "pt2", "--output", tmp_path / "pt2"],  # the quickest to make
            {"folder", "file", "proof", "size", "weights_sha256"},
        ),
        "push": ([trained, "me/model", "--dry_run", tmp_path / "dry"], {"repository", "revision", "sizes", "folder"}),
        "benchmark": (
            [trained, data, "--backends", "torch-fp32", "--repeats", 1, "--images", 1],
            {"rows", "left_out", "about"},
        ),
    }


def test_every_command_is_tried():
    tried = words_of(Path("data"), Path("model"), Path("scratch"), [])
    assert set(tried) | {"convert", "demo", "serve", "completion"} == set(
        COMMANDS
    )  # the first two have their own tests


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"convert", "demo", "serve", "completion"}))
def test_the_result_of_a_command(command, record, data, trained, tmp_path, tiny_words):
    if command == "push":  # which writes a card into the model folder
        trained = shutil.copytree(trained, tmp_path / "model")
    words, names = words_of(data, trained, tmp_path, tiny_words)[command]
    made = record(command, *words)
    assert set(made) == HEAD and made["schema"] == f"retinanet.{command}"
    assert names <= set(made["result"])


def test_the_result_of_convert(record, tmp_path):
    state = Architecture(backbone="resnet18").build(2).state_dict()
    theirs = {ours: name for name, ours in yhenon.NAMES.items()}
    prefixes = {key: max((one for one in theirs if key.startswith(f"{one}.")), key=len) for key in state}
    torch.save(
        {theirs[prefixes[key]] + key[len(prefixes[key]) :]: value for key, value in state.items()}, tmp_path / "w.pth"
    )
    result = record("convert", tmp_path / "w.pth", tmp_path / "model")["result"]
    assert "yhenon" in result["report"] and result["output"] == str(tmp_path / "model")
    assert result["conversion"] == json.loads((tmp_path / "model" / "conversion.json").read_text())


def test_what_a_command_prints_itself_goes_elsewhere(record, monkeypatch, capfd):
    monkeypatch.setattr("retinanet.cli.demo.demo", lambda output="runs/demo": print("rendered") or float("nan"))
    assert record("demo")["result"] == {"output": "runs/demo", "ap": None}


def test_a_mistake_is_an_object_too(record, tmp_path):
    made = record("predict", tmp_path / "none", "a.png", code=2)
    assert made["schema"] == "retinanet.error" and made["command"] == "predict"
    assert made["error"].startswith("no image at a.png: expected a file")
    assert record("trian", code=2)["error"].startswith("unknown command 'trian', did you mean 'train'?")
    for command in ("serve", "completion"):
        assert "has none" in record(command, "x", code=2)["error"]


def test_images_that_cannot_be_read_are_in_it(record, trained, data, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = [data / "test" / "test_0.png", tmp_path / "bad.png"]
    made = record("predict", trained, *images, "--output", tmp_path / "out", "--score", 0, "--device", "cpu", code=1)
    (failed,) = made["result"]["failed"]
    assert failed["path"] == str(images[1]) and "not an image" in failed["reason"]
    (image,) = made["result"]["images"]
    assert image["path"] == str(images[0]) and image["size"] == [64, 80]
    assert set(image["detections"][0]) == {"box", "score", "label", "name"}


def test_what_stops_a_training_is_exit_code_1(record, data_copy, tmp_path):
    (data_copy / "train" / "train_0.png").unlink()
    made = record("check", data_copy, "--output", tmp_path / "check", code=1)
    assert made["result"]["stops"] is True


def test_completion():
    shtab = pytest.importorskip("shtab")
    assert shtab
    from retinanet.cli.completion import completion

    script = completion("bash")
    for word in ("predict", "--optim.lr", "--lr", "openvino", "--json"):
        assert word in script, word
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def test_completion_without_shtab(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 2
    assert 'needs the package shtab: pip install "retinanet[completion]"' in capsys.readouterr().err
