"""YAML as plain data: no tags of Python, no aliases, and no more text than a configuration needs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from retinanet.errors import UserError

MOST_BYTES = 100_000  # a configuration of ours has about 2,000
MOST_NESTED = 100  # brackets: PyYAML looks at all that are open for each token


class _Shallow:
    """A loader that ends where brackets are nested too deeply."""

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Take an opening bracket."""
        if self.flow_level >= MOST_NESTED:  # type: ignore[attr-defined]
            raise yaml.scanner.ScannerError(None, None, "nested too deeply", self.get_mark())  # type: ignore[attr-defined]
        super().fetch_flow_collection_start(token)  # type: ignore[misc]


class TextLoader(_Shallow, yaml.BaseLoader):
    """Builds only text, lists and mappings: a class called ``no`` stays a name."""


class PlainLoader(_Shallow, yaml.SafeLoader):
    """PyYAML's safe loader without aliases, because with aliases a few lines can expand to billions of values.

    As in YAML 1.2, ``1e-3`` is a number and ``2026-01-02`` a text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """The next node, as long as it is no alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"*{event.anchor} stands for something written elsewhere; write it out"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)


PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _PlainDumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump_plain(value: Any) -> str:
    """A value as YAML that :func:`load_plain` reads: without aliases."""
    return yaml.dump(value, Dumper=_PlainDumper, sort_keys=False, allow_unicode=True)


def load_plain(text: str) -> Any:
    """The value that a text in YAML (or JSON) holds.

    Raises:
        yaml.YAMLError: it is not YAML, has an alias or a tag of Python, or is nested too deeply.
    """
    try:
        return yaml.load(text, Loader=PlainLoader)
    except (ValueError, OverflowError, RecursionError) as error:  # such as a number of 50,000 digits
        raise yaml.YAMLError(str(error)) from None


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping that a YAML or JSON file holds; {} for an empty one.

    Raises:
        UserError: there is no such file, it is too large, or holds something else (with the line).
    """
    if not os.path.isfile(path):
        state = "is not a regular file" if os.path.exists(path) else "does not exist"
        raise UserError(f"{path}: {state}; expected a YAML file with options, such as the config.yaml of a run")
    with path.open("rb") as stream:
        data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise UserError(f"{path}: over {MOST_BYTES:,} bytes, which no file of options needs. Keep only the options")
    try:
        content = load_plain(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8 text. Save it in UTF-8") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: broken YAML ({error.problem or error.context}). Correct the line") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    if content is not None and not isinstance(content, Mapping):
        raise UserError(f"{path}: expected options as 'name: value', got {type(content).__name__}")
    return dict(content or {})


def find_line(path: Path, names: tuple[str, ...]) -> int:
    """The line, from 1, at which an entry of a mapping begins; that of the deepest one that is there.

    Args:
        path: a file that :func:`read_mapping` reads.
        names: of the nested entries.
    """
    node = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=PlainLoader)
    line = 1
    for name in names:
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in entries if key.value == name), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
