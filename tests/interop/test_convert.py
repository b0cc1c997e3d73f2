"""The command's own work: recognising, refusing, reporting. Parity is in test_torchvision.py and test_peers.py."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from retinanet.anchors.lattice import AnchorLattice
from retinanet.cli.main import main
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.interop import detectron2, mmdetection, odtk, torchvision, yhenon
from retinanet.interop.convert import SOURCES, convert, convert_weights, name_classes, recognise
from retinanet.interop.files import WeightsFile, read_weights
from retinanet.interop.source import BACKBONES, backbone, check_anchors, has_folded_statistics, order_anchors
from retinanet.model.presets import Architecture

RATIOS, SCALES = (0.5, 1.0, 2.0), (1.0, 2 ** (1 / 3), 2 ** (2 / 3))


def yhenon_state(classes=2, seed=0):
    """A state dict under yhenon's names, over a ResNet-18; made by turning our names into its."""
    torch.manual_seed(seed)
    state = Architecture(backbone="resnet18").build(classes).state_dict()
    theirs = {ours: name for name, ours in yhenon.NAMES.items()}
    renamed = {}
    for key, value in state.items():
        prefix = max((p for p in theirs if key.startswith(p + ".")), key=len)
        renamed[theirs[prefix] + key[len(prefix) :]] = torch.rand_like(value) if value.is_floating_point() else value
    return renamed


@pytest.fixture(scope="module")
def state():
    return yhenon_state()


def saved(state, path):
    torch.save(state, path)
    return str(path)


def file_of(state, meta=None):
    return WeightsFile(Path("weights.pth"), state, meta or {}, "", ())


def test_a_model_folder_and_its_report(state, tmp_path, capsys):
    weights = saved(state, tmp_path / "weights.pth")
    assert main(["convert", weights, str(tmp_path / "model"), "--class-names", "cell,rod"]) == 0
    text = capsys.readouterr().out
    assert "yhenon" in text and "156 used" in text and "cell, rod" in text and "--loss.box_weight 0.25" in text
    assert "not measured here" in text and "parity" in text
    detector = Detector.load(tmp_path / "model")
    assert detector.spec.class_names == ("cell", "rod") and detector.spec.preprocess.short == 608
    assert torch.equal(detector.net.fpn.lateral["p4"].weight, state["fpn.P4_1.weight"])
    assert torch.equal(detector.net.heads.cls.conv[3].bias, state["classificationModel.conv4.bias"])
    assert (tmp_path / "model" / "conversion.txt").read_text().strip() in text
    report = json.loads((tmp_path / "model" / "conversion.json").read_text())
    assert report["used"]["fpn.output.p6.weight"] == {"from": "fpn.P6.weight", "shape": [256, 512, 3, 3]}
    assert len(report["used"]) == 156
    assert report["architecture"]["coder"]["std"] == [0.1, 0.1, 0.2, 0.2]


def test_a_converted_model_predicts(state, tmp_path):
    from retinanet import Predictor

    convert(saved(state, tmp_path / "weights.pth"), str(tmp_path / "model"))
    predictor = Predictor.load(tmp_path / "model", device="cpu")
    assert predictor.class_names == ("class 0", "class 1")
    found = predictor(torch.zeros(3, 40, 60, dtype=torch.uint8))
    assert (found.boxes[:, 2] <= 60).all() and (found.boxes[:, 3] <= 40).all()


