"""Detections as a step of a pipeline of Ray Data."""

import numpy as np
import pytest

from retinanet.cluster import detect
from retinanet.errors import UserError
from retinanet.prediction import predict


def test_a_data_set_in_a_data_set_out(ray, peak_model, images, tmp_path):
    (images / "005.png").write_bytes(b"no image")
    wanted = predict(str(peak_model), [str(images)], output=str(tmp_path / "local"), pictures=False)
    files = ray.data.read_binary_files(str(images), include_paths=True)
    found = detect(files, str(peak_model), actors=1).map(lambda row: {**row, "count": len(row["scores"])})
    rows = sorted(found.take_all(), key=lambda row: row["path"])
    assert len(rows) == 40 and "bytes" not in rows[0]
    bad = rows.pop(5)
    assert "005.png" in bad["error"] and not bad["boxes"] and bad["height"] == 0
    for row, one in zip(rows, wanted, strict=True):
        assert row["error"] is None and (row["height"], row["width"]) == one.size
        assert np.array_equal(np.array(row["boxes"], np.float32), one.detections.boxes)
        assert np.array_equal(np.array(row["scores"], np.float32), one.detections.scores)
        assert list(row["names"]) == one.detections.names and row["count"] == len(one.detections)


def test_images_as_arrays(ray, peak_model, images):
    found = detect(ray.data.read_images(str(images), mode="RGB"), str(peak_model), actors=1, keep_images=True)
    rows = found.take(3)
    assert all(len(row["scores"]) and row["image"].shape == (row["height"], row["width"], 3) for row in rows)


def test_what_cannot_be_done_is_told(ray, peak_model):
    with pytest.raises(UserError, match="no column bytes or image, only item"):
        detect(ray.data.from_items([1, 2]), str(peak_model))
    files = ray.data.from_items([{"bytes": b"x"}])
    with pytest.raises(UserError, match="for reading the data set, which takes 1: they would wait"):
        detect(files, str(peak_model), actors=2)
    with pytest.raises(UserError, match="has a column boxes already"):
        detect(ray.data.from_items([{"bytes": b"x", "boxes": 1}]), str(peak_model))
