"""The command: what it prints, how it stops, what it refuses, and that it needs no torch."""

import os
import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest

import retinanet
from retinanet.cli.main import main
from retinanet.errors import UserError
from retinanet.serving.serve import listen

COMMAND = """
import sys, threading
from retinanet.cli.main import main
code = main(["serve", *sys.argv[1:]])
print(sorted({"torch", "torchvision", "timm", "matplotlib"} & set(sys.modules)), code)
"""


def begin(*words, **environment):
    """Start the command in a process; returns it and its address."""
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words, "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if found := re.search(r"http://\S+:(\d+)", line):
            return process, int(found[1]), "".join(lines)
    raise AssertionError(process.stderr.read())


@pytest.mark.parametrize(
    ("number", "file", "backend"),
    [(signal.SIGTERM, "model.onnx", "ONNX Runtime fp32"), (signal.SIGINT, "model.xml", "OpenVINO fp32")],
)
def test_it_serves_without_torch_until_it_is_told_to_stop(graphs, picture, tmp_path, number, file, backend):
    graphs.write(tmp_path / "peak" / file, graphs.CARD.to_json())
    process, port, text = begin(str(tmp_path / "peak"))
    try:
        assert text == f"peak ({backend}) at http://127.0.0.1:{port}; stop with Ctrl-C\n"
        answer = httpx.post(f"http://127.0.0.1:{port}/detect", content=picture(), trust_env=False, timeout=60)
        assert answer.status_code == 200
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        assert (out, errors) == ("stopped\n[] 0\n", "")
    finally:
        process.kill()


def test_an_address_for_others_is_told_and_a_token_of_the_environment_is_used(peak_model):
    process, port, text = begin(str(peak_model), "--host", "0.0.0.0", RETINANET_TOKEN="abc")
    try:
        assert "listening on 0.0.0.0: whoever has the token can send images" in text
        assert "abc" not in text
        url = f"http://127.0.0.1:{port}"
        assert httpx.get(f"{url}/model", trust_env=False).status_code == 401
        answer = httpx.get(f"{url}/model", headers={"Authorization": "Bearer abc"}, trust_env=False)
        assert answer.status_code == 200
        assert httpx.get(f"{url}/v2/health/ready", headers={"Host": "any.example"}, trust_env=False).status_code == 200
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_what_is_in_work_is_finished(start, peak_model, picture):
    """The server is told to stop while the network runs."""
    from retinanet.inference.predictor import Predictor

    predictor = Predictor.load(peak_model)
    entered, gate, run = threading.Event(), threading.Event(), predictor.backend.run

    def wait_and_run(images):
        entered.set()
        assert gate.wait(30)
        return run(images)

    predictor.backend.run = wait_and_run
    answers = []
    with start(predictor) as client:
        url = f"http://127.0.0.1:{client.port}/detect"
        asking = threading.Thread(
            target=lambda: answers.append(httpx.post(url, content=picture(), trust_env=False, timeout=30))
        )
        asking.start()
        assert entered.wait(30)
        threading.Timer(0.3, gate.set).start()
    asking.join(30)
    assert answers[0].status_code == 200


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--port", "70000"], "port is from 0 to 65535"),
        (["--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (["--queue", "2"], "queue (2) is smaller than max_images (16)"),
        (["--max_bytes", "0"], "max_bytes is at least 1"),
        (["--timeout", "0"], "timeout is a number of seconds above 0"),
        (["--token", ""], "a token is at least one character"),
        (["--token", "two words"], "a token is at least one character"),
        (["--images", "/nowhere"], "is no folder"),
        (["--label_studio", "somewhere"], "label_studio is an address"),
    ],
)
def test_options_that_cannot_be_used(peak_model, capsys, words, expected):
    assert main(["serve", str(peak_model), "--port", "0", *words]) == 2
    assert expected in capsys.readouterr().err


def test_an_unknown_model_and_a_port_in_use(tmp_path, peak_model):
    with pytest.raises(UserError, match="nothing"):
        retinanet.serve(str(tmp_path / "nothing"), port=0)
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="Choose another --port"):
        retinanet.serve(str(peak_model), port=taken.getsockname()[1])


def test_a_missing_extra(peak_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    with pytest.raises(UserError, match=r'fastapi is not installed.*pip install "retinanet\[serve\]"'):
        retinanet.serve(str(peak_model), port=0)