def test_names_in_a_file_and_options(state, tmp_path):
    (tmp_path / "names.txt").write_text("Ameise\n\n пчела \n", encoding="utf-8")
    text = convert(
        saved(state, tmp_path / "weights.pth"),
        str(tmp_path / "model"),
        class_names=str(tmp_path / "names.txt"),
        architecture={"norm": "batch", "coder": {"clamp": 4}},
        preprocess={"short": 300, "long": 400},
        postprocess={"score": 0.2, "topk": 500},
    )
    detector = Detector.load(tmp_path / "model")
    assert detector.spec.class_names == ("Ameise", "пчела") and "norm batch" in text
    assert (detector.spec.architecture.norm, detector.spec.architecture.coder.clamp) == ("batch", 4.0)
    assert (detector.spec.preprocess.short, detector.spec.preprocess.compat.margin) == (300, 1)
    assert (detector.spec.postprocess.score, detector.spec.postprocess.compat.clip) == (0.2, "half")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fpn.P4_1.bias"), r"wrong tensors, 1 in all:\n  fpn\.lateral\.p4\.bias: missing"),
        (
            lambda state: state.update({"fpn.P3_2.bias": torch.zeros(5)}),
            r"1 in all:\n  fpn\.P3_2\.bias: shape \(5,\), expected \(256,\)",
        ),
        (
            lambda state: state.update({"fc.weight": torch.zeros(2, 3)}),
            r"nothing is dropped silently; 1 of 157:\n  fc\.weight \(2, 3",
        ),
        (lambda state: state.update({"layer1.0.conv9.weight": torch.zeros(1)}), r"layer1\.0\.conv9\.weight: no place"),
        (
            lambda state: state.pop("fpn.P6.weight"),
            r"not a complete RetinaNet: it lacks the tensors that are called fpn\.output\.p6\.weight here",
        ),
        (
            lambda state: [state.pop(key) for key in list(state) if key.startswith("layer4.1")],
            r"this backbone cannot be converted: its stages have 2, 2, 2, 1 blocks",
        ),
        (lambda state: state.pop("regressionModel.output.bias"), r"that are called heads\.box\.output\.bias here"),
        (
            lambda state: state.update({"classificationModel.output.bias": torch.zeros(5)}),
            r"heads\.cls\.output\.bias here has the shape \(5,\), expected \(18,\)",
        ),
        (
            lambda state: state.update(
                {
                    "classificationModel.output.weight": torch.zeros(20, 256, 3, 3),
                    "classificationModel.output.bias": torch.zeros(20),
                }
            ),
            r"box layer has 36 outputs.*class layer 20, no multiple",
        ),
        (
            lambda state: state.update(
                {
                    f"{name}.{kind}": torch.zeros(rows, *((256, 3, 3) if kind == "weight" else ()))
                    for name, rows in (("regressionModel.output", 24), ("classificationModel.output", 12))
                    for kind in ("weight", "bias")
                }
            ),
            r"have 6 anchors per cell, but 9 are assumed\. Give those that the model was trained with.*anchors\.ratios",
        ),
    ],
)
def test_what_does_not_fit_is_listed(change, message, tmp_path):
    state = yhenon_state()
    change(state)
    with pytest.raises(UserError, match=message):
        convert(saved(state, tmp_path / "weights.pth"), str(tmp_path / "model"))
    assert not (tmp_path / "model").exists()


