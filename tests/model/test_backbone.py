import copy
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from retinanet.errors import UserError
from retinanet.model import backbone
from retinanet.model.backbone import Backbone

TINY = "test_resnet"  # timm's own network for tests
LITE = Path(__file__).parents[2].parent / "shared" / "weights" / "tf_efficientnet_lite0.imagenet.safetensors"


def batch_norms(net):
    return [module for module in net.modules() if isinstance(module, _BatchNorm)]


def state_of(modules):
    return [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]


def unchanged(before, modules):
    """Per module: whether every number is what it was."""
    return [
        all(torch.equal(value, old[key]) for key, value in module.state_dict().items())
        for old, module in zip(before, modules, strict=True)
    ]


def alive(**options):
    """A tiny backbone. timm starts the last norm of a block at zero, which keeps gradients from the rest."""
    net = Backbone(name=TINY, **options)
    for norm in batch_norms(net):
        nn.init.ones_(norm.weight)
    return net


def train_a_step(net):
    optimiser = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)) * 3 + 1
    sum(feature.square().mean() for feature in net(images)).backward()
    optimiser.step()


def randomised(path, name=TINY):
    """A whole timm classifier with random norms and classifier, saved; returned too."""
    torch.manual_seed(0)
    net = timm.create_model(name)
    for norm in batch_norms(net):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    save_file(net.state_dict(), path)
    return net


def trainable(net):
    return {key for key, parameter in net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("called", [True, False])
def test_frozen_norms_stand_still_while_the_rest_learns(called):
    net = alive()
    if called:  # a net nobody has called train() on is in training mode too
        net.eval()
        net.train()
    norms, convolutions = batch_norms(net), [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    before, before_convolutions = state_of(norms), state_of(convolutions)
    train_a_step(net)
    assert len(norms) > 5 and all(unchanged(before, norms))
    assert not any(unchanged(before_convolutions, convolutions))
    assert net.training and net.body.training and not any(norm.training for norm in norms)


def test_trained_norms_move():
    net = alive(norm="batch").train()
    norms = batch_norms(net)
    before = state_of(norms)
    train_a_step(net)
    assert not any(unchanged(before, norms))
    for old, norm in zip(before, norms, strict=True):
        assert not torch.equal(old["weight"], norm.weight) and not torch.equal(old["running_mean"], norm.running_mean)


def test_a_copy_of_a_frozen_net_is_frozen_and_its_own():
    net = alive()
    twin = copy.deepcopy(net).eval().train()
    norms, original = batch_norms(twin), state_of(net.modules())
    before = state_of(norms)
    train_a_step(twin)
    assert all(unchanged(before, norms)) and all(unchanged(original, net.modules()))


@pytest.mark.parametrize("name", [TINY, "test_efficientnet"])  # the latter fuses norm and activation in one module
def test_group_norms_take_the_place_and_the_affine_of_batch_norms(name, tmp_path):
    randomised(tmp_path / "backbone.safetensors", name)
    with_batch = Backbone(name=name, weights=str(tmp_path / "backbone.safetensors"), norm="batch").eval()
    with_group = Backbone(name=name, weights=str(tmp_path / "backbone.safetensors"), norm="group").train()
    assert not batch_norms(with_group)
    modules = dict(with_group.named_modules())
    replaced = {key: norm for key, norm in with_batch.named_modules() if isinstance(norm, _BatchNorm)}
    for key, norm in replaced.items():
        features = torch.randn(2, norm.num_features, 3, 5)
        groups = max(g for g in range(1, 33) if norm.num_features % g == 0 and 32 % g == 0)
        expected = functional.group_norm(features, groups, norm.weight, norm.bias, norm.eps)
        expected = norm.act(expected) if hasattr(norm, "act") else expected
        assert torch.equal(modules[key](features), expected), key
    norms = [module for module in with_group.modules() if isinstance(module, nn.GroupNorm)]
    before = state_of(norms)
    train_a_step(with_group)
    assert len(norms) == len(replaced) and not any(unchanged(before, norms))


STAGES = {
    "resnet18": [("conv1", "bn1"), ("layer1",), ("layer2",), ("layer3",), ("layer4",)],
    "tf_efficientnet_lite0": [
        ("conv_stem", "bn1", "blocks.0"),
        ("blocks.1",),
        ("blocks.2",),
        ("blocks.3", "blocks.4"),
        ("blocks.5", "blocks.6"),
    ],
    # Stages whose last module is an activation or a pooling, without parameters; the first has stride 1.
    "vgg11_bn": [("features_0", "features_1"), ("features_4", "features_5")],
    "ghostnet_050": [("conv_stem",)],  # a stage that is a single module
}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *(("resnet18", count) for count in (0, 1, 2, 5)),
        *(("tf_efficientnet_lite0", count) for count in (0, 1, 2, 4)),
        ("vgg11_bn", 2),
        ("ghostnet_050", 1),
    ],
)
def test_frozen_stages_are_exactly_the_first(name, count):
    with torch.device("meta"):
        net = Backbone(name=name, norm="batch", frozen_stages=count)
    prefixes = tuple(f"body.{module}." for stage in STAGES[name][:count] for module in stage)
    everything = {key for key, _ in net.named_parameters()}
    frozen = {key for key in everything if prefixes and key.startswith(prefixes)}
    assert all(any(key.startswith(prefix) for key in everything) for prefix in prefixes)
    assert trainable(net) == everything - frozen
    if name == "resnet18" and count == 5:
        assert not trainable(net)


