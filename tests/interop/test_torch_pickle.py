"""The bystanders of training in a file of torch.save become placeholders."""

import argparse
import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.interop.files import read_weights

STATE = {"w": torch.ones(2)}


def save(folder, value, **options):
    torch.save(value, folder / "a.bin", **options)
    return folder / "a.bin"


@pytest.fixture
def stranger():
    """A class of a library that only the writer had."""
    module = types.ModuleType("mmengine")
    sys.modules["mmengine"] = module

    def define(name, base=object):
        made = type(name, (base,), {"__module__": "mmengine", "least": classmethod(lambda cls: 1)})
        setattr(module, name, made)
        return made

    yield define
    sys.modules.pop("mmengine", None)


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_training_are_not_built(tmp_path, stranger, zipped):
    """As mmengine's message hub and Lightning's hyperparameters hold them; the reader does not have their classes."""
    history, config = stranger("History"), stranger("ConfigDict", dict)
    one = history()
    one.values, one.methods = np.arange(3), {"min": history.least}
    meta = {"epoch": 3, "best": np.float64(2), "names": argparse.Namespace(x=1), "path": Path("x"), "kind": int}
    hub = {"scalars": OrderedDict(loss=one), "config": config(a=1, b=one)}
    path = save(tmp_path, {"meta": meta, "hub": hub, "state_dict": STATE}, _use_new_zipfile_serialization=zipped)
    del sys.modules["mmengine"]
    found = read_weights(path)
    assert torch.equal(found.tensors["w"], torch.ones(2))
    assert found.meta == {"meta": {"epoch": 3}, "hub": {"scalars": {}, "config": {"a": 1}}}
    (note,) = found.notes
    assert "mmengine.History" in note and "argparse.Namespace" in note


def test_an_allowance_of_the_process_neither_helps_nor_is_lost(tmp_path, stranger):
    made = []
    history = stranger("History")
    history.__setstate__ = lambda self, state: made.append(state)
    one = history()
    one.x = 1
    path = save(tmp_path, {"state_dict": STATE, "hub": one})
    with torch.serialization.safe_globals([history]):
        read_weights(path)
        assert made == []
        assert history in torch.serialization.get_safe_globals()
        torch.load(path, weights_only=True)
        assert made == [{"x": 1}]
