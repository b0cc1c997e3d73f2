"""Exported models in their runtimes: the same call, no torch, and clear words for what cannot be run."""

import json
import logging
import subprocess
import sys
from dataclasses import replace

import numpy as np
import openvino
import pytest
from PIL import Image

from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess, PreprocessCompat
from retinanet.inference.exported import Card, open_exported
from retinanet.inference.predictor import Predictor
from retinanet.inference.runtimes import openvino_core
from retinanet.model.postprocess import Postprocess
from retinanet.prediction import predict
from retinanet.spec import FORMAT, ModelSpec, exported_file


def picture(height, width, peak):
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 4 : height // 2 + 1, : width // 2 + 1] = peak
    return image


def expected(image, peak):
    """What the graph says, from its definition."""
    height, width = image.shape[:2]
    boxes = np.array([[0, 0, width, height], [width / 4, height / 4, width * 0.75, height * 0.75]])
    count = 2 if peak > 127 else 1
    return boxes[:count], np.array([peak / 255, peak / 510])[:count], np.arange(2)[:count]


def assert_found(found, image, peak):
    boxes, scores, labels = expected(image, peak)
    np.testing.assert_allclose(found.boxes, boxes, rtol=1e-6)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-6)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.boxes.dtype == found.scores.dtype == np.float32 and found.labels.dtype == np.int64
    assert all(isinstance(part, np.ndarray) for part in (found.boxes, found.scores, found.labels))


IMAGES = [
    (picture(48, 64, 200), 200),
    (picture(100, 30, 255), 255),
    (picture(33, 32, 90), 90),
    (picture(5, 9, 128), 128),
]


