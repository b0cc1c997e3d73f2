"""The loop against steps written by hand, and what it does when something is wrong."""

import copy
import math
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from retinanet.anchors.lattice import LatticeCompat
from retinanet.data.loader import training_batches
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.losses.config import CLASSIC
from retinanet.losses.detection import DetectionLoss
from retinanet.training import loop
from retinanet.training.config import LossConfig
from retinanet.training.log import RunLog, read_log
from retinanet.training.resume import Progress
from retinanet.training.stop import GradientWatch

PLAIN = {"optimizer": "sgd", "lr": 0.5, "lr_batch": 4, "clip": 0.0, "ema": 0.0, "warmup": 0}


def parts_of(training, step=0):
    batches = training_batches(
        training.train_set,
        preprocess=training.detector.spec.preprocess,
        augment=training.config.augment,
        sampler=replace(training.sampler, start=step),
    )
    return list(islice(batches, training.sampler.parts))


def pixels_of(training, batch):
    return training.detector.spec.preprocess.normalise(batch.images, batch.sizes)


def gradients(training, parts, monkeypatch):
    """The losses of one step and the whole gradient, which is not applied."""
    found = {}

    def keep(training):
        found.update({name: p.grad.clone() for name, p in training.detector.net.named_parameters() if p.requires_grad})
        training.optimizer.zero_grad(set_to_none=True)

    monkeypatch.setattr(loop, "_update", keep)
    losses, norm = loop.train_step(training, parts, 0)
    return losses, norm, found


def log_of(training):
    return RunLog(training.config.folder, total=training.sampler.stop)


