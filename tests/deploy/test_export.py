"""Exported models: the same detections as the model folder, in every format."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import onnx
import openvino
import pytest
import torch

from retinanet.anchors.nms import BAND, VOTERS, count_voters
from retinanet.deploy import export as export_run
from retinanet.deploy import onnx as deploy_onnx
from retinanet.deploy.export import export
from retinanet.digest import file_sha256
from retinanet.errors import UserError
from retinanet.evaluation.evaluate import evaluate
from retinanet.images.preprocess import Preprocess
from retinanet.inference.exported import open_exported
from retinanet.inference.predictor import Predictor
from retinanet.model.postprocess import Postprocess
from retinanet.spec import SUFFIXES

FILES = {form: f"model{suffix}" for form, suffix in SUFFIXES.items()}
FP32 = [("onnx", "fp32"), ("openvino", "fp32"), ("pt2", "fp32")]
LOWER = [("onnx", "int8"), ("openvino", "int8"), ("openvino", "bf16"), ("pt2", "bf16")]
KINDS = FP32 + LOWER


def file_of(report):
    return export_run.Path(report.folder) / report.file


def model_of(report):
    """What a user gives as the model: the folder, where the format has no code."""
    return file_of(report) if report.format == "pt2" else report.folder


def assert_same(one, other, pixels=0.1, score=1e-3):
    assert one.class_names == other.class_names and len(one) == len(other) > 0
    np.testing.assert_array_equal(one.labels, other.labels)
    np.testing.assert_allclose(one.scores, other.scores, rtol=0, atol=score)
    np.testing.assert_allclose(one.boxes, other.boxes, rtol=0, atol=pixels)


@pytest.fixture(scope="module")
def eager(model):
    return Predictor.load(model, device="cpu", batch_size=3)


@pytest.fixture(scope="module")
def graph_of(exported):
    """The graph of an export, opened once."""
    return cache(lambda *kind: open_exported(file_of(exported(*kind)), trust=True).graph)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_files_and_card(exported, detector, kind):
    report = exported(*kind)
    folder = file_of(report).parent
    extra = {"model.bin"} if kind[0] == "openvino" else set()
    assert {path.name for path in folder.iterdir()} == {FILES[kind[0]], "export.txt", "export.json"} | extra
    card = open_exported(file_of(report), trust=True).card
    spec = replace(card.spec, architecture=detector.spec.architecture)  # which is read with torch only
    assert spec == detector.spec
    assert (card.precision, card.raw) == (kind[1], False)
    saved = json.loads((folder / "export.json").read_text())
    assert saved["proof"]["detections"] > 100 and saved["format"] == kind[0] and saved["precision"] == kind[1]
    assert saved["size"] == sum(p.stat().st_size for p in folder.iterdir() if not p.name.startswith("export."))
    assert saved["calibration"] == (4 if kind[1] == "int8" else 0)
    text = (folder / "export.txt").read_text()
    assert (
        str(report) + "\n" == text
        and f"retinanet predict {model_of(report)}" in text
        and ("--trust" in text) == (kind[0] == "pt2")
    )


@pytest.mark.parametrize("kind", FP32, ids="-".join)
def test_the_same_detections_on_files(exported, eager, labelled, kind):
    """One by one, in batches of different sizes, by the folder and by the file."""
    report = exported(*kind)
    assert report.proof.equal and report.proof.matched == report.proof.detections
    paths = sorted(labelled.glob("*/*.png"))
    batched, single = eager(paths), [eager(path) for path in paths]  # padding, and what it does, depends on the batch
    for wanted, found in (
        (batched, Predictor.load(model_of(report), batch_size=3, trust=True)(paths)),
        (single, Predictor.load(file_of(report), batch_size=1, trust=True)(paths)),
        *([(single, Predictor.load(report.folder, mode="throughput")(paths))] if kind[0] == "onnx" else []),
    ):
        for one, other in zip(wanted, found, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("kind", FP32, ids="-".join)
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("size", [(32, 32), (64, 96), (96, 96), (96, 256), (128, 64), (416, 352)])
def test_any_number_of_images_of_any_size(graph_of, detector, kind, size, count):
    """Down to where all levels together have fewer anchors than the cut, and the coarse ones a single cell."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[size[0] - n, size[1] - 2 * n] for n in range(count)])
    for n, (height, width) in enumerate(sizes.tolist()):
        images[n, :, height:], images[n, :, :, width:] = 0, 0
    with torch.inference_mode():
        raw = detector.net(detector.spec.preprocess.normalise(images, sizes))
        wanted = detector.spec.postprocess(raw, sizes, detector.spec.class_names)
    boxes, scores, labels, found = graph_of(*kind)(images.numpy(), sizes.numpy())
    assert boxes.shape == (count, 60, 4) and found.tolist() == [len(one) for one in wanted] and found.sum() > 0
    for n, one in enumerate(wanted):
        np.testing.assert_allclose(boxes[n, : found[n]], one.boxes, rtol=0, atol=0.01)
        np.testing.assert_allclose(scores[n, : found[n]], one.scores, rtol=0, atol=1e-4)
        np.testing.assert_array_equal(labels[n, : found[n]], one.labels)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_candidates_vote(build, converted_once, form, tmp_path):
    """In a file as in torch, and otherwise than without a vote; in three bands, of more voters than usual."""
    rule = Postprocess(score=0.02, topk=4000, max_detections=2 * BAND + 44, vote=0.6)
    assert count_voters(rule.max_detections) > VOTERS
    detector = build(post=rule)
    detector.save(tmp_path / "model")
    report = export(str(tmp_path / "model"), format=form, output=str(tmp_path / "out"))
    images = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    sizes = torch.tensor([[96, 128], [96, 128]])
    with torch.inference_mode():
        raw = detector.net(detector.spec.preprocess.normalise(images, sizes))
        wanted, plain = (post(raw, sizes, detector.spec.class_names) for post in (rule, replace(rule, vote=0.0)))
    boxes, scores, _, found = open_exported(file_of(report), trust=True).graph(images.numpy(), sizes.numpy())
    for n, (one, other) in enumerate(zip(wanted, plain, strict=True)):
        assert len(one) == found[n] > BAND and not torch.equal(one.boxes, other.boxes)
        np.testing.assert_allclose(boxes[n, : found[n]], one.boxes, rtol=0, atol=0.02)
        np.testing.assert_allclose(scores[n, : found[n]], one.scores, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_average_precision(exported, model, labelled, kind):
    wanted = evaluate(model, labelled, device="cpu", batch_size=1).metrics.ap  # no padding for others
    assert wanted > 0.3
    found = evaluate(model_of(exported(*kind)), labelled, device="cpu", trust=True).metrics.ap
    assert found == pytest.approx(wanted, abs=0.01 if kind[1] == "fp32" else 0.25)


@pytest.mark.parametrize("kind", LOWER, ids="-".join)
def test_lower_precision(exported, eager, labelled, kind):
    """A random network forgives little; what it is surest of stays where it is."""
    report = exported(*kind)
    assert report.proof.certain > 0 and report.proof.sure >= 0.5
    found = Predictor.load(model_of(report), trust=True)
    for path in sorted(labelled.glob("test/*.png")):
        one, other = eager(path), found(path)
        apart = np.abs(one.boxes[0].numpy() - other.boxes[: len(one)]).max(axis=1)
        assert apart.min() < 8 and abs(float(other.scores[apart.argmin()]) - float(one.scores[0])) < 0.1


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_a_file_needs_no_other(exported, eager, labelled, tmp_path, form):
    file = file_of(exported(form))
    shutil.copy(file, tmp_path / f"renamed{file.suffix}")
    if form == "openvino":
        shutil.copy(file.with_suffix(".bin"), tmp_path / "renamed.bin")
    path = next(labelled.glob("test/*.png"))
    assert_same(eager(path), Predictor.load(tmp_path / f"renamed{file.suffix}")(path))


@pytest.mark.parametrize("form", FILES)
def test_every_flipped_bit_is_noticed(exported, tmp_path, form):
    folder = shutil.copytree(exported(form).folder, tmp_path / "out")
    file, generator = folder / FILES[form], random.Random(0)
    for path in [path for path in folder.iterdir() if path.suffix in (".onnx", ".xml", ".bin", ".pt2")]:
        content = path.read_bytes()
        for _ in range(30):
            changed = bytearray(content)
            changed[generator.randrange(len(content) - 100)] ^= 1 << generator.randrange(8)  # the end: test_digest.py
            path.write_bytes(changed)
            with pytest.raises(UserError, match=rf"{file.name}.* damaged or changed.*retinanet export MODEL"):
                open_exported(file, trust=True)
        path.write_bytes(content)
    open_exported(file, trust=True)


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_weights_that_have_changed_since(exported, model, detector, tmp_path, caplog, form):
    """The export lies in a model folder, as it does by default; elsewhere there is nothing to compare with."""
    run = shutil.copytree(model, tmp_path / "run")
    for place in (run / "exported", tmp_path / "away"):
        shutil.copytree(exported(form).folder, place)
        open_exported(place / FILES[form])
    assert "other weights" not in caplog.text
    detector.save(run, {key: value + 1 for key, value in detector.net.state_dict().items()})
    open_exported(tmp_path / "away" / FILES[form])
    assert "other weights" not in caplog.text
    predictor = Predictor.load(run / "exported")
    assert "was exported from other weights than" in caplog.text and f"retinanet export {run}" in caplog.text
    assert predictor.backend.card.weights_sha256 == file_sha256(model / "model.safetensors")


@pytest.mark.parametrize("form", FILES)
def test_raw_outputs(exported, detector, form):
    report = exported(form, raw=True)
    assert report.proof.equal and "logit" in str(report)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 3, 96, 160), dtype=torch.uint8, generator=generator)
    sizes = torch.tensor([[96, 160]] * 2)
    with torch.inference_mode():
        raw = detector.net(detector.spec.preprocess.normalise(images, sizes))
    found = open_exported(file_of(report), raw=True, trust=True).graph(images.numpy(), sizes.numpy())
    for one, other in zip((*raw.logits, *raw.deltas), found, strict=True):
        np.testing.assert_allclose(other, one, rtol=0, atol=1e-3)
    with pytest.raises(UserError, match="export it without --raw"):
        Predictor.load(model_of(report), trust=True)


