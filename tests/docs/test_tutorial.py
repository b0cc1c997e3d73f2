"""The tutorial, from its first block to its last, as somebody types it; only the training is shorter."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

from retinanet.cli.main import main

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
BLOCK = re.compile(r'^```(python|yaml|sh)(?: title="(.+?)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
SHORTER = {"epochs: 16": "epochs: 1", "train=80": "train=8", "score=0.3": "score=0.0"}


def start_server(words, port):
    """Runs ``retinanet serve`` in a process of its own until it says that it listens."""
    command = [sys.executable, "-m", "retinanet.cli.main", *words, "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said = next((line for line in server.stdout if "http://" in line), None)
    assert said and str(port) in said, said
    return server


def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1] / "src"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    names, commands, server = {"__name__": "__main__"}, [], None
    text = PAGE.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    try:
        for language, title, block in BLOCK.findall(text):
            if language == "yaml":
                Path(title).write_text(block)
            elif language == "python":
                exec(compile(block, str(PAGE), "exec"), names)
            for line in block.splitlines() if language == "sh" else ():
                first, *words = shlex.split(line, comments=True)
                commands.append(words[0])
                if words[0] == "serve":
                    server = start_server(words, port)
                elif first == "curl":
                    answer = subprocess.run(line.replace("8000", str(port)), shell=True, capture_output=True, text=True)
                    assert '"detections"' in answer.stdout, answer
                else:
                    assert main(words) == 0, capsys.readouterr().err
    finally:
        if server:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
            server.stdout.close()
    told = {"check", "plan", "train", "evaluate", "diagnose", "why", "predict", "export", "serve"}
    assert told <= set(commands)
    assert server and server.returncode == 0 and os.path.exists("found/detections.json")