def test_one_step_is_the_step_that_one_would_write(assembled):
    training = assembled(batch_size=4, optim=PLAIN, loss=CLASSIC, architecture={"norm": "batch"})
    (batch,) = parts_of(training)
    net = copy.deepcopy(training.detector.net).train()
    optimizer = torch.optim.SGD(
        [
            {"params": [p for p in net.parameters() if p.ndim > 1], "weight_decay": 1e-4},
            {"params": [p for p in net.parameters() if p.ndim == 1], "weight_decay": 0.0},
        ],
        lr=0.5,
        momentum=0.9,
    )
    for step in range(2):
        wanted = DetectionLoss()(net(pixels_of(training, batch)), batch.targets)
        optimizer.zero_grad()
        wanted.total.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in net.parameters()])
        optimizer.step()
        losses, measured = loop.train_step(training, [batch], step)
        torch.testing.assert_close(losses.classification, wanted.classification.detach())
        torch.testing.assert_close(losses.box, wanted.box.detach())
        assert losses.positives == wanted.positives > 0
        assert measured == pytest.approx(float(norm), rel=1e-5)
    for (name, one), two in zip(training.detector.net.state_dict().items(), net.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "loss", [LossConfig(), LossConfig(classification="ohem", box="giou"), LossConfig(normaliser="image")]
)
def test_parts_give_the_gradient_of_the_whole_batch(assembled, monkeypatch, loss):
    options = {"batch_size": 4, "architecture": {"norm": "frozen"}, "loss": loss}
    whole = assembled(optim=PLAIN, **options)
    parted = assembled(optim={**PLAIN, "accumulate": 2}, **options)
    one, two = parts_of(whole), parts_of(parted)
    assert [len(batch) for batch in one] == [4] and [len(batch) for batch in two] == [2, 2]
    direct = whole.criterion(whole.detector.net(pixels_of(whole, one[0])), one[0].targets)
    losses, norm, wanted = gradients(whole, one, monkeypatch)
    parted_losses, parted_norm, found = gradients(parted, two, monkeypatch)
    assert parted_losses.positives == losses.positives == direct.positives
    assert float(losses.total) == pytest.approx(direct.total.item(), rel=1e-6)
    assert float(parted_losses.total) == pytest.approx(float(losses.total), rel=1e-6)
    assert parted_norm == pytest.approx(norm, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_parts_of_unequal_size_count_their_images(assembled, monkeypatch):
    """Three images and one: with its own normaliser each image counts a quarter, wherever it is."""
    training = assembled(
        batch_size=4, optim=PLAIN, architecture={"norm": "frozen"}, loss=LossConfig(normaliser="image")
    )
    (batch,) = parts_of(training)
    parts = [
        replace(
            batch,
            images=batch.images[rows],
            sizes=batch.sizes[rows],
            targets=batch.targets[rows],
            samples=batch.samples[rows],
        )
        for rows in (slice(0, 3), slice(3, 4))
    ]
    losses, norm, wanted = gradients(training, [batch], monkeypatch)
    parted_losses, parted_norm, found = gradients(training, parts, monkeypatch)
    assert float(parted_losses.total) == pytest.approx(float(losses.total), rel=1e-6)
    assert parted_norm == pytest.approx(norm, rel=1e-6)
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_anchors_are_settled_by_the_size_of_the_batch(assembled, monkeypatch):
    """Over 64 x 96 pixels floored strides move the anchors of P6 and P7, which alone have the size of objects here."""
    anchors = {"sizes": [256, 256, 256, 20, 30], "compat": {"floor_strides": True}}
    training = assembled(batch_size=4, optim=PLAIN, architecture={"norm": "frozen", "anchors": anchors})
    (batch,) = parts_of(training)
    with torch.no_grad():
        raw = training.detector.net(pixels_of(training, batch))
    assert tuple(batch.images.shape[2:]) == (64, 96) and raw.lattice.steps[3:] == ((64, 48), (64, 96))
    wanted = training.criterion(raw, batch.targets)
    losses, _, _ = gradients(training, [batch], monkeypatch)
    assert losses.positives == wanted.positives
    assert float(losses.total) == pytest.approx(wanted.total.item(), rel=1e-6)
    usual = training.criterion(replace(raw, lattice=replace(raw.lattice, compat=LatticeCompat())), batch.targets)
    assert float(losses.total) != pytest.approx(usual.total.item(), rel=1e-4), "here the two cannot be told apart"


def test_the_norm_is_clipped(assembled, monkeypatch):
    training = assembled(optim={**PLAIN, "clip": 0.01})
    _, norm, found = gradients(training, parts_of(training), monkeypatch)
    clipped = math.sqrt(sum(float(gradient.square().sum()) for gradient in found.values()))
    assert norm > 0.1 and clipped == pytest.approx(0.01, rel=1e-3)


def test_the_average_follows_every_step(assembled):
    training = assembled(optim={"ema": 0.999})
    parts = parts_of(training)
    name = "heads.cls.output.weight"
    expected = None
    for step in range(3):
        loop.train_step(training, parts, step)
        value = training.detector.net.state_dict()[name]
        decay = (step + 1) / (step + 10)
        expected = value.clone() if expected is None else decay * expected + (1 - decay) * value
    torch.testing.assert_close(training.best_net.state_dict()[name], expected, rtol=1e-5, atol=1e-8)
    assert training.best_net is not training.detector.net


def test_a_batch_without_objects_is_a_step(assembled, data):
    training = assembled()
    training.train_set = training.train_set.subset([1, 1, 1], "empty")
    training.sampler = replace(training.sampler, length=3)
    losses, norm = loop.train_step(training, parts_of(training), 0)
    assert losses.positives == 0 and float(losses.box) == 0 and float(losses.classification) > 0
    assert math.isfinite(norm) and norm > 0


def said(training, monkeypatch, change=lambda net: None):
    change(training.detector.net)
    lines = []
    monkeypatch.setattr(RunLog, "say", lambda log, text: lines.append(text))
    parts = parts_of(training)
    losses, _ = loop.train_step(training, parts, 0)
    loop.check_first_loss(training, parts, losses, log_of(training))
    return lines


def wrong_prior(net):
    torch.nn.init.constant_(net.heads.cls.output.bias, 0.0)


@pytest.mark.parametrize("changes", [{}, {"optim": {"accumulate": 3}}, {"architecture": {"prior": 0.05}}])
@pytest.mark.parametrize("loss", [LossConfig(), CLASSIC, replace(CLASSIC, alpha=None, gamma=0.0)])
def test_the_first_loss_of_a_sound_model_goes_without_a_word(assembled, monkeypatch, changes, loss):
    assert said(assembled(loss=loss, **changes), monkeypatch) == []


def test_the_first_loss_of_a_wrong_prior_is_told(assembled, monkeypatch):
    (line,) = said(assembled(), monkeypatch, wrong_prior)
    assert "warning: the first class loss is" in line and "a model that says 0.01 everywhere has" in line


def test_a_trained_model_or_another_loss_has_no_expected_first_loss(assembled, monkeypatch):
    assert said(replace(assembled(), untrained=False), monkeypatch, wrong_prior) == []
    assert said(assembled(loss=LossConfig(classification="ohem")), monkeypatch, wrong_prior) == []
    assert said(assembled(loss=LossConfig(normaliser="image")), monkeypatch, wrong_prior) == []


def test_fit_tells_the_first_loss_and_goes_on(assembled, capfd):
    training = assembled(epochs=1)
    wrong_prior(training.detector.net)
    assert loop.fit(training, Progress(), log_of(training)).step == 2
    assert capfd.readouterr().err.count("warning: the first class loss") == 1


def not_finite(which):
    def spoil(net):
        layer = net.heads.cls.output if which == "classification" else net.heads.box.output
        torch.nn.init.constant_(layer.bias, math.nan)

    return spoil


@pytest.mark.parametrize("which", ["classification", "box"])
def test_a_loss_that_is_not_finite_stops_the_run(assembled, which):
    training = assembled()
    not_finite(which)(training.detector.net)
    before = training.detector.net.state_dict()["heads.cls.conv.0.weight"].clone()
    with pytest.raises(UserError) as stopped:
        loop.fit(training, Progress(), log_of(training))
    file = training.config.folder / "nonfinite_batch.pt"
    (batch,) = parts_of(training)
    images = [str(sample.path) for sample in batch.samples]
    message = str(stopped.value)
    assert f"the {which} loss is nan at step 1" in message and str(file) in message
    assert all(image in message for image in images)
    saved = torch.load(file, weights_only=True)
    assert saved["paths"] == images and torch.equal(saved["images"], batch.images)
    assert torch.equal(saved["sizes"], batch.sizes)
    assert all(
        torch.equal(kept["boxes"], target.boxes) and torch.equal(kept["labels"], target.labels)
        for kept, target in zip(saved["targets"], batch.targets, strict=True)
    )
    assert torch.equal(before, training.detector.net.state_dict()["heads.cls.conv.0.weight"])
    assert (
        not (training.config.folder / "model.safetensors").exists()
        and not (training.config.folder / "state.pt").exists()
    )


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_lost(assembled):
    training = assembled(optim={"accumulate": 3})
    training.detector.net.heads.box.output.bias.register_hook(lambda gradient: gradient * math.inf)
    before = {key: value.clone() for key, value in training.detector.net.state_dict().items()}
    parts = parts_of(training)
    with pytest.raises(UserError, match=r"the norm of the gradient is (nan|inf) at step 5") as stopped:
        loop.train_step(training, parts, 4)
    for number, batch in enumerate(parts):
        file = training.config.folder / f"nonfinite_batch_0_{number}.pt"
        assert str(file) in str(stopped.value) and str(batch.samples[0].path) in str(stopped.value)
        assert torch.equal(torch.load(file, weights_only=True)["images"], batch.images)
    parameters = dict(training.detector.net.named_parameters())
    assert all(torch.equal(value, before[name]) for name, value in parameters.items())


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations that find the APs of a list, and steps that do nothing."""

    def arrange(*aps):
        real, left = loop._evaluate, list(aps)

        def evaluation(training, log):
            report, found = real(training, log)
            return replace(report, metrics=replace(report.metrics, ap=left.pop(0))), found

        monkeypatch.setattr(loop, "_evaluate", evaluation)

    return arrange


def evaluations(training):
    return [(int(row["epoch"]), row["AP"]) for row in read_log(training.config.folder / "log.csv") if row["AP"]]


def test_patience_and_the_best_model(assembled, scripted, capfd):
    scripted(0.25, 0.5, 0.375, 0.5)
    training = assembled(epochs=9, batch_size=6, run={"patience": 2})
    progress = loop.fit(training, Progress(), log_of(training))
    assert (progress.step, progress.best, progress.stale) == (4, 0.5, 2)
    assert evaluations(training) == [(1, "0.25"), (2, "0.5"), (3, "0.375"), (4, "0.5")]
    assert Detector.load(training.config.folder).spec.metrics["epoch"] == 2
    assert Detector.load(training.config.folder / "last").spec.metrics["epoch"] == 4
    assert "stopped early: no better AP in 2 evaluations" in capfd.readouterr().err
    again = loop.fit(training, Progress(4, 0.5, 2), log_of(training))  # as --resume would
    assert again.step == 4


def test_a_validation_set_without_objects_keeps_the_last_model(assembled, scripted):
    scripted(math.nan, math.nan)
    training = assembled(batch_size=6, run={"patience": 1})
    progress = loop.fit(training, Progress(), log_of(training))
    assert (progress.step, progress.best, progress.stale) == (2, -1.0, 0)
    detector = Detector.load(training.config.folder)
    assert detector.spec.metrics["epoch"] == 2 and detector.spec.metrics["AP"] is None


def test_evaluate_every_and_the_last_epoch(assembled):
    training = assembled(epochs=5, batch_size=6, run={"evaluate_every": 2})
    loop.fit(training, Progress(), log_of(training))
    assert [epoch for epoch, _ in evaluations(training)] == [2, 4, 5]


def test_save_every_and_the_ends_of_epochs(assembled, monkeypatch):
    saved = []
    monkeypatch.setattr(loop, "save_state", lambda folder, progress, *_: saved.append(progress.step))
    training = assembled(batch_size=1, run={"save_every": 4, "evaluate_every": 9})
    loop.fit(training, Progress(), log_of(training))
    assert saved == [4, 6, 8, 12]


def test_what_is_saved_is_what_was_evaluated(assembled):
    training = assembled(epochs=1)
    loop.fit(training, Progress(), log_of(training))
    saved = Detector.load(training.config.folder)
    average = training.best_net.state_dict()
    assert all(torch.equal(value, average[key]) for key, value in saved.net.state_dict().items())
    net = training.detector.net.state_dict()
    assert not torch.equal(net["heads.cls.output.weight"], average["heads.cls.output.weight"])
    assert training.net.training and not training.best_net.training
    assert saved.spec.class_names == ("disc", "square") and saved.spec.preprocess.short == 64
    assert (
        Path(training.config.folder, "evaluation.json").is_file()
        and Path(training.config.folder, "predictions.json").is_file()
    )


def watch_norms(norms, warmup=0):
    watch = GradientWatch(warmup)
    return [step for step, norm in enumerate(norms) if watch.warning(norm, step, []) is not None]


@pytest.mark.parametrize(
    ("norms", "warmup", "warned"),
    [
        ([5.0] * 30 + [6e4] * 3, 0, [30]),  # once
        ([5.0] * 30 + [4e4], 0, []),  # 8,000 times the usual
        ([5.0] * 10 + [6e4], 0, []),  # what is usual is not known yet
        ([5.0] * 30 + [6e4], 40, []),  # warm-up
        ([2e6], 40, [0]),  # absurd anywhere
        ([math.inf, math.nan, 5.0], 0, []),  # the business of the scaler of the loss, or the end of the run
        ([1e-3] * 150 + [5.0] * 100 + [100.0], 0, []),  # usual is what the last steps had
    ],
)
def test_which_norms_are_absurd(norms, warmup, warned):
    assert watch_norms(norms, warmup) == warned


def test_an_absurd_norm_is_told(assembled, monkeypatch, capsys):
    training = assembled()
    clip = loop._clip
    monkeypatch.setattr(loop, "_clip", lambda training: clip(training) * 0 + 1e12)
    loop.fit(training, Progress(), log_of(training))
    said = capsys.readouterr().err
    assert said.count("warning: the norm of the gradient is 1e+12 at step 1") == 1 and "train/train_" in said