def test_other_anchors(tmp_path):
    """Six anchors of a cell are no trouble once they are named."""
    state = yhenon_state(classes=1)
    for name, rows in (("regressionModel.output", 24), ("classificationModel.output", 6)):
        state[f"{name}.weight"], state[f"{name}.bias"] = torch.rand(rows, 256, 3, 3), torch.rand(rows)
    detector = convert_weights(file_of(state), changes={"architecture": {"anchors": {"scales": [1, 1.5]}}})
    assert detector.net.lattice.num_anchors == 6 and detector.net.lattice.scales == (1, 1.5)
    assert torch.equal(detector.net.heads.box.output.bias, state["regressionModel.output.bias"])


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_recognition(source):
    """By its own marks, and no state dict has those of two."""
    file = file_of({mark: torch.zeros(1) for mark in source.marks})
    assert recognise(file) is source
    assert [other for other in SOURCES if all(mark in file.tensors for mark in other.marks)] == [source]
    assert recognise(file_of({}), source.name) is source


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{weights}"], "missing: output"),
        (["{weights}", "{new}", "--source", "yhennon"], "--source yhennon: expected one of torchvision, yhenon"),
        (["{weights}", "{new}", "--source", "odtk"], "its keys are those of yhenon, not of odtk. Leave out --source"),
        (["{other}", "{new}"], "2 tensors (a, b, ...) of no source that is known"),
        (["{new}", "{new}"], "no such file: "),
        (["{model}", "{new}"], "is a model folder already. To write it for torchvision, add --to torchvision"),
        (["{weights}", "{model}"], "is a model already. Name another folder, or pass --overwrite"),
        (["{weights}", "{weights}"], "is a file; expected the name of a folder"),
        (["{weights}", "{weights}/sub"], "is a file, not a folder"),
        (["{model}", "{new}", "--to", "torchvision", "--class_names", "a"], "leave out --class_names"),
        (["{model}", "{new}", "--to", "keras"], "--to keras: models can be written only for torchvision"),
        (["{model}", "{model}", "--to", "torchvision"], "exists already. Name a new file"),
        (["{weights}", "{new}", "--class_names", "a,b,c"], "the weights have 2 classes, 3 different names given"),
        (["{weights}", "{new}", "--class_names", "name," * 80], "the weights have 2 classes, 1 different names given"),
        (["{weights}", "{new}", "--architecture.norm_epsilon", "0"], "did you mean 'norm_eps'?"),
        (
            ["{weights}", "{new}", "--preprocess.compat.channels", "GBR"],
            "preprocess.compat.channels: expected RGB or BGR, got 'GBR'",
        ),
        (["--from"], "option --from needs a value"),
        (["--from", "torchvision:retinanet_resnet101_fpn", "{new}"], "there is no 'retinanet_resnet101_fpn'"),
    ],
)
def test_mistakes(words, message, state, tmp_path, capsys):
    places = {name: tmp_path / name for name in ("weights", "other", "model", "new")}
    saved(state, places["weights"])
    saved({"a": torch.zeros(1), "b": torch.zeros(1)}, places["other"])
    (places["model"]).mkdir()
    (places["model"] / "config.json").write_text("{}")
    assert main(["convert", *(word.format(**places) for word in words)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("retinanet convert: ") and message in error and "Traceback" not in error
    assert not places["new"].exists()


def test_overwrite(state, tmp_path):
    weights, folder = saved(state, tmp_path / "weights.pth"), tmp_path / "model"
    convert(weights, str(folder))
    convert(weights, str(folder), class_names="x,y", overwrite=True)
    assert Detector.load(folder).spec.class_names == ("x", "y")


def test_a_pickled_model_is_refused_with_instructions(tmp_path, capsys):
    torch.save(torch.nn.Conv2d(1, 1, 1), tmp_path / "model_final.pt")
    assert main(["convert", str(tmp_path / "model_final.pt"), str(tmp_path / "model")]) == 2
    error = capsys.readouterr().err
    assert "state_dict()" in error and "torch.save" in error and not (tmp_path / "model").exists()


def test_keras_is_refused(tmp_path):
    (tmp_path / "resnet50_coco_best_v2.1.0.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + b"\0" * 600)
    with pytest.raises(UserError, match=r"keras-retinanet.*cannot be converted: its boxes are coded as corner offsets"):
        read_weights(tmp_path / "resnet50_coco_best_v2.1.0.h5")


@pytest.mark.parametrize(
    ("ratio_order", "expected"),
    [((), [0, 3, 6, 1, 4, 7, 2, 5, 8]), ((1.0, 2.0, 0.5), [2, 5, 8, 0, 3, 6, 1, 4, 7])],
)
def test_anchor_order(ratio_order, expected):
    """Counted out: the source lists (scale, ratio) pairs, we look for ours among them."""
    theirs = [(scale, ratio) for scale in SCALES for ratio in ratio_order or RATIOS]
    counted = [theirs.index((scale, ratio)) for ratio in RATIOS for scale in SCALES]
    assert list(order_anchors(AnchorLattice(), scale_major=True, ratio_order=ratio_order)) == counted == expected
    assert order_anchors(AnchorLattice(), scale_major=False) == tuple(range(9))


@pytest.mark.parametrize("name", BACKBONES.values())
def test_backbones(name):
    """The table against timm's own networks."""
    with torch.device("meta"):
        assert backbone(Architecture(backbone=name).build(1).state_dict()) == name


def test_detectron2_tells_caffe_from_its_statistics():
    """MSRA's weights hold none; pixels and anchors in older files decide and are checked."""
    with torch.device("meta"):
        shapes = Architecture(backbone="resnet50").build(1).state_dict()
    tensors = {key: torch.zeros(value.shape) for key, value in shapes.items() if "running_mean" in key}
    tensors |= {key: value for key, value in shapes.items() if key not in tensors}
    assert has_folded_statistics(tensors)
    settings = detectron2.settings(file_of({}), tensors, ())
    assert settings.architecture == {"stride_in_1x1": True}
    assert settings.preprocess.compat.channels == "BGR" and settings.preprocess.mean == (103.53, 116.28, 123.675)
    tensors["backbone.body.layer1.0.bn1.running_mean"][3] = 0.1
    older = {
        "pixel_mean": torch.tensor([123.675, 116.28, 103.53]).view(3, 1, 1),
        "pixel_std": torch.tensor([58.395, 57.12, 57.375]).view(3, 1, 1),
        **{f"anchor_generator.cell_anchors.{level}": _scale_by_scale(4 * 2 ** (level + 3)) for level in range(5)},
    }
    settings = detectron2.settings(file_of(older), tensors, ())
    assert settings.architecture == {"stride_in_1x1": False} and "STRIDE_IN_1X1" in settings.remarks[0]
    assert settings.preprocess.compat.channels == "RGB" and settings.preprocess.std == (58.395, 57.12, 57.375)
    assert len(settings.templates) == 5 and torch.equal(settings.templates[2], _scale_by_scale(128))
    heads = {f"heads.{name}.output.weight": torch.zeros(36, 1, 3, 3) for name in ("cls", "box")}
    order = order_anchors(settings.lattice, scale_major=True)
    check_anchors(heads, settings.lattice, order, settings.templates)
    other = (*settings.templates[:2], settings.templates[2] * 1.01)
    with pytest.raises(UserError, match=r"file's anchors are not the assumed ones, first on level P5\. Give those"):
        check_anchors(heads, settings.lattice, order, other)
    larger = replace(settings.lattice, sizes=(32, 64, 128 * 1.01, 256, 512))
    check_anchors(heads, larger, order, other)  # as the message says


def _scale_by_scale(size):
    """detectron2's nine anchors of a cell: sizes outside, ratios inside."""
    rows = []
    for scale in SCALES:
        for ratio in RATIOS:
            width = (size * size * scale * scale / ratio) ** 0.5
            rows.append([-width / 2, -width * ratio / 2, width / 2, width * ratio / 2])
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("meta", "statistics", "caffe", "names"),
    [
        ({"meta": {"CLASSES": ["cell", "rod"], "config": "backbone=dict(style='caffe')"}}, True, True, ("cell", "rod")),
        ({"meta": {"cfg": 'style="pytorch"', "dataset_meta": {"classes": ("a", "b")}}}, False, False, ("a", "b")),
        ({"meta": {"cfg": {"model": {"backbone": {"style": "caffe"}}}}}, True, True, ()),
        ({}, False, True, ()),
        ({}, True, False, ()),
    ],
)
def test_mmdetection_reads_its_configuration(meta, statistics, caffe, names):
    mean = torch.full((64,), float(statistics))
    settings = mmdetection.settings(file_of({}, meta), {"backbone.body.layer1.0.bn1.running_mean": mean}, ())
    assert settings.architecture == {"relu_before_p7": False, "stride_in_1x1": caffe}
    assert settings.preprocess.compat.channels == ("BGR" if caffe else "RGB")
    assert settings.class_names == names and settings.coder.clamp_below


def test_odtk_reads_its_anchors():
    scales = [3.0, 4.5]
    settings = odtk.settings(file_of({}, {"ratios": [2.0, 0.25, 1.0], "scales": scales}), {}, ())
    lattice = settings.lattice
    assert lattice.ratios == (0.25, 1.0, 2.0) and settings.ratio_order == (2.0, 0.25, 1.0)
    assert lattice.sizes == (24, 48, 96, 192, 384) and lattice.scales == (1.0, 1.5) and lattice.compat.inclusive
    with pytest.raises(UserError, match="a model of rotated boxes"):
        odtk.settings(file_of({}, {"angles": [0.5]}), {}, ())
    for scales in (["a"], [0.0], [1, None]):
        with pytest.raises(UserError, match="expected numbers above 0"):
            odtk.settings(file_of({}, {"scales": scales}), {}, ())


def test_mmdetections_configuration_is_searched_in_linear_time():
    """Spaces that fit two parts of a pattern would be divided between them in every way."""
    statistics = {"backbone.body.layer1.0.bn1.running_mean": torch.ones(64)}
    text = " ".join(name + " " * 300_000 for name in ("style", "to_rgb", "mean", "std"))
    assert (
        mmdetection.settings(file_of({}, {"meta": {"cfg": text}}), statistics, ()).preprocess.compat.channels == "RGB"
    )


def test_torchvision_is_not_asked_where_it_came_from_twice():
    """Every key of every map leads somewhere of its own."""
    for names in (torchvision.NAMES, yhenon.NAMES, detectron2.NAMES, mmdetection.NAMES, odtk.NAMES):
        assert len(set(names.values())) == len(names)


def test_ratios_that_the_user_names_are_in_the_sources_order():
    """odtk's file says 1, 2, 0.5; a user who names others names them as they were trained."""
    lattice = AnchorLattice(ratios=(0.5, 1.0, 3.0))
    assert order_anchors(lattice, scale_major=True, ratio_order=odtk.RATIOS) == (0, 3, 6, 1, 4, 7, 2, 5, 8)


@pytest.mark.parametrize(
    ("tensors", "meta", "mean", "channels"),
    [
        ({"data_preprocessor.mean": torch.tensor([1.0, 2, 3]).view(3, 1, 1)}, {}, (1, 2, 3), "RGB"),
        (
            {},
            {"meta": {"cfg": "img_norm_cfg = dict(mean=[9.5, 8, 7], std=[1.0, 1, 1], to_rgb=False)"}},
            (9.5, 8, 7),
            "BGR",
        ),
        ({}, {}, (123.675, 116.28, 103.53), "RGB"),
    ],
)
def test_mmdetections_pixels(tensors, meta, mean, channels):
    statistics = {"backbone.body.layer1.0.bn1.running_mean": torch.ones(64)}
    settings = mmdetection.settings(file_of(tensors, meta), statistics, ())
    assert settings.preprocess.mean == mean and settings.preprocess.compat.channels == channels
    assert str(tuple(map(float, mean))) in settings.remarks[1]


def test_coco_names_are_said_to_be_assumed():
    assert "COCO's assumed" in name_classes(80, ())[1][0] and name_classes(80, ())[0][0] == "person"
    assert "the file's 2 different names do not fit" in name_classes(80, (), ("a", "b"))[1][0]
    assert name_classes(3, ("a", "b", "c")) == (("a", "b", "c"), ()) == name_classes(3, (), ("a", "b", "c"))
    assert name_classes(2, ())[0] == ("class 0", "class 1")


def test_a_training_run_is_not_overwritten(state, tmp_path):
    weights, folder = saved(state, tmp_path / "weights.pth"), tmp_path / "run"
    folder.mkdir()
    (folder / "state.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"is the folder of a training run \(state\.pt is there\)"):
        convert(weights, str(folder), overwrite=True)


def test_a_folder_that_cannot_be_written(state, tmp_path, monkeypatch):
    """Told before the work where it can be seen, and otherwise without a traceback."""
    weights = saved(state, tmp_path / "weights.pth")
    with pytest.raises(UserError, match="cannot be written"):
        convert(weights, "/proc/model")

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retinanet.files.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot be written .*No space left"):
        convert(weights, str(tmp_path / "model"))
    assert not list((tmp_path / "model").iterdir())


def test_other_weights_in_the_file_are_named(state, tmp_path):
    """torchvision's training script keeps an average of the weights beside them."""
    torch.save({"model": state, "model_ema": {"module": state}, "epoch": 3}, tmp_path / "model_9.pth")
    text = convert(str(tmp_path / "model_9.pth"), str(tmp_path / "model"))
    assert "taken from 'model'; left out: 'model_ema'. To convert one of these" in text
