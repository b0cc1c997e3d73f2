"""The error catalogue: every message for a user, read from the sources without importing them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import groupby, product
from pathlib import Path
from typing import NamedTuple

HOLE = "…"  # what only the moment of the mistake can say: a name, a number, a list
MOST = 24  # variants of one message, where parts of it depend on the case
TITLES = {  # package or file -> what a user was doing
    "analysis": "Check, diagnose, why",
    "anchors": "Anchors",
    "card.py": "Model card",
    "cli": "Command line",
    "cluster": "Prediction on a cluster",
    "curation": "Suspects and suggest",
    "data": "Reading data",
    "deploy": "Export and benchmark",
    "detections.py": "Detections",
    "detector.py": "Loading a model",
    "digest.py": "Digests",
    "evaluation": "Evaluation",
    "exchange.py": "Other libraries",
    "files.py": "Writing files",
    "images": "Reading images",
    "inference": "Prediction",
    "interop": "Other people's weights and the hub",
    "losses": "Loss",
    "model": "Network and post-processing",
    "model_folder.py": "Model folders",
    "options.py": "Names of options",
    "plain.py": "Values of options",
    "planning": "Planning",
    "plotting": "Pictures",
    "prediction.py": "The command predict",
    "serving": "Server",
    "spec.py": "Description of a model",
    "training": "Training",
    "yaml_files.py": "Configuration files",
}


class Message(NamedTuple):
    """A message with … for what is filled in, and where it comes from."""

    text: str
    file: str
    line: int


def render(source: Path) -> str:
    """The catalogue as Markdown: a heading for each package and file, a line for each message."""
    lines: list[str] = []
    messages = sorted(find_messages(source), key=lambda one: (TITLES[one.file.split("/")[0]], one.file, one.line))
    for title, of_package in groupby(messages, lambda one: TITLES[one.file.split("/")[0]]):
        lines += [f"## {title}", ""]
        for file, of_file in groupby(of_package, lambda one: one.file):
            lines += [f"### {file}", ""]
            lines += [f"* {quote(one.text)} (line {one.line})" for one in dict.fromkeys(of_file)] + [""]
    return "\n".join(lines)


def quote(text: str) -> str:
    """A text as code in Markdown, whatever it holds."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in (text[0], text[-1]) else ""
    return f"{fence}{pad}{text}{pad}{fence}"


def find_messages(source: Path) -> Iterator[Message]:
    """Every message of an error that users can fix.

    Args:
        source: folder of the package.
    """
    trees = {path.relative_to(source).as_posix(): ast.parse(path.read_text()) for path in sorted(source.rglob("*.py"))}
    nodes = [(file, node) for file, tree in trees.items() for node in ast.walk(tree)]
    errors = {"UserError": 0, "Refusal": 1, "Fault": 2}  # class -> the argument that is its message
    names = [node for _, node in nodes if isinstance(node, ast.ClassDef)]
    for node in names:
        if any(isinstance(base, ast.Name) and base.id == "UserError" for base in node.bases):
            errors.setdefault(node.name, 0)
    writers = {node.name: node for _, node in nodes if isinstance(node, ast.FunctionDef)}
    variables = {node: found for tree in trees.values() for node, found in find_variables(tree)}
    for file, node in nodes:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in errors:
            place = errors[node.func.id]
            known = variables.get(node, {})
            for text in find_texts(node.args[place], writers, known) if len(node.args) > place else ():
                text = re.sub(rf"{HOLE}(\s*{HOLE})+", HOLE, " ".join(text.split()))
                if re.search(r"[a-z]{3}", text):
                    yield Message(text.strip(), file, node.lineno)


def find_variables(tree: ast.Module) -> Iterator[tuple[ast.AST, dict[str, list[ast.expr]]]]:
    """Each node of a function, with what is assigned to names there; of functions inside one, the inner one last."""
    for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
        found: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                found.setdefault(node.targets[0].id, []).append(node.value)
        yield from ((node, found) for node in ast.walk(function))


def find_texts(
    node: ast.expr, writers: dict[str, ast.FunctionDef], variables: dict[str, list[ast.expr]], depth: int = 0
) -> list[str]:
    """The texts that an expression can be, as far as the source tells."""
    match node:
        case ast.Name(id=name) if name in variables and depth < 2:
            return [text for value in variables[name] for text in find_texts(value, writers, variables, depth + 1)]
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=parts):
            options = [find_texts(part, writers, variables, depth) for part in parts]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            options = [find_texts(left, writers, variables, depth), find_texts(right, writers, variables, depth)]
        case ast.FormattedValue(value=ast.IfExp() as value):
            return find_texts(value, writers, variables, depth)
        case ast.IfExp(body=body, orelse=other):
            return [*find_texts(body, writers, variables, depth), *find_texts(other, writers, variables, depth)]
        case ast.Call(func=ast.Name(id=name)) if name in writers and not depth:
            returned = [one.value for one in ast.walk(writers[name]) if isinstance(one, ast.Return) and one.value]
            return [text for value in returned for text in find_texts(value, writers, {}, 1)] or [HOLE]
        case _:
            return [HOLE]
    return ["".join(parts) for parts in product(*options)][:MOST]
