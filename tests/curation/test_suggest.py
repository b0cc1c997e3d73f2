"""The images that are chosen are worth much and unlike each other, and the command says why."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from retinanet.cli.main import main
from retinanet.curation.ranking import choose, look_at_images, measure_dispute
from retinanet.inference.predictor import Predictor
from retinanet.types import Detections


def turn(degrees):
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def detections(boxes, scores, labels=None):
    return Detections(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float32),
        torch.tensor(labels or [0] * len(scores), dtype=torch.int64),
        ("a", "b"),
    )


def test_near_copies_are_not_chosen_however_unsure_the_model_is_of_them():
    features = turn(np.array([0, 1, 2, 90, 180]))
    chosen = [row for row, _ in choose([9, 8.9, 8.8, 3, 2], features, np.zeros((0, 2)), 3)]
    assert chosen == [0, 3, 4]


def test_what_looks_like_the_annotated_images_is_not_chosen():
    chosen = choose([9, 1], turn(np.array([0, 90])), turn(np.array([0.5])), 1)
    assert chosen == [(1, pytest.approx(2 * np.sin(np.deg2rad(89.5 / 2))))]


def test_with_equal_values_it_is_the_greedy_k_centre_rule():
    dice = np.random.default_rng(0)
    features = dice.normal(size=(30, 5))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    rows = [row for row, _ in choose([1.0] * 25, features[5:], features[:5], 25)]
    assert sorted(rows) == list(range(25))
    known = list(range(5))
    for row in rows:  # each is the farthest from those before it
        distances = np.linalg.norm(features[:, None] - features[known], axis=2).min(1)
        assert distances[row + 5] == pytest.approx(distances.max())
        known.append(row + 5)


def test_a_mirror_image_that_agrees_disputes_nothing():
    found = detections([[10, 10, 30, 30], [50, 5, 60, 15]], [0.9, 0.4])
    mirrored = detections([[70, 10, 90, 30], [40, 5, 50, 15]], [0.9, 0.4])
    assert measure_dispute(found, mirrored, 100) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("mirrored", "expected"),
    [
        (([], []), 0.9),  # the object is gone
        (([[70, 10, 90, 30]], [0.5]), 0.4),  # less sure
        (([[70, 10, 90, 30], [0, 0, 9, 9]], [0.9, 0.3]), 0.3),  # one more
        (([[70, 10, 90, 26]], [0.9]), 0.9 * 0.2),  # IoU 0.8
    ],
)
def test_what_a_mirror_image_disputes(mirrored, expected):
    found = detections([[10, 10, 30, 30]], [0.9])
    assert measure_dispute(found, detections(*mirrored), 100) == pytest.approx(expected, abs=1e-6)


def test_an_image_is_seen_as_predict_sees_it(trained, data):
    predictor = Predictor.load(trained, device="cpu")
    path = data / "test" / "test_0.png"
    (look,) = look_at_images(predictor, [path])
    scores = predictor(path).scores.double().numpy()
    assert look.objects == pytest.approx(scores.sum(), rel=1e-3)
    clipped = np.clip(scores, 1e-9, 1 - 1e-9)
    entropy = -(clipped * np.log2(clipped) + (1 - clipped) * np.log2(1 - clipped))
    assert look.unsure == pytest.approx(entropy.sum(), rel=1e-3)
    assert np.linalg.norm(look.feature) == pytest.approx(1)


def test_the_list(trained, data, tmp_path, capsys):
    pool = tmp_path / "pool"
    pool.mkdir()
    for number in range(3):
        Image.effect_noise((80, 64), 60).convert("RGB").save(pool / f"{number}.png")
    words = ["suggest", str(trained), str(pool), str(data / "train"), "--data", str(data), "--count", "2"]
    path = tmp_path / "next.csv"
    assert main([*words, "--output", str(path)]) == 0
    assert "2 of 3 images, beside 12 annotated ones:" in capsys.readouterr().out
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rank"] for row in rows] == ["1", "2"] and len({row["image"] for row in rows}) == 2
    assert all(row["image"].startswith(str(pool)) and "nearest known image" in row["reason"] for row in rows)
    assert main([*words, "--output", str(path)]) == 2
    assert "pass --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["MODEL", "nowhere"], "no image at nowhere"),
        (["MODEL", "EMPTY"], "no image in the folder"),
        (["MODEL", "POOL", "--count", "0"], "--count is at least 1"),
        (["MODEL", "POOL", "--data", "nowhere"], "nowhere: no such file or folder"),
        (["MODEL", "POOL", "--data", "DATA"], "are annotated in"),
        (["nowhere", "POOL"], "nowhere"),
    ],
)
def test_mistakes_are_told_in_a_sentence(trained, data, tmp_path, capsys, words, message):
    (tmp_path / "empty").mkdir()
    places = {"MODEL": trained, "DATA": data, "POOL": data / "train", "EMPTY": tmp_path / "empty"}
    words = [str(places.get(word, word)) for word in words]
    assert main(["suggest", *words, "--output", str(tmp_path / "next.csv")]) == 2
    assert message in capsys.readouterr().err
