"""Devices and number formats."""

import pytest
import torch
from torch import nn

from retinanet.errors import UserError
from retinanet.model.presets import PRESETS
from retinanet.model.pyramid import FeaturePyramid
from retinanet.training import precision
from retinanet.training.config import RunConfig
from retinanet.training.precision import build_fabric, cpu_computes_bf16, prepare_for_cpu


@pytest.mark.parametrize(("asked", "made"), [("32", "32-true"), ("bf16", "bf16-mixed")])
def test_the_precision_asked_for(asked, made):
    assert build_fabric(RunConfig(accelerator="cpu", precision=asked))._precision.precision == made


def test_auto_is_bf16_where_the_hardware_has_it(monkeypatch):
    for able, made in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(precision, "cpu_computes_bf16", lambda able=able: able)
        assert build_fabric(RunConfig(accelerator="cpu"))._precision.precision == made


def test_bf16_of_a_cpu_is_asked_of_torch(monkeypatch):
    for abilities, able in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx2": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda abilities=abilities: abilities)
        assert cpu_computes_bf16() is able


def test_auto_is_one_process_on_a_cpu():
    fabric = build_fabric(RunConfig(accelerator="cpu"))
    assert fabric.world_size == 1 and fabric.device == torch.device("cpu")


def test_two_processes_when_asked_for():
    assert build_fabric(RunConfig(accelerator="cpu", devices="2")).world_size == 2


def test_the_processes_of_torchrun_are_those_of_the_run(monkeypatch):
    for name, value in {"RANK": 1, "LOCAL_RANK": 1, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    fabric = build_fabric(RunConfig(accelerator="cpu"))
    assert (fabric.world_size, fabric.global_rank) == (2, 1)


def test_processes_of_an_unknown_launcher_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match=r"WORLD_SIZE is 2, but LOCAL_RANK is not set.*torchrun"):
        build_fabric(RunConfig(accelerator="cpu"))


@pytest.mark.parametrize(
    "run",
    [
        RunConfig(accelerator="abacus"),
        RunConfig(accelerator="cpu", devices="0"),
        RunConfig(accelerator="cpu", devices="-3"),
        RunConfig(accelerator="cpu", devices="many"),
        pytest.param(
            RunConfig(accelerator="cuda", devices="1"),
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here"),
        ),
    ],
)
def test_what_is_not_here_is_refused(run):
    with pytest.raises(UserError, match=f"cannot train on accelerator {run.accelerator}, devices {run.devices}"):
        build_fabric(run)


def test_fp16_needs_an_accelerator():
    with pytest.raises(UserError, match="precision 16 needs an accelerator; on a CPU choose bf16 or 32"):
        build_fabric(RunConfig(accelerator="cpu", precision="16"))


class WrongWeightGradient(torch.autograd.Function):
    """What some CPUs make of the weight gradient of a strided bf16 convolution over one column."""

    @staticmethod
    def forward(context, weight):
        return weight.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * 1e12


@pytest.fixture(params=["as this CPU computes", "with a wrong kernel"])
def kernel(request, monkeypatch):
    """Convolutions of this CPU, and of one with the fault, which not every CPU has."""
    right = nn.Conv2d._conv_forward

    def wrong(self, images, weight, bias):
        if torch.is_autocast_enabled("cpu") and self.stride == (2, 2) and images.shape[-1] == 1:
            weight = WrongWeightGradient.apply(weight)
        return right(self, images, weight, bias)

    if request.param == "with a wrong kernel":
        monkeypatch.setattr(nn.Conv2d, "_conv_forward", wrong)


def pyramid_gradients(net, features, *, bf16):
    """The gradients of weights and inputs for fixed gradients of the levels."""
    features = [feature.clone().requires_grad_() for feature in features]
    net.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        levels = net(features)
    generator = torch.Generator().manual_seed(1)
    sum((level.float() * torch.randn(level.shape, generator=generator)).sum() for level in levels).backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    return found | {f"C{number}": feature.grad for number, feature in enumerate(features, start=3)}


@pytest.mark.parametrize("side", [32, 64, 128])
@pytest.mark.parametrize(
    ("preset", "in_channels"),
    [("resnet18", (128, 256, 512)), ("resnet50", (512, 1024, 2048)), ("lite", (40, 112, 320))],
)
def test_bf16_gradients_of_the_pyramid_are_those_of_fp32(kernel, preset, in_channels, side):
    torch.manual_seed(0)
    net = FeaturePyramid(in_channels=in_channels, channels=PRESETS[preset].channels)
    features = [
        torch.randn(2, width, side // stride, side // stride)
        for width, stride in zip(in_channels, (8, 16, 32), strict=True)
    ]
    wanted = pyramid_gradients(net, features, bf16=False)
    prepare_for_cpu(net)
    for name, gradient in pyramid_gradients(net, features, bf16=False).items():
        assert torch.equal(gradient, wanted[name]), name  # fp32 is not touched
    for name, gradient in pyramid_gradients(net, features, bf16=True).items():
        assert (gradient - wanted[name]).norm() < 0.1 * wanted[name].norm(), name  # ReLU of P6 may turn


def test_nodes_and_devices_that_cannot_be(monkeypatch):
    """The one would wait for ever, the other would start a process for each."""
    for name in ("MASTER_ADDR", "SLURM_NTASKS", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"--nodes 2: the machines have to find each other.*torchrun --nnodes 2"):
        build_fabric(RunConfig(accelerator="cpu", nodes=2))
    with pytest.raises(UserError, match=r"--devices 9999: this machine has \d+ cores"):
        build_fabric(RunConfig(accelerator="cpu", devices="9999"))
