"""Options laid over dataclasses: what is replaced, and what is refused in words that help."""

import json
from dataclasses import dataclass, replace

import pytest

from retinanet.anchors.lattice import AnchorLattice, LatticeCompat
from retinanet.errors import UserError, suggest
from retinanet.images.preprocess import Preprocess
from retinanet.model.presets import Architecture
from retinanet.plain import from_plain, to_plain, with_changes
from retinanet.training.config import ImageConfig, OptimConfig


def test_nested_fields_are_replaced_and_the_rest_is_left():
    base = Architecture()
    new = with_changes(
        base, {"channels": 64, "anchors": {"sizes": [8, 16, 32, 64, 128]}, "prior": 1e-2}, "architecture"
    )
    assert (new.channels, new.prior, new.backbone) == (64, 0.01, base.backbone)
    assert new.anchors == AnchorLattice(sizes=(8, 16, 32, 64, 128))
    assert new == replace(base, channels=64, prior=0.01, anchors=new.anchors)
    assert hash(new) != hash(base), "lists have become tuples"
    assert base == Architecture() and with_changes(base, {}, "architecture") == base


def test_a_whole_dataclass_does_for_a_nested_one():
    anchors = AnchorLattice(ratios=(1.0,), compat=LatticeCompat(inclusive=True))
    assert with_changes(Architecture(), {"anchors": anchors}, "architecture") == Architecture(anchors=anchors)


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
    assert with_changes(Outer(), {"middle": {"inner": {"depth": 3}}}, "outer") == Outer(Middle(Inner(3)))
    with pytest.raises(
        UserError, match=r"unknown option outer\.middle\.inner\.dept, did you mean 'depth'\? .*depth, name"
    ):
        with_changes(Outer(), {"middle": {"inner": {"dept": 3}}}, "outer")
    with pytest.raises(UserError, match=r"outer\.middle\.inner\.name: expected a text, got 3"):
        with_changes(Outer(), {"middle": {"inner": {"name": 3}}}, "outer")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"chanels": 3}, ["unknown option architecture.chanels", "did you mean 'channels'"]),
        ({"anchors": {"size": [1]}}, ["unknown option architecture.anchors.size,", "did you mean 'sizes'"]),
        (
            {"anchors": {"compat": {"rounded": True}}},
            ["architecture.anchors.compat.rounded,", "did you mean 'rounding'"],
        ),
        ({"qqq": 1}, ["unknown option architecture.qqq.", "backbone, norm"]),
        ({"channels": "many"}, ["architecture.channels", "expected a whole number", "'many'"]),
        ({"channels": 64.5}, ["architecture.channels", "expected a whole number"]),
        ({"channels": None}, ["architecture.channels", "expected a whole number", "None"]),
        ({"relu_before_p7": 1}, ["architecture.relu_before_p7", "expected true or false"]),
        ({"stride_in_1x1": "yes"}, ["architecture.stride_in_1x1", "expected true or false", "'yes'"]),
        ({"prior": True}, ["architecture.prior", "expected a number"]),
        ({"anchors": 3}, ["architecture.anchors", "expected names with values"]),
        ({"anchors": {"sizes": 3}}, ["architecture.anchors.sizes", "expected a list of numbers"]),
        ({"anchors": {"sizes": ["a", "b"]}}, ["architecture.anchors.sizes", "expected a number, got 'a'"]),
        ({"norm_eps": "small"}, ["architecture.norm_eps", "'small'"]),
        ({"norm_eps": True}, ["architecture.norm_eps", "True"]),
    ],
)
def test_what_is_not_there_or_of_another_type_is_refused(changes, words):
    with pytest.raises(UserError) as refused:
        with_changes(Architecture(), changes, "architecture")
    assert all(word in str(refused.value) for word in words), refused.value


def test_the_checks_of_the_dataclass_itself_are_made():
    with pytest.raises(UserError, match=r"anchors\.compat\.rounding: expected none or corners or cell, got 'up'"):
        with_changes(Architecture(), {"anchors": {"compat": {"rounding": "up"}}}, "architecture")
    with pytest.raises(UserError, match=r"compat\.margin of images is at least 0"):
        with_changes(Preprocess(), {"compat": {"margin": -1}}, "image")


def test_whole_numbers_do_for_floats():
    clip = with_changes(OptimConfig(), {"clip": 1}, "optim").clip
    assert clip == 1.0 and isinstance(clip, float)
    assert isinstance(with_changes(Preprocess(), {"compat": {"divisor": 1}}, "image").compat.divisor, float)


@pytest.mark.parametrize("now", [None, 1e-5])
def test_null_by_default_is_a_number_or_null(now):
    """Whatever it is now: the type of the present value says nothing about what may come."""
    base = Architecture(norm_eps=now)
    for value in (1e-3, 0.0, 1, None):
        assert with_changes(base, {"norm_eps": value}, "architecture") == Architecture(norm_eps=value)
    assert with_changes(base, {"channels": 64}, "architecture").norm_eps == now
    assert with_changes(Outer(limit=now), {"limit": None}, "outer").limit is None
    assert with_changes(ImageConfig(short=3), {"short": None, "long": 64}, "image") == ImageConfig(long=64)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, [1], True])
def test_only_finite_numbers_are_numbers(value):
    with pytest.raises(UserError, match=r"outer\.middle\.share: expected a number, got"):
        with_changes(Outer(), {"middle": {"share": value}}, "outer")


@pytest.mark.parametrize("sizes", [[1, 2, "3"], [1, [2]], [None], {"a": 1}, "12"])
def test_every_entry_of_a_list_is_looked_at(sizes):
    with pytest.raises(UserError, match=r"anchors\.sizes"):
        with_changes(Architecture(), {"anchors": {"sizes": sizes}}, "architecture")


def test_lists_of_a_fixed_length():
    assert with_changes(Preprocess(), {"mean": [0, 0.5, 1]}, "image").mean == (0.0, 0.5, 1.0)
    with pytest.raises(UserError, match=r"image\.mean: expected a list of 3 numbers, got \[0, 1\]"):
        with_changes(Preprocess(), {"mean": [0, 1]}, "image")


def test_there_and_back():
    base = Architecture(channels=64, norm_eps=1e-3, anchors=AnchorLattice(sizes=(8, 16, 32, 64, 128)))
    plain = json.loads(json.dumps(to_plain(base)))
    assert from_plain(Architecture, plain, "architecture") == base
    assert "spacing" not in plain["anchors"]["compat"], "what follows from other fields is not written"
    with pytest.raises(UserError, match="architecture: expected names with values, got 3"):
        from_plain(Architecture, 3, "architecture")


def test_suggestions():
    assert suggest("chanels", ["channels", "norm"]) == ", did you mean 'channels'?"
    assert suggest("qqq", ["channels", "norm"]) == "."
