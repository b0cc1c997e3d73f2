"""A function's parameters as a command line: names, types and help come from its signature and docstrings.

Nothing that a user writes is ever imported or called: an option's value is a text or plain YAML, and
:func:`retinanet.plain.with_changes` decides whether it has the type of its parameter.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import is_dataclass, make_dataclass
from itertools import takewhile
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml

from retinanet.cli.help import Option, build_parser, read_descriptions
from retinanet.errors import UserError
from retinanet.options import find_full_names, suggest_option
from retinanet.plain import option_fields, to_plain, with_changes
from retinanet.yaml_files import dump_plain, load_plain, read_mapping

NAMING_CODE = ("class_path", "init_args", "dict_kwargs")  # what other tools take for an order to call something
NUMBER = r"-?[\d.]+(e-?\d+)?,?"
MAY_BE_NESTED = frozenset("{[:?\n")  # a text without any of these holds no list and no mapping


def parse(
    function: Callable[..., Any],
    words: Sequence[str],
    *,
    positionals: Sequence[str],
    usage: str,
    aliases: Mapping[str, str] | None = None,
    bases: Mapping[str, Callable[[str], Mapping[str, Any]]] | None = None,
) -> dict[str, Any]:
    """The arguments for ``function``, from a command line and the configuration files that it names.

    Words without a dash are the positionals that are not given by name, in order; the last one takes all that are left
    where its type is a list. Options may be written with dashes or underscores, and without their group where only one
    group has them; a switch needs no value. The command line has the last word over files, a file over those before.

    Args:
        function: its signature and docstring make the options.
        words: the command line after the command.
        positionals: parameters that may be given without their name.
        usage: first line of the help.
        aliases: other names of options.
        bases: options whose value decides what the other options are where nothing else sets them.

    Raises:
        UserError: an unknown option or an unusable value. SystemExit: the help or the configuration was printed.
    """
    defaults, required = read_signature(function)
    known = dict(find_options(defaults, read_descriptions(function)))
    if {"-h", "--help"} & set(words):
        print(build_parser(function, known, required, usage).format_help(), end="")
        raise SystemExit(0)

    printing = {"--print_config", "--print-config"}
    lacking = [name for name in positionals if name in required and f"--{name}" not in words]
    words_left = [word for word in words if word not in printing]
    files, given, loose = split_words(words_left, known, aliases or {}, len(lacking))
    named = {**name_positionals(loose, [name for name in positionals if name not in given], known), **given}
    options: dict[str, Any] = {}
    contents = [read_mapping(Path(file)) for file in files]
    for name, find_base in (bases or {}).items():
        chosen = [str(content[name]) for content in (*contents, named) if name in content]
        set_option(options, "", find_base(chosen[-1]) if chosen else {}, known)
    for file, content in zip(files, contents, strict=True):
        refuse_code(content, file)
        set_option(options, "", content, known)
    for name in sorted(named, key=lambda name: name.count(".")):  # a mapping before its keys
        set_option(options, name, named[name], known)

    try:
        value = with_changes(defaults, options, "")
    except UserError as error:
        option = re.match(r"[\w.]*", str(error))
        if option and option[0] in named:
            raise UserError(f"--{error}") from None
        raise UserError(f"{', '.join(files)}: {error}" if files else str(error)) from None
    if printing & set(words):
        print(dump_plain(to_plain(value)), end="")
        raise SystemExit(0)
    if missing := [name for name in required if name not in options]:
        raise UserError(f"missing: {', '.join(missing)}. usage: {usage}")
    return dict(vars(value))


def read_signature(function: Callable[..., Any]) -> tuple[Any, list[str]]:
    """The parameters of a function as a dataclass with its defaults, and which of them have none.

    Left out are those that no text can be, sequences of any objects.
    """
    signature = inspect.signature(function, eval_str=True).parameters
    parameters = {name: one for name, one in signature.items() if one.annotation != Sequence[object]}
    required = [name for name, one in parameters.items() if one.default is one.empty]
    fields = [(name, one.annotation, None if name in required else one.default) for name, one in parameters.items()]
    return make_dataclass("Options", fields, frozen=True)(), required


def find_options(defaults: Any, texts: Mapping[str, str], group: str = "") -> Iterator[tuple[str, Option]]:
    """The fields of a dataclass with defaults by their dotted names; a field that is a dataclass precedes its own."""
    hints = get_type_hints(type(defaults))
    for entry in option_fields(defaults):
        name, hint, default = f"{group}{entry.name}", hints[entry.name], getattr(defaults, entry.name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        yield name, Option(kinds, default, texts.get(entry.name, ""))
        if is_dataclass(default):
            yield from find_options(default, read_descriptions(type(default)), f"{name}.")


def split_words(
    words: Sequence[str], known: Mapping[str, Option], aliases: Mapping[str, str], needed: int = 0
) -> tuple[list[str], dict[str, Any], list[str]]:
    """The configuration files, the values of the options by full name, and the words that belong to no option.

    A list takes the words behind it up to the next option, but those that ``needed`` positionals still lack.
    """
    files: list[str] = []
    given: dict[str, Any] = {}
    loose: list[str] = []
    rest = list(words)
    while rest:
        word, equals, text = rest.pop(0).partition("=")
        if not word.startswith("-") or word == "-":
            loose.append(word + equals + text)
            continue
        name = find_name(word, known, aliases)
        if not equals:
            if name in known and bool in known[name].kinds and not (rest and rest[0].lower() in ("true", "false")):
                text = "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
                count = count_more(text, rest, known[name].kinds if name in known else (), needed - len(loose))
                if count:
                    text, rest = ",".join(one.rstrip(",") for one in [text, *rest[:count]]), rest[count:]
            else:
                raise UserError(f"option {word} needs a value")
        if name == "config":
            files.append(text)
        else:
            refuse_code({name: text}, f"--{name}")
            given[name] = read_text(text, known[name].kinds if name in known else ())
    return files, given, loose


def count_more(text: str, rest: Sequence[str], kinds: Sequence[Any], spared: int) -> int:
    """How many of the words behind the first of a list belong to it as well; ``spared`` ones belong to positionals."""
    behind = list(takewhile(lambda word: not re.match(r"-\D", word), rest))
    if text.startswith(("[", "{")) or not (is_list(kinds) or (not kinds and re.fullmatch(NUMBER, text))):
        return 0
    fitting = behind if list[str] in kinds else list(takewhile(re.compile(NUMBER).fullmatch, behind))
    return min(len(fitting), max(0, len(behind) - max(0, spared)))


def is_list(kinds: Sequence[Any]) -> bool:
    """Whether an option may be a list."""
    return any(get_origin(kind) in (list, tuple) for kind in kinds)


def find_name(word: str, known: Mapping[str, Option], aliases: Mapping[str, str]) -> str:
    """The full name of an option: ``--devices`` is run.devices, as long as no other group has devices."""
    name = word.removeprefix("--").replace("-", "_")
    name = aliases.get(name, name)
    mappings = [one for one, option in known.items() if any(get_origin(kind) is dict for kind in option.kinds)]
    is_key = any(name.startswith(f"{mapping}.") for mapping in mappings)
    if word.startswith("--") and (name in known or name == "config" or is_key):
        return name
    grouped = find_full_names(name, known) if word.startswith("--") else []
    if len(grouped) == 1:
        return grouped[0]
    if grouped:
        raise UserError(f"option {word} could be {' or '.join(f'--{one}' for one in grouped)}: write one of them")
    raise UserError(f"unknown option {word}{suggest_option(name.lstrip('-'), known, '--{}'.format)} See --help")


def name_positionals(loose: Sequence[str], positionals: Sequence[str], known: Mapping[str, Option]) -> dict[str, Any]:
    """The values of positionals, in order, by their names."""
    named: dict[str, Any] = {}
    left = list(loose)
    for name in positionals:
        if left:
            named[name], left = (left, []) if list[str] in known[name].kinds else (left[0], left[1:])
    if left:
        raise UserError(f"unexpected argument {left[0]!r}: expected {' '.join(name.upper() for name in positionals)}")
    return named


def read_text(text: str, kinds: Sequence[Any]) -> Any:
    """The value that a word stands for: the text itself where the option may be a text, else what it says in YAML."""
    if text == "null" and NoneType in kinds:
        return None
    words = {word for kind in kinds if get_origin(kind) is Literal for word in get_args(kind)}
    others = [kind for kind in kinds if get_origin(kind) is not Literal and kind is not NoneType]
    if text in words or (words and not others) or str in others or Path in others:
        return text
    if list[str] in kinds and not text.startswith("["):
        return text.split(",")
    if not text.startswith(("[", "{")) and (is_list(kinds) or (not kinds and "," in text)):
        text = f"[{text}]"
    try:
        return load_plain(text)
    except yaml.YAMLError:
        return text


def set_option(options: dict[str, Any], name: str, value: Any, known: Mapping[str, Option]) -> None:
    """Set an option by its dotted name among nested options; a group keeps what its value does not name."""
    if isinstance(value, Mapping) and (not name or (name in known and is_dataclass(known[name].default))):
        for key, inner in value.items():
            set_option(options, f"{name}.{key}".removeprefix("."), inner, known)
        return
    *path, last = name.split(".")
    for part in path:
        if not isinstance(options.get(part), dict):
            options[part] = {}
        options = options[part]
    options[last] = value


def refuse_code(value: Any, where: str) -> None:
    """Refuse values that name code, at any depth, also inside a text. They are never run, only refused.

    Raises:
        UserError: one does; ``where`` is named.
    """
    if isinstance(value, str) and MAY_BE_NESTED & set(value):
        try:
            loaded = load_plain(value)
        except yaml.YAMLError:
            return  # a text, such as *.jpg
        value = None if isinstance(loaded, str) else loaded
    if isinstance(value, Mapping):
        for name in value:
            if any(part.strip() in NAMING_CODE or part.startswith("__") for part in str(name).split(".")):
                raise UserError(
                    f"{where}: {name!r} names code, and options hold values only. Remove it and what it holds"
                )
        value = list(value.values())
    for inner in value if isinstance(value, list | tuple | set) else ():
        refuse_code(inner, where)