@pytest.mark.parametrize("mode", ["latency", "throughput"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_detections_are_those_of_the_graph(exported, mode, batch_size):
    predictor = Predictor.load(exported, mode=mode, batch_size=batch_size)
    assert predictor.class_names == ("spot", "half") and predictor.backend.spec.scale == 0.5
    for found, (image, peak) in zip(predictor([image for image, _ in IMAGES] * 3), IMAGES * 3, strict=True):
        assert_found(found, image, peak)
    for image, peak in IMAGES:
        assert_found(predictor(image), image, peak)
        assert_found(predictor(Image.fromarray(image)), image, peak)


def test_a_file_and_its_folder_are_the_same_model(exported):
    (file,) = [path for path in exported.iterdir() if path.suffix != ".bin"]
    assert exported_file(exported) == exported_file(str(file)) == file
    image, peak = IMAGES[0]
    assert_found(Predictor.load(str(file))(image), image, peak)


def test_what_is_no_exported_model(tmp_path, trained):
    assert exported_file(trained) is None and exported_file(tmp_path) is None
    assert exported_file(tmp_path / "none.onnx") is None and exported_file(trained / "config.json") is None


def test_names_and_streams(exported, card):
    quick, many = Predictor.load(exported).backend, Predictor.load(exported, mode="throughput").backend
    assert quick.streams == 1 and many.streams >= 1
    assert quick.name in ("ONNX Runtime fp32", "OpenVINO fp32")
    assert quick.spec == card.spec and quick.spec.thresholds == {"spot": 0.2}


BLOCKED = ("torch", "timm", "torchvision", "torchgen", "matplotlib")
HEAVY = ("rich", "yaml", "safetensors", "huggingface_hub", "lightning_fabric", "faster_coco_eval")


def without(names, code, *words):
    """Run code in a new interpreter in which some packages cannot be imported."""
    blocker = (
        "import sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {names!r}:\n"
        "            raise ModuleNotFoundError(f'{name} is blocked', name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
    )
    command = [sys.executable, "-c", blocker + code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout


def test_nothing_but_numpy_pillow_and_the_runtime(exported, tmp_path):
    """Nothing is printed by the runtime either."""
    Image.fromarray(IMAGES[0][0]).save(tmp_path / "a.png")
    code = (
        "import json\n"
        "from retinanet import Predictor\n"
        "for mode in ('latency', 'throughput'):\n"
        "    predictor = Predictor.load(sys.argv[1], mode=mode)\n"
        "    found = [predictor(sys.argv[2]), *predictor([sys.argv[2]] * 3)]\n"
        "    print(json.dumps([one.above(0.3).to_dicts() for one in found]))\n"
    )
    here = Predictor.load(exported)(tmp_path / "a.png").above(0.3).to_dicts()
    lines = without((*BLOCKED, *HEAVY), code, exported, tmp_path / "a.png").splitlines()
    assert [json.loads(line) for line in lines] == [[here] * 4] * 2


def test_the_command_line_without_torch(exported, tmp_path):
    for number, (image, _) in enumerate(IMAGES):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    code = "from retinanet.cli.main import main\nsys.exit(main(['predict', *sys.argv[1:]]))"
    out = without(BLOCKED, code, exported, tmp_path, "--output", tmp_path / "out", "--score", "0.3")
    assert "6 objects in 4 images" in out
    document = json.loads((tmp_path / "out" / "detections.json").read_text())
    assert [row["category_id"] for row in document["annotations"]] == [1, 2, 1, 2, 1, 1]
    assert len(list((tmp_path / "out" / "pictures").iterdir())) == 4


def test_thresholds_of_the_card(exported, tmp_path):
    Image.fromarray(IMAGES[2][0]).save(tmp_path / "low.png")  # 0.35
    Image.fromarray(picture(20, 20, 40)).save(tmp_path / "lower.png")  # 0.16: below the 0.2 of "spot"
    Image.fromarray(picture(20, 20, 140)).save(tmp_path / "mid.png")  # 0.55, and 0.27: below 0.3, "half" has none
    found = predict(str(exported), [str(tmp_path)], output=str(tmp_path / "out"))
    assert [one.detections.names for one in found] == [["spot"], [], ["spot"]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "device 'cuda' cannot be used: .* is an exported model, which runs on the CPU"),
        ({"compile": True}, "compile is for model folders"),
        (
            {"precision": "bf16"},
            "precision bf16 cannot be used: .* fp32; the precision of an exported model is settled",
        ),
        ({"mode": "fast"}, "mode latency or throughput"),
        ({"batch_size": 0}, "batch_size is at least 1"),
    ],
)
def test_options_of_other_models_are_refused(exported, options, words):
    with pytest.raises(UserError, match=words):
        Predictor.load(exported, **options)


def test_a_model_folder_has_no_throughput_mode(trained):
    with pytest.raises(UserError, match="mode throughput is for exported models"):
        Predictor.load(trained, mode="throughput")


def test_commands_that_need_the_network_say_so(exported):
    with pytest.raises(UserError, match="is an exported model; it can predict and be evaluated"):
        Detector.load(exported)


@pytest.mark.parametrize("name", ["model.onnx", "model.xml"])
class TestBadFiles:
    def test_damaged(self, name, tmp_path, written, card):
        path = written(tmp_path / name, card.to_json())
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"\x00" * 100, b"hello"):
            path.write_bytes(content)
            with pytest.raises(UserError, match=f"{name} is damaged, or not a model"):
                open_exported(path)

    def test_of_somebody_else(self, name, tmp_path, written):
        with pytest.raises(UserError, match="is damaged, or not a model that retinanet exported"):
            open_exported(written(tmp_path / name, ""))

    def test_newer(self, name, tmp_path, written, card):
        newer = {**json.loads(card.to_json()), "format": FORMAT + 1, "library_version": "9.1", "more": 1}
        with pytest.raises(UserError, match=r"by retinanet 9.1 in format 4.*pip install -U retinanet"):
            open_exported(written(tmp_path / name, json.dumps(newer)))

    def test_raw(self, name, tmp_path, written, card):
        with pytest.raises(UserError, match=r"only the network's heads, without detections.*without --raw"):
            open_exported(written(tmp_path / name, replace(card, raw=True).to_json()))

    def test_runtime_not_installed(self, name, tmp_path, written, card, monkeypatch):
        path = written(tmp_path / name, card.to_json())
        package = "onnxruntime" if name == "model.onnx" else "openvino"
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
        openvino_core.cache_clear()
        with pytest.raises(UserError, match=rf'pip install "retinanet\[export\]".*pip install {package}'):
            open_exported(path)


