"""The card of a model folder says what its files say, and nothing else."""

import json
import shutil
import signal
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from retinanet import evaluate
from retinanet.card import CARD, OURS, write_card
from retinanet.detector import Detector
from retinanet.errors import Interrupted, UserError
from retinanet.model_folder import write_thresholds
from retinanet.training.run import train


@pytest.fixture
def model(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "cells"))


def read(folder):
    return (folder / CARD).read_text(encoding="utf-8")


def test_training_leaves_a_card_that_the_hub_can_read(trained):
    text, found = read(trained), json.loads((trained / "evaluation.json").read_text())
    card = ModelCard(text)
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("retinanet", "object-detection") and "license" not in data
    values = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert values == {"map": found["ap"], "map_50": found["ap50"], "map_75": found["ap75"]}
    assert {result.dataset_name for result in card.data.eval_results} == {"shapes val"}
    assert "finds objects of 2 classes in images: disc, square." in text and "seed 0" in text
    assert "* trained on shapes train: 6 images, 14 objects" in text and "* disc: 7 objects to train on" in text
    assert json.loads((trained / "config.json").read_text())["data"]["sha256"] in text
    assert "By shapes val the epoch was chosen" in text
    for unknown in ("## Calibration", "## Speed", "## Licence"):
        assert unknown not in text
    assert "AP50" not in read(trained / "last") or "shapes val" in read(trained / "last")


def test_a_card_holds_no_path_of_this_machine(trained, data):
    for text in (read(trained), read(trained / "last")):
        assert str(trained.parent) not in text and str(data.parent) not in text


def test_the_digest_of_the_data_follows_the_annotations(trained, data_copy, tiny, tmp_path):
    def digest(folder):
        return json.loads((folder / "config.json").read_text())["data"]["sha256"]

    train(str(data_copy), str(tmp_path / "same"), **tiny(epochs=1))
    assert digest(tmp_path / "same") == digest(trained)  # wherever the data lie
    file = data_copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] -= 1
    file.write_text(json.dumps(content))
    train(str(data_copy), str(tmp_path / "other"), **tiny(epochs=1))
    assert digest(tmp_path / "other") != digest(trained)


def test_reports_of_this_model_enter_the_card(model, data, tmp_path):
    evaluate(str(model), data, split="test", output=tmp_path / "test", device="cpu")
    about = {"command": f"retinanet benchmark {model} data", "machine": "a CPU, 2 cores in use", "date": "2026-01-02"}
    row = {"name": "torch-fp32", "ap": 0.25, "latency": {"median": 0.125}, "images_per_second": 9.0, "memory": None}
    (tmp_path / "speed").mkdir()
    (tmp_path / "speed" / "benchmark.json").write_text(json.dumps({"about": about, "rows": [{**row, "size": 2e6}]}))
    errors = {"calibration": {"overall": {"ece": 0.0625, "bias": -0.03}}}
    diagnosis = {"about": {"model": str(model), "data": str(data), "split": "val"}, "errors": errors}
    (model / "diagnosis.json").write_text(json.dumps(diagnosis))  # found without being named
    text = write_card(model, reports=[str(tmp_path / "test"), str(tmp_path / "speed")])
    assert text == read(model)
    assert [result.dataset_name for result in ModelCard(text).data.eval_results][::3] == ["shapes val", "shapes test"]
    assert "| torch-fp32 | 0.2500 | 125.0 | 9.0 | - | 2.0 |" in text and "a CPU, 2 cores in use; 2026-01-02" in text
    assert "error of the scores is 0.062; they lie 0.030 below" in text
    shutil.copytree(model, tmp_path / "other")
    with pytest.raises(UserError, match=r"--reports .*test/evaluation\.json is about .*cells, not about .*other"):
        write_card(tmp_path / "other", reports=[str(tmp_path / "test")])


def test_numbers_of_other_weights_are_left_out(model):
    detector = Detector.load(model)
    detector.with_spec(metrics={}).save(model)
    assert "## Average precision" not in read(model) and "eval_results" not in read(model)


def test_thresholds_and_the_licence_stay(model):
    write_card(model, license="mit")
    write_thresholds(model, {"disc": 0.45})
    text = read(model)
    assert ModelCard(text).data.license == "mit" and "`mit`, as the owner of the model states." in text
    assert "0.450 |" in text and "0.300 |" in text


def test_a_readme_of_somebody_stays(model):
    for text in ("my own words\n", read(model).replace(OURS, "")):
        (model / CARD).write_text(text)
        Detector.load(model).save(model)
        assert read(model) == text == write_card(model)
    with pytest.raises(UserError, match=r"README\.md is not written by retinanet"):
        write_card(model, license="mit")


def test_names_cannot_change_the_page(model):
    detector = Detector.load(model)
    names = ("<script>alert(1)</script>", "a|b [x](y) *z*")
    detector.with_spec(class_names=names, metrics={}, thresholds={}).save(model)
    text = read(model)
    assert "\\<script\\>alert(1)\\</script\\>" in text and "a\\|b \\[x\\](y) \\*z\\*" in text


def test_a_card_changes_neither_loading_nor_resuming(data, tiny, tmp_path):
    class StopAfterThree:
        def on_step(self, row):
            if row["step"] == 3:
                signal.raise_signal(signal.SIGINT)

    folder = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(str(data), str(folder), callbacks=[StopAfterThree()], **tiny())
    assert OURS in read(folder)
    (folder / CARD).write_bytes(b"\xff\x00 damaged")
    Detector.load(folder)
    (folder / CARD).unlink()
    Detector.load(folder)
    (folder / CARD).write_text("mine")
    assert train(str(data), str(folder), resume=True, **tiny()).steps == 4
    assert read(folder) == "mine" and OURS in read(folder / "last")
