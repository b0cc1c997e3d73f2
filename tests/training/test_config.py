"""The knobs: what they refuse, and what they build."""

import pytest
import yaml

from retinanet.errors import UserError
from retinanet.losses.box import L1, GIoU, SmoothL1
from retinanet.losses.focal import FocalLoss
from retinanet.losses.ohem import OHEM
from retinanet.training.config import ImageConfig, LossConfig, OptimConfig, RunConfig, plain


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
    criterion = LossConfig(alpha=None, gamma=0.0, beta=0.5, box_weight=2.0, background=0.3, forced="off").build()
    assert criterion.classification == FocalLoss(alpha=None, gamma=0.0)
    assert criterion.box == SmoothL1(0.5) and criterion.box_weight == 2.0
    assert (criterion.matcher.foreground, criterion.matcher.background, criterion.matcher.forced) == (0.5, 0.3, "off")
    assert (criterion.matcher.forced_iou, criterion.normaliser) == (0.0, "batch")
    theirs = LossConfig(forced_iou=0.4, normaliser="image").build()
    assert (theirs.matcher.forced_iou, theirs.normaliser) == (0.4, "image")
    assert LossConfig(classification="ohem").build().classification == OHEM()
    assert (LossConfig(box="l1").build().box, LossConfig(box="giou").build().box) == (L1(), GIoU())


def test_plain_survives_yaml(tmp_path):
    config = {"optim": OptimConfig(lr=1e-5), "image": ImageConfig(short=3), "path": tmp_path, "pair": (1.0, 2.0)}
    text = yaml.safe_dump(plain(config))
    assert yaml.safe_load(text) == plain(config)
    assert plain(config)["optim"]["lr"] == 1e-5 and plain(config)["pair"] == [1.0, 2.0]
    assert plain(config)["path"] == str(tmp_path)
