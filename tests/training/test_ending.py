"""However a run ends, all its processes end, with one message where the user can do something about it."""

import os
import select
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from retinanet.detector import Detector
from retinanet.spec import TENSORS
from retinanet.training.resume import STATE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process groups, named pipes, limits of files")
SCRIPT = Path(__file__).with_name("ending.py")
HANG = 120.0  # seconds without a word after which a run will never end
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def environment():
    return {key: value for key, value in os.environ.items() if key not in LAUNCHER}


def read_to_end(pipe, group):
    """What the processes of a group say until the last one of them has ended."""
    said = b""
    while select.select([pipe], [], [], HANG)[0]:
        if not (piece := os.read(pipe, 65536)):
            return said.decode()
        said += piece
    os.killpg(group, signal.SIGKILL)
    pytest.fail(f"the run never ends; it said {said.decode()}")


@pytest.fixture(scope="module")
def server():
    with subprocess.Popen(
        [sys.executable, SCRIPT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment()
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def end(server, data, tiny_words, tmp_path):
    """Start a run and let it end; returns its exit code and what was said."""

    def run(case, *words, workers=2, method="fork"):
        output = tmp_path / "said"
        os.mkfifo(output)
        options = [*tiny_words, "--run.workers", str(workers), "--output", str(tmp_path / "run"), *words]
        server.stdin.write(" ".join([case, method, str(output), str(data), *options]) + "\n")
        server.stdin.flush()
        group = int(server.stdout.readline())
        pipe = os.open(output, os.O_RDONLY)
        try:
            said = read_to_end(pipe, group)
        finally:
            os.close(pipe)
        print(said)  # pytest shows it where the test fails
        return int(server.stdout.readline()), said

    return run


def step_of(folder):
    return torch.load(folder / STATE, weights_only=True)["progress"]["step"]


@pytest.mark.parametrize(
    ("case", "workers", "method"),
    [
        *[(case, workers, "fork") for case in ("step", "dataset", "evaluation") for workers in (0, 2)],
        ("step", 1, "spawn"),  # of these workers each imports torch anew
    ],
)
def test_an_exception(end, case, workers, method):
    code, said = end(case, workers=workers, method=method)
    assert code == 1 and "Traceback" in said and "RuntimeError: out of luck" in said


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("forkserver", 1)])
def test_the_parent_is_killed(end, method, workers):
    assert end("killed", method=method, workers=workers)[0] == -signal.SIGKILL


def test_a_worker_is_killed(end, tmp_path):
    code, said = end("worker-killed", "--epochs", "20")
    assert code == 2 and "Traceback" not in said
    assert "retinanet train: a process that reads images was killed" in said and "--run.workers 0" in said
    assert step_of(tmp_path / "run") >= 3
    assert "The state after step" in said and "--resume" in said


def test_a_worker_of_the_evaluation_is_killed(end, tmp_path):
    code, said = end("evaluation-worker-killed", "--epochs", "1", "--batch-size", "1")
    assert code == 0 and "was killed" in said and "evaluation is done again" in said
    assert step_of(tmp_path / "run") == 6


def test_the_shared_memory_is_full(end):
    code, said = end("no-shared-memory")
    assert code == 2 and "Traceback" not in said
    assert "the shared memory for images is full" in said and "/dev/shm" in said


@pytest.mark.parametrize("workers", [0, 2])
def test_the_disk_is_full(end, tmp_path, workers):
    code, said = end("disk-full", workers=workers)
    folder = tmp_path / "run"
    assert code == 2 and "Traceback" not in said
    assert f"{folder / 'last' / TENSORS} cannot be written (File too large). It takes about" in said
    assert not list(folder.rglob(".*"))  # drafts, and what safetensors writes first
    assert Detector.load(folder).spec.metrics["epoch"] == 1 and step_of(folder) == 2


def test_the_disk_is_full_at_the_state(end, tmp_path):
    code, said = end("disk-full-at-state")
    folder = tmp_path / "run"
    assert code == 2 and "Traceback" not in said and f"{folder / STATE} cannot be written (File too large)" in said
    assert not list(folder.rglob(".*")) and Detector.load(folder).spec.metrics["epoch"] == 1


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("workers", [0, 2])
def test_a_signal_to_all_when_nobody_reads(end, tmp_path, number, workers):
    code, _ = end(number, workers=workers)
    assert code == 130 and step_of(tmp_path / "run") == 2


def test_the_first_of_two_ranks_is_killed(data, tiny_words, tmp_path):
    output = tmp_path / "said"
    os.mkfifo(output)
    words = ["rank-killed", "fork", output, data, *tiny_words, "--batch-size", "2", "--epochs", "20"]
    options = ["--run.workers", "1", "--run.devices", "2", "--output", tmp_path / "run"]
    with subprocess.Popen(
        [sys.executable, SCRIPT, *map(str, [*words, *options])], env=environment(), start_new_session=True
    ) as process:
        pipe = os.open(output, os.O_RDONLY)
        said = read_to_end(pipe, process.pid)
        os.close(pipe)
    assert process.returncode == -signal.SIGKILL
    assert "retinanet train: another process of the run has ended" in said and "Traceback" not in said


def test_a_script_without_a_main_guard(data, tiny_words, tmp_path):
    script = tmp_path / "script.py"
    words = ["train", str(data), *tiny_words, "--run.workers", "1", "--output", str(tmp_path / "run")]
    script.write_text(
        "import multiprocessing, sys\n"
        "from retinanet.cli.main import main\n"
        "multiprocessing.set_start_method('spawn', force=True)\n"
        f"sys.exit(main({words!r}))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, env=environment(), timeout=5 * HANG, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    assert done.stderr.count('under `if __name__ == "__main__":`') == 1
    assert step_of(tmp_path / "run") == 0


def test_the_model_has_the_permissions_that_the_umask_leaves(trained):
    modes = {stat.S_IMODE((trained / name).stat().st_mode) for name in (TENSORS, "config.json", STATE, "log.csv")}
    before = os.umask(0o22)
    os.umask(before)
    assert modes == {0o666 & ~before}
