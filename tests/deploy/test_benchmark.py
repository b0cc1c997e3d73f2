"""``benchmark``: who takes part, in which order they run, and what the table says."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from retinanet.cli.main import main
from retinanet.deploy import benchmark as bench
from retinanet.deploy import competitors, measure
from retinanet.deploy.benchmark import benchmark
from retinanet.deploy.benchmark_table import COLUMNS, BenchmarkResult, Row
from retinanet.deploy.competitors import Competitor, TorchvisionBackend, prepare_competitor
from retinanet.deploy.measure import Spread, take_turns, time_in_turns
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.evaluate import evaluate
from retinanet.images.io import read_pixels
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.inference import runtimes
from retinanet.inference.backend import Prepared
from retinanet.inference.exported import Card, open_exported
from retinanet.inference.torch_backend import TorchBackend
from retinanet.interop import torchvision as source
from retinanet.model.postprocess import Postprocess, PostprocessCompat
from retinanet.model.presets import Architecture
from retinanet.spec import ModelSpec


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No pauses, and no processes of their own."""
    monkeypatch.setattr(measure, "PAUSE", 0)
    monkeypatch.setattr(bench, "ROUNDS", 1)
    monkeypatch.setattr(bench, "peak_memory", lambda model, options, images: 123.0)


@pytest.fixture
def fake_clock(monkeypatch):
    """A clock that stands still until it is told to go on."""
    now = [100.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    return wait


def nothing_found(path, class_names):
    """An exported model that finds nothing in any image, as ONNX."""
    zero = {
        "boxes": (TensorProto.FLOAT, ["N", 1, 4], (1, 4)),
        "scores": (TensorProto.FLOAT, ["N", 1], (1,)),
        "labels": (TensorProto.INT64, ["N", 1], (1,)),
        "count": (TensorProto.INT64, ["N"], ()),
    }
    nodes = [
        helper.make_node("Shape", ["sizes"], ["n"], start=0, end=1),
    ]
    for name, (kind, _, shape) in zero.items():
        sides = helper.make_tensor(f"{name}_sides", TensorProto.INT64, [len(shape)], shape)
        value = helper.make_tensor("value", kind, [1], [0])
        nodes += [
            helper.make_node("Constant", [], [f"{name}_rest"], value=sides),
            helper.make_node("Concat", ["n", f"{name}_rest"], [f"{name}_shape"], axis=0),
            helper.make_node("ConstantOfShape", [f"{name}_shape"], [name], value=value),
        ]
    inputs = [
        helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", 3, "H", "W"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["N", 2]),
    ]
    outputs = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape, _) in zero.items()]
    graph = helper.make_graph(nodes, "nothing", inputs, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    card = Card(ModelSpec(class_names, Preprocess(short=64, long=96)))
    helper.set_model_props(model, {"retinanet": card.to_json()})
    path.parent.mkdir(parents=True)
    onnx.save(model, path)
    return path


@pytest.fixture
def home(trained, tmp_path):
    """A model folder that has an export already, of a model that finds nothing."""
    folder = tmp_path / "model"
    Detector.load(trained).save(folder)
    nothing_found(folder / "onnx-fp32" / "model.onnx", Detector.load(trained).spec.class_names)
    return folder


@pytest.fixture(scope="module")
def peer_detector():
    """A network that torchvision has, with random weights."""
    torch.manual_seed(0)
    architecture = Architecture(norm="frozen", p6_from="P5", anchors=source.LATTICE)
    names = ("disc", "square")
    rule = Preprocess(short=64, long=96, compat=PreprocessCompat(rounding="floor", resampling="normalised"))
    post = Postprocess(score=0.009, topk=50, max_detections=20, compat=PostprocessCompat(keep_empty=True))
    network = architecture.build(2).eval()
    network.heads.cls.output.weight.data *= 3000  # scores that differ: of equal ones NMS may keep either
    return Detector(ModelSpec(names, rule, post, architecture), network)


def row(name, latency, **changes):
    times = {"read": 0.001, "resize": 0.002, "network": latency - 0.004, "postprocess": 0.001}
    numbers = {"images_per_second": 1 / latency, "memory": 200.0, "size": 5_000_000, "ap": 0.5, "ap50": 0.75}
    return replace(Row(name=name, latency=Spread(latency, latency, latency), **times, **numbers), **changes)


def test_competitors_take_turns_and_are_paused_before_each_call(monkeypatch):
    order = []
    monkeypatch.setattr(measure.time, "sleep", lambda seconds: order.append(seconds))
    calls = {name: lambda number, name=name: order.append((name, number)) or {"all": number} for name in "abc"}
    monkeypatch.setattr(measure, "PAUSE", 0.5)
    taken = take_turns(calls, 2)
    turns = [(name, number) for number in range(2) for name in "abc"]
    assert order == [entry for turn in turns for entry in (0.5, turn)]
    assert taken == {name: [{"all": 0}, {"all": 1}] for name in "abc"}


def test_the_first_round_warms_up(monkeypatch):
    """The clock goes on by 100 s in the first call of a function and by 1 s, 2 s, 3 s in the others."""
    clock, calls = [0.0], []
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])

    def work():
        calls.append(100.0 if not calls else len(calls))
        clock[0] += calls[-1]

    assert time_in_turns({"a": work}, 3) == {"a": Spread(2.0, 1.5, 2.5)} and len(calls) == 4


