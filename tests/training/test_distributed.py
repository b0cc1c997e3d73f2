"""Two processes over gloo do what one process does with the joined batch."""

import importlib.util
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retinanet.cli.main import main
from retinanet.detector import Detector
from retinanet.training.log import read_log

SCRIPT = Path(__file__).with_name("ranks.py")


def run(words):
    """A script and the processes that it starts itself; no variables of an outer launcher reach it."""
    launcher = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {key: value for key, value in os.environ.items() if key not in launcher}
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def frozen(trained, tmp_path_factory):
    """A model whose batch norms are frozen: their statistics would depend on how a batch is shared out."""
    folder = tmp_path_factory.mktemp("frozen")
    detector = Detector.load(trained)
    architecture = replace(detector.spec.architecture, norm="frozen")
    net = architecture.build(len(detector.spec.class_names))
    net.load_state_dict(detector.net.state_dict())
    Detector(replace(detector.spec, architecture=architecture), net).save(folder)
    return folder


@pytest.fixture(scope="module")
def alone(data, frozen, tmp_path_factory):
    spec = importlib.util.spec_from_file_location("ranks", SCRIPT)
    ranks = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ranks)
    from retinanet.training import loop

    update = loop._update
    try:
        return ranks.measure("1", str(data), str(frozen), str(tmp_path_factory.mktemp("alone")))
    finally:
        loop._update = update


@pytest.fixture(scope="module")
def together(data, frozen, tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run([*torchrun, SCRIPT, "auto", data, frozen, folder])
    assert (folder / "nonfinite_batch_1_0.pt").is_file()
    return torch.load(folder / "result.pt", weights_only=True)


def test_two_processes_share_the_batch(alone, together):
    assert (alone["world"], together["world"]) == (1, 2)
    assert (alone["own_images"], together["own_images"]) == (4, 2)


def test_the_first_loss_is_the_same(alone, together):
    assert together["positives"] == alone["positives"] > 0
    for name in ("classification", "box"):
        assert float(together[name]) == pytest.approx(float(alone[name]), rel=1e-5)
    assert together["norm"] == pytest.approx(alone["norm"], rel=1e-5)


def test_the_gradient_is_the_same(alone, together):
    assert together["gradient"].keys() == alone["gradient"].keys()
    size = max(float(gradient.abs().max()) for gradient in alone["gradient"].values())
    for name, gradient in alone["gradient"].items():
        torch.testing.assert_close(together["gradient"][name], gradient, rtol=1e-4, atol=1e-5 * size, msg=name)


def test_the_evaluation_is_the_same(alone, together):
    assert together["val_loss"] == pytest.approx(alone["val_loss"], rel=1e-5)
    assert len(together["detections"]) == len(alone["detections"]) == 3
    for one, two in zip(together["detections"], alone["detections"], strict=True):
        boxes, scores, _ = one
        assert len(scores) == len(two[1]) > 0
        torch.testing.assert_close(scores, two[1], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(boxes.sum(dim=0), two[0].sum(dim=0), rtol=1e-4, atol=1e-2)


def test_what_one_process_knows_all_know(alone, together):
    assert alone["any"] == together["any"] == [True, False]


def test_a_fault_of_one_process_stops_all(alone, together):
    assert "the box loss is nan at step 8" in alone["stopped"] and "train/train_" in alone["stopped"]
    assert together["stopped"] == ("the loss of another process is not finite at step 8; its message names the images")


def test_a_run_on_two_processes_is_the_run_on_one(data, tiny_words, tmp_path):
    """The command line starts the second process itself; the log of the two runs is the same."""
    words = [
        *tiny_words,
        "--epochs",
        "1",
        "--batch-size",
        "2",
        "--architecture.norm",
        "frozen",
        "--run.save-every",
        "1",
    ]
    assert main(["train", str(data), *words, "--output", str(tmp_path / "one")]) == 0
    run(["-m", "retinanet.cli.main", "train", data, *words, "--output", tmp_path / "two", "--devices", "2"])
    one, two = (read_log(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one] == ["1", "2", "3", "3"]
    for row, other in zip(one, two, strict=True):
        assert row["positives"] == other["positives"]
        for name in ("classification", "box", "lr", "grad_norm", "val_loss"):
            assert (row[name] == other[name] == "") or float(row[name]) == pytest.approx(float(other[name]), rel=2e-3)
    for value, other in zip(
        *(Detector.load(tmp_path / n).net.state_dict().values() for n in ("one", "two")), strict=True
    ):
        torch.testing.assert_close(value, other, rtol=1e-2, atol=2e-4)
    if importlib.util.find_spec("tensorboard"):
        assert len(list((tmp_path / "two" / "tensorboard").iterdir())) == 1  # of the first process only
