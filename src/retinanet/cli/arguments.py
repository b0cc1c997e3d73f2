"""A function's parameters as a command line, with jsonargparse: names, types and help come from the function."""

from __future__ import annotations

import difflib
import inspect
import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from retinanet.cli.values import read_option, read_options
from retinanet.errors import UserError
from retinanet.yaml_files import load_plain

NO_PATH = "#".ljust(5000) + "\n"  # a comment longer than any path: the parser takes what follows for text, not a file


def parse(function: Callable[..., Any], words: Sequence[str], *, positionals: Sequence[str], usage: str) -> Namespace:
    """The arguments for ``function``, from a command line and the configuration files that it names.

    Options are values: one that names code is refused before it is parsed, see :mod:`retinanet.cli.values`. The
    environment is not read.

    Words without a dash are the positionals, in order; the last one takes all that are left where its type is a list.
    Options may be written with dashes or underscores, and without their group where only one group has them; a switch
    needs no value.

    Args:
        function: its signature and docstring make the options.
        words: the command line after the command.
        positionals: parameters that may be given without their name.
        usage: first line of the help.

    Raises:
        UserError: an unknown option or an unusable value.
    """
    parser = ArgumentParser(
        prog=usage.split(" [")[0], usage=usage, description=inspect.getdoc(function), exit_on_error=False
    )
    parser.add_argument("--config", action="config", help="file with options, such as the config.yaml of a run")
    parser.add_function_arguments(function, fail_untyped=True)
    summary = (inspect.getdoc(function) or "").split("\n")[0]
    parser.description = summary
    files, named, options = _as_options(parser, function, words, positionals)
    groups = {name.partition(".")[0].removeprefix("--") for name in _names(parser) if "." in name} | _mappings(parser)
    options = [*named, *(_checked(option, groups) for option in options)]
    keys = [option for option in options if _mapping_of(option, parser)]
    options = [option for option in options if option not in keys]
    try:
        contents = [f"--config={NO_PATH}{read_options(file, groups)}" for file in files]
        # files first: whatever the order, the command line has the last word
        arguments = parser.parse_args([*contents, *options], env=False)
        arguments.pop("config", None)
        for option in keys:
            mapping = _mapping_of(option, parser)
            arguments[mapping] = _with_key(arguments[mapping] or {}, option.removeprefix(f"--{mapping}."))
        return parser.instantiate(arguments)
    except UserError:
        raise
    except Exception as error:
        raise UserError(_explained(" ".join(str(error).split()), parser, files, options)) from None


def _checked(option: str, groups: Collection[str]) -> str:
    """An option without a name of code in it, see :func:`retinanet.cli.values.read_option`."""
    name, equals, text = option.partition("=")
    return f"{name}={read_option(name, text, mapping=name[2:] in groups)}" if equals else option


def _explained(reason: str, parser: ArgumentParser, files: Sequence[str], options: Sequence[str]) -> str:
    """The parser's message in the words of the command line, with the file and the nearest name."""
    reason = re.sub(r"<class '(\w+)'>", r"\1", reason).replace("typing.Literal", "one of ")
    reason = reason.replace("Expected a one of", "expected one of")
    reason = re.sub(r'^Parser key "([^"]+)": ', r"--\1: ", reason)
    reason = re.sub(r"the following arguments are required: (.+)", rf"missing: \1. usage: {parser.usage}", reason)
    unknown = re.search(r"(?:Group '([^']+)' does not accept o|O)ption '([^']+)'", reason)
    if unknown:
        name = ".".join(part for part in unknown.groups() if part)
        reason = f"unknown option {name}{_nearest(f'--{name}', _names(parser)).replace('--', '')}"
    given = [word.partition("=")[0] for word in options]
    if files and not reason.startswith(("missing:", *(f"{name}:" for name in given))):
        return f"{', '.join(files)}: {reason.removeprefix('--')}"
    return reason


def _mapping_of(option: str, parser: ArgumentParser) -> str:
    """The mapping that an option sets a key of: ``architecture`` for --architecture.norm, "" for other options."""
    name = option.partition("=")[0]
    return next((mapping for mapping in _mappings(parser) if name.startswith(f"--{mapping}.")), "")


def _mappings(parser: ArgumentParser) -> set[str]:
    return {action.dest for action in parser._actions if "dict" in str(getattr(action, "_typehint", ""))}


def _with_key(mapping: Mapping[str, Any], option: str) -> dict[str, Any]:
    """The mapping with one key, ``anchors.sizes=[1, 2]``, set."""
    path, _, text = option.partition("=")
    key, _, rest = path.partition(".")
    if rest:
        inner = mapping.get(key)
        return {**mapping, key: _with_key(inner if isinstance(inner, Mapping) else {}, f"{rest}={text}")}
    try:
        value = load_plain(text)
    except yaml.YAMLError:
        value = text
    with suppress(ValueError):  # 1e-3 is a text to YAML 1.1
        value = float(value) if isinstance(value, str) else value
    return {**mapping, key: value}


def _names(parser: ArgumentParser) -> set[str]:
    return {name for action in parser._actions for name in action.option_strings}


def _nearest(name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(name, sorted(known), n=1)
    return f", did you mean {nearest[0]}?" if nearest else "; see --help"


def _as_options(
    parser: ArgumentParser, function: Callable[..., Any], words: Sequence[str], positionals: Sequence[str]
) -> tuple[list[str], list[str], list[str]]:
    """The configuration files, the positionals with their names, and the options: full names, every switch a value."""
    known = _names(parser)
    parameters = inspect.signature(function, eval_str=True).parameters
    switches = {name for action in parser._actions if _is_switch(action) for name in action.option_strings}
    files: list[str] = []
    options: list[str] = []
    loose: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("-") or word == "-":
            loose.append(word)
            continue
        name, equals, value = word.partition("=")
        name = "--" + name[2:].replace("-", "_") if name.startswith("--") else name
        name = name if _mapping_of(name, parser) else _in_full(name, known)
        if name in ("-h", "--help", "--print_config"):
            options.append(name)
        elif equals:
            files.append(value) if name == "--config" else options.append(f"{name}={value}")
        elif name in switches and not (rest and rest[0].lower() in ("true", "false")):
            options.append(f"{name}=true")
        elif rest and not rest[0].startswith("--"):
            value = rest.pop(0)
            files.append(value) if name == "--config" else options.append(f"{name}={value}")
        else:
            raise UserError(f"option {name} needs a value")
    return files, _named(loose, positionals, parameters), options


def _is_switch(action: Any) -> bool:
    return getattr(action, "_typehint", None) is bool or action.type is bool


def _in_full(name: str, known: set[str]) -> str:
    """The option with its group: --devices is --run.devices, as long as no other group has devices."""
    if name in known:
        return name
    grouped = [one for one in known if one.endswith(f".{name[2:]}")] if name.startswith("--") else []
    if len(grouped) == 1:
        return grouped[0]
    if grouped:
        raise UserError(f"option {name} could be {' or '.join(sorted(grouped))}: write one of them")
    raise UserError(f"unknown option {name}{_nearest(name, known)}")


def _named(loose: Sequence[str], positionals: Sequence[str], parameters: Any) -> list[str]:
    named: list[str] = []
    left = list(loose)
    for name in positionals:
        if not left:
            break
        if parameters[name].annotation in (list[str],):
            named.append(f"--{name}={json.dumps(left)}")
            left = []
        else:
            named.append(f"--{name}={left.pop(0)}")
    if left:
        raise UserError(f"unexpected argument {left[0]!r}: expected {' '.join(name.upper() for name in positionals)}")
    return named
