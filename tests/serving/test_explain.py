"""What a model had at a point: the candidates of post-processing, and where each ended."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from retinanet.analysis.trace.outcomes import BELOW, CUT_BY_CAP, CUT_BY_TOPK, GATES, SUPPRESSED
from retinanet.analysis.trace.point import NOT_SHOWN, SHOWN, trace_point
from retinanet.detector import Detector
from retinanet.inference.predictor import Predictor
from retinanet.inference.torch_backend import TorchBackend


@pytest.fixture(scope="module")
def image(data):
    return next((data / "test").glob("*.png"))


@pytest.fixture(scope="module")
def scene(trained, image):
    """The network's output for an image, with what belongs to it."""
    import numpy as np

    backend = TorchBackend(Detector.load(trained))
    with torch.inference_mode():
        prepared = backend.prepare(np.asarray(Image.open(image).convert("RGB")).copy())
        raw, sizes = backend.raw([prepared])
    return backend.spec, raw, tuple(sizes[0].tolist()), prepared.size


def at(scene, point, **changes):
    spec, raw, size, original = scene
    rule = replace(spec.postprocess, **changes)
    names = spec.class_names
    entries = trace_point(raw, 0, point, size, rule, original=original, class_names=names, thresholds={"disc": 0.0})
    return entries, rule.find_candidates(raw, 0, size), rule


def test_entries_are_at_the_point_and_best_first(scene):
    entries, _, _ = at(scene, (30, 20))
    assert entries
    for entry in entries:
        x1, y1, x2, y2 = entry.box
        assert x1 <= 30.01 and x2 >= 29.99 and y1 <= 20.01 and y2 >= 19.99
        assert entry.reason
        assert entry.gate in (SHOWN, NOT_SHOWN, *GATES)
    assert [entry.score for entry in entries] == sorted((entry.score for entry in entries), reverse=True)


def test_detections_at_the_point_are_among_them(scene):
    entries, candidates, _ = at(scene, (30, 20), max_detections=3, topk=1000)
    _, _, size, original = scene
    factor = torch.tensor([original[1] / size[1], original[0] / size[0]] * 2)
    found = [
        (round(float(candidates.scores[n]), 5), [round(side, 2) for side in (candidates.shown[n] * factor).tolist()])
        for n in candidates.detections.tolist()
    ]
    told = [
        (round(entry.score, 5), [round(side, 2) for side in entry.box])
        for entry in entries
        if entry.gate in (SHOWN, NOT_SHOWN)
    ]
    assert set(map(str, told)) == {
        str(one) for one in found if one[1][0] <= 30 <= one[1][2] and one[1][1] <= 20 <= one[1][3]
    }


@pytest.mark.parametrize(
    ("changes", "gate"),
    [
        ({"score": 0.999}, BELOW),
        ({"score": 0.0, "topk": 1}, CUT_BY_TOPK),
        ({"score": 0.0, "topk": 10_000, "nms": 0.05, "max_detections": 10_000}, SUPPRESSED),
        ({"score": 0.0, "topk": 10_000, "nms": 1.0, "max_detections": 1}, CUT_BY_CAP),
    ],
)
def test_each_gate_is_named_where_it_removed_something(scene, changes, gate):
    entries, _, _ = at(scene, (30, 20), **changes)
    assert gate in {entry.gate for entry in entries}


def test_over_http(start, trained, image, client, picture):
    assert client.post("/explain?x=1&y=1", content=picture()).status_code == 409
    with start(Predictor.load(trained), "first") as folder:
        assert folder.get("/model").json()["explain"] is True
        answer = folder.post("/explain?x=30&y=20", content=image.read_bytes())
        assert answer.status_code == 200
        first = answer.json()["candidates"][0]
        assert first.keys() == {"box", "score", "name", "gate", "reason"}
        for query in ("x=30", "x=nan&y=1", "x=-1&y=1", "x=1e9&y=1", "x=a&y=b"):
            answer = folder.post(f"/explain?{query}", content=image.read_bytes())
            assert (answer.status_code, list(answer.json())) == (400, ["error"])
        assert folder.post("/explain?x=1&y=1", content=b"no image").status_code == 400
        detected = folder.post("/detect", params={"score": 0}, content=image.read_bytes()).json()["images"][0]
        assert detected["detections"] == Predictor.load(trained)(image).to_dicts()
        answer = folder.post("/v2/models/first/infer", json={})
        assert (answer.status_code, "export the model" in answer.json()["error"]) == (409, True)