def test_frozen_stages_with_other_norms():
    frozen = ("body.conv1.", "body.bn1.", "body.layer1.")
    for norm in ("frozen", "group"):
        with torch.device("meta"):
            net = Backbone(name=TINY, norm=norm, frozen_stages=2)
        held = {key for key, _ in net.named_parameters() if key.startswith(frozen)}
        if norm == "frozen":
            held |= {f"{key}.{field}" for key, module in net.named_modules() for field in ("weight", "bias")
                     if isinstance(module, _BatchNorm)}  # fmt: skip
        assert trainable(net) == {key for key, _ in net.named_parameters()} - held


def test_statistics_of_frozen_stages_stand_still():
    net = Backbone(name=TINY, norm="batch", frozen_stages=2).train()
    held = [*batch_norms(net.body.conv1), net.body.bn1, *batch_norms(net.body.layer1)]
    moving = batch_norms(net.body.layer2) + batch_norms(net.body.layer3) + batch_norms(net.body.layer4)
    before, before_moving = state_of(held), state_of(moving)
    train_a_step(net)
    assert not any(norm.training for norm in held) and all(norm.training for norm in moving)
    assert all(unchanged(before, held)) and not any(unchanged(before_moving, moving))
    assert not any(norm.training for norm in batch_norms(net.eval()))


@pytest.mark.parametrize("count", [-1, 6])
def test_frozen_stages_out_of_range(count):
    with pytest.raises(UserError, match=f"frozen_stages is 0 to 5 for {TINY}, got {count}"):
        Backbone(name=TINY, frozen_stages=count)


@torch.no_grad()
def assert_same_features(net, whole):
    """C3, C4, C5 against the features of those strides inside the whole classifier."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(2))
    features = whole.forward_intermediates(images, intermediates_only=True)
    expected = [feature for feature in features if feature.shape[-1] in (12, 6, 3)]
    for mine, theirs in zip(net(images), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [TINY, "test_efficientnet", "test_convnext"])  # timm flattens names of the last
def test_local_weights_give_timms_features(name, tmp_path):
    whole = randomised(tmp_path / "whole.safetensors", name).eval()
    net = Backbone(name=name, weights=str(tmp_path / "whole.safetensors"), norm="batch").eval()
    assert_same_features(net, whole)


@torch.no_grad()
def assert_bit_equal(net, theirs):
    """C3, C4, C5 against torchvision's ResNet, which has the same parameters by the same names."""
    torch.manual_seed(0)
    for norm in batch_norms(theirs):
        for tensor in (norm.weight, norm.running_var):
            nn.init.uniform_(tensor, 0.5, 2.0)
        for tensor in (norm.bias, norm.running_mean):
            nn.init.normal_(tensor)
    state = theirs.state_dict()
    net.body.load_state_dict({key: value for key, value in state.items() if not key.startswith("fc.")})
    theirs.eval()
    images = torch.randn(1, 3, 65, 96)
    features, expected = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images)))), []
    for layer in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        features = layer(features)
        expected.append(features)
    for mine, feature in zip(net.eval()(images), expected[1:], strict=True):
        assert torch.equal(mine, feature)


