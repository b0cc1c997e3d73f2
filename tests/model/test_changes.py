"""Options laid over dataclasses: what is replaced, and what is refused in words that help."""

from dataclasses import dataclass, replace

import pytest

from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.model.changes import changed
from retinanet.model.presets import Architecture
from retinanet.training.config import ImageConfig, OptimConfig


def test_nested_fields_are_replaced_and_the_rest_is_left():
    base = Architecture()
    new = changed(base, {"channels": 64, "anchors": {"sizes": [8, 16, 32, 64, 128]}, "prior": 1e-2}, "architecture")
    assert (new.channels, new.prior, new.backbone) == (64, 0.01, base.backbone)
    assert new.anchors == AnchorLattice(sizes=(8, 16, 32, 64, 128))
    assert new == replace(base, channels=64, prior=0.01, anchors=new.anchors)
    assert hash(new) != hash(base), "lists have become tuples"
    assert base == Architecture() and changed(base, {}, "architecture") == base


def test_a_whole_dataclass_does_for_a_nested_one():
    anchors = AnchorLattice(ratios=(1.0,), compat=LatticeCompat(inclusive=True))
    assert changed(Architecture(), {"anchors": anchors}, "architecture") == Architecture(anchors=anchors)


@dataclass(frozen=True)
class Inner:
    depth: int = 1
    name: str = "one"


@dataclass(frozen=True)
class Middle:
    inner: Inner = Inner()
    share: float = 0.5


@dataclass(frozen=True)
class Outer:
    middle: Middle = Middle()
    limit: float | None = None


def test_every_depth():
    assert changed(Outer(), {"middle": {"inner": {"depth": 3}}}, "outer") == Outer(Middle(Inner(3)))
    with pytest.raises(
        UserError, match=r"unknown option outer\.middle\.inner\.dept, did you mean 'depth'\? .*depth, name"
    ):
        changed(Outer(), {"middle": {"inner": {"dept": 3}}}, "outer")
    with pytest.raises(UserError, match=r"outer\.middle\.inner\.name is 'one' by default; expected str, got 3"):
        changed(Outer(), {"middle": {"inner": {"name": 3}}}, "outer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chanels": 3}, ["unknown option architecture.chanels", "did you mean 'channels'"]),
        ({"anchors": {"size": [1]}}, ["unknown option architecture.anchors.size,", "did you mean 'sizes'"]),
        (
            {"anchors": {"compat": {"rounded": True}}},
            ["unknown option architecture.anchors.compat.rounded,", "did you mean 'rounding'"],
        ),
        ({"qqq": 1}, ["unknown option architecture.qqq;", "backbone, norm"]),
        ({"channels": "many"}, ["architecture.channels", "expected int", "'many'"]),
        ({"channels": 64.5}, ["architecture.channels", "expected int"]),
        ({"channels": None}, ["architecture.channels", "expected int", "None"]),
        ({"relu_before_p7": 1}, ["architecture.relu_before_p7", "expected bool"]),
        ({"stride_in_1x1": "yes"}, ["architecture.stride_in_1x1", "expected bool", "'yes'"]),
        ({"prior": True}, ["architecture.prior", "expected float"]),
        ({"anchors": 3}, ["architecture.anchors", "expected AnchorLattice"]),
        ({"anchors": {"sizes": 3}}, ["architecture.anchors.sizes", "expected tuple"]),
        ({"anchors": {"sizes": ["a", "b"]}}, ["architecture.anchors.sizes", "expected numbers"]),
        ({"norm_eps": "small"}, ["architecture.norm_eps", "'small'"]),
        ({"norm_eps": True}, ["architecture.norm_eps", "True"]),
    ],
)
def test_what_is_not_there_or_of_another_type_is_refused(changes, words):
    with pytest.raises(UserError) as refused:
        changed(Architecture(), changes, "architecture")
    assert all(word in str(refused.value) for word in words), refused.value


def test_the_checks_of_the_dataclass_itself_are_made():
    with pytest.raises(UserError, match="rounding of anchors is none, corners or cell, got 'up'"):
        changed(Architecture(), {"anchors": {"compat": {"rounding": "up"}}}, "architecture")
    with pytest.raises(UserError, match=r"compat\.margin of images is at least 0"):
        changed(Preprocess(), {"compat": {"margin": -1}}, "image")


def test_whole_numbers_do_for_floats():
    clip = changed(OptimConfig(), {"clip": 1}, "optim").clip
    assert clip == 1.0 and isinstance(clip, float)
    assert isinstance(changed(Preprocess(), {"compat": {"divisor": 1}}, "image").compat.divisor, float)


@pytest.mark.parametrize("now", [None, 1e-5])
def test_null_by_default_is_a_number_or_null(now):
    """Whatever it is now: the type of the present value says nothing about what may come."""
    base = Architecture(norm_eps=now)
    for value in (1e-3, 0.0, 1, None):
        assert changed(base, {"norm_eps": value}, "architecture") == Architecture(norm_eps=value)
    assert changed(base, {"channels": 64}, "architecture").norm_eps == now
    assert changed(Outer(limit=now), {"limit": None}, "outer").limit is None
    assert changed(ImageConfig(short=3), {"short": None, "long": 64}, "image") == ImageConfig(long=64)
