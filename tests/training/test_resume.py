"""An interrupted run that goes on ends where an uninterrupted one does, bit for bit."""

import pickle
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from retinanet.detector import Detector
from retinanet.errors import Interrupted, UserError
from retinanet.training import loop
from retinanet.training.log import RunLog, read_log
from retinanet.training.resume import STATE, Progress, load_state, save_state
from retinanet.training.run import train


def assert_same_run(folder, other):
    """The same weights, best and last, and the same log but for speeds."""
    for name in (".", "last"):
        one, two = (Detector.load(place / name).net.state_dict() for place in (folder, other))
        assert all(torch.equal(one[key], two[key]) for key in two), name
    states = [torch.load(place / STATE, weights_only=True) for place in (folder, other)]
    assert states[0]["progress"] == states[1]["progress"]
    assert all(torch.equal(states[0]["net"][key], value) for key, value in states[1]["net"].items())
    logs = [read_log(place / "log.csv") for place in (folder, other)]
    assert [{**row, "images_per_s": ""} for row in logs[0]] == [{**row, "images_per_s": ""} for row in logs[1]]
    steps = [int(row["step"]) for row in logs[0] if row["loss"]]
    assert steps == list(range(1, len(steps) + 1))


class Killed(BaseException):
    """As if the process had been killed: nothing of ours catches it."""


@pytest.fixture
def at_step(monkeypatch):
    """Lets something happen once, right after the row of a step is logged."""

    def arrange(step, action):
        def logged(log, row, original=RunLog.step):
            original(log, row)
            if row["step"] == step:
                monkeypatch.setattr(RunLog, "step", original)
                action()

        monkeypatch.setattr(RunLog, "step", logged)

    return arrange


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_step_and_the_run_goes_on(number, data, tiny, trained, tmp_path, at_step):
    before = signal.getsignal(number)
    at_step(3, lambda: signal.raise_signal(number))
    folder = tmp_path / "run"
    with pytest.raises(Interrupted, match=r"stopped after step 3 of 4.*--config .*config\.yaml --resume"):
        train(str(data), str(folder), **tiny())
    assert signal.getsignal(number) is before
    assert torch.load(folder / STATE, weights_only=True)["progress"]["step"] == 3
    result = train(str(data), str(folder), resume=True, **tiny())
    assert result.steps == 4 and result.folder == folder
    assert_same_run(folder, trained)


def test_a_signal_in_the_last_step_changes_nothing(data, tiny, tmp_path, at_step):
    at_step(2, lambda: signal.raise_signal(signal.SIGINT))
    assert train(str(data), str(tmp_path / "run"), **tiny(epochs=1)).steps == 2
    assert (tmp_path / "run" / "curves.png").is_file()


def test_a_killed_run_goes_on_from_its_last_saved_step(data, tiny, trained, tmp_path, at_step):
    def kill():
        raise Killed

    at_step(2, kill)  # after the step, before the end of the epoch is evaluated and saved
    folder, options = tmp_path / "run", tiny(run={"save_every": 1})
    with pytest.raises(Killed):
        train(str(data), str(folder), **options)
    assert torch.load(folder / STATE, weights_only=True)["progress"]["step"] == 1
    assert [row["step"] for row in read_log(folder / "log.csv")] == ["1", "2"]
    train(str(data), str(folder), resume=True, **options)
    assert_same_run(folder, trained)


def test_nothing_to_resume(data, tiny, tmp_path):
    with pytest.raises(UserError, match=r"nothing to resume.*Start the run without --resume"):
        train(str(data), str(tmp_path / "none"), resume=True, **tiny())
    assert not (tmp_path / "none").exists()


def test_a_run_goes_on_only_as_it_began(data, tiny, trained, tmp_path):
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    words = (
        r"other options \(output .* -> .*, epochs 2 -> 3, optim\.lr None -> 1\.0\)\. Go on with the same: .*--config"
        r".*\. Or start another run from its model: retinanet train .* --model .*run --output NEW --epochs 3$"
    )
    with pytest.raises(UserError, match=words):
        train(str(data), str(folder), resume=True, **tiny(epochs=3, optim={"lr": 1.0}))
    (folder / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml, line 1: broken YAML"):
        train(str(data), str(folder), resume=True, **tiny())
    (folder / "config.yaml").write_bytes(before[folder / "config.yaml"])
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_an_option_left_out_is_another_option_unless_a_plan_decides_it(data, tiny, trained, tmp_path, at_step):
    at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted):
        train(str(data), str(tmp_path), **tiny())
    without = tiny()
    del without["weights"]
    with pytest.raises(UserError, match=r"other options \(weights none -> imagenet\)"):
        train(str(data), str(tmp_path), resume=True, **without)
    planned = {name: value for name, value in tiny().items() if name in ("weights", "optim", "run")}
    train(str(data), str(tmp_path), resume=True, **planned)
    one, two = (Detector.load(folder).net.state_dict() for folder in (tmp_path, trained))
    assert all(torch.equal(one[key], two[key]) for key in two)


