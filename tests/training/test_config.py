"""The knobs: what they refuse, and what they build."""

import pytest
import yaml

from retinanet.anchors.atss import ATSS
from retinanet.errors import UserError
from retinanet.losses.box import L1, GIoU, SmoothL1
from retinanet.losses.config import CLASSIC
from retinanet.losses.detection import DetectionLoss
from retinanet.losses.focal import FocalLoss
from retinanet.losses.ohem import OHEM
from retinanet.plain import to_plain, with_changes
from retinanet.training.config import LossConfig, OptimConfig, RunConfig


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (OptimConfig, "optimizer", "adam"),
        (OptimConfig, "lr", 0.0),
        (OptimConfig, "lr", float("nan")),
        (OptimConfig, "lr_batch", 0),
        (OptimConfig, "weight_decay", -1e-4),
        (OptimConfig, "backbone_lr", -1.0),
        (OptimConfig, "schedule", "linear"),
        (OptimConfig, "warmup", -1),
        (OptimConfig, "clip", float("inf")),
        (OptimConfig, "accumulate", 0),
        (OptimConfig, "ema", 1.0),
        (RunConfig, "precision", "64"),
        (RunConfig, "nodes", 0),
        (RunConfig, "workers", -1),
        (RunConfig, "evaluate_every", 0),
        (RunConfig, "save_every", 0),
        (RunConfig, "patience", -1),
        (LossConfig, "classification", "hinge"),
        (LossConfig, "box", "l2"),
        (LossConfig, "alpha", 1.5),
        (LossConfig, "gamma", -1.0),
        (LossConfig, "beta", -1.0),
        (LossConfig, "box_weight", -1.0),
        (LossConfig, "foreground", 0.3),
        (LossConfig, "forced", "maybe"),
        (LossConfig, "forced_iou", 1.5),
        (LossConfig, "normaliser", "level"),
    ],
)
def test_values_out_of_range_are_refused_by_name(config, field, value):
    with pytest.raises(UserError, match=rf"(?i){field.replace('_', '.')}") as refused:
        config(**{field: value})
    assert str(value) in str(refused.value)


def test_the_criterion_is_what_the_knobs_say():
    knobs = {
        "classification": "focal",
        "alpha": None,
        "gamma": 0.0,
        "box": "smooth_l1",
        "beta": 0.5,
        "box_weight": 3.0,
        "forced": "off",
    }
    criterion = LossConfig(**knobs, matching="iou", background=0.3).build()
    assert criterion.classification == FocalLoss(alpha=None, gamma=0.0)
    assert criterion.box == SmoothL1(0.5) and criterion.box_weight == 3.0
    assert (criterion.matcher.foreground, criterion.matcher.background, criterion.matcher.forced) == (0.5, 0.3, "off")
    assert (criterion.matcher.forced_iou, criterion.normaliser) == (0.0, "batch")
    theirs = LossConfig(matching="iou", forced_iou=0.4, normaliser="image").build()
    assert (theirs.matcher.forced_iou, theirs.normaliser) == (0.4, "image")
    assert LossConfig(classification="ohem", ohem_batch=256).build().classification == OHEM(batch=256)
    assert (LossConfig(box="l1").build().box, LossConfig(box="giou").build().box) == (L1(), GIoU())
    assert LossConfig().build().classification == FocalLoss(None, 2.0, quality=True)
    assert LossConfig(alpha=0.5).build().classification == FocalLoss(0.5, 2.0, quality=True)
    assert LossConfig(classification="focal").build().classification == FocalLoss(0.25, 2.0)
    assert LossConfig(cells=4).build().matcher == ATSS(4)
    assert LossConfig(forced="off").build().matcher == ATSS(9, forced=False)
    assert CLASSIC.build() == DetectionLoss(), "what the bare class does"


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [(OptimConfig, "warmup", "3"), (OptimConfig, "ema", None), (RunConfig, "devices", 2), (LossConfig, "gamma", True)],
)
def test_values_of_another_type_are_refused_by_name(config, field, value):
    with pytest.raises(UserError, match=rf"\.{field}: expected .*, got {value!r}"):
        config(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("epochs", 0), ("batch_size", 0), ("seed", -1), ("optim", {"lr": 1.0})])
def test_a_run_is_refused_before_it_begins(train_config, field, value):
    with pytest.raises(UserError, match=field):
        train_config(data="cells", output="out", **{field: value})


def test_the_options_survive_yaml(train_config):
    config = train_config(data="cells", output="out", optim=OptimConfig(lr=1e-5), architecture={"depth": 2})
    content = yaml.safe_load(yaml.safe_dump(to_plain(config)))
    assert content["optim"]["lr"] == 1e-5 and content["image"]["short"] is None
    assert with_changes(train_config(data="x", output="y"), content, "") == config
