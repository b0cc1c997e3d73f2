"""``train`` from files to a model folder."""

import csv
import json
import shutil
import signal
from dataclasses import replace

import pytest
import torch
import yaml
from PIL import Image

from retinanet.analysis.anchors.audit import audit
from retinanet.anchors.atss import ATSS
from retinanet.anchors.lattice import AnchorLattice
from retinanet.cli.main import main
from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.data.transforms import Augment
from retinanet.detector import Detector
from retinanet.errors import Interrupted, UserError
from retinanet.images.preprocess import Preprocess
from retinanet.planning.planner import Origin
from retinanet.training import describe, start
from retinanet.training import run as train_run
from retinanet.training.config import ImageConfig, LossConfig
from retinanet.training.log import read_log
from retinanet.training.run import train


def weights(folder):
    return Detector.load(folder).net.state_dict()


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_leaves_a_whole_folder(trained):
    assert {path.name for path in trained.iterdir() if path.name != "tensorboard"} == {
        "config.yaml",
        "plan.yaml",
        "README.md",
        "config.json",
        "model.safetensors",
        "state.pt",
        "last",
        "log.csv",
        "curves.png",
        "evaluation.json",
        "predictions.json",
    }
    assert {path.name for path in (trained / "last").iterdir()} == {"README.md", "config.json", "model.safetensors"}
    assert Image.open(trained / "curves.png").size[0] > 500
    rows = read_log(trained / "log.csv")
    assert [row["step"] for row in rows] == ["1", "2", "2", "3", "4", "4"]
    assert [row["epoch"] for row in rows] == ["1", "1", "1", "2", "2", "2"]
    assert all(0 < float(row["classification"]) + float(row["box"]) < 10 for row in rows if row["loss"])


def test_the_files_speak_of_the_best_model(trained):
    detector = Detector.load(trained)
    report = json.loads((trained / "evaluation.json").read_text())
    assert detector.spec.metrics["AP"] == report["ap"] and detector.spec.metrics["data"] == report["about"]["data"]
    rows = {row["epoch"]: row for row in read_log(trained / "log.csv") if row["AP"]}
    best = rows[str(detector.spec.metrics["epoch"])]
    assert float(best["AP"]) == pytest.approx(report["ap"], rel=1e-5)
    assert float(best["val_loss"]) == pytest.approx(report["loss"]["total"], rel=1e-5)
    assert all(float(row["AP"]) <= float(best["AP"]) for row in rows.values())


def test_the_predictions_belong_to_the_best_model(data, trained):
    from retinanet.evaluation.evaluate import one_pass

    val = load_dataset(data, "val")
    found = one_pass(Detector.load(trained), val, batch_size=3, device=torch.device("cpu"))
    wanted = [
        row
        for sample, detections in zip(val.samples, found.detections, strict=True)
        for row in detections.to_coco(sample.image_id, val.category_ids)
    ]
    saved = json.loads((trained / "predictions.json").read_text())
    assert len(saved) == len(wanted) > 0
    for one, two in zip(saved, wanted, strict=True):
        assert (one["image_id"], one["category_id"]) == (two["image_id"], two["category_id"])
        assert one["score"] == pytest.approx(two["score"], rel=1e-4)
        assert one["bbox"] == pytest.approx(two["bbox"], abs=1e-2)


def test_the_resolved_configuration_starts_the_same_run_again(trained, tmp_path, monkeypatch):
    """Also that a run depends on its seed alone, and that the command line is the function."""
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", str(trained / "config.yaml"), "--output", "other"]) == 0
    assert same(weights("other"), weights(trained)) and same(weights("other/last"), weights(trained / "last"))
    one, two = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (trained, tmp_path / "other"))
    assert two.pop("output") == "other" and one.pop("output") == str(trained) and one == two
    assert "resume" not in one