def test_a_run_may_go_on_elsewhere(data, tiny, trained, tmp_path, at_step):
    """With other workers and saves: what is computed stays the same, and so does the configuration of the run."""
    at_step(1, lambda: signal.raise_signal(signal.SIGINT))
    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(str(data), str(folder), **tiny())
    before = (folder / "config.yaml").read_bytes()
    train(str(data), str(folder), resume=True, **tiny(run={"workers": 1, "save_every": 1}))
    assert_same_run(folder, trained)
    assert (folder / "config.yaml").read_bytes() == before


def test_a_finished_run_is_not_overwritten(data, tiny, trained):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*")}
    with pytest.raises(UserError, match=r"already holds a run.*--resume"):
        train(str(data), str(trained), **tiny())
    assert {path: path.stat().st_mtime_ns for path in trained.rglob("*")} == before


def test_a_finished_run_has_nothing_left_to_do(data, tiny, tmp_path, monkeypatch):
    first = train(str(data), str(tmp_path), **tiny(epochs=1))
    before = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(loop, "train_step", lambda *_: pytest.fail("a step was made"))
    second = train(str(data), str(tmp_path), resume=True, **tiny(epochs=1))
    assert second == first and (tmp_path / "model.safetensors").read_bytes() == before
    assert [row["step"] for row in read_log(tmp_path / "log.csv")] == ["1", "2", "2"]


def parts():
    net = torch.nn.Linear(2, 2)
    return {"net": net, "optimizer": torch.optim.AdamW(net.parameters(), lr=0.1)}


def test_state_round_trip(tmp_path):
    saved = parts()
    saved["net"](torch.ones(1, 2)).sum().backward()
    saved["optimizer"].step()
    save_state(tmp_path, Progress(7, 0.25, 2), saved)
    loaded = parts()
    assert load_state(tmp_path, loaded) == (Progress(7, 0.25, 2), [])
    assert torch.equal(saved["net"].weight, loaded["net"].weight)
    for one, two in zip(*(part["optimizer"].state_dict()["state"].values() for part in (saved, loaded)), strict=True):
        assert all(torch.equal(one[key], two[key]) for key in one) and float(one["exp_avg"].abs().max()) > 0
    assert [path.name for path in tmp_path.iterdir()] == [STATE]


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    save_state(tmp_path, Progress(1), parts())
    before = (tmp_path / STATE).read_bytes()

    def full(state, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"state\.pt cannot be written \(No space left on device\)"):
        save_state(tmp_path, Progress(2), parts())
    assert (tmp_path / STATE).read_bytes() == before and [path.name for path in tmp_path.iterdir()] == [STATE]


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


def damaged(path):
    whole = path.read_bytes()
    yield "truncated", whole[: len(whole) // 2]
    yield "empty", b""
    yield "text", b"this is no state at all"
    yield "pickle with code", pickle.dumps({"progress": Bomb(), "net": {}, "optimizer": {}})


def test_a_damaged_state_is_refused_and_no_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_state(tmp_path, Progress(1), parts())
    for kind, content in damaged(tmp_path / STATE):
        (tmp_path / STATE).write_bytes(content)
        with pytest.raises(UserError, match=r"state\.pt is damaged or belongs to another model.*Start a new run"):
            load_state(tmp_path, parts())
        assert not (tmp_path / "exploded").exists(), kind
    torch.save({"progress": Bomb()}, tmp_path / STATE)
    with pytest.raises(UserError, match="damaged"):
        load_state(tmp_path, parts())
    assert not (tmp_path / "exploded").exists()


def test_every_flipped_bit_is_noticed(tmp_path):
    path, generator = tmp_path / STATE, random.Random(0)
    save_state(tmp_path, Progress(1), parts())
    content = path.read_bytes()
    for _ in range(30):
        changed = bytearray(content)
        changed[generator.randrange(len(content) - 100)] ^= 1 << generator.randrange(8)  # the end: test_digest.py
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"state\.pt is damaged or changed.*start a new run"):
            load_state(tmp_path, parts())


def test_a_state_without_a_digest(tmp_path):
    """As it was written before there were digests."""
    states = {name: part.state_dict() for name, part in parts().items()}
    torch.save({"progress": vars(Progress(3)), **states}, tmp_path / STATE)
    assert load_state(tmp_path, parts()) == (Progress(3), [])


@pytest.mark.parametrize("state", [[1, 2], {"progress": {}}, {"progress": {"steps": 3}, "net": {}, "optimizer": {}}])
def test_a_state_of_something_else_is_refused(tmp_path, state):
    torch.save(state, tmp_path / STATE)
    with pytest.raises(UserError, match="damaged or belongs to another model"):
        load_state(tmp_path, parts())


def test_a_state_of_another_net_is_refused(tmp_path):
    save_state(tmp_path, Progress(1), parts())
    other = torch.nn.Linear(3, 2)
    with pytest.raises(UserError, match="belongs to another model"):
        load_state(tmp_path, {"net": other, "optimizer": torch.optim.AdamW(other.parameters())})
