"""Devices and number formats."""

import pytest
import torch

from retinanet.train import precision
from retinanet.train.config import RunConfig
from retinanet.train.precision import build_fabric, cpu_computes_bf16
from retinanet.types import UserError


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
