import pytest
import torch

from retinanet.errors import UserError
from retinanet.model.device import choose_device


def test_auto_takes_the_accelerator_or_the_cpu(monkeypatch):
    for found, expected in ((None, "cpu"), (torch.device("mps"), "mps")):
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available, found=found: found)
        assert choose_device("auto") == torch.device(expected)


def test_cpu():
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cpu,cuda", "cuda:99", "meta"])
def test_what_cannot_be_used(name):
    with pytest.raises(UserError, match=rf"device '{name}' cannot be used here \(.*Expected auto, cpu, cuda or mps"):
        choose_device(name)
