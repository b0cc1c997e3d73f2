"""A plan: the options of a training with a reason for each, as a table, as a file that ``train`` takes, and back."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retinanet.errors import UserError
from retinanet.planning.fingerprint import Fingerprint
from retinanet.planning.machine import GB, Host
from retinanet.planning.memory import MemoryNeed
from retinanet.plotting.html import format_time
from retinanet.yaml_files import find_line, load_plain, read_mapping

NAME = "plan.yaml"  # in the folder of a run
WIDTH, NAME_WIDTH, REASON = 110, 26, 38  # characters of a line, of an option, before a reason
DATA = "data"  # the entry of a file that says what it was made for


@dataclass(frozen=True)
class Choice:
    """An option of ``train`` with its value.

    Attributes:
        option: its dotted name.
        value: plain.
        reason: why; for a value that was given, what the rule would have taken.
        given: whether the user chose it.
    """

    option: str
    value: Any
    reason: str
    given: bool = False


@dataclass(frozen=True)
class Plan:
    """What will be trained, and why.

    Attributes:
        name: of the data.
        facts: about the data.
        host: the machine.
        choices: the options, in the order in which they were decided.
        memory: that a step takes.
        seconds: of the whole training; None where no step could be timed.
        epoch_seconds: of an epoch, likewise.
        notes: what else should be known.
    """

    name: str
    facts: Fingerprint
    host: Host
    choices: tuple[Choice, ...]
    memory: MemoryNeed
    seconds: float | None = None
    epoch_seconds: float | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def values(self) -> dict[str, Any]:
        """The options by their dotted names."""
        return {choice.option: choice.value for choice in self.choices}

    def describe_costs(self) -> str:
        """Time and memory in a sentence."""
        text = f"memory: about {self.memory.peak / GB:.1f} of {self.host.room / GB:.1f} GB"
        if self.seconds is None or self.epoch_seconds is None:
            return f"{text}; time: not known, no step was timed"
        return f"time: about {format_time(self.epoch_seconds)} an epoch, {format_time(self.seconds)} in all; {text}"

    def summary(self, *, given: bool = True) -> str:
        """The plan for a terminal, also with the values that the user gave if ``given``."""
        lines = [self.facts.summary(), f"machine: {self.host.summary()}", "plan:"]
        for choice in self.choices:
            if choice.given and not given:
                continue
            start = f"  {choice.option:{NAME_WIDTH}} {format_value(choice.value)}"
            if len(start) >= REASON:
                lines.append(start)
                start = ""
            text = f"{start:{REASON}}{choice.reason}"
            lines += textwrap.wrap(text, WIDTH, subsequent_indent=" " * REASON, break_on_hyphens=False)
        return "\n".join([*lines, self.describe_costs(), *(f"note: {note}" for note in self.notes)])

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {
            "facts": self.facts.to_dict(),
            "options": {choice.option: {"value": choice.value, "reason": choice.reason} for choice in self.choices},
            "memory_gb": round(self.memory.peak / GB, 2),
            "seconds": self.seconds,
            "epoch_seconds": self.epoch_seconds,
            "notes": list(self.notes),
        }

    def to_yaml(self) -> str:
        """The text of a file that ``retinanet train DATA --plan FILE`` takes: options, each below its reason."""
        lines = [
            f"# What `retinanet plan` proposes for {self.name}. Change what you like, then:",
            "# retinanet train DATA --output RUN --plan THIS_FILE",
            f"# {self.describe_costs()}",
            f"{DATA}:",
            f"  classes: {_flow(list(self.facts.classes))}",
        ]
        groups: list[str] = []
        for choice in sorted(self.choices, key=_group_of):  # stable: those of a group come together
            group = _group_of(choice)
            if group and group not in groups:
                lines.append(f"{group}:")
                groups.append(group)
            indent = "  " * bool(group)
            lines += textwrap.wrap(choice.reason, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
            lines.append(f"{indent}{choice.option.rpartition('.')[2]}: {_flow(choice.value)}")
        return "\n".join(lines) + "\n"


def _group_of(choice: Choice) -> str:
    return choice.option.rpartition(".")[0]


def _flow(value: Any) -> str:
    """A plain value as YAML in one line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    is_word = isinstance(value, str) and re.fullmatch(r"[A-Za-z][\w -]*\w", value) and load_plain(value) == value
    return str(value) if is_word else json.dumps(value, ensure_ascii=False)  # which YAML reads too


def format_value(value: Any) -> str:
    """A value for a person; numbers with four digits."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {format_value(entry)}" for key, entry in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(format_value, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_plan(path: Path, class_names: Sequence[str]) -> dict[str, Any]:
    """The options in the file of a plan, by dotted names.

    Args:
        path: the file.
        class_names: of the data that is to be trained on.

    Raises:
        UserError: there is no such file, it is no plan, or was made for other classes.
    """
    content = read_mapping(path)
    about = content.pop(DATA, None)
    classes = about.get("classes") if isinstance(about, Mapping) else None
    if not isinstance(classes, list):
        raise UserError(
            f"{path} is no plan: it does not say for which classes. `retinanet plan DATA --write` makes one"
        )
    if [str(name) for name in classes] != list(class_names):
        missing = sorted(set(map(str, classes)) ^ set(class_names))
        raise UserError(
            f"{path}, line {find_line(path, (DATA, 'classes'))}: the plan is for other data: it has the classes "
            f"{', '.join(map(str, classes))}, this data {', '.join(class_names)}"
            + (f" ({', '.join(missing)} in one of them only)" if missing else " (in another order)")
            + ". Make a new plan: retinanet plan DATA"
        )
    return dict(_flatten(content))


def _flatten(content: Mapping[str, Any], group: str = "") -> list[tuple[str, Any]]:
    """Options by dotted names; what is below an option of the architecture, such as anchors, stays as it is."""
    found: list[tuple[str, Any]] = []
    for name, value in content.items():
        full = f"{group}{name}"
        found += _flatten(value, f"{full}.") if isinstance(value, Mapping) and not group else [(full, value)]
    return found
