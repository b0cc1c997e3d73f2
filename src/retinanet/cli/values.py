"""What an option may hold: values, never code.

jsonargparse reads a mapping with ``class_path`` as an order to import a module and call what it names. No option of
ours wants that, so such a mapping is refused before jsonargparse sees it, wherever it stands.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings

from retinanet.errors import UserError
from retinanet.yaml_files import dump_plain, load_plain, read_mapping

NAMING_CODE = ("class_path", "init_args", "dict_kwargs")
MAY_BE_NESTED = frozenset("{[:?\n")  # a text without any of these holds no list and no mapping

# A second door behind the first: should a name of code come through, jsonargparse neither imports nor calls it.
set_parsing_settings(instantiate_subclass_spec_in_any=False, import_path_denylist=["*"])


def read_options(file: str, mappings: Collection[str]) -> str:
    """The options in a configuration file, checked, as YAML for the parser.

    Args:
        file: YAML or JSON.
        mappings: options that are mappings or groups of options; a text in their place could name a file or code.

    Raises:
        UserError: the file cannot be read, or an option names code or another file.
    """
    options = read_mapping(Path(file))
    refuse_code(options, file)
    if "config" in options:
        raise UserError(f"{file}: a configuration cannot name another (config). Pass --config twice")
    for name in set(options) & set(mappings):
        if options[name] is not None and not isinstance(options[name], Mapping):
            raise UserError(f"{file}: {name}: expected a mapping 'key: value', got {options[name]!r}")
    return dump_plain(options)


def read_option(option: str, text: str, *, mapping: bool) -> str:
    """The text of one option of the command line, checked.

    Args:
        option: its name, ``--image.short``.
        text: its value.
        mapping: the option is a mapping or a group of options.

    Raises:
        UserError: its name or value names code, or it should be a mapping and is none.
    """
    _check_name(option.removeprefix("--"), option)
    if not mapping:
        if MAY_BE_NESTED & set(text):
            refuse_code(text, option)
        return text
    try:
        value = load_plain(text)
    except yaml.YAMLError as error:
        raise UserError(f"{option}: cannot be read as YAML ({' '.join(str(error).split())})") from None
    refuse_code(value, option)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{option}: expected a mapping, such as {option}.KEY=VALUE, got {text!r}")
    return dump_plain(value)


def refuse_code(value: Any, where: str) -> None:
    """Refuse a mapping that names code, at any depth, also one that is written in a text.

    Raises:
        UserError: it does; ``where`` is named.
    """
    if isinstance(value, Mapping):
        for key, inner in value.items():
            _check_name(str(key), where)
            refuse_code(inner, where)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            refuse_code(inner, where)
    elif isinstance(value, str) and MAY_BE_NESTED & set(value):
        try:
            loaded = load_plain(value)
        except yaml.YAMLError:
            return  # a text, such as *.jpg
        if not isinstance(loaded, str):
            refuse_code(loaded, where)


def _check_name(name: str, where: str) -> None:
    for part in name.split("."):
        if part.strip() in NAMING_CODE or part.startswith("__"):
            raise UserError(f"{where}: {name!r} names code, and options hold values only. Remove it and what it holds")
