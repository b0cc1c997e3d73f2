"""Private names of other libraries are debts: each is used in one place and listed in the contributing guide."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "retinanet"
PUBLIC = {"_exit", "_replace", "_asdict", "_fields"}  # documented, whatever their first letter
ALLOWED = {
    ("cluster/engine.py", "_private"),
    ("data/workers.py", "_inheriting"),
    ("deploy/graph.py", "_inductor"),
    ("inference/pt2.py", "_inductor"),
    ("losses/implicit.py", "_get_current_graph_task_keep_graph"),
    ("losses/implicit.py", "_C"),
    ("losses/implicit.py", "_autograd"),
    ("model/backbone.py", "_BatchNorm"),
    ("model/fold.py", "_BatchNorm"),
    ("model/fold.py", "_version"),
    ("model/fast.py", "_convolution_pointwise"),
    ("model/fast.py", "_reorder_convolution_weight"),
}


def private_names(source: str) -> set[str]:
    """Names with one leading underscore that a module takes from somebody else."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    own = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    own |= {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)}
    names = []
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("retinanet"):
            names += [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names.append(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr":
            names += [
                part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)
            ]
    return {name for name in names if name.startswith("_") and not name.startswith("__")} - own - PUBLIC


def test_private_names_are_those_that_are_listed():
    used = {
        (path.relative_to(SOURCE).as_posix(), name)
        for path in SOURCE.rglob("*.py")
        for name in private_names(path.read_text(encoding="utf-8"))
    }
    assert used == ALLOWED


def test_the_contributing_guide_lists_them():
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert [name for _, name in sorted(ALLOWED) if name not in guide] == []


def test_a_planted_name_is_found():
    assert private_names("import torch\ntorch._C.f(x)") == {"_C"}
    assert private_names("from torch.nn import _Loss") == {"_Loss"}
    assert private_names("getattr(parser, '_actions', None)") == {"_actions"}
    assert private_names("class A:\n    def f(self):\n        self._x = 1\n        return other._x") == set()
