"""What a run starts from, and what may differ when it goes on."""

import math
from dataclasses import replace

import pytest
import torch
import yaml

from retinanet.anchors.lattice import AnchorLattice
from retinanet.data.dataset import load_dataset
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.model.postprocess import Postprocess
from retinanet.model.presets import Architecture
from retinanet.plain import to_plain
from retinanet.planning.planner import Origin
from retinanet.spec import ModelSpec
from retinanet.training.config import ImageConfig, OptimConfig, PostprocessConfig, RunConfig
from retinanet.training.output import check_output
from retinanet.training.resume import STATE
from retinanet.training.start import (
    adapt_detector,
    build_detector,
    magnification,
    starts_anew,
)


@pytest.fixture
def options(tmp_path, train_config):
    """A run that was started with these options and has a saved step."""
    config = train_config(data="cells", output=str(tmp_path))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    (tmp_path / STATE).touch()
    return config


def test_a_run_goes_on_with_the_same_options_and_on_other_devices(tmp_path, options):
    check_output(options, resume=True)
    elsewhere = RunConfig(accelerator="auto", workers=0, evaluate_every=1, save_every=7)
    assert check_output(replace(options, run=elsewhere), resume=True) == []
    halves = replace(options, run=RunConfig(devices="2", evaluate_every=1), optim=OptimConfig(accumulate=2))
    assert check_output(halves, resume=True) == [
        "optim.accumulate 1 -> 2",
        "run.devices auto -> 2",
    ]  # rounds differently


def test_what_decides_the_result_may_not_differ(tmp_path, options):
    with pytest.raises(UserError, match=r"optim\.lr None -> 0\.1.*--resume"):
        check_output(replace(options, optim=OptimConfig(lr=0.1, accumulate=2)), resume=True)


@pytest.fixture
def go_on(data, trained, train_config):
    """What ``adapt_detector`` makes of the trained model: detector, transfer, and the tensors before."""

    def build(names=("disc", "square"), options=None, **changes):
        dataset = load_dataset(data, "train")
        dataset.class_names = tuple(names)
        torch.manual_seed(1)
        config = train_config(data=str(data), output="out", architecture=changes, **(options or {}))
        detector, moved = adapt_detector(config, trained, dataset)
        return detector, moved, Detector.load(trained).net.state_dict()

    return build


def fresh_only(detector, moved, before, *prefixes):
    """That exactly what is under the prefixes is new, and the rest is as before, bit for bit."""
    after = detector.net.state_dict()
    assert set(moved.fresh) == {name for name in after if name.startswith(prefixes)}
    assert set(moved.kept) == after.keys() - set(moved.fresh)
    assert all(torch.equal(after[name], before[name]) for name in moved.kept)
    for name in moved.fresh:
        assert (
            name not in before or before[name].shape != after[name].shape or not torch.equal(before[name], after[name])
        ), name


def as_initialised(layer, bias):
    """N(0, 0.01) weights and one value as the bias."""
    assert (layer.bias == bias).all()
    weights, count = layer.weight.detach().double(), layer.weight.numel()
    assert abs(float(weights.mean())) < 5 * 0.01 / count**0.5
    assert float(weights.std()) == pytest.approx(0.01, rel=5 / (2 * count) ** 0.5)


PRIOR = torch.tensor(-math.log(0.99 / 0.01), dtype=torch.float32)


def test_a_model_goes_on_as_it_is(go_on):
    detector, moved, before = go_on()
    fresh_only(detector, moved, before, "nothing")
    assert moved.unused == () and detector.spec.metrics == {}


def test_other_classes_make_the_class_layer_new_and_nothing_else(go_on):
    detector, moved, before = go_on(names=("RBC", "WBC", "Platelets"))
    fresh_only(detector, moved, before, "heads.cls.output.")
    as_initialised(detector.net.heads.cls.output, PRIOR)
    assert moved.unused == () and detector.spec.class_names == ("RBC", "WBC", "Platelets")
    assert moved.fresh["heads.cls.output.bias"] == (
        "the classes differ: the model knew disc, square, the data has RBC, WBC, Platelets"
    )


def test_as_many_classes_of_other_names_are_other_classes(go_on):
    detector, moved, before = go_on(names=("disc", "ring"))
    fresh_only(detector, moved, before, "heads.cls.output.")
    as_initialised(detector.net.heads.cls.output, PRIOR)
    assert not moved.resized and "new: heads.cls.output.weight and .bias, because the classes" in moved.summary()