def test_another_seed_gives_another_model(data, tiny, trained, tmp_path):
    train(str(data), str(tmp_path), **tiny(epochs=1, seed=1))
    assert not same(weights(tmp_path), weights(trained))


def test_bf16(data, tiny, tmp_path):
    result = train(str(data), str(tmp_path), **tiny(epochs=1, run={"precision": "bf16"}))
    assert result.steps == 2
    assert all(value.dtype in (torch.float32, torch.int64) for value in weights(tmp_path).values())
    with (tmp_path / "log.csv").open() as file:
        first = next(csv.DictReader(file))
    assert 0.05 < float(first["classification"]) < 2.5  # of the prior; how much depends on how well the anchors fit


def test_workers_change_nothing(data, tiny, trained, tmp_path):
    train(str(data), str(tmp_path), **tiny(run={"workers": 2}))
    assert same(weights(tmp_path), weights(trained))


def test_what_is_going_to_happen_is_told(data, tiny, tmp_path, capfd):
    train(str(data), str(tmp_path), **tiny(epochs=1))
    told = capfd.readouterr().err
    assert "classes: disc, square" in told and "precision 32-true" in told and "1 x cpu" in told
    assert "train: shapes train: 6 images (1 without objects)" in told and "validation: shapes val: 3 images" in told
    assert "test_resnet" in told and "images of 64 to 96 pixels" in told
    dataset = load_dataset(data, "train")
    how = {"lattice": AnchorLattice(sizes=(8, 16, 32, 64, 128)), "preprocess": Preprocess(short=64, long=96)}
    fit = audit(dataset.samples, dataset.class_names, **how, matcher=ATSS())
    assert f"anchors: {fit.below(0.5):.1%} of 14 boxes have none at IoU 0.5, {fit.below(0.4):.1%} none at 0.4" in told
    assert f"{fit.positives_share:.3%} of the anchors are positive" in told


def test_boxes_that_are_too_small_to_be_trained_on_are_counted(assembled, capfd):
    training = assembled(augment=Augment(min_side=14.0))
    sides = [min(x2 - x1, y2 - y1) for sample in training.train_set.samples for x1, y1, x2, y2 in sample.target.boxes]
    small = sum(side < 14 for side in sides)
    assert 0 < small < len(sides)
    describe.describe(training, None)
    assert f"{small} boxes have a side below 14 pixels (augment.min_side)" in capfd.readouterr().err
    describe.describe(assembled(), None)
    assert "min_side" not in capfd.readouterr().err


def test_anchors_that_do_not_fit_get_a_hint(assembled, monkeypatch):
    fitting = assembled(architecture={"anchors": {"sizes": [12, 20, 30, 60, 120]}})
    assert "hint" not in "".join(describe.describe_anchors(fitting))
    training = assembled(architecture={"anchors": {"sizes": [64, 128, 256, 512, 1024]}})
    found = describe.describe_anchors(training)
    assert "100.0% none at 0.4" in found[0] and "looked at" not in found[0]
    assert f"retinanet check {training.config.data}" in found[-1]
    monkeypatch.setattr(describe, "AUDITED", 6)  # of 15 boxes: every third of 6 images
    less = describe.describe_anchors(training)
    assert "of 5 boxes" in less[0] and "(one image in 3 was looked at)" in less[0] and "retinanet check" in less[-1]


def test_the_audit_is_of_the_loss_that_is_minimised(assembled):
    training = assembled(loss=LossConfig(matching="iou", foreground=0.9, background=0.8, forced="off"))
    assert "none at IoU 0.9, 100.0% none at 0.8" in describe.describe_anchors(training)[0]


@pytest.fixture
def other_classes(data_copy):
    """The data set with a third class, and the first two in another order."""
    for file in (data_copy / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 1, "name": "ring"}, {"id": 3, "name": "disc"}, {"id": 7, "name": "square"}]
        file.write_text(json.dumps(content))
    return data_copy


