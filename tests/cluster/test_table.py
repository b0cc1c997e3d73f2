"""Rows of Parquet files and back, exactly; damage is told."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from retinanet.cluster.store import Store
from retinanet.cluster.table import Row, decode, encode, iterate_results, read_results, write_coco
from retinanet.errors import UserError
from retinanet.inference.documents import make_coco_document
from retinanet.types import Detections

pytest.importorskip("pyarrow", reason="pyarrow is not installed")
HEADER = {"format": 1, "class_names": ["ant", "bee"], "model_sha256": "0", "library_version": "0"}


def random_rows(seed, start=0):
    dice, rows = np.random.default_rng(seed), []
    for index in range(start, start + 6):
        count = int(dice.integers(0, 5)) if index % 6 else 0
        boxes = dice.random((count, 4), np.float32) * 100
        found = Detections(boxes, dice.random(count, np.float32), dice.integers(0, 2, count), ("ant", "bee"))
        rows.append(Row(index, f"/images/ä {index}.png", (30, 40 + index), found, None, 1.5))
    rows.insert(3, Row(99 + start, "s3://b/x.png", error="cannot be read"))
    return rows


def assert_equal(one, other):
    for name in ("index", "path", "size", "error", "milliseconds"):
        assert getattr(one, name) == getattr(other, name)
    assert (one.detections is None) == (other.detections is None)
    if one.detections is not None:
        for name in ("boxes", "scores", "labels"):
            a, b = getattr(one.detections, name), getattr(other.detections, name)
            assert a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)
        assert one.detections.class_names == other.detections.class_names


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_back(seed):
    rows = random_rows(seed)
    header, found = decode(encode(rows, HEADER), "x")
    assert header == HEADER and len(found) == len(rows)
    for one, other in zip(rows, found, strict=True):
        assert_equal(one, other)
    assert decode(encode([], HEADER), "x")[1] == []


def test_any_reader_of_parquet_understands_it(tmp_path):
    from pyarrow import parquet

    (tmp_path / "x.parquet").write_bytes(encode(random_rows(1), HEADER))
    table = parquet.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("boxes").type) == "list<element: fixed_size_list<element: float>[4]>"
    assert json.loads(table.schema.metadata[b"retinanet"])["class_names"] == ["ant", "bee"]
    rows = random_rows(1)
    assert table.column("labels").to_pylist()[1] == rows[1].detections.labels.tolist()


def test_a_job_is_read_in_the_order_of_its_images(tmp_path):
    store, rows = Store(str(tmp_path)), random_rows(2) + random_rows(3, start=6)
    random.Random(0).shuffle(rows)
    for number, part in enumerate((rows[:5], rows[5:])):
        store.write(f"parts/part-{number:09d}.parquet", encode(part, HEADER))
    (tmp_path / "parts" / ".part-000000001.parquet.77.part").write_bytes(b"half")
    read = read_results(tmp_path)
    good = sorted((row for row in rows if row.error is None), key=lambda row: row.index)
    assert [str(one.path) for one in read] == [row.path for row in good] and len(read.failed) == 1
    assert [row.index for row in iterate_results(tmp_path)] == [row.index for row in rows]
    write_coco(tmp_path, tmp_path / "found.json")
    assert json.loads((tmp_path / "found.json").read_text()) == make_coco_document(read, ("ant", "bee"), tmp_path)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all", encode(random_rows(1), HEADER)[:-9]])
def test_damage_is_told(tmp_path, content):
    Store(str(tmp_path)).write("parts/part-000000000.parquet", content)
    with pytest.raises(UserError, match=r"part-000000000.parquet is damaged, or no file of results"):
        read_results(tmp_path)


def test_somebody_elses_table_is_told(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "parts").mkdir()
    parquet.write_table(pa.table({"a": [1]}), tmp_path / "parts" / "part-000000000.parquet")
    with pytest.raises(UserError, match="is damaged, or no file of results"):
        read_results(tmp_path)
    with pytest.raises(UserError, match=r"no results in .*expected parts/"):
        read_results(tmp_path / "parts")


def test_an_unfinished_job_is_told_and_addresses_stay(tmp_path, caplog):
    store, found = Store(str(tmp_path)), random_rows(1)[0]
    rows = [replace(found, path="s3://b/x y.png"), replace(found, index=1, path=str(tmp_path / "z.png"))]
    store.write("parts/part-000000000.parquet", encode(rows, HEADER))
    store.write("images.json", json.dumps([row.path for row in rows]).encode())
    write_coco(tmp_path, tmp_path / "found.json")
    images = json.loads((tmp_path / "found.json").read_text())["images"]
    assert [image["file_name"] for image in images] == ["s3://b/x y.png", "z.png"] and not caplog.text
    store.write("images.json", json.dumps(["a", "b", "c"]).encode())
    assert len(read_results(tmp_path)) == 2 and "1 of 3 images are not done yet" in caplog.text