def test_spread_is_that_of_numpy():
    values = list(np.random.default_rng(0).random(9))
    spread = Spread.of(values)
    assert np.allclose((spread.low, spread.median, spread.high), np.percentile(values, [25, 50, 75]))
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)


def test_the_stages_of_an_image(fake_clock, monkeypatch, data):
    """Each stage is what the clock says; what a backend does inside of ``run`` goes to its own stage."""
    ends = {}

    class Slow:
        spec = ModelSpec(("a",), Preprocess(short=64, long=96))

        def prepare(self, image, rule=None):
            fake_clock(2.0)
            return Prepared(np.zeros((64, 80, 3), np.uint8), image.shape[:2], (64, 96))

        def run(self, images):
            for stage, seconds in told:
                fake_clock(seconds)
                ends[stage] = bench.time.perf_counter()
            fake_clock(10.0 - sum(seconds for _, seconds in told))
            return []

    monkeypatch.setattr(bench, "read_pixels", lambda path: fake_clock(1.0) or read_pixels(path))
    told = ()
    one = Competitor("x", Path(), {}, 0)
    path = data / "test" / "test_0.png"
    assert bench.time_one_image(one, Slow(), path) == {"read": 1.0, "resize": 2.0, "network": 10.0}
    told = (("resize", 0.5), ("network", 6.5))
    stages = bench.time_one_image(replace(one, ends=ends), Slow(), path)
    assert stages == {"read": 1.0, "resize": 2.5, "network": 6.5, "postprocess": 3.0}
    told = ()
    headed = bench.time_one_image(replace(one, heads=lambda images, sizes: fake_clock(8.0)), Slow(), path)
    assert headed == {"read": 1.0, "resize": 2.0, "network": 8.0, "postprocess": 2.0}


