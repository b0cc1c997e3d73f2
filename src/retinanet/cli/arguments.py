"""A function's parameters as a command line, with jsonargparse: names, types and help come from the function."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Sequence
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from retinanet.types import UserError


def parse(function: Callable[..., Any], words: Sequence[str], *, positionals: Sequence[str], usage: str) -> Namespace:
    """The arguments for ``function``, from a command line and the configuration files that it names.

    Words without a dash are the positionals, in order; the last one takes all that are left where its type is a list.
    Options may be written with dashes or underscores; a switch needs no value.

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
    parser.add_function_arguments(function, fail_untyped=True, sub_configs=True)
    summary = (inspect.getdoc(function) or "").split("\n")[0]
    parser.description = summary
    options = _as_options(parser, function, words, positionals)
    try:
        arguments = parser.parse_args(options)
    except SystemExit as stop:
        if stop.code == 0:
            raise
        raise UserError("unusable arguments, see above") from None
    except Exception as error:
        raise UserError(" ".join(str(error).split())) from None
    arguments.pop("config", None)
    return parser.instantiate_classes(arguments)


def _as_options(
    parser: ArgumentParser, function: Callable[..., Any], words: Sequence[str], positionals: Sequence[str]
) -> list[str]:
    """The words with every positional named, every switch given a value and every name known."""
    known = {name for action in parser._actions for name in action.option_strings}
    parameters = inspect.signature(function, eval_str=True).parameters
    switches = {f"--{name}" for name, parameter in parameters.items() if parameter.annotation is bool}
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
        _check_known(name, known)
        if name in ("-h", "--help") or name == "--print_config":
            options.append(name)
        elif equals:
            options.append(f"{name}={value}")
        elif name in switches and not (rest and rest[0].lower() in ("true", "false")):
            options.append(f"{name}=true")
        elif rest:
            options.append(f"{name}={rest.pop(0)}")
        else:
            raise UserError(f"option {name} needs a value")
    return [*_named(loose, positionals, parameters), *options]


def _check_known(name: str, known: set[str]) -> None:
    # the keys of a dictionary follow its name: --architecture.norm
    if name in known or any(name.startswith(f"{one}.") for one in known):
        return
    nearest = difflib.get_close_matches(name, known, n=1)
    raise UserError(f"unknown option {name}" + (f", did you mean {nearest[0]}?" if nearest else "; see --help"))


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