class TestInt8:
    def test_convolutions_and_nothing_after_them_in_onnx(self, exported):
        graph = onnx.load(file_of(exported("onnx", "int8"))).graph
        made = {name: node for node in graph.node for name in node.output}
        convs = [node for node in graph.node if node.op_type == "Conv"]
        quantised = [node for node in convs if all(made[name].op_type == "DequantizeLinear" for name in node.input[:2])]
        assert len(quantised) > 15
        plain = [node.input[1] for node in convs if made.get(node.input[1]) is None]
        assert len(plain) == 5 and all(name.endswith("heads.box.output.weight") for name in plain)  # of five levels
        for node in graph.node:
            if node.op_type == "QuantizeLinear":
                assert leads_to_convolution(graph, node)

    def test_convolutions_and_nothing_after_them_in_openvino(self, exported):
        model = openvino.Core().read_model(file_of(exported("openvino", "int8")))
        kinds = Counter(node.get_type_name() for node in model.get_ops())
        convs = kinds["Convolution"] + kinds["GroupConvolution"]
        assert kinds["FakeQuantize"] > 0 and convs > 15
        constants = [node for node in model.get_ops() if node.get_type_name() == "Constant"]
        weights = [node.data for node in constants if node.get_element_type() == openvino.Type.i8]
        assert len(weights) >= 15 and min(map(np.min, weights)) >= -64 and max(map(np.max, weights)) <= 64  # 7 bits
        for node in model.get_ops():
            if node.get_type_name() == "FakeQuantize":
                assert reaches(node)

    def test_annotated_images_give_their_training_split(self, model, labelled, converted_once, tmp_path, monkeypatch):
        seen = []
        monkeypatch.setattr(deploy_onnx, "write_model", lambda *given, **options: seen.extend(given[3]) or 1 / 0)
        with pytest.raises(ZeroDivisionError):
            options = {"format": "onnx", "precision": "int8", "samples": 2, "output": str(tmp_path / "out")}
            export(str(model), calibrate=str(labelled), **options)
        assert [path.name for path in seen] == ["train_0.png", "train_3.png"]

    @pytest.mark.parametrize(("second", "kept"), [(0.49, True), (0.40, False)])
    def test_a_second_try_where_too_much_is_lost(
        self, model, labelled, converted_once, tmp_path, monkeypatch, second, kept
    ):
        aps = iter([0.5, 0.45, second])  # of the network, of int8, and with the class output in fp32
        monkeypatch.setattr(export_run, "_measure_ap", lambda *given: next(aps))
        options = {"format": "onnx", "precision": "int8", "output": str(tmp_path / "out")}
        report = export(str(model), calibrate=str(labelled), verify=str(labelled), **options)
        assert report.kept_class_output == kept and (report.ap, report.exported_ap) == (0.5, second if kept else 0.45)
        assert next(aps, None) is None and [path.name for path in tmp_path.iterdir()] == ["out"]
        graph = onnx.load(tmp_path / "out" / "model.onnx").graph
        made = {name: node.op_type for node in graph.node for name in node.output}
        plain = [
            node for node in graph.node if node.op_type == "Conv" and made.get(node.input[1]) != "DequantizeLinear"
        ]
        assert len(plain) == (10 if kept else 5)  # one convolution at five levels, and that of the boxes
        assert ("stays in fp32" in str(report)) == kept
        Predictor.load(tmp_path / "out")