def folder_options(tiny, trained, **changes):
    options = tiny(model=str(trained), epochs=1, **changes)
    del options["architecture"], options["weights"]
    return options


def test_going_on_from_a_model_folder(data, tiny, trained, tmp_path, capfd):
    options = folder_options(tiny, trained, optim={"lr": 1e-12, "optimizer": "sgd", "ema": 0.0})
    train(str(data), str(tmp_path / "next"), **options)
    before, after = weights(trained), weights(tmp_path / "next")
    for key in before:  # a run that hardly learns ends where the other stopped
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-7, msg=key)
    told = capfd.readouterr().err
    assert f"weights from {trained}:\n  kept all {len(before)} tensors\n" in told
    assert "  new: " not in told and "left out" not in told and "warning" not in told
    assert Detector.load(tmp_path / "next").spec.metrics["epoch"] == 1


def test_the_size_of_the_images_is_the_model_folders_unless_given(data, tiny, trained, tmp_path):

    options = folder_options(tiny, trained)
    for number, (image, size) in enumerate(((ImageConfig(), (64, 96)), (ImageConfig(long=80), (64, 80)))):
        train(str(data), str(tmp_path / str(number)), **{**options, "image": image})
        preprocess = Detector.load(tmp_path / str(number)).spec.preprocess
        assert (preprocess.short, preprocess.long) == size


STILL = {"lr": 1e-12, "optimizer": "sgd", "ema": 0.0}  # a run that hardly learns ends where it began


def test_other_classes_get_a_new_class_layer_and_keep_the_rest(other_classes, tiny, trained, tmp_path, capfd):
    options = folder_options(tiny, trained, optim=STILL)
    train(str(other_classes), str(tmp_path / "next"), **options)
    before, told = weights(trained), capfd.readouterr().err
    lines = [
        f"kept {len(before) - 2} of {len(before)} tensors",
        "new: heads.cls.output.weight (18 -> 27 rows) and .bias, because the classes differ: "
        "the model knew disc, square, the data has ring, disc, square",
    ]
    assert f"weights from {trained}:\n  {lines[0]}\n  {lines[1]}\n" in told
    detector = Detector.load(tmp_path / "next")
    assert detector.spec.class_names == ("ring", "disc", "square")
    after = detector.net.state_dict()
    prior = torch.sigmoid(after["heads.cls.output.bias"])
    torch.testing.assert_close(prior, torch.full((27,), 0.01), rtol=0, atol=1e-6)
    for key in after.keys() - {"heads.cls.output.weight", "heads.cls.output.bias"}:
        if "running" not in key and "tracked" not in key:
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=1e-7, msg=key)
    file = (tmp_path / "next" / "transfer.txt").read_text().splitlines()
    assert file[:4] == [f"weights from {trained}", *lines, ""]
    assert sorted(line.split()[1].rstrip(":") for line in file[4:]) == sorted(before)
    assert [line.split()[:2] for line in file[4:] if not line.startswith("kept")] == [
        ["changed", "heads.cls.output.weight:"],
        ["changed", "heads.cls.output.bias:"],
    ]


