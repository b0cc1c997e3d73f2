"""What is taken over from an older model, what is not, and that a person is told."""

from dataclasses import replace

import pytest
import torch

from retinanet.anchors.lattice import AnchorLattice
from retinanet.model.presets import Architecture
from retinanet.training.transfer import named_as, transfer

SMALL = Architecture(backbone="resnet10t", norm="batch", channels=32, depth=2)


def scrambled(architecture, classes=2, seed=0):
    """A network in which no tensor is as it was initialised."""
    torch.manual_seed(seed)
    net = architecture.build(classes)
    for value in net.state_dict().values():
        value.copy_(torch.randn(value.shape) if value.is_floating_point() else torch.tensor(7))
    return net


def snapshot(net):
    return {name: value.clone() for name, value in net.state_dict().items()}


def test_the_same_network_is_taken_over_bit_for_bit():
    old, net = scrambled(SMALL), SMALL.build(2)
    moved = transfer(old.state_dict(), net)
    after = net.state_dict()
    assert moved.kept == tuple(after) and not moved.fresh and not moved.unused and not moved.resized
    assert all(torch.equal(after[name], value) for name, value in old.state_dict().items())
    assert moved.summary() == f"kept all {len(after)} tensors"
    assert net.state_dict()["fpn.lateral.p3.weight"].data_ptr() != old.state_dict()["fpn.lateral.p3.weight"].data_ptr()


def test_what_does_not_fit_stays_as_it_was_initialised():
    old, net = scrambled(SMALL, 80), SMALL.build(3)
    initial = snapshot(net)
    moved = transfer(old.state_dict(), net)
    layer = ("heads.cls.output.weight", "heads.cls.output.bias")
    assert tuple(moved.fresh) == layer and set(moved.fresh.values()) == {"the shape differs"}
    assert moved.resized == {layer[0]: ((720, 32, 3, 3), (27, 32, 3, 3)), layer[1]: ((720,), (27,))}
    for name, value in net.state_dict().items():
        assert torch.equal(value, initial[name] if name in layer else old.state_dict()[name]), name
    assert moved.summary().splitlines()[1] == (
        "new: heads.cls.output.weight (720 -> 27 rows) and .bias, because the shape differs"
    )
    assert (
        "changed   heads.cls.output.weight: shape (720, 32, 3, 3) became (27, 32, 3, 3): the shape differs"
        in moved.report().splitlines()
    )


def test_what_is_named_is_never_taken_over_though_it_fits():
    old, net = scrambled(SMALL), SMALL.build(2)
    initial = snapshot(net)
    moved = transfer(old.state_dict(), net, fresh={"heads.cls.output.": "colours moved", "fpn.output.p6.": "of C5"})
    names = ("fpn.output.p6.weight", "fpn.output.p6.bias", "heads.cls.output.weight", "heads.cls.output.bias")
    assert sorted(moved.fresh) == sorted(names) and not moved.resized and not moved.unused
    assert not set(moved.kept) & set(names) and len(moved.kept) + 4 == len(initial)
    for name in names:
        assert torch.equal(net.state_dict()[name], initial[name])
    assert "new: heads.cls.output.weight and .bias, because colours moved" in moved.summary().splitlines()
    assert "new       fpn.output.p6.bias: of C5" in moved.report().splitlines()


def test_every_tensor_of_both_has_one_line():
    old, net = scrambled(SMALL), replace(SMALL, depth=1, head_norm="group", channels=16).build(5)
    moved = transfer(old.state_dict(), net)
    names = [line.split()[-1] if line.startswith("left") else line.split()[1] for line in moved.report().splitlines()]
    assert sorted(name.rstrip(":") for name in names) == sorted(old.state_dict().keys() | net.state_dict().keys())
    assert sorted((*moved.kept, *moved.fresh)) == sorted(net.state_dict())
    assert set(moved.unused) == old.state_dict().keys() - net.state_dict().keys()
    assert moved.fresh["heads.cls.norm.0.weight"] == "the old model has none"
    assert "heads.cls.conv.1.weight" in moved.unused and "heads.cls.conv.0.bias" in moved.unused


def test_parts_of_many_tensors_are_told_by_their_number():
    old, net = scrambled(SMALL), replace(SMALL, norm="group").build(2)
    moved = transfer(named_as(old, net), net)
    norms = len(moved.unused) // 3
    assert moved.summary().splitlines()[1:] == [
        "left out, because the new model has no such part: "
        f"backbone.* ({3 * norms} tensors: running_mean, running_var, num_batches_tracked)"
    ]
    assert not moved.fresh


def test_two_names_of_two_modules_are_told_in_full():
    old = scrambled(SMALL)
    state = {name: value for name, value in old.state_dict().items() if "p6.b" not in name and "p7.w" not in name}
    summary = transfer(state, SMALL.build(2)).summary().splitlines()
    assert summary[1] == "new: fpn.output.p6.bias, fpn.output.p7.weight, because the old model has none"


@pytest.mark.parametrize("backbone", ["resnet10t", "tf_efficientnet_lite0"])
@pytest.mark.parametrize(("before", "after"), [("batch", "group"), ("group", "batch")])
def test_norms_keep_their_affine_where_they_are_replaced(backbone, before, after):
    """Of a backbone with plain batch norms, and of one whose batch norms hold their activation."""
    old = scrambled(replace(SMALL, backbone=backbone, norm=before))
    net = replace(SMALL, backbone=backbone, norm=after).build(2)
    moved = transfer(named_as(old, net), net)
    statistics = moved.unused if after == "group" else tuple(moved.fresh)
    assert {name.rpartition(".")[2] for name in statistics} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(name.startswith("backbone.") for name in statistics)
    assert not (moved.fresh if after == "group" else moved.unused)

    def affines(one):  # in the order of the backbone, whatever their names
        return [value for name, value in one.backbone.named_parameters() if value.ndim == 1]

    assert len(affines(old)) == len(affines(net)) > 20
    assert all(torch.equal(one, two) for one, two in zip(affines(old), affines(net), strict=True))


def test_tensors_without_a_counterpart_keep_their_own_name():
    old = scrambled(replace(SMALL, backbone="tf_efficientnet_lite0"))
    net = replace(SMALL, backbone="tf_efficientnet_lite0", norm="group").build(2)
    named = named_as(old, net)
    assert "backbone.body.bn1.running_mean" in named and "backbone.body.bn1.0.weight" in named
    assert len(named) == len(old.state_dict())


def test_anchors_are_no_tensors():
    """So a caller has to say what they change: two lattices of one size look alike."""
    other = replace(SMALL, anchors=AnchorLattice(sizes=(8, 16, 32, 64, 128)))
    assert not transfer(scrambled(SMALL).state_dict(), other.build(2)).fresh