def test_the_whole_table(home, data, tmp_path, monkeypatch, capsys):
    """Torch and an export that lies in the model folder: AP of evaluate, and the detections of the very file."""
    monkeypatch.setattr(competitors, "cpu_computes_bf16", lambda: False)
    monkeypatch.setattr(
        bench, "describe_machine", lambda: {"machine": "Some CPU, 2 cores in use", "date": "2026-01-02"}
    )
    words = [str(home), str(data), "--backends", "[torchvision,torch-fp32,torch-bf16,onnx-fp32]"]
    assert main(["benchmark", *words, "--repeats", "3", "--images", "2", "--output", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    written = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    rows = {one["name"]: one for one in written["rows"]}
    assert list(rows) == ["torch-fp32", "onnx-fp32"]
    assert rows["torch-fp32"]["ap"] == pytest.approx(evaluate(home, data, device="cpu").metrics.ap, abs=1e-6)
    assert rows["onnx-fp32"]["ap"] == 0.0  # not exported anew
    assert rows["onnx-fp32"]["size"] == (home / "onnx-fp32" / "model.onnx").stat().st_size
    assert rows["onnx-fp32"]["postprocess"] is None and rows["torch-fp32"]["postprocess"] > 0
    for one in rows.values():
        stages = [one[stage] or 0 for stage in ("read", "resize", "network", "postprocess")]
        assert all(seconds >= 0 for seconds in stages) and one["memory"] == 123.0
        assert one["latency"]["low"] <= one["latency"]["median"] <= one["latency"]["high"]
    assert set(written["left_out"]) == {"torchvision", "torch-bf16"}
    assert written["left_out"]["torchvision"].startswith("torchvision has no such RetinaNet: ")
    assert written["left_out"]["torch-bf16"] == "this CPU does not compute in bf16"
    markdown = (tmp_path / "out" / "benchmark.md").read_text()
    command = f"retinanet benchmark {home} {data} --backends '[torchvision,torch-fp32,torch-bf16,onnx-fp32]'"
    assert markdown.startswith(f"`{command} --repeats 3 --images 2`\n")
    assert "machine: Some CPU, 2 cores in use; date: 2026-01-02" in markdown and "3 of " in markdown
    table = [line for line in markdown.splitlines() if line.startswith("|")]
    assert [line.count("|") for line in table] == [len(COLUMNS) + 1] * 4
    assert table[2].startswith("| torch-fp32 | ") and table[3].startswith("| onnx-fp32 | 0.0000 | ")
    assert (
        "How many times as fast: against torch-fp32." in " ".join(out.split())
        and "torch-bf16: this CPU does not" in out
    )
    assert "benchmark: onnx-fp32: AP on 3 images\n" in err
    again = main(["benchmark", *words, "--output", str(tmp_path / "out")])
    assert (
        again == 2
        and "holds results already (benchmark.json). Choose another --output or pass --overwrite"
        in capsys.readouterr().err
    )


def test_an_exported_model_is_measured_alone(home, data):
    result = benchmark(str(home / "onnx-fp32"), str(data), repeats=1, images=1)
    assert [one.name for one in result.rows] == ["onnx-fp32"] and result.rows[0].ap == 0.0
    assert result.speed(result.rows[0]) == 1.0 and not result.left_out


def test_factors_are_against_torchvision_or_else_torch():
    rows = [row("onnx-fp32", 0.1), row("torch-fp32", 0.2), row("torchvision", 0.4, postprocess=None, memory=None)]
    result = BenchmarkResult(rows, {}, {"command": "retinanet benchmark a b", "machine": "m"})
    assert [result.speed(one) for one in rows] == pytest.approx([4, 2, 1])
    assert [result.throughput(one) for one in rows] == pytest.approx([4, 2, 1])
    cells = [line.split() for line in str(result).splitlines() if "onnx-fp32" in line]
    assert cells == [
        ["onnx-fp32", "0.5000", "1.0", "2.0", "96.0", "1.0", "100.0", "4.00", "10.00", "4.00", "200", "5.0"]
    ]
    assert (
        "| torchvision | 0.5000 | 1.0 | 2.0 | 396.0 | - | 400.0 | 1.00 | 2.50 | 1.00 | - | 5.0 |"
        in result.to_markdown()
    )
    alone = replace(result, rows=rows[:2])
    assert alone.reference.name == "torch-fp32" and "Where no time" in result.to_markdown()
    assert "Where no time" not in alone.to_markdown() and "Left out" not in alone.to_markdown()


def test_nothing_half_written_stays_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    result = BenchmarkResult([row("torch-fp32", 0.1, ap=float("nan"))], {}, {"command": "c"})
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"cannot be written .*No space left"):
            result.save(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    result.save(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["rows"][0]["ap"] is None


def test_torchvision_finds_what_torch_finds(peer_detector, data):
    """Its row is the same model: the same detections from the same file, in our labels."""
    peer, ours = TorchvisionBackend(peer_detector), TorchBackend(peer_detector, device="cpu")
    for name in ("test_0.png", "test_2.png"):
        pixels = read_pixels(data / "test" / name)
        theirs = peer.run([peer.prepare(pixels)])[0]
        found = ours.run([ours.prepare(pixels)])[0]
        assert len(theirs) == len(found) > 0 and theirs.class_names == found.class_names
        assert torch.allclose(theirs.scores, found.scores, atol=1e-3)
        sure = int((theirs.scores > theirs.scores[-1] + 1e-3).sum())  # of equal ones either may be cut
        assert sure > len(theirs) // 2
        for box, label in zip(theirs.boxes[:sure], theirs.labels[:sure], strict=True):
            gaps = (found.boxes[found.labels == label] - box).abs().amax(dim=1)
            assert gaps.min() < 0.1


def test_torchvision_takes_part_where_it_has_the_network(peer_detector, tmp_path):
    peer_detector.save(tmp_path / "model")
    one = prepare_competitor("torchvision", tmp_path / "model", "", tmp_path, heads=False)
    assert one.options == {"torchvision": True}
    assert one.size == pytest.approx((tmp_path / "model" / "model.safetensors").stat().st_size, rel=0.01)


def test_what_is_not_installed_is_left_out_by_name(home, data, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(runtimes, "openvino_core", runtimes.openvino_core.__wrapped__)  # another test may have used it
    names = ["torch-fp32", "openvino-bf16"]
    result = benchmark(str(home), str(data), backends=names, repeats=1, images=1)
    assert 'pip install "retinanet[export]"' in result.left_out["openvino-bf16"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"nothing to measure:\n  onnx-fp32: ONNX Runtime is not .*retinanet\[export\]"):
        benchmark(str(home), str(data), backends=["onnx-fp32"], repeats=1, images=1)


@pytest.mark.parametrize("name", ["torch-fp32", "torchvision"])
def test_the_ends_of_stages_inside_a_call(peer_detector, data, tmp_path, name):
    """They lie in their order between the begin and the end of the call."""
    peer_detector.save(tmp_path / "model")
    one = prepare_competitor(name, tmp_path / "model", "", tmp_path, heads=False)
    backend = one.load("latency")
    prepared = backend.prepare(read_pixels(data / "test" / "test_0.png"))
    began = bench.time.perf_counter()
    backend.run([prepared])
    ends = [one.ends[stage] for stage in (("resize", "network") if name == "torchvision" else ("network",))]
    assert sorted([began, *ends, bench.time.perf_counter()])[1:-1] == ends


def test_memory_is_that_of_a_process_without_torch(home, data, caplog):
    images = [data / "test" / "test_0.png"]
    exported = measure.peak_memory(str(home / "onnx-fp32"), {}, images)
    import resource

    mine = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    assert 10 < exported < min(mine, 250)  # torch alone takes more
    assert measure.peak_memory(str(home / "nothing"), {}, images) is None
    assert "could not be measured" in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"backends": ["torch-fp32", "tensorrt"]}, "--backends: there is no tensorrt. Expected some of torchvision, "),
        ({"repeats": 0}, "--repeats, --images and --batch_size are at least 1, got 0, 16 and 8"),
        ({"split": "dev"}, "there is no split 'dev'"),
        ({"output": __file__}, "is a file; expected the name of a folder"),
    ],
)
def test_refusals(home, data, options, expected):
    with pytest.raises(UserError) as error:
        benchmark(str(home), str(data), **options)
    assert expected in str(error.value)


def test_no_model(data, tmp_path):
    with pytest.raises(UserError, match="no model in "):
        benchmark(str(tmp_path), str(data))


def test_open_exported_and_torch_keep_their_threads(home, data):
    before = torch.get_num_threads()
    benchmark(str(home), str(data), backends=["torch-fp32"], repeats=1, images=1)
    assert torch.get_num_threads() == before
    assert open_exported(home / "onnx-fp32" / "model.onnx").streams == 1