def test_a_fine_tuned_run_is_repeated_by_its_configuration_and_goes_on(
    other_classes, tiny, trained, tmp_path, monkeypatch, capfd
):
    changes = {"architecture": {"anchors": {"sizes": [12, 24, 48, 96, 192]}, "norm": "group"}}
    options = {**folder_options(tiny, trained), "epochs": 2, **changes}
    train(str(other_classes), str(tmp_path / "whole"), **options)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--config", "whole/config.yaml", "--output", "again"]) == 0
    assert same(weights("again"), weights("whole")) and same(weights("again/last"), weights("whole/last"))
    assert Detector.load("again").spec.architecture.anchors.sizes == (12, 24, 48, 96, 192)

    original, steps = train_run.RunLog.step, []

    def interrupted(log, row):
        original(log, row)
        if row["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(train_run.RunLog, "step", interrupted)
    with pytest.raises(Interrupted):
        train(str(other_classes), "part", **options)
    told = (tmp_path / "part" / "transfer.txt").read_text()
    capfd.readouterr()
    monkeypatch.setattr(train_run.RunLog, "step", lambda log, row: (steps.append(row["step"]), original(log, row)))
    assert main(["train", "--config", "part/config.yaml", "--resume"]) == 0
    assert steps == [4] and "weights from" not in capfd.readouterr().err
    assert same(weights("part/last"), weights("whole/last"))
    assert (tmp_path / "part" / "transfer.txt").read_text() == told


def test_the_same_classes_in_another_order_keep_those_of_the_model(
    data, data_copy, tiny, trained, tmp_path, train_config
):
    for file in (data_copy / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"] = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
        for entry in content["annotations"]:
            entry["category_id"] = 10 - entry["category_id"]
        file.write_text(json.dumps(content))
    assert load_dataset(data_copy, "train").class_names == ("square", "disc")
    train(str(data_copy), str(tmp_path / "next"), **folder_options(tiny, trained))
    assert Detector.load(tmp_path / "next").spec.class_names == ("disc", "square")
    origin = Origin.find(str(trained))
    one, two = (
        start.load_sets(train_config(data=str(path), output="out", strict=True), origin) for path in (data_copy, data)
    )
    labels = [[sample.target.labels.tolist() for sample in sets[0].samples] for sets in (one, two)]
    assert labels[0] == labels[1]


def test_weights_of_a_backbone_and_a_model_folder_are_refused(data, tiny, trained, tmp_path):
    with pytest.raises(UserError, match=r"--weights none: .* has all its weights already\. Leave out --weights"):
        train(str(data), str(tmp_path / "next"), **tiny(model=str(trained)))
    assert not (tmp_path / "next").exists()


def test_the_first_loss_is_checked_for_new_models_only(data, tiny, trained, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(train_run, "fit", lambda training, progress, log: seen.append(training.untrained) or progress)
    monkeypatch.setattr(train_run, "save_figure", lambda *_: None)
    train(str(data), str(tmp_path / "new"), **tiny())
    train(str(data), str(tmp_path / "next"), **folder_options(tiny, trained))
    assert seen == [True, False] and not (tmp_path / "new" / "transfer.txt").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "resnet5"}, ["unknown model 'resnet5'", "did you mean 'resnet50'"]),
        ({"architecture": {"chanels": 3}}, ["architecture.chanels", "'channels'"]),
        ({"architecture": {"backbone": "resnet10"}}, ["unknown backbone 'resnet10'", "resnet10t"]),
        ({"architecture": {"channels": -4}}, ["1 to 4096 channels", "channels -4"]),
        ({"weights": "backbone.safetensors"}, ["no file backbone.safetensors"]),
        ({"epochs": 0}, ["epochs", "got 0"]),
        ({"batch_size": 0}, ["batch_size", "0"]),
        ({"batch_size": 3, "optim": {"accumulate": 2}}, ["batch of 3 images", "2 accumulated parts"]),
        ({"seed": -1}, ["seed >= 0", "-1"]),
        ({"image": {"short": 100}}, ["short 100", "long 96"]),
        ({"run": {"accelerator": "abacus"}}, ["abacus"]),
        ({"train_split": "holdout"}, ["holdout", "train"]),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(data, tiny, tmp_path, changes, words):
    with pytest.raises(UserError) as refused:
        train(str(data), str(tmp_path / "run"), **tiny(**changes))
    assert all(word in str(refused.value) for word in words), refused.value
    assert not (tmp_path / "run").exists()


def test_output_that_cannot_be_a_folder(data, tiny, tmp_path):
    (tmp_path / "file").write_text("mine")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UserError, match=r"cannot be written: .*file is a file, not a folder\. Choose"):
            train(str(data), str(output), **tiny())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_image_is_found_before_the_first_step(data_copy, tiny, tmp_path, monkeypatch, split):
    monkeypatch.setattr(train_run, "fit", lambda *_: pytest.fail("the training started"))
    image = data_copy / split / f"{split}_2.png"
    image.write_bytes(image.read_bytes()[:-3000])
    with pytest.raises(UserError, match=rf"{split}_2\.png: the image is truncated or damaged"):
        train(str(data_copy), str(tmp_path / "run"), **tiny())
    assert not (tmp_path / "run").exists()


