"""The Dockerfile, read without docker: what it copies is there, what it starts is a command, and not as root."""

import json
import re
from pathlib import Path

from retinanet import serve
from retinanet.cli.arguments import parse

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"^#.*\n|\\\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line]


def last(word):
    return [rest for first, rest in STEPS if first == word][-1]


def test_what_is_copied_is_there_and_sent():
    sent = re.findall(r"^!(.+)", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    copies = [rest.split()[:-1] for first, rest in STEPS if first == "COPY" and "--from" not in rest]
    named = [name for names in copies for name in names]
    assert sorted(named) == sorted(sent) and all((ROOT / name).exists() for name in named)


def test_it_starts_a_server_that_is_reached_and_is_not_root():
    program, command, *words = json.loads(last("ENTRYPOINT")) + json.loads(last("CMD"))
    arguments = parse(serve, words, positionals=("model",), usage="")
    assert (program, command) == ("retinanet", "serve")
    assert (arguments["model"], arguments["host"], str(arguments["port"])) == ("/model", "0.0.0.0", last("EXPOSE"))
    assert int(last("USER")) > 0


def test_its_health_check_asks_the_server(client, monkeypatch):
    program, option, code = json.loads(last("HEALTHCHECK").partition("CMD")[2])
    assert (program, option) == ("python", "-c") and f"127.0.0.1:{last('EXPOSE')}/" in code
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    exec(code.replace(last("EXPOSE"), str(client.port)), {})
