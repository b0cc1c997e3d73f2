"""Trackers and callbacks: each is told every number, none can end a run, and a resumed run goes on in the same one."""

import json
import signal
import sys
import threading

import pytest

from retinanet.cli.main import main
from retinanet.errors import Interrupted, UserError
from retinanet.training import trackers
from retinanet.training.config import RunConfig
from retinanet.training.log import RunLog, read_log
from retinanet.training.run import train


class Listener:
    """Keeps what it hears, and may do something at a step."""

    def __init__(self, step=0, action=None):
        self.steps, self.evaluations, self.outcomes = [], [], []
        self.step, self.action = step, action

    def on_step(self, row):
        self.steps.append(row)
        if self.action and row["step"] == self.step:
            self.action()

    def on_evaluation(self, row):
        self.evaluations.append(row)

    def on_end(self, outcome):
        self.outcomes.append(outcome)


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise RuntimeError("no space left\nsecond line")


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """No tracker of this machine is used, and none asks a network."""
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_EXPERIMENT_NAME", "WANDB_PROJECT", "TRACKIO_PROJECT", "TRACKIO_SPACE_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))


def in_parts(data, tiny, folder, name):
    """A run with a tracker that is stopped after step 3 of 4 and goes on."""
    options = tiny(run={"log": [name]})
    with pytest.raises(Interrupted):
        train(str(data), str(folder), callbacks=[Listener(3, interrupt)], **options)
    remembered = folder / trackers.REMEMBERED
    before = remembered.read_text() if remembered.exists() else ""
    train(str(data), str(folder), resume=True, **options)
    assert (remembered.read_text() if before else "") == before
    rows = read_log(folder / "log.csv")
    return [float(row["loss"]) for row in rows if row["loss"]], [float(row["AP"]) for row in rows if row["AP"]]


def test_a_callback_hears_what_the_log_holds(data, tiny, tmp_path):
    class OnlyEnd:
        def on_end(self, outcome):
            ends.append(outcome)

    listener, ends = Listener(), []
    train(str(data), str(tmp_path / "run"), callbacks=[listener, OnlyEnd()], **tiny(run={"log": []}))
    rows = read_log(tmp_path / "run" / "log.csv")
    assert [f"{row['loss']:.6g}" for row in listener.steps] == [row["loss"] for row in rows if row["loss"]]
    assert [f"{row['AP']:.6g}" for row in listener.evaluations] == [row["AP"] for row in rows if row["AP"]]
    assert [row["step"] for row in listener.steps] == [1, 2, 3, 4]
    assert listener.evaluations[0]["best"] is True and listener.outcomes == ends == ["finished"]
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / trackers.REMEMBERED).exists()


def test_a_callback_that_fails_is_told_once_and_left_out(tmp_path, capfd):
    good, bad = Listener(), Listener(1, fail)
    with RunLog(tmp_path, total=4, callbacks=[bad, good]) as log:
        for step in (1, 2):
            log.step({"step": step, "epoch": 1, "loss": 1.0, "images_per_s": 1.0})
    error = capfd.readouterr().err
    assert error.count("warning: Listener.on_step failed (RuntimeError: no space left); the run goes on") == 1
    assert len(bad.steps) == 1 and bad.outcomes == [] and len(good.steps) == 2 and good.outcomes == ["finished"]


@pytest.mark.parametrize(("error", "outcome"), [(KeyboardInterrupt, "stopped"), (UserError, "failed")])
def test_ctrl_c_passes_through_and_the_end_is_told(tmp_path, error, outcome):
    def stop():
        raise error

    listener = Listener()
    with pytest.raises(error), RunLog(tmp_path, total=4, callbacks=[listener, Listener(1, stop)]) as log:
        log.step({"step": 1, "epoch": 1, "loss": 1.0, "images_per_s": 1.0})
        raise error  # where the callback's was kept
    assert listener.outcomes == [outcome]


def test_a_callback_can_stop_the_run_with_its_state_saved(data, tiny, tmp_path):
    listener = Listener(2, interrupt)
    with pytest.raises(Interrupted, match="stopped after step 2 of 4; the state is saved"):
        train(str(data), str(tmp_path / "run"), callbacks=[listener], **tiny(run={"log": []}))
    assert listener.outcomes == ["stopped"] and len(listener.steps) == 2