def leads_to_convolution(graph, node):
    """Whether what a node makes ends, somewhere, in a convolution."""
    names = set(node.output)
    for other in graph.node:  # in topological order
        if names & set(other.input):
            if other.op_type == "Conv":
                return True
            names |= set(other.output)
    return False


def reaches(node):
    todo, seen = [node], set()
    while todo:
        one = todo.pop()
        if one.get_type_name() in ("Convolution", "GroupConvolution"):
            return True
        for output in one.outputs():
            for target in output.get_target_inputs():
                if target.get_node().get_friendly_name() not in seen:
                    seen.add(target.get_node().get_friendly_name())
                    todo.append(target.get_node())
    return False


def test_verify_measures_the_file_and_the_network(model, labelled, converted_once, tmp_path):
    report = export(str(model), format="onnx", verify=str(labelled), output=str(tmp_path / "out"))
    assert report.ap == pytest.approx(evaluate(model, labelled, device="cpu", batch_size=1).metrics.ap, abs=1e-9)
    assert report.exported_ap == pytest.approx(report.ap, abs=0.01) and report.ap > 0.3
    assert f"{report.exported_ap:.4f}, the network has {report.ap:.4f}" in str(report)
    assert len(report.proof.batches) > len(FP32)  # the user's pictures beside the rendered ones


def test_same_padding_of_timm(build, tmp_path):
    """The heads differ by it as much as the detections, and are converted in a third of the time."""
    build("tf_mobilenetv3_small_minimal_100", rule=Preprocess(short=96, long=192)).save(tmp_path / "m")
    proof = export(str(tmp_path / "m"), format="onnx", raw=True).proof
    assert proof.equal and max(proof.logits, proof.deltas) < 1e-3
    assert (tmp_path / "m" / "onnx-fp32-raw" / "model.onnx").is_file()
