"""The help of a command: its options as a parser of the standard library, which completes them in a shell too."""

from __future__ import annotations

import inspect
import re
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NamedTuple, Protocol, get_args, get_origin

from retinanet.options import find_full_names
from retinanet.plain import to_plain


class Option(NamedTuple):
    """A parameter or a field of one: its type (several for a union), default and description."""

    kinds: tuple[Any, ...]
    default: Any
    text: str


def read_descriptions(documented: Any) -> dict[str, str]:
    """The descriptions of parameters in a Google-style docstring, by their names."""
    texts: dict[str, str] = {}
    name = ""
    _, *sections = re.split(r"\n(?:Args|Attributes):\n", inspect.getdoc(documented) or "")
    for line in "".join(sections[:1]).splitlines():
        if line and not line.startswith("    "):
            break
        if start := re.match(r"    (\w+): (.*)", line):
            name, texts[start[1]] = start.groups()
        elif line:
            texts[name] += f" {line.strip()}"
    return texts


def build_parser(
    function: Callable[..., Any],
    known: Mapping[str, Option],
    required: Sequence[str],
    usage: str,
    complete: Mapping[str, str] | None = None,
) -> ArgumentParser:
    """Every option of a command with its description, type and default. It parses nothing: ``parse`` does.

    Args:
        function: the command.
        known: its options.
        required: those without a default.
        usage: first line of the help.
        complete: how shtab completes values that are no words of a list; short names are options too then.
    """
    title = (inspect.getdoc(function) or "").split("\n")[0]
    parser = ArgumentParser(usage=usage, description=title, add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    parser.add_argument("--config", metavar="FILE", help="file with options, such as the config.yaml of a run")
    parser.add_argument("--print_config", action="store_true", help="print the options as such a file and exit")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object, see json.md")
    groups = {"": parser.add_argument_group(title.rstrip("."))}
    for name, (kinds, default, text) in known.items():
        if is_dataclass(default):
            groups[name] = parser.add_argument_group(text.rstrip("."))
            continue
        group, _, short = name.rpartition(".")
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        choices += ["true", "false"] * (bool in kinds)
        flags = [f"--{name}"]
        if complete is not None and group and find_full_names(short, known) == [name] and short not in known:
            flags.append(f"--{short}")
        action = groups[group].add_argument(
            *flags,
            choices=choices or None,
            metavar=f"{{{','.join(choices)}}}" if choices else short.upper(),
            help=f"{text} ({describe_value(kinds, default, name in required)})".replace("%", "%%"),
        )
        if complete is not None and not choices:
            action.complete = complete  # type: ignore[attr-defined]  # which shtab reads
    return parser


def describe_value(kinds: Sequence[Any], default: Any, required: bool) -> str:
    """The type and the default of an option, as a user writes them."""
    types = " | ".join(inspect.formatannotation(kind) for kind in kinds if not is_for_python(kind))
    types = re.sub(r"typing\.|pathlib\.", "", types)
    facts = f"required, type: {types}" if required else f"type: {types}, default: {to_plain(default)}"
    return facts.replace("NoneType", "null").replace("None", "null")


def is_for_python(kind: Any) -> bool:
    """Whether a type is one that no word of a command line can have: an object that follows a protocol."""
    return Protocol in getattr(kind, "__mro__", ()) or get_origin(kind) is Mapping
