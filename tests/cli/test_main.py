"""The command line as a person and a shell see it."""

import json
import shutil
import subprocess
import sys

import pytest

from retinanet import __version__
from retinanet.cli.main import COMMANDS, main
from retinanet.evaluation import evaluate as evaluate_run


def shell(*words):
    command = [sys.executable, "-m", "retinanet.cli.main", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)


def test_help_and_version(capsys):
    for words in (["--help"], ["-h"], ["help"]):
        assert main(words) == 0
        out, err = capsys.readouterr()
        assert err == "" and all(f"  {name}" in out for name in COMMANDS) and "usage: retinanet COMMAND" in out
    assert main([]) == 2
    for words in (["--version"], ["-V"]):
        capsys.readouterr()
        assert main(words) == 0
        assert capsys.readouterr().out == f"retinanet {__version__}\n"


@pytest.mark.parametrize(("word", "meant"), [("trian", "train"), ("Predict", "predict"), ("eval", "evaluate")])
def test_an_unknown_command_names_the_nearest(capsys, word, meant):
    assert main([word]) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"unknown command '{word}', did you mean '{meant}'?" in err and "predict" in err


def test_a_command_like_no_other(capsys):
    assert main(["xyzzy"]) == 2
    assert "unknown command 'xyzzy'.\n" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_every_command(capsys, command):
    assert main([command, "--help"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and f"usage: retinanet {command}" in out
    options = {
        "demo": ["--output", "--epochs", "--seed"],
        "train": ["--data", "--output", "--optim.lr", "peak learning rate", "--resume", "--run.devices", "--config"],
        "evaluate": ["--split", "--output", "--batch_size", "images per forward pass"],
        "predict": ["--score", "--overwrite", "files, folders"],
        "export": ["--format", "--calibrate", "--verify", "--raw"],
        "benchmark": ["--backends", "--repeats", "--images", "images per second"],
        "convert": ["--source", "--to", "--class_names", "torchvision:NAME"],
        "plan": ["--budget", "--machine.device_memory", "--write", "--image.short"],
        "check": ["--fix", "--write", "--min_side", "fixed copy"],
        "diagnose": ["--split", "--write_thresholds", "best F1"],
        "serve": ["--port", "--token", "--max_bytes", "RETINANET_TOKEN"],
        "why": ["--data", "--score", "--output", "an annotated image"],
        "suspects": ["--folds", "--budget", "--split", "suspects.csv"],
        "completion": ["--shell", "bash", "shtab"],
        "suggest": ["--count", "--data", "--output", "random"],
        "push": ["--license", "--private", "--dry_run", "owner/name"],
    }
    assert all(option in out for option in options[command]), out


def test_the_road_from_images_to_boxes(data, tiny_words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *tiny_words, "--output", "runs/x", str(data), "--epochs", "1"]) == 0
    out = capsys.readouterr().out
    assert "runs/x: AP 0." in out and "after 2 steps" in out and "retinanet predict runs/x IMAGE" in out
    assert main(["evaluate", "runs/x", str(data), "--split", "test", "--output", "scores", "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    assert "split: test" in out and "AP50" in out and "disc" in out and "square" in out
    assert (tmp_path / "scores" / "evaluation.json").is_file()
    words = ["predict", "runs/x", f"{data}/test", f"{data}/val/val_?.png", "--output", "out", "--score=0.001"]
    assert main([*words, "--device", "cpu"]) == 0
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert f"{len(found['annotations'])} objects in 6 images" in out and len(found["annotations"]) > 0
    assert len(list((tmp_path / "out" / "pictures").rglob("*.png"))) == 6


def test_interruptions_are_130(data, tiny_words, tmp_path, monkeypatch, capfd):
    import signal

    from retinanet.training.log import RunLog

    def logged(log, row, original=RunLog.step):
        original(log, row)
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(RunLog, "step", original)

    monkeypatch.setattr(RunLog, "step", logged)
    words = ["train", str(data), "--output", str(tmp_path / "run"), *tiny_words, "--epochs", "1"]
    assert main(words) == 130
    err = capfd.readouterr().err
    assert "retinanet train: stopped after step 1 of 2; the state is saved. Go on with: retinanet train --config" in err
    assert "Traceback" not in err
    assert main(["train", "--config", str(tmp_path / "run" / "config.yaml"), "--resume"]) == 0
    assert "after 2 steps" in capfd.readouterr().out


def test_an_interruption_before_the_first_step(data, tmp_path, monkeypatch, capfd):
    def interrupted(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate_run.Detector, "load", interrupted)
    assert main(["evaluate", "model", str(data)]) == 130
    assert capfd.readouterr().err == "retinanet evaluate: interrupted\n"


def test_our_own_mistakes_keep_their_traceback(data, monkeypatch):
    def broken(*_args, **_options):
        raise RuntimeError("a bug")

    monkeypatch.setattr(evaluate_run.Detector, "load", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["evaluate", "model", str(data)])


def test_a_shell_sees_code_and_message(tmp_path):
    done = shell("train", tmp_path / "none", "--output", tmp_path / "out")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"retinanet train: {tmp_path / 'none'}: no such file or folder")
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_a_shell_predicts(trained, data, tmp_path):
    done = shell("predict", trained, data / "test" / "test_0.png", "--output", tmp_path / "out", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    assert "objects in 1 images" in done.stdout and (tmp_path / "out" / "pictures" / "test_0.png").is_file()


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = (
        "import sys, retinanet\n"
        "from retinanet.cli.main import main\n"
        "assert main(['--help']) == main(['--version']) == 0 and main(['trian']) == 2\n"
        "heavy = {'torch', 'timm', 'torchvision', 'numpy', 'PIL', 'lightning_fabric', 'matplotlib'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_a_demo_of_few_images(data, tmp_path, monkeypatch, capsys):
    """The whole way, on other images than those it renders."""
    monkeypatch.setattr("retinanet.cli.demo.render_scenes", lambda folder, seed: shutil.copytree(data, folder))
    folder = tmp_path / "demo"
    assert main(["demo", "--output", str(folder), "--epochs", "1"]) == 0
    for name in ("data", "model/config.json", "model/curves.png", "test", "predictions/pictures", "comparison.png"):
        assert (folder / name).exists(), name
    said = capsys.readouterr().out
    assert f"retinanet predict {folder}/model IMAGE" in said and "AP on held-out scenes" in said