def test_stride_in_1x1_is_torchvisions_resnet_with_its_strides_moved():
    theirs = torchvision.models.resnet50()
    for layer in (theirs.layer2, theirs.layer3, theirs.layer4):
        layer[0].conv1.stride, layer[0].conv2.stride = (2, 2), (1, 1)
    assert_bit_equal(Backbone(name="resnet50", stride_in_1x1=True), theirs)
    with torch.device("meta"):
        usual = Backbone(name="resnet50")
    assert [usual.body.layer2[0].conv1.stride, usual.body.layer2[0].conv2.stride] == [(1, 1), (2, 2)]


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "test_efficientnet"])
def test_stride_in_1x1_is_refused_for_basic_blocks(name):
    with torch.device("meta"), pytest.raises(UserError, match=rf"resnet50 and deeper\), not for {name}"):
        Backbone(name=name, stride_in_1x1=True)


@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_norm_eps_is_torchvisions(eps):
    norm = partial(nn.BatchNorm2d, eps=eps)
    assert_bit_equal(Backbone(name="resnet18", norm_eps=eps), torchvision.models.resnet18(norm_layer=norm))


def test_norm_eps_reaches_every_norm_of_either_kind():
    for norm, kind in (("frozen", _BatchNorm), ("batch", _BatchNorm), ("group", nn.GroupNorm)):
        for eps, expected in ((None, 1e-5), (0.25, 0.25)):
            with torch.device("meta"):
                net = Backbone(name=TINY, norm=norm, norm_eps=eps)
            assert {module.eps for module in net.modules() if isinstance(module, kind)} == {expected}


@pytest.mark.skipif(not LITE.is_file(), reason="../shared/weights is not there")
def test_the_weights_of_lite():
    net = Backbone(name="tf_efficientnet_lite0", weights=str(LITE)).eval()
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(load_file(LITE))
    assert_same_features(net, whole)
    config = timm.data.resolve_model_data_config(whole)
    assert (net.mean, net.std) == (config["mean"], config["std"])


def test_faulty_weights(tmp_path):
    path = tmp_path / "backbone.safetensors"
    tensors = randomised(path).state_dict()

    def refused(match):
        with pytest.raises(UserError, match=match):
            Backbone(name=TINY, weights=str(path))

    good = path.read_bytes()
    path.write_bytes(good[: len(good) // 2])
    refused(r"backbone\.safetensors is not a readable safetensors file")
    torch.save(tensors, path)
    refused(r"backbone\.safetensors is not a readable safetensors file")
    path.write_bytes(b"")
    refused(r"backbone\.safetensors is not a readable safetensors file")
    save_file({key: value for key, value in tensors.items() if key != "layer2.0.conv1.weight"}, path)
    refused(r"does not fit this backbone, 1 of \d+ tensors are wrong: layer2\.0\.conv1\.weight: missing")
    save_file(tensors | {"layer1.0.bn1.bias": torch.zeros(7)}, path)
    refused(r"1 of \d+ tensors are wrong: layer1\.0\.bn1\.bias: shape \(7,\), expected \(\d+,\)")
    path.unlink()
    refused(r"no file .*backbone\.safetensors\. Expected 'imagenet', 'none' or the path of a safetensors file")


def test_imagenet_weights_are_timms(monkeypatch):
    asked = []
    create = timm.create_model

    def watched(name, pretrained=False, **options):
        asked.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(backbone.timm, "create_model", watched)
    Backbone(name=TINY, weights="none")
    assert not any(asked)
    Backbone(name=TINY, weights="imagenet")
    assert sum(asked) == 1


def test_imagenet_weights_without_a_network(monkeypatch):
    create = timm.create_model

    def offline(name, pretrained=False, **options):
        if pretrained:
            raise OSError("no route to host")
        return create(name, **options)

    monkeypatch.setattr(backbone.timm, "create_model", offline)
    with pytest.raises(UserError, match=r"could not be downloaded \(OSError: no route to host\)") as caught:
        Backbone(name=TINY, weights="imagenet")
    assert "--weights FILE.safetensors" in str(caught.value) and "--weights none" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "resnet5O"}, "unknown backbone 'resnet5O'; did you mean .*resnet50"),
        ({"name": "vit_tiny_patch16_224"}, "does not yield features at strides 8, 16 and 32"),
        ({"name": "swin_tiny_patch4_window7_224"}, "yields NHWC features"),
        ({"name": TINY, "norm": "batchnorm"}, "norm is frozen, batch or group, got 'batchnorm'"),
    ],
)
def test_mistakes(options, match):
    with pytest.raises(UserError, match=match):
        Backbone(**options)