def test_mistakes_are_told_before_anything_is_done(data, tiny, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match=r"run\.log: there is no 'mlfow', did you mean 'mlflow'\?"):
        RunConfig(log=["tensorboard mlfow"])
    assert RunConfig(log=["tensorboard,mlflow", "wandb"]).trackers == ("tensorboard", "mlflow", "wandb")
    assert RunConfig(log=[]).trackers == () and RunConfig().trackers is None
    with pytest.raises(UserError, match="has none of the methods on_step, on_evaluation, on_end"):
        train(str(data), str(tmp_path / "run"), callbacks=[object()], **tiny())
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setitem(sys.modules, "trackio", None)
    words = ["train", str(data), "--output", str(tmp_path / "run"), "--log"]
    assert main([*words, "mlflow trackio"]) == 2
    assert 'mlflow is not installed. pip install "retinanet[mlflow]"' in capsys.readouterr().err
    assert main([*words, "mlflow,comet"]) == 2 and "run.log: there is no 'comet'" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_a_tracker_left_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "somewhere").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not trackers._is_installed("somewhere") and trackers._is_installed("json")


def test_a_tracker_that_cannot_be_opened_is_left_out(data, tiny, tmp_path, monkeypatch, capfd):
    def broken(config, step, known):
        raise OSError("no such server")

    monkeypatch.setattr(trackers, "_is_installed", lambda name: True)
    monkeypatch.setattr(trackers, "OPENERS", {"mlflow": broken})
    train(str(data), str(tmp_path / "run"), **tiny(epochs=1, run={"log": ["mlflow"]}))
    assert "warning: mlflow cannot be used (OSError: no such server); the run goes on" in capfd.readouterr().err


def test_tensorboard(data, tiny, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    losses, aps = in_parts(data, tiny, tmp_path / "run", "tensorboard")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses, rel=1e-5)
    assert [event.value for event in events.Scalars("AP")] == pytest.approx(aps, rel=1e-5)


@pytest.fixture
def mlflow_server(tmp_path, alone, monkeypatch):
    """MLflow's own server over a store of its own; in this process, because its command needs a minute to start."""
    pytest.importorskip("mlflow.server", reason="needs the whole of mlflow, not mlflow-skinny")
    from mlflow.server import app
    from mlflow.server.handlers import initialize_backend_stores
    from werkzeug.serving import make_server

    initialize_backend_stores(f"sqlite:///{tmp_path}/mlflow.db", default_artifact_root=str(tmp_path / "artifacts"))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    yield
    server.shutdown()
    server.server_close()


def test_mlflow(data, tiny, tmp_path, mlflow_server):
    """The parameters, every number once, the status, and one run after an interruption."""
    import mlflow

    losses, aps = in_parts(data, tiny, tmp_path / "run", "mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("retinanet").experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params["epochs"] == "2" and run.data.params["optim.warmup"] == "1"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [entry.step for entry in history] == [1, 2, 3, 4]
    assert [entry.value for entry in history] == pytest.approx(losses, rel=1e-5)
    assert [entry.value for entry in client.get_metric_history(run.info.run_id, "AP")] == pytest.approx(aps, rel=1e-5)


def test_wandb_offline(data, tiny, tmp_path, alone):
    pytest.importorskip("wandb")
    losses, _ = in_parts(data, tiny, tmp_path / "run", "wandb")
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))
    known = json.loads((tmp_path / "run" / trackers.REMEMBERED).read_text())["wandb"]
    assert [file.name for file in files] == [f"run-{known}.wandb"] * 2  # one run, in two parts
    found = [float(value) for file in files for value in _read_wandb(file, "loss")]
    assert found == pytest.approx(losses, rel=1e-5)


def _read_wandb(file, name):
    """The values of a metric in W&B's own file, which is a log of LevelDB: a header of 7 bytes, then records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, parts, values = file.read_bytes(), 7, b"", []
    while place + 7 <= len(content):
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record, parts = Record.FromString(parts), b""
            values += [item.value_json for item in record.history.item if name in (item.key, *item.nested_key)]
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
    return values


def test_trackio(data, tiny, tmp_path, alone):
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    losses, aps = in_parts(data, tiny, tmp_path / "run", "trackio")
    (name,) = SQLiteStorage.get_runs("retinanet")
    assert name.startswith("run-")
    rows = SQLiteStorage.get_logs("retinanet", name)
    assert [row["loss"] for row in rows if "loss" in row] == pytest.approx(losses, rel=1e-5)
    assert [row["AP"] for row in rows if "AP" in row] == pytest.approx(aps, rel=1e-5)
