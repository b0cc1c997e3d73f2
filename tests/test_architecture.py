"""The rules of the structure that a machine can check: layers, heavy libraries, sizes."""

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "retinanet"
LAYERS = [  # from the bottom; a package imports from layers below its own only, for the type checker too
    ("errors",),
    ("digest", "plain"),
    ("files", "yaml_files", "options"),
    ("anchors", "images", "plotting", "exchange"),
    ("detections",),
    ("types",),
    ("losses", "model", "data"),
    ("spec",),
    ("card",),
    ("model_folder",),
    ("interop",),
    ("detector",),
    ("inference",),
    ("evaluation",),
    ("analysis",),
    ("planning",),
    ("deploy", "training"),
    ("cluster", "curation", "serving"),
    ("prediction",),
    ("cli",),
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
HOMES = {  # heavy library -> the only files or packages that import it
    "matplotlib": ("plotting/", "analysis/"),
    "faster_coco_eval": ("evaluation/coco.py",),
    "timm": ("model/",),
    "lightning_fabric": ("training/",),
    "safetensors": ("model_folder.py", "interop/", "model/backbone.py"),
    "defusedxml": ("data/", "serving/"),
    "jinja2": ("plotting/",),
    "yaml": ("yaml_files.py", "cli/", "data/", "training/"),
    "torchvision": ("anchors/", "data/", "interop/"),
    "huggingface_hub": ("interop/hub.py",),
    "rasterio": ("images/windows.py",),
    **dict.fromkeys(("supervision", "fiftyone", "pandas", "sahi"), ("exchange.py",)),
    "av": ("inference/film.py",),
    "trackers": ("inference/tracks.py",),
    **dict.fromkeys(("onnxruntime", "openvino"), ("inference/", "deploy/")),
    **dict.fromkeys(
        ("fastapi", "fastapi_offline", "starlette", "uvicorn", "prometheus_client", "python_multipart"), ("serving/",)
    ),
    **dict.fromkeys(("ray", "fsspec"), ("cluster/",)),
    "pyarrow": ("cluster/", "inference/documents.py"),
    **dict.fromkeys(("onnx", "onnxscript", "nncf"), ("deploy/",)),
}
PENDING: set[tuple[str, str]] = set()
NAMELESS = {"utils", "util", "misc", "common", "helpers", "helper"}


def imported(tree: ast.AST):
    """Dotted names of what a module imports, at once or later, for Python or for the type checker."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def violations(path: str, source: str) -> list[str]:
    """What a file (its path inside the package) does against the rules."""
    broken, tree = [], ast.parse(source)
    package = path.split("/")[0].removesuffix(".py")
    for name in imported(tree):
        top, _, rest = name.partition(".")
        if not top:
            broken.append(f"relative import {name}")
        elif top == "retinanet" and path != "__init__.py":
            other = rest.split(".")[0]
            upward = other in LAYER and other != package and LAYER[other] >= LAYER.get(package, -1)
            if upward and (path, name) not in PENDING:
                broken.append(f"imports {name}, which is not on a layer below")
        elif top in HOMES and not path.startswith(HOMES[top]):
            broken.append(f"imports {top}, which belongs in {' and '.join(HOMES[top])}")
    if package not in LAYER and path != "__init__.py":
        broken.append(f"{package} has no layer")
    if NAMELESS & set(path.removesuffix(".py").split("/")):
        broken.append("a name that says nothing")
    if len(source.splitlines()) > 300:
        broken.append("more than 300 lines")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.end_lineno - node.lineno + 1 > 80:
                broken.append(f"{node.name} has more than 80 lines")
            arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            if node.name == "__init__" and len(arguments) > 10:  # self and nine
                broken.append("a constructor of 10 arguments or more")
    return broken


@pytest.mark.parametrize("path", sorted(path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py")))
def test_rules(path):
    assert violations(path, (SOURCE / path).read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("anchors/nms.py", "from retinanet.losses.focal import FocalLoss", "not on a layer below"),
        ("losses/box.py", "def f():\n    import retinanet.spec", "not on a layer below"),
        ("model/pyramid.py", "from retinanet import data", "not on a layer below"),
        ("anchors/nms.py", "if TYPE_CHECKING:\n    from retinanet.types import Target", "not on a layer below"),
        ("errors.py", "try:\n    from retinanet.anchors import nms\nexcept ImportError:\n    pass", "on a layer below"),
        ("model/pyramid.py", "from ..data import loader", "relative import"),
        ("data/loader.py", "import matplotlib.pyplot as plt", "belongs in plotting/"),
        ("training/loop.py", "if True:\n    from timm import create_model", "belongs in model/"),
        ("data/voc.py", "from safetensors.torch import load_file", "belongs in model_folder.py"),
        ("anchors/utils.py", "", "a name that says nothing"),
        ("data/helpers/io.py", "", "a name that says nothing"),
        ("attic/old.py", "", "attic has no layer"),
        ("types.py", "\n" * 301, "more than 300 lines"),
        ("types.py", "def f():\n" + "    x = 1\n" * 80, "f has more than 80 lines"),
        ("types.py", f"class A:\n    def __init__(self, *, {', '.join('abcdefghij')}): ...", "10 arguments"),
    ],
)
def test_a_planted_violation_is_found(path, source, expected):
    (broken,) = violations(path, source)
    assert expected in broken


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("training/loop.py", "from retinanet.errors import UserError\nfrom retinanet.training import ema\nimport yaml"),
        ("types.py", "if TYPE_CHECKING:\n    from retinanet.anchors.lattice import AnchorLattice"),
        ("detector.py", "from retinanet import __version__"),
        ("__init__.py", "from retinanet.training.run import train"),
        ("types.py", f"class A:\n    def __init__(self, *, {', '.join('abcdefghi')}): ..."),
        ("types.py", "def f():\n" + "    x = 1\n" * 79),
    ],
)
def test_what_is_allowed(path, source):
    assert violations(path, source) == []