def test_many_classes_are_told_by_their_number():
    known = [f"thing {number}" for number in range(80)]
    reasons = starts_anew(Architecture(), Architecture(), known, ["cell"])
    assert reasons == {
        "heads.cls.output.": "the classes differ: the model knew thing 0, thing 1, ... (80), the data has cell"
    }


@pytest.mark.parametrize(
    "anchors",
    [
        {"sizes": [8, 16, 32, 64, 100]},
        {"ratios": [0.5, 1.0, 3.0]},
        {"ratios": [1.0], "scales": [1.0]},
        {"scales": [1.0, 1.2, 1.6]},
        {"offset": 0.0},
        {"compat": {"rounding": "corners"}},
        {"compat": {"inclusive": True}},
    ],
)
def test_other_anchors_make_both_output_layers_new(go_on, anchors):
    detector, moved, before = go_on(anchors=anchors)
    fresh_only(detector, moved, before, "heads.cls.output.", "heads.box.output.")
    as_initialised(detector.net.heads.cls.output, PRIOR)
    as_initialised(detector.net.heads.box.output, 0)
    reason = moved.fresh["heads.box.output.weight"]
    ((name, change),) = list(anchors.items())[:1]
    option = f"compat.{next(iter(change))}" if name == "compat" else name
    assert reason.startswith(f"the anchors differ: {option} ") and " became " in reason
    assert detector.net.lattice == detector.spec.architecture.anchors != AnchorLattice(sizes=(8, 16, 32, 64, 128))


def test_the_reason_names_both_where_classes_and_anchors_differ(go_on):
    _, moved, _ = go_on(names=("ring",), anchors={"offset": 0.0})
    assert moved.fresh["heads.box.output.bias"] == "the anchors differ: offset 0.5 became 0"
    assert moved.fresh["heads.cls.output.bias"] == (
        "the classes differ: the model knew disc, square, the data has ring; the anchors differ: offset 0.5 became 0"
    )


def test_spacing_of_the_anchors_alone_leaves_the_heads(go_on):
    detector, moved, before = go_on(anchors={"compat": {"floor_strides": True}})
    fresh_only(detector, moved, before, "nothing")
    assert detector.net.lattice.compat.floor_strides


def test_another_coding_of_boxes_makes_the_box_layer_new(go_on):
    detector, moved, before = go_on(coder={"std": [0.1, 0.1, 0.2, 0.2]})
    fresh_only(detector, moved, before, "heads.box.output.")
    detector, moved, before = go_on(coder={"clamp": 3.0})  # limits what is decoded, not what it means
    fresh_only(detector, moved, before, "nothing")
    assert detector.net.coder.clamp == 3.0


def test_other_towers_keep_what_fits(go_on):
    detector, moved, before = go_on(depth=2)
    fresh_only(detector, moved, before, "heads.cls.conv.1.", "heads.box.conv.1.")
    detector, moved, before = go_on(head_norm="group")
    fresh_only(detector, moved, before, "heads.cls.norm.", "heads.box.norm.")
    assert moved.unused == ("heads.cls.conv.0.bias", "heads.box.conv.0.bias")
    detector, moved, before = go_on(channels=16)
    boxes = "heads.box.output.bias"  # of 36 numbers in both
    assert set(moved.fresh) == {name for name in before if not name.startswith("backbone.")} - {
        boxes,
        "heads.cls.output.bias",
    }
    assert moved.resized["fpn.lateral.p3.weight"] == ((32, 48, 1, 1), (16, 48, 1, 1))


def test_p6_from_another_map_is_new_though_it_fits():
    old = Architecture(backbone="resnet18", channels=512)
    assert (
        old.build(1).fpn.output["p6"].weight.shape == replace(old, p6_from="P5").build(1).fpn.output["p6"].weight.shape
    )
    reasons = starts_anew(old, replace(old, p6_from="P5"), ["cell"], ["cell"])
    assert reasons == {"fpn.output.p6.": "P6 is made from P5 instead of C5"}


