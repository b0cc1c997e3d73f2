"""What ``import retinanet`` offers, and what it costs."""

import importlib
import importlib.resources
import subprocess
import sys

import pytest

import retinanet


def test_every_public_name_is_there_and_is_the_real_one():
    assert set(retinanet.__all__) == set(retinanet._HOME)
    for name in retinanet.__all__:
        home = importlib.import_module(f"retinanet.{retinanet._HOME[name]}")
        assert getattr(retinanet, name) is getattr(home, name)
        assert getattr(retinanet, name).__doc__


def test_functions_and_modules_of_one_name_do_not_shadow_each_other():
    """``retinanet.train`` and ``retinanet.evaluate`` are functions although there are modules of these names."""
    code = (
        "import retinanet.training.config, retinanet.evaluation.coco, retinanet.prediction\n"
        "import retinanet\n"
        "assert callable(retinanet.train) and callable(retinanet.evaluate) and callable(retinanet.predict)\n"
        "assert callable(retinanet.export)\n"
        "from retinanet import Predictor, evaluate, predict, train\n"
        "assert callable(train) and callable(evaluate) and callable(predict)\n"
        "from retinanet.training.config import RunConfig\n"
        "from retinanet.evaluation.evaluate import one_pass\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr


IN_ANY_ORDER = """
import importlib, inspect, pkgutil, random, sys
from unittest import mock
import retinanet

names = [module.name for module in pkgutil.walk_packages(retinanet.__path__, "retinanet.")]
assert len(names) > 100
random.Random(int(sys.argv[1])).shuffle(names)
for name in names:
    assert importlib.import_module(name) is sys.modules[name]
for name in retinanet.__all__:
    public = getattr(retinanet, name)
    assert public is getattr(importlib.import_module(f"retinanet.{retinanet._HOME[name]}"), name), name
    assert callable(public), name
    if inspect.isfunction(public):
        assert inspect.signature(public).parameters, name

import retinanet.training.loop as x
assert inspect.ismodule(x) and x is sys.modules["retinanet.training.loop"]
for name in ("train", "predict", "evaluate", "export", "convert", "check", "diagnose", "why", "benchmark"):
    target = f"{retinanet._HOME[name]}.{name}"
    module = importlib.import_module(f"retinanet.{target.rpartition('.')[0]}")
    with mock.patch(f"retinanet.{target}") as stand_in:
        assert getattr(module, target.rpartition(".")[2]) is stand_in
"""


@pytest.mark.parametrize("seed", range(3))
def test_modules_are_imported_in_any_order(seed):
    """No module needs another to be there first, and none takes the place of a function of its name."""
    code = [sys.executable, "-c", IN_ANY_ORDER, str(seed)]
    done = subprocess.run(code, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr


def test_types_are_told_to_type_checkers():
    assert importlib.resources.files("retinanet").joinpath("py.typed").is_file()


def test_an_unknown_name():
    with pytest.raises(AttributeError, match="module 'retinanet' has no attribute 'trian'"):
        retinanet.trian  # noqa: B018
    with pytest.raises(ImportError):
        from retinanet import trian  # noqa: F401


def test_importing_the_package_imports_nothing_heavy():
    code = (
        "import sys, retinanet\n"
        "assert retinanet.__version__\n"
        "sys.exit(str({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)) if 'torch' in sys.modules else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def test_the_version_is_the_one_of_the_distribution():
    from importlib.metadata import version

    assert retinanet.__version__ == version("retinanet")
