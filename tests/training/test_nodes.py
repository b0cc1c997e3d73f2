"""torchrun on two machines, which here are two launchers on loopback: train, go on as one process, lose a process."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retinanet.cli.main import main
from retinanet.training.log import read_log


def launch(words, rank, port, folder):
    """The launcher of one machine; its output is in a file."""
    environment = {name: value for name, value in os.environ.items() if name != "MASTER_ADDR"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    launcher = ["torch.distributed.run", "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1"]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--max-restarts", "0"]
    command = [sys.executable, "-m", *launcher, "-m", "retinanet.cli.main", *words]
    with (folder / f"rank{rank}.txt").open("w") as output:
        return subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)


@pytest.fixture
def start(tmp_path):
    """Starts two machines; what is still running after a test is killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    machines = []

    def begin(words):
        machines.extend(launch(words, rank, port, tmp_path) for rank in (0, 1))
        return machines

    yield begin
    for machine in machines:
        if machine.poll() is None:
            machine.kill()
        machine.wait()


def words_for(data, tiny_words, output):
    options = "--plan none --epochs 8 --batch-size 2 --run.evaluate-every 8 --architecture.norm frozen"
    return ["train", str(data), *tiny_words, *options.split(), "--run.save-every", "1", "--output", str(output)]


def children_of(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rsplit(")", 1)[1].split()[1]) == pid:
                found.append(int(stat.parent.name))
        except OSError:
            continue
    return found


def test_two_machines_a_killed_process_and_one_machine_that_goes_on(data, tiny_words, tmp_path, start):
    words = words_for(data, tiny_words, tmp_path / "two")
    log = tmp_path / "two" / "log.csv"
    machines = start(words)
    while all(machine.poll() is None for machine in machines) and not (log.exists() and len(read_log(log)) > 2):
        time.sleep(0.05)
    (process,) = children_of(machines[1].pid)
    os.kill(process, signal.SIGKILL)
    killed = time.monotonic()
    assert machines[0].wait(120) != 0 and time.monotonic() - killed < 60
    text = (tmp_path / "rank0.txt").read_text()
    assert text.count("retinanet train: another process of the run has ended") == 1, text[-3000:]
    assert "Traceback" not in text.split("retinanet train: another")[0]

    assert main([*words, "--resume"]) == 0
    assert main(words_for(data, tiny_words, tmp_path / "one")) == 0
    two, one = (read_log(tmp_path / name / "log.csv") for name in ("two", "one"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    for row, other in zip(two, one, strict=True):
        assert row["loss"] == other["loss"] == "" or float(row["loss"]) == pytest.approx(float(other["loss"]), rel=2e-3)
