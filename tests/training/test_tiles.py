"""Training on windows, and what follows from it: the model cuts by itself, and a run goes on bit for bit."""

import json
from dataclasses import replace

import pytest
import torch
from PIL import Image

from retinanet.analysis.diagnose import diagnose
from retinanet.analysis.trace.why import why
from retinanet.data.dataset import load_dataset
from retinanet.detector import Detector
from retinanet.errors import Interrupted, UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.evaluate import evaluate, one_pass
from retinanet.images.tiling import Tiling
from retinanet.inference.predictor import Predictor
from retinanet.model_folder import read_spec
from retinanet.planning.planner import Origin
from retinanet.prediction import predict
from retinanet.training.config import ImageConfig
from retinanet.training.log import RunLog, read_log
from retinanet.training.run import train
from retinanet.training.start import adapt_detector, cut_sets, load_sets

TILE = ImageConfig(tile=40, overlap=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(data, tiny, tmp_path_factory):
    """The folder of a run on windows of 40 of images of 64 x 80 pixels, each shown at twice its size."""
    folder = tmp_path_factory.mktemp("runs") / "tiles"
    train(str(data), str(folder), **{**tiny(), "image": replace(TILE, short=80)})
    return folder


def test_the_model_knows_its_windows(run):
    spec = read_spec(run)
    assert json.loads((run / "config.json").read_text())["tiling"] == {"tile": 40, "overlap": 16}
    assert spec.tiling == Tiling(40, 16) and spec.scale == 2.0
    assert (spec.preprocess.short, spec.preprocess.long) == (80, 80)


def test_a_killed_run_goes_on_bit_for_bit(run, data, tiny, tmp_path, monkeypatch):
    folder, options = tmp_path / "run", {**tiny(), "image": replace(TILE, short=80)}
    original = RunLog.step

    def stop(log, row):
        original(log, row)
        if row["step"] == 5:
            raise Interrupted("now")

    options["run"] = replace(options["run"], save_every=2)
    monkeypatch.setattr(RunLog, "step", stop)
    with pytest.raises(Interrupted):
        train(str(data), str(folder), **options)
    monkeypatch.setattr(RunLog, "step", original)
    train(str(data), str(folder), resume=True, **options)
    for name in (".", "last"):
        one, two = (Detector.load(place / name).net.state_dict() for place in (folder, run))
        assert all(torch.equal(one[key], two[key]) for key in two)
    logs = [[{**row, "images_per_s": ""} for row in read_log(place / "log.csv")] for place in (folder, run)]
    assert logs[0] == logs[1]


def assert_alike(one, two):
    """The same detections, where those whose scores are equal up to rounding may change places."""
    gap = (one.boxes[:, None] - two.boxes[None]).abs().amax(dim=2).double()
    gap += 100 * (one.scores[:, None] - two.scores[None]).abs()
    gap[one.labels[:, None] != two.labels[None]] = torch.inf
    nearest, order = gap.min(dim=1)
    assert order.sort().values.tolist() == list(range(len(two))) and float(nearest.max()) < 2e-3


def test_evaluation_cuts_as_prediction_does(run, data):
    dataset, detector = load_dataset(data, "val"), Detector.load(run)
    predictor = Predictor.load(run, device="cpu", batch_size=8)
    tiled = [predictor.tiled(sample.path, tile=40, overlap=16) for sample in dataset.samples]
    paths = [sample.path for sample in dataset.samples]
    passed = one_pass(detector, dataset, device=CPU)
    for found in (passed.detections, list(predictor.stream(paths)), [predictor(path) for path in paths]):
        for one, two in zip(found, tiled, strict=True):
            assert_alike(one, two)
    ap = coco_metrics(dataset.samples, tiled, dataset.class_names, category_ids=dataset.category_ids).ap
    report = evaluate(run, data, split="val", device="cpu")
    assert report.metrics.ap == pytest.approx(ap, abs=1e-9) and report.loss["total"] > 0
    logged = [float(row["AP"]) for row in read_log(run / "log.csv") if row["AP"]]
    assert logged[-1] == pytest.approx(evaluate(run / "last", data, split="val", device="cpu").metrics.ap, abs=1e-6)


def test_another_tile_and_none(run, data):
    path = load_dataset(data, "val").samples[0].path
    usual, whole = Predictor.load(run, device="cpu"), Predictor.load(run, device="cpu", tile=0)
    assert usual.tiling == Tiling(40, 16) and whole.tiling is None
    assert torch.equal(whole(path).boxes, usual.at_once(path).boxes)
    assert Predictor.load(run, device="cpu", tile=50).tiling == Tiling(50, 24)
    assert evaluate(run, data, split="val", device="cpu", tile=0).loss["total"] > 0
    other = evaluate(run, data, split="val", device="cpu", tile=50, overlap=20)
    found = [usual.tiled(one.path, tile=50, overlap=20) for one in load_dataset(data, "val").samples]
    dataset = load_dataset(data, "val")
    wanted = coco_metrics(dataset.samples, found, dataset.class_names, category_ids=dataset.category_ids).ap
    assert other.metrics.ap == pytest.approx(wanted, abs=1e-9) and not other.loss


def test_predict_cuts_by_itself(run, data, tmp_path):
    path = str(load_dataset(data, "val").samples[0].path)
    found = {}
    for name, options in {"usual": {}, "same": {"tile": 40, "overlap": 16}, "whole": {"tile": 0}}.items():
        (found[name],) = predict(
            str(run), [path], output=str(tmp_path / name), device="cpu", score=0.01, pictures=False, **options
        )
    assert torch.equal(found["usual"].detections.boxes, found["same"].detections.boxes)
    whole = Predictor.load(run, device="cpu", tile=0)(path).above(0.01)
    assert torch.equal(found["whole"].detections.boxes, whole.boxes)


def test_an_image_that_fits_into_a_window_is_shown_whole(run, tmp_path):
    Image.effect_noise((30, 40), 50).convert("RGB").save(tmp_path / "a.png")
    predictor = Predictor.load(run, device="cpu")
    assert torch.equal(predictor(tmp_path / "a.png").boxes, predictor.at_once(tmp_path / "a.png").boxes)


def test_fine_tuning_keeps_the_windows(run, data, tiny, train_config, tmp_path):
    def build(**image):
        given = {**tiny(), "image": ImageConfig(**image), "model": str(run), "weights": "imagenet"}
        del given["architecture"]
        config = train_config(data=str(data), output=str(tmp_path / "run"), **given)
        origin = Origin.find(str(run))
        sets = load_sets(config, origin)
        train_set, val_set = cut_sets(sets, origin.tiling, config.image.tile, config.image.overlap)
        return adapt_detector(config, run, train_set)[0].spec, train_set, val_set

    spec, train_set, val_set = build()
    assert spec.tiling == train_set.tiling == val_set.tiling == Tiling(40, 16) and spec.scale == 2.0
    assert build(overlap=18)[0].tiling == Tiling(40, 18)
    spec = build(tile=60)[0]
    assert spec.tiling == Tiling(60, 29) and spec.preprocess.short == spec.preprocess.long == 60 and spec.scale == 1
    spec = build(tile=0)[0]
    assert spec.tiling is None and spec.preprocess.short == 80
    spec = build(tile=300)[0]  # larger than all images
    assert spec.tiling == Tiling(300, 64) and spec.scale == 1


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"tile": 16}, "image: tile is at least 32 pixels, .* got 16"),
        ({"tile": 64, "overlap": 64}, r"image: overlap is at least 0 and smaller than the tile \(64 pixels\), got 64"),
        ({"overlap": 20}, "image: overlap is for images that are cut into windows; give tile too"),
        ({"tile": 64, "long": 90}, "image.long is 90: windows are square and resized to 64. Leave it out"),
        ({"tile": 64.5}, "image.tile: expected a whole number"),
    ],
)
def test_bad_options(image, message, data, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        train(str(data), str(tmp_path / "run"), **{**tiny(), "image": ImageConfig(**image)})
    assert not (tmp_path / "run").exists()


def test_reports_on_a_model_of_windows(run, data, tmp_path):
    found = diagnose(str(run), str(data), output=str(tmp_path / "diagnosis"), device="cpu")
    assert (tmp_path / "diagnosis" / "report.html").is_file() and found.missed is not None
    image = load_dataset(data, "val").samples[0].path
    trace = why(str(run), str(image), output=str(tmp_path / "why"), device="cpu")
    about = (tmp_path / "why" / "why.json").read_text()
    assert "of 6 windows the one with most missed boxes" in about and trace.boxes