def test_the_norm_is_the_folders_unless_given(go_on):
    detector, moved, _ = go_on()
    assert (
        detector.spec.architecture.norm == detector.net.backbone.norm == "batch"
    )  # a preset with weights has frozen ones
    detector, moved, before = go_on(norm="group")
    fresh_only(detector, moved, before, "nothing")
    statistics = {"running_mean", "running_var", "num_batches_tracked"}
    assert {name.rpartition(".")[2] for name in moved.unused} == statistics
    assert set(moved.unused) == {name for name in before if name.rpartition(".")[2] in statistics}
    detector, moved, before = go_on(norm="frozen", frozen_stages=1)
    fresh_only(detector, moved, before, "nothing")
    assert detector.spec.architecture.frozen_stages == 1


def test_norms_that_hold_their_activation_keep_their_weights_too(data, tmp_path, train_config):
    architecture = Architecture(backbone="tf_efficientnet_lite0", channels=16, depth=0)
    dataset = load_dataset(data, "train")
    net = architecture.build(2)
    Detector(ModelSpec(dataset.class_names, architecture=architecture), net).save(tmp_path)
    config = train_config(data=str(data), output="out", architecture={"norm": "group"})
    _, moved = adapt_detector(config, tmp_path, dataset)
    assert not moved.fresh and "backbone.body.bn1.0.weight" in moved.kept


def test_no_statistics_to_freeze_after_group_norms(go_on, data, tmp_path, train_config):
    go_on(norm="group")[0].save(tmp_path)
    config = train_config(data=str(data), output="out", architecture={"norm": "frozen"})
    with pytest.raises(UserError, match=r"norm frozen: .* has group norms, .*Expected batch or group"):
        adapt_detector(config, tmp_path, load_dataset(data, "train"))


def test_another_backbone_is_refused(go_on, trained):
    with pytest.raises(
        UserError, match=rf"backbone resnet18: {trained} has the backbone test_resnet.*train from a preset"
    ):
        go_on(backbone="resnet18")
    detector, _, _ = go_on(backbone="test_resnet")
    assert detector.spec.architecture.backbone == "test_resnet"


@pytest.mark.parametrize("weights", ["none", "backbone.safetensors"])
def test_weights_of_a_backbone_are_refused(go_on, weights):
    with pytest.raises(UserError, match=rf"--weights {weights}: .*Leave out --weights"):
        go_on(options={"weights": weights})


def test_thresholds_are_the_folders_where_options_are_at_their_defaults(go_on):
    saved = Postprocess(score=0.0, topk=50, max_detections=20, vote=0.65)  # what the folder was trained with
    assert go_on()[0].spec.postprocess == saved
    given = PostprocessConfig(nms=0.3, topk=70)
    assert go_on(options={"postprocess": given})[0].spec.postprocess == replace(saved, nms=0.3, topk=70)


def test_a_model_is_a_preset_or_a_folder(trained, tmp_path):
    assert Origin.find("lite").folder is None and Origin.find(str(trained)).folder == trained
    with pytest.raises(UserError, match=r"unknown model 'resnet5'.*did you mean 'resnet50'"):
        Origin.find("resnet5")
    with pytest.raises(UserError, match=r"no model in .*: expected a folder with config\.json"):
        Origin.find(str(tmp_path))


def test_the_scale_is_the_median_over_the_training_images(data):
    dataset, rule = load_dataset(data, "train"), Preprocess(short=384, long=512)
    first = dataset.samples[0]
    sizes = [(480, 640), (1000, 4000), (480, 640), (100, 100), (480, 640)]  # 0.8, 0.128, 0.8, 3.84, 0.8
    dataset.samples = [replace(first, size=size) for size in sizes]
    assert magnification(dataset, rule) == pytest.approx(0.8)
    dataset.samples = dataset.samples[1:2]
    assert magnification(dataset, rule) == pytest.approx(0.128)


def test_a_model_remembers_the_scale_of_the_images_that_it_learned_from(go_on, trained, data, train_config):
    """The images have 64 x 80 pixels."""
    saved = Detector.load(trained)
    assert saved.spec.scale == pytest.approx(saved.spec.preprocess.size(64, 80)[0] / 64, rel=0.02)
    assert go_on()[0].spec.scale == saved.spec.scale
    assert go_on(options={"image": ImageConfig(short=32, long=40)})[0].spec.scale == 0.5
    image = ImageConfig(short=128, long=160)
    config = train_config(data=str(data), output="out", model="resnet18", weights="none", image=image)
    assert build_detector(config, load_dataset(data, "train")).spec.scale == 2.0
