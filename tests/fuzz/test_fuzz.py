"""A short run of the fuzzer, and that it can fail."""

import contextlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits of memory, named pipes")
KINDS = ("export", "format", "image", "model", "options", "weights")


def test_changed_files_are_read_or_refused(tmp_path):
    """Each kind has both, so that neither the changes nor the readers do nothing."""
    words = [sys.executable, str(HERE), "--seed", "0", "--budget", "500", "--output", str(tmp_path / "failed")]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=600, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    assert "seed 0: 500 inputs" in done.stdout and list((tmp_path / "failed").iterdir()) == []
    told = [line.split() for line in done.stdout.splitlines() if len(line.split()) == 3]
    assert {(kind, result) for kind, result, _ in told} == {
        (k, result) for k in KINDS for result in ("read", "refused")
    }


def allocate(_):
    return bytearray(4 * 10**8)


def hang(_):
    while True:
        pass


def write_elsewhere(_):
    Path("elsewhere").write_text("x")


def start_process(_):
    with contextlib.suppress(OSError):  # told all the same
        subprocess.run(["true"])


@pytest.mark.parametrize(
    ("use", "expected"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError"),
        (hang, "it takes over 0.05 s"),
        (allocate, "MemoryError"),
        (write_elsewhere, "'elsewhere' for writing"),
        (start_process, "it starts a process"),
        (lambda _: int("x"), "refused"),
        (lambda folder: (folder.parent / "beside").write_text("x"), "read"),
    ],
)
def test_faults_are_noticed(tmp_path, monkeypatch, limits, use, expected):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "home" / "input"
    folder.mkdir(parents=True)
    assert expected in limits.attempt(use, folder, ValueError, seconds=0.05, megabytes=300)


@pytest.fixture(scope="module")
def limits():
    spec = importlib.util.spec_from_file_location("limits", HERE / "limits.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