def test_every_image_of_both_sets_is_read_once(data, monkeypatch):
    read = []
    original = DetectionDataset.__getitem__
    monkeypatch.setattr(
        DetectionDataset, "__getitem__", lambda self, index: (read.append((self.name, index)), original(self, index))[1]
    )
    sets = load_dataset(data, "train"), load_dataset(data, "val")
    start.check_images(*sets)
    assert sorted(read) == sorted((one.name, index) for one in sets for index in range(len(one)))


def test_strict_refuses_faulty_boxes_and_else_they_are_told(data_copy, tiny, tmp_path, capfd):
    file = data_copy / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][4]["bbox"][2] = 0
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 5: box .* x2 <= x1"):
        train(str(data_copy), str(tmp_path / "run"), strict=True, **tiny())
    assert not (tmp_path / "run").exists()
    train(str(data_copy), str(tmp_path / "run"), **tiny(epochs=1))
    told = capfd.readouterr().err
    assert "left out as faulty: 1" in told and "annotation 5" in told


def test_a_data_set_in_another_form_without_splits(data, tiny, tmp_path):
    """CSV with an image without objects; a fifth is held out."""
    shutil.copytree(data / "train", tmp_path / "csv")
    lines = []
    for sample in load_dataset(data, "train").samples:
        rows = zip(sample.target.boxes.tolist(), sample.target.labels.tolist(), strict=True)
        lines += [",".join([sample.path.name, *map(str, box), f"class {label}"]) for box, label in rows]
        lines += [] if len(sample.target) else [f"{sample.path.name},,,,,"]
    (tmp_path / "csv" / "boxes.csv").write_text("\n".join(lines) + "\n")
    result = train(str(tmp_path / "csv"), str(tmp_path / "run"), **tiny(epochs=1))
    assert result.steps == 2 and Detector.load(tmp_path / "run").spec.class_names == ("class 0", "class 1")


def test_norms_are_trained_without_pretrained_weights_and_frozen_with_them(data, tiny, tmp_path, train_config):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(0)
    backbone = tmp_path / "backbone.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), backbone)
    for weights_from, norm in (("none", "batch"), (str(backbone), "frozen")):
        for changes, expected in (({}, norm), ({"norm": "group"}, "group")):
            config = train_config(data=str(data), output="out", **tiny(weights=weights_from, architecture=changes))
            assert start.build_detector(config, load_dataset(data, "train")).spec.architecture.norm == expected


def test_the_result_names_the_best_ap(data, tiny, tmp_path, monkeypatch):
    from retinanet.training import loop

    real = loop._evaluate
    aps = iter((0.5, 0.25))

    def evaluation(training, log):
        report, found = real(training, log)
        return replace(report, metrics=replace(report.metrics, ap=next(aps))), found

    monkeypatch.setattr(loop, "_evaluate", evaluation)
    result = train(str(data), str(tmp_path), **tiny())
    assert (result.folder, result.ap, result.steps) == (tmp_path, 0.5, 4)


def test_a_batch_norm_with_one_value_per_channel(data, tiny, tmp_path):
    small = tiny(epochs=1, batch_size=2, image=ImageConfig(short=32, long=32), optim={"accumulate": 2})
    with pytest.raises(UserError, match=r"cannot be trained on 1 image of 32 x 32 pixels.*--optim\.accumulate"):
        train(str(data), str(tmp_path / "run"), **small)
