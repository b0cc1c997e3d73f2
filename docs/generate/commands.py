"""The options of every command, from the signatures and docstrings that the command line itself is made of."""

from __future__ import annotations

from dataclasses import is_dataclass

from retinanet.cli.arguments import find_options, read_signature
from retinanet.cli.help import describe_value, read_descriptions
from retinanet.cli.main import COMMANDS, find_function


def render() -> str:
    """A section with a table of options for each command."""
    lines: list[str] = []
    for name, command in COMMANDS.items():
        function = find_function(name)
        defaults, required = read_signature(function)
        about = command.about[0].upper() + command.about[1:]
        lines += [f"## {name}", "", about if about.endswith("?") else f"{about}.", ""]
        lines += ["```", f"retinanet {name} {command.usage}", "```", "", *TABLE]
        options = list(find_options(defaults, read_descriptions(function)))
        options.sort(key=lambda one: "." in one[0] or is_dataclass(one[1].default))  # groups have tables of their own
        for option, (kinds, default, text) in options:
            if is_dataclass(default):
                lines += ["", f"**{text.rstrip('.').capitalize()}** (`--{option}.…`)", "", *TABLE]
            else:
                cells = f"`--{option}`", text, describe_value(kinds, default, option in required)
                lines.append(f"| {' | '.join(escape(cell) for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


TABLE = ("| option | | type and default |", "|---|---|---|")


def escape(text: str) -> str:
    """A text for a cell of a table."""
    return text.replace("|", r"\|").replace("<", "&lt;").replace("*", r"\*")
