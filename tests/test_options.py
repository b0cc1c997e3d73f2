"""What other tools call an option is told by our name, on the command line and in Python."""

import inspect
import pickle
from dataclasses import is_dataclass

import pytest

import retinanet
from retinanet import Predictor, UserError
from retinanet.cli.arguments import find_options
from retinanet.cli.main import COMMANDS, main
from retinanet.options import SYNONYMS, explain_unknown_options

NAMES = {  # command, name that it does not have -> on the command line, in Python
    ("train", "imgsz"): ("--image.short", "image=ImageConfig(short=...)"),
    ("train", "img-size"): ("--image.short", "image=ImageConfig(short=...)"),
    ("train", "size"): ("--image.short", "image=ImageConfig(short=...)"),
    ("train", "gpu"): ("--run.accelerator", "run=RunConfig(accelerator=...)"),
    ("train", "learning-rate"): ("--optim.lr", "optim=OptimConfig(lr=...)"),
    ("train", "lr0"): ("--optim.lr", "optim=OptimConfig(lr=...)"),
    ("train", "backbone"): ("--model", "model"),
    ("train", "pretrained"): ("--weights", "weights"),
    ("train", "name"): ("--output", "output"),
    ("train", "num-workers"): ("--run.workers", "run=RunConfig(workers=...)"),
    ("train", "batch"): ("--batch_size", "batch_size"),
    ("train", "iou"): ("--postprocess.nms", "postprocess=PostprocessConfig(nms=...)"),
    ("predict", "conf"): ("--score", "score"),
    ("predict", "source"): ("--images", "images"),
    ("predict", "weights"): ("--model", "model"),
    ("predict", "amp"): ("--precision", "precision"),
    ("evaluate", "num_workers"): ("--workers", "workers"),
    ("check", "imgsz"): ("--short", "short"),
    ("export", "half"): ("--precision", "precision"),
}


@pytest.mark.parametrize("case", NAMES, ids=" ".join)
def test_names_of_other_tools(case, capsys):
    (command, name), (there, here) = case, NAMES[case]
    assert main([command, f"--{name}", "1"]) == 2
    assert f"unknown option --{name}, did you mean '{there}'? See --help" in capsys.readouterr().err
    python_name = name.replace("-", "_")
    with pytest.raises(UserError) as error:
        getattr(retinanet, command)("a", "b", **{python_name: 1})
    assert str(error.value) == f"{command}() has no parameter {python_name!r}, did you mean {here!r}?"


def test_fields_of_groups_and_misspelt_names_in_python():
    with pytest.raises(UserError, match=r"did you mean 'optim=OptimConfig\(lr=...\)'\?"):
        retinanet.train("a", "b", base_lr=0.1)
    with pytest.raises(UserError, match="did you mean 'epochs'"):
        retinanet.train("a", "b", epoch=1)
    with pytest.raises(UserError, match=r"Predictor.load\(\) has no parameter 'half', did you mean 'precision'"):
        Predictor.load("a", half=True)
    with pytest.raises(UserError, match=r"predict\(\) has no parameter 'qqq'\.$"):
        retinanet.predict("a", ["b"], qqq=1)


@pytest.mark.parametrize(
    ("group", "name", "meant"),
    [
        (retinanet.OptimConfig, "learning_rate", "lr"),
        (retinanet.ImageConfig, "imgsz", "short"),
        (retinanet.RunConfig, "device", "accelerator"),
        (retinanet.LossConfig, "gama", "gamma"),
        (retinanet.Augment, "fliplr", "hflip"),
        (retinanet.Postprocess, "conf", "score"),
    ],
)
def test_fields_that_a_group_does_not_have(group, name, meant):
    with pytest.raises(UserError) as error:
        group(**{name: 0.1})
    assert str(error.value) == f"{group.__name__}() has no parameter {name!r}, did you mean {meant!r}?"
    default = getattr(group(), meant)
    assert getattr(group(**{meant: default}), meant) == default and pickle.loads(pickle.dumps(group())) == group()


def test_what_training_settles_is_told_elsewhere(capsys):
    assert main(["predict", "--imgsz", "640"]) == 2
    assert "--imgsz; it is settled in training, by --image.short. See" in capsys.readouterr().err


def test_the_table_names_real_options_and_no_other():
    options = {
        name
        for command in ("evaluate", "predict")
        for name in inspect.signature(getattr(retinanet, command)).parameters
    }
    groups = inspect.signature(retinanet.train, eval_str=True).parameters
    options |= set(groups)
    for name, one in groups.items():
        if is_dataclass(one.default) and not isinstance(one.default, type):
            options |= {f"{name}.{inner}" for inner, _ in find_options(one.default, {})}
    assert set(SYNONYMS) <= options
    words = [(option, word) for option, others in SYNONYMS.items() for word in others.split()]
    assert len(words) == len(set(words))


def test_the_functions_keep_their_names_and_can_be_sent_to_another_process():
    for name in set(COMMANDS) - {"demo", "completion"}:
        function = getattr(retinanet, name)
        assert function.__name__ == name and pickle.loads(pickle.dumps(function)) is function

    def add(one, two=1):
        return one + two

    assert explain_unknown_options(add)(1, two=4) == 5


def test_short_names_in_python_are_those_of_the_command(monkeypatch):
    """``train(lr=...)`` gives the configuration that ``retinanet train --lr ...`` gives, whatever the recipe."""
    from retinanet.training import run as training_run

    made = []
    monkeypatch.setattr(training_run, "run_training", lambda config, **given: made.append((config, given)))
    monkeypatch.setattr("retinanet.cli.main.describe_result", lambda *_: "")
    for recipe in ("default", "paper", "torchvision"):
        short = {"lr": 0.02, "hflip": 0.25, "gamma": 1.5, "short": 320, "device": "cpu", "precision": "fp32"}
        retinanet.train("a", "b", recipe=recipe, **short)
        words = [word for name, value in short.items() for word in (f"--{name}", str(value))]
        assert main(["train", "a", "--output", "b", "--recipe", recipe, *words]) == 0
        assert made[-1] == made[-2]
    assert made[-1][0].optim.lr == 0.02 and made[-1][0].run.accelerator == "cpu" and made[-1][0].run.precision == "32"
    assert made[-1][0].optim.optimizer == "sgd"  # the recipe's
    retinanet.train("a", "b", optim=retinanet.OptimConfig(warmup=7), lr=0.5)
    assert (made[-1][0].optim.warmup, made[-1][0].optim.lr) == (7, 0.5)


def test_a_text_in_place_of_a_number_is_told_in_a_sentence():
    with pytest.raises(
        UserError, match=r"^epochs: expected a whole number or null, got '12'. Write it without quotes: e"
    ):
        retinanet.train("a", "b", epochs="12")
    with pytest.raises(UserError, match=r"^optim.lr: expected a number or null, got 'high'$"):
        retinanet.train("a", "b", lr="high")
    with pytest.raises(
        UserError, match=r"^score: expected a number or null, got '0.5'. Write it without quotes: score=0.5"
    ):
        retinanet.predict("a", ["b"], score="0.5")
    with pytest.raises(UserError, match=r"^batch_size: expected a whole number, got 'many'$"):
        Predictor.load("a", batch_size="many")
