"""``retinanet completion``: commands and options completed by a shell."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Literal

from retinanet.cli.arguments import find_options, read_signature
from retinanet.cli.help import build_parser
from retinanet.exchange import require


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> str:
    """Print the script with which a shell completes commands, options and their values (needs ``pip install shtab``).

    Args:
        shell: bash, zsh or tcsh. For bash, write it to ~/.local/share/bash-completion/completions/retinanet.

    Returns:
        The script.

    Raises:
        UserError: shtab is not installed.
    """
    shtab = require("shtab", "completion")
    from retinanet.cli.main import COMMANDS, find_function

    whole = ArgumentParser(prog="retinanet")
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        function = find_function(name)
        defaults, required = read_signature(function)
        known = dict(find_options(defaults, {}))
        parser = build_parser(function, known, required, "", shtab.FILE)
        words = commands.add_parser(name, parents=[parser], add_help=False, help=command.about)
        words.add_argument("words", nargs="*").complete = shtab.FILE  # type: ignore[attr-defined]  # which shtab reads
    return str(shtab.complete(whole, shell))
