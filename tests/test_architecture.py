"""The rules of the house that a machine can check: floors, heavy libraries, sizes."""

import ast
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "src" / "retinanet"
FLOORS = {
    **{
        "types": 1,
        "digest": 2,
        "files": 2.5,
        "yaml_files": 2,
        "boxes": 2,
        "losses": 3,
        "images": 3,
        "data": 4,
        "plot": 4,
        "model": 4,
        "weights": 5,
    },
    **{"predict": 6, "evaluate": 7, "export": 8, "diagnose": 8, "benchmark": 9, "train": 9, "serve": 9, "cli": 10},
}
HOMES = {  # heavy library -> the only files or rooms that import it
    "matplotlib": ("plot/",),
    "faster_coco_eval": ("evaluate/coco.py",),
    "timm": ("model/",),
    "jsonargparse": ("cli/",),
    "lightning_fabric": ("train/",),
    "safetensors": ("weights/", "model/backbone.py"),
    "defusedxml": ("data/",),
    "yaml": ("yaml_files.py", "cli/", "data/"),
    "torchvision": ("boxes/", "data/", "weights/"),
    "huggingface_hub": ("weights/hub.py",),
    "rasterio": ("images/windows.py",),
    **dict.fromkeys(("onnxruntime", "openvino"), ("predict/", "export/", "benchmark/")),
    **dict.fromkeys(("onnx", "onnxscript", "nncf"), ("export/",)),
}
UPWARD = {("model/retinanet.py", "retinanet.weights.pretrained.load_pretrained")}  # RetinaNet.from_pretrained(name)
NAMELESS = {"utils", "util", "misc", "common", "helpers", "helper"}


def imported(tree: ast.AST):
    """Dotted names of what a module imports when it runs; imports for the type checker do not count."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)
        yield from imported(node)


def violations(path: str, source: str) -> list[str]:
    """What a file (its path inside the house) does against the rules."""
    found, tree = [], ast.parse(source)
    room = path.split("/")[0].removesuffix(".py")
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if not top:
            found.append(f"relative import {name}")
        elif top == "retinanet" and path != "__init__.py":
            other = rest.split(".")[0]
            above = other in FLOORS and other != room and FLOORS[other] >= FLOORS.get(room, 0)
            if above and (path, name) not in UPWARD:
                found.append(f"imports {name}, which is not on a floor below")
        elif top in HOMES and not path.startswith(HOMES[top]):
            found.append(f"imports {top}, which lives in {' and '.join(HOMES[top])}")
    if room not in FLOORS and path != "__init__.py":
        found.append(f"{room} has no floor")
    if NAMELESS & set(path.removesuffix(".py").split("/")):
        found.append("a name that says nothing")
    if len(source.splitlines()) > 400:
        found.append("more than 400 lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.end_lineno - node.lineno + 1 > 80:
                found.append(f"{node.name} has more than 80 lines")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.name == "__init__" and len(arguments) > 10:  # self and nine
                found.append("a constructor of 10 arguments or more")
    return found


@pytest.mark.parametrize("path", sorted(path.relative_to(HOUSE).as_posix() for path in HOUSE.rglob("*.py")))
def test_house(path):
    assert violations(path, (HOUSE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("boxes/nms.py", "from retinanet.losses.focal import FocalLoss", "not on a floor below"),
        ("losses/box.py", "def f():\n    import retinanet.images.io", "not on a floor below"),
        ("model/fpn.py", "from retinanet import data", "not on a floor below"),
        (
            "types.py",
            "try:\n    from retinanet.boxes import nms\nexcept ImportError:\n    pass",
            "not on a floor below",
        ),
        ("model/fpn.py", "from ..data import loader", "relative import"),
        ("data/loader.py", "import matplotlib.pyplot as plt", "lives in plot/"),
        ("train/loop.py", "if True:\n    from timm import create_model", "lives in model/"),
        ("data/voc.py", "from safetensors.torch import load_file", "lives in weights/"),
        ("boxes/utils.py", "", "a name that says nothing"),
        ("data/helpers/io.py", "", "a name that says nothing"),
        ("attic/old.py", "", "attic has no floor"),
        ("types.py", "\n" * 401, "more than 400 lines"),
        ("types.py", "def f():\n" + "    x = 1\n" * 80, "f has more than 80 lines"),
        ("types.py", f"class A:\n    def __init__(self, *, {', '.join('abcdefghij')}): ...", "10 arguments"),
    ],
)
def test_a_planted_violation_is_found(path, source, expected):
    (found,) = violations(path, source)
    assert expected in found


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "train/loop.py",
            "from retinanet.types import UserError\nfrom retinanet.train import ema\nimport lightning_fabric",
        ),
        ("types.py", "if TYPE_CHECKING:\n    from retinanet.boxes.lattice import AnchorLattice"),
        ("weights/checkpoint.py", "from retinanet import __version__"),
        ("__init__.py", "from retinanet.train.run import train"),
        ("types.py", f"class A:\n    def __init__(self, *, {', '.join('abcdefghi')}): ..."),
        ("types.py", "def f():\n" + "    x = 1\n" * 79),
    ],
)
def test_what_is_allowed(path, source):
    assert violations(path, source) == []
