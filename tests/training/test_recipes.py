"""Recipes: what they change, and that an option that somebody gives has the last word."""

from dataclasses import replace

import pytest

from retinanet.anchors.matching import Matcher
from retinanet.cli.main import main
from retinanet.data.dataset import load_dataset
from retinanet.data.transforms import Augment
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.losses.box import L1, SmoothL1
from retinanet.losses.focal import FocalLoss
from retinanet.model.postprocess import Postprocess
from retinanet.training import run, start
from retinanet.training.config import LossConfig, OptimConfig, PostprocessConfig


@pytest.fixture
def asked(monkeypatch):
    """The configurations that ``train`` was asked to run."""
    configs = []
    monkeypatch.setattr(run, "run_training", lambda config, **_: configs.append(config))
    return configs


def test_the_paper(asked):
    """Section 4 of the paper; the size of the images and the network are the defaults."""
    run.train("cells", "out", recipe="paper")
    loss, optim = asked[0].loss.build(), asked[0].optim
    assert loss.matcher == Matcher(0.5, 0.4, "off") and loss.classification == FocalLoss(0.25, 2.0)
    assert loss.box == SmoothL1(1 / 9) and loss.box_weight == 1.0 and loss.normaliser == "batch"
    assert (optim.optimizer, optim.schedule, optim.ema, optim.clip) == ("sgd", "steps", 0.0, 0.0)
    assert asked[0].augment == Augment(hflip=0.5)


def test_torchvision(asked):
    run.train("cells", "out", recipe="torchvision")
    loss = asked[0].loss.build()
    assert loss.matcher == Matcher(0.5, 0.4, "argmax") and loss.box == L1() and loss.normaliser == "image"


def test_the_default_recipe_is_the_defaults_of_the_options(asked):
    run.train("cells", "out")
    assert (asked[0].augment, asked[0].loss, asked[0].optim) == (Augment(), LossConfig(), OptimConfig(accumulate=1))


def test_in_python_a_group_that_is_given_is_taken_as_it_is(asked):
    run.train("cells", "out", recipe="paper", loss=LossConfig())
    assert asked[0].loss == LossConfig() and asked[0].optim.optimizer == "sgd"


@pytest.mark.parametrize(
    "words", [["--recipe", "paper", "--matching", "atss"], ["--loss.matching=atss", "--recipe=paper"]]
)
def test_on_a_command_line_an_option_changes_the_recipe(asked, words, capsys):
    """Also where it says what the default recipe says."""
    with pytest.raises(AttributeError):  # there is no result to describe
        main(["train", "cells", "--output", "out", *words])
    assert asked[0].loss.matching == "atss" and asked[0].loss.box == "smooth_l1" and asked[0].recipe == "paper"
    assert asked[0].optim.optimizer == "sgd"


def test_a_file_may_name_the_recipe(asked, tmp_path):
    (tmp_path / "config.yaml").write_text("recipe: torchvision\nloss: {beta: 0.3}\n")
    with pytest.raises(AttributeError):
        main(["train", "cells", "--output", "out", "--config", str(tmp_path / "config.yaml"), "--recipe", "paper"])
    assert asked[0].loss.box == "smooth_l1" and asked[0].loss.beta == 0.3 and asked[0].loss.normaliser == "batch"


def test_an_unknown_recipe(capsys):
    with pytest.raises(
        UserError, match=r"none called 'papre', did you mean 'paper'\? Expected default, paper, torchvi"
    ):
        run.train("cells", "out", recipe="papre")
    assert main(["train", "cells", "--output", "out", "--recipe", "best"]) == 2
    assert "recipe: there is none called 'best'" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "alpha"), [("0.3", 0.3), ("null", None), ("auto", "auto")])
def test_alpha_may_be_a_number_a_word_or_nothing(asked, text, alpha):
    with pytest.raises(AttributeError):
        main(["train", "cells", "--output", "out", "--loss.alpha", text])
    assert asked[0].loss.alpha == alpha


@pytest.mark.parametrize(
    ("recipe", "given", "expected"),
    [
        ("default", PostprocessConfig(), 0.65),
        ("default", PostprocessConfig(score=0.01), 0.65),
        ("default", PostprocessConfig(vote=0.0), 0.0),
        ("default", PostprocessConfig(vote=0.5), 0.5),
        ("paper", PostprocessConfig(), None),
        ("torchvision", PostprocessConfig(vote=0.6), 0.6),
    ],
)
def test_new_models_vote_as_their_recipe_says(train_config, tiny, data, recipe, given, expected):
    config = train_config(data=str(data), output="out", **tiny(recipe=recipe, postprocess=given))
    detector = start.build_detector(config, load_dataset(data, "train"))
    assert detector.spec.postprocess == replace(given.apply(Postprocess()), vote=expected)


@pytest.mark.parametrize(("saved", "given", "expected"), [(0.65, None, 0.65), (None, None, None), (0.65, 0.0, 0.0)])
def test_a_model_that_starts_from_a_folder_votes_as_it_did(
    trained, train_config, data, tmp_path, saved, given, expected
):
    folder = tmp_path / "model"
    Detector.load(trained).with_spec(postprocess=Postprocess(vote=saved)).save(folder)
    config = train_config(data=str(data), output="out", model=str(folder), postprocess=PostprocessConfig(vote=given))
    detector, _ = start.adapt_detector(config, folder, load_dataset(data, "train"))
    assert detector.spec.postprocess.vote == expected