def test_weights_of_openvino_that_are_missing(tmp_path, written, card):
    path = written(tmp_path / "model.xml", card.to_json())
    path.with_suffix(".bin").unlink()
    with pytest.raises(UserError, match=r"model\.bin is missing: the weights of model\.xml"):
        open_exported(path)


def test_bf16_on_a_cpu_without_it(tmp_path, written, card, caplog, monkeypatch):
    path = written(tmp_path / "model.xml", replace(card, precision="bf16").to_json())
    real = openvino.Core.get_property
    for able in (True, False):

        def ability(core, device, name, able=able):
            return (
                ["FP32", *(["BF16"] if able else [])]
                if name == "OPTIMIZATION_CAPABILITIES"
                else real(core, device, name)
            )

        monkeypatch.setattr(openvino.Core, "get_property", ability)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            predictor = Predictor.load(path, precision="bf16")
        assert (not able) == ("fp32 is used instead" in caplog.text) and predictor.backend.name == "OpenVINO bf16"


class TestCard:
    FULL = Card(
        ModelSpec(
            ("a", "ж"),
            Preprocess(
                short=33,
                long=44,
                mean=(1.0, 2.0, 3.0),
                compat=PreprocessCompat(1, channels="BGR", resampling="normalised"),
            ),
            Postprocess(score=0.25, nms=0.4),
            thresholds={"ж": 0.25},
            scale=1.5,
            metrics={"AP": 0.5},
        ),
        "int8",
        True,
        "0.0.1",
        "ab",
    )

    def test_there_and_back(self, tmp_path):
        assert Card.from_json(self.FULL.to_json(), tmp_path) == self.FULL
        older = json.loads(self.FULL.to_json())  # with the fields of compat beside the others
        older["preprocess"] |= older["preprocess"].pop("compat")
        assert Card.from_json(json.dumps(older), tmp_path) == self.FULL
        bare = Card(ModelSpec(("a",)))
        assert Card.from_json(bare.to_json(), tmp_path) == bare

    @pytest.mark.parametrize(
        "change",
        [
            {"format": None},
            {"format": "1"},
            {"class_names": []},
            {"class_names": 7},
            {"preprocess": None},
            {"preprocess": {"short": -1}},
            {"preprocess": {"sharpness": 1}},
            {"precision": 8},
            {"scale": "1"},
            {"thresholds": [0.5]},
            {"surprise": 1},
        ],
    )
    def test_damage(self, tmp_path, change):
        text = json.dumps({**json.loads(self.FULL.to_json()), **change})
        with pytest.raises(UserError, match=r"x\.onnx is damaged, or not a model that retinanet exported"):
            Card.from_json(text, tmp_path / "x.onnx")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
    def test_no_card_at_all(self, tmp_path, text):
        with pytest.raises(UserError, match="is damaged, or not a model that retinanet exported"):
            Card.from_json(text, tmp_path)


def test_a_compiled_graph_is_kept_for_the_next_start(tmp_path, written, card):
    path, cache = written(tmp_path / "model.xml", card.to_json()), tmp_path / "cache"
    image = np.zeros((32, 40, 3), np.uint8)
    found = [Predictor.load(path, cache=cache)(image).boxes.tolist() for _ in range(2)]
    assert found[0] == found[1] and len(list(cache.glob("*.blob"))) == 1
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file, not a folder"):
        Predictor.load(path, cache=tmp_path / "file")
    with pytest.raises(UserError, match="cache is for OpenVINO models"):
        Predictor.load(written(tmp_path / "model.onnx", card.to_json()), cache=cache)


def test_a_signal_after_one_model_took_the_place_of_another(exported):
    """OpenVINO leaves no stack for signals behind that is freed."""
    code = (
        "import gc, os, signal, sys\n"
        "from retinanet import Predictor\n"
        "signal.signal(signal.SIGINT, lambda number, frame: print('heard'))\n"
        "for _ in range(3):\n"
        "    predictor = Predictor.load(sys.argv[1])\n"
        "del predictor\n"
        "gc.collect()\n"
        "os.kill(os.getpid(), signal.SIGINT)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(exported)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr
