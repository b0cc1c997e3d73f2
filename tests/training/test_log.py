"""The log of a run: whole rows, each step once, and what a killed run leaves behind."""

import csv

import pytest

from retinanet.training.log import COLUMNS, RunLog, read_log

EVALUATION = {"step": 2, "epoch": 1, "val_loss": 0.75, "AP": 0.125, "AP50": 0.5, "AP75": float("nan")}


def row(step, **more):
    values = {"loss": 1.0, "classification": 0.75, "box": 0.25, "positives": 7, "lr": 1e-4, "images_per_s": 3.0}
    return {"step": step, "epoch": (step + 1) // 2, **values, "grad_norm": 2.0, **more}


def test_rows_go_to_the_file_at_once(tmp_path):
    log = RunLog(tmp_path, total=4)
    with log:
        log.step(row(1, loss=1 / 3))
        assert [entry["loss"] for entry in read_log(tmp_path / "log.csv")] == ["0.333333"]
        log.step(row(2))
        log.evaluation(EVALUATION, best=True)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS and [entry["step"] for entry in rows] == ["1", "2", "2"]
    assert rows[1]["AP"] == "" and rows[2]["loss"] == "" and rows[2]["AP"] == "0.125" and rows[2]["AP75"] == "nan"
    assert rows == read_log(tmp_path / "log.csv")


def test_a_resumed_log_drops_what_the_state_does_not_know(tmp_path):
    with RunLog(tmp_path, total=4) as log:
        for step in (1, 2, 3):
            log.step(row(step))
    with (tmp_path / "log.csv").open("a") as file:
        file.write("4,2,0.5")  # killed while writing
    assert [entry["step"] for entry in read_log(tmp_path / "log.csv")] == ["1", "2", "3"]
    with RunLog(tmp_path, total=4, start=2) as log:
        log.step(row(3, loss=9.0))
    rows = read_log(tmp_path / "log.csv")
    assert [(entry["step"], entry["loss"]) for entry in rows] == [("1", "1"), ("2", "1"), ("3", "9")]
    with RunLog(tmp_path, total=4):
        pass
    assert read_log(tmp_path / "log.csv") == []


def test_a_silent_log_writes_and_says_nothing(tmp_path, capfd):
    with RunLog(tmp_path, total=4, enabled=False) as log:
        log.step(row(1))
        log.evaluation(EVALUATION, best=True)
        log.say("hello")
    assert not list(tmp_path.iterdir()) and capfd.readouterr() == ("", "")


def test_what_is_said_goes_to_the_person(tmp_path, capfd):
    with RunLog(tmp_path, total=4) as log:
        log.say("data in [brackets] " + "x" * 200)
        log.evaluation(EVALUATION, best=True)
    out, err = capfd.readouterr()
    assert out == "" and "data in [brackets] " + "x" * 200 + "\n" in err  # neither markup nor folding
    assert "epoch 1  step 2  validation loss 0.750  AP 0.125  AP50 0.500  best so far" in err


@pytest.mark.parametrize("text", ["", "step,epoch\n", "some,other\n1,2\n", "\0\0\n"])
def test_a_file_that_is_no_log_has_no_rows(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    assert read_log(tmp_path / "log.csv") == [] and read_log(tmp_path / "none.csv") == []


def test_a_damaged_log_is_begun_anew(tmp_path):
    header = ",".join(COLUMNS)
    for content in (
        b"\xff\xfe\x00",
        header.encode() + b"\n" + b"1" * 200_000,
        header.encode() + b"\n\xc2\xb2" + b"," * 12,
    ):
        (tmp_path / "log.csv").write_bytes(content)
        assert read_log(tmp_path / "log.csv") == []
