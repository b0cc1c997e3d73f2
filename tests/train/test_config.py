"""The knobs: what they refuse, what they build, and how a description is changed."""

import pytest
import yaml

from retinanet.losses.box import L1, GIoU, SmoothL1
from retinanet.losses.focal import FocalLoss
from retinanet.losses.ohem import OHEM
from retinanet.model.presets import Architecture
from retinanet.train.config import ImageConfig, LossConfig, OptimConfig, RunConfig, plain
from retinanet.types import UserError
from retinanet.weights.changes import changed


def test_changed_replaces_nested_fields_and_leaves_the_rest():
    base = Architecture()
    new = changed(base, {"channels": 64, "anchors": {"sizes": [8, 16, 32, 64, 128]}, "prior": 1e-2}, "architecture")
    assert (new.channels, new.prior, new.backbone) == (64, 0.01, base.backbone)
    assert new.anchors.sizes == (8, 16, 32, 64, 128) and new.anchors.ratios == base.anchors.ratios
    assert base == Architecture() and changed(base, {}, "architecture") == base


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chanels": 3}, ["unknown option architecture.chanels", "did you mean 'channels'"]),
        ({"anchors": {"size": [1]}}, ["unknown option architecture.anchors.size,", "did you mean 'sizes'"]),
        ({"qqq": 1}, ["unknown option architecture.qqq;", "backbone, norm"]),
        ({"channels": "many"}, ["architecture.channels", "expected int", "'many'"]),
        ({"channels": 64.5}, ["architecture.channels", "expected int"]),
        ({"relu_before_p7": 1}, ["architecture.relu_before_p7", "expected bool"]),
        ({"prior": True}, ["architecture.prior", "expected float"]),
        ({"anchors": 3}, ["architecture.anchors", "expected AnchorLattice"]),
        ({"anchors": {"sizes": 3}}, ["architecture.anchors.sizes", "expected tuple"]),
        ({"anchors": {"sizes": ["a", "b"]}}, ["architecture.anchors.sizes", "expected numbers"]),
    ],
)
def test_changed_refuses_what_is_not_there_or_of_another_type(changes, words):
    with pytest.raises(UserError) as refused:
        changed(Architecture(), changes, "architecture")
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_whole_number_does_for_a_float():
    assert changed(OptimConfig(), {"clip": 1}, "optim").clip == 1.0


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (OptimConfig, "optimizer", "adam"),
        (OptimConfig, "lr", 0.0),
        (OptimConfig, "lr", float("nan")),
        (OptimConfig, "lr_batch", 0),
        (OptimConfig, "weight_decay", -1e-4),
        (OptimConfig, "trunk_lr", -1.0),
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
    assert LossConfig(classification="ohem").build().classification == OHEM()
    assert (LossConfig(box="l1").build().box, LossConfig(box="giou").build().box) == (L1(), GIoU())


def test_plain_survives_yaml(tmp_path):
    config = {"optim": OptimConfig(lr=1e-5), "image": ImageConfig(short=3), "path": tmp_path, "pair": (1.0, 2.0)}
    text = yaml.safe_dump(plain(config))
    assert yaml.safe_load(text) == plain(config)
    assert plain(config)["optim"]["lr"] == 1e-5 and plain(config)["pair"] == [1.0, 2.0]
    assert plain(config)["path"] == str(tmp_path)
