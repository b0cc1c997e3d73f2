"""Jobs on a local cluster: the detections of ``predict``, each image once, whatever died before."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retinanet.cluster import ClusterConfig, iterate_results, read_results
from retinanet.cluster.model import pack_model
from retinanet.errors import UserError
from retinanet.model.postprocess import Postprocess
from retinanet.prediction import predict


def run_job(model, images, *, output, load=None, score=None, overwrite=False, tile_scale=None, **cluster):
    """``predict`` on the cluster."""
    options = {"score": score, "overwrite": overwrite, "tile_scale": tile_scale, **(load or {})}
    return predict(model, images, output=output, engine="ray", cluster=ClusterConfig(**cluster), **options)


def assert_same(found, wanted):
    """The same images in the same order with the same detections."""
    assert [str(one.path) for one in found] == [str(one.path) for one in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one.size == other.size and one.detections.class_names == other.detections.class_names
        for name in ("boxes", "scores", "labels"):
            a, b = getattr(one.detections, name), getattr(other.detections, name)
            assert a.dtype == b.dtype and np.array_equal(a, b), one.path


@pytest.fixture
def wanted(peak_model, images, tmp_path):
    return predict(str(peak_model), [str(images)], output=str(tmp_path / "local"), pictures=False)


@pytest.mark.parametrize("actors", [1, 2])
def test_detections_are_those_of_predict(ray, peak_model, images, wanted, tmp_path, actors):
    run = run_job(str(peak_model), [str(images)], output=str(tmp_path / "found"), actors=actors)
    assert (run.images, run.errors, run.stops) == (40, 0, False)
    assert run.objects == sum(len(one.detections) for one in wanted) > 40
    assert_same(read_results(tmp_path / "found"), wanted)
    assert len(list((tmp_path / "found" / "parts").iterdir())) == 5


def test_a_model_folder_and_fractions_of_a_core(ray, trained, images, tmp_path):
    few = sorted(str(path) for path in images.iterdir())[:16]
    wanted = predict(str(trained), few, output=str(tmp_path / "local"), pictures=False, score=0.0)
    run_job(str(trained), few, output=str(tmp_path / "found"), actors=1, cpus=0.5, score=0.0)
    for one, other in zip(read_results(tmp_path / "found"), wanted, strict=True):
        np.testing.assert_allclose(one.detections.scores, other.detections.scores, atol=1e-5)
        assert len(one.detections) > 0


def test_a_job_goes_on_where_it_was(ray, peak_model, images, wanted, tmp_path, caplog):
    output, parts = tmp_path / "found", tmp_path / "found" / "parts"
    job = {"output": str(output), "actors": 1}
    run_job(str(peak_model), [str(images)], **job)
    files = {path: path.stat().st_mtime_ns for path in sorted(parts.iterdir())}
    gone = sorted(files)[1:3]
    for path in gone:
        path.unlink()
    (parts / ".part-000000008.parquet.77.part").write_bytes(b"half of a file")
    Image.new("RGB", (9, 9)).save(images / "999.png")
    run = run_job(str(peak_model), [str(images)], **job)
    assert (run.images, run.objects) == (40, sum(len(one.detections) for one in wanted))
    assert {path: path.stat().st_mtime_ns for path in parts.iterdir() if path not in gone} == {
        path: when for path, when in files.items() if path not in gone
    }
    assert "24 of 40 images are done already" in caplog.text and "1 images are not in the list" in caplog.text
    assert_same(read_results(output), wanted)
    assert run_job(str(peak_model), [str(images)], load={"batch_size": 4}, **job).images == 40
    with pytest.raises(UserError, match="holds a job with another tile and score"):
        run_job(str(peak_model), [str(images)], score=0.9, load={"tile": 64}, **job)
    with pytest.raises(UserError, match="holds a job with another list of images"):
        run_job(str(peak_model), [str(images / "999.png")], **job)
    run_job(str(peak_model), [str(images)], overwrite=True, **job)
    assert len(list(iterate_results(output))) == 41
    before = (parts / "part-000000000.parquet").stat().st_mtime_ns
    run_job(str(peak_model), [str(images)], overwrite=True, **job)
    assert (parts / "part-000000000.parquet").stat().st_mtime_ns > before  # all was done: it begins anew
    (output / "job.json").unlink()
    with pytest.raises(UserError, match=r"holds parts/part-000000000.parquet, but no job.json"):
        run_job(str(peak_model), [str(images)], **job)
    assert run_job(str(peak_model), [str(images / "001.png")], score=0.9, overwrite=True, **job).images == 1
    assert len(read_results(output)) == 1


def test_images_that_cannot_be_read_are_rows(ray, peak_model, images, tmp_path):
    (images / "003.png").write_bytes(b"no image")
    (images / "017.png").write_bytes((images / "017.png").read_bytes()[:60])
    places = [str(images), f"file://{images}/vanished.png"]
    run = run_job(str(peak_model), places, output=str(tmp_path / "found"), actors=1)
    assert (run.images, run.errors, run.stops) == (41, 3, True)
    found = read_results(tmp_path / "found")
    assert len(found) == 38 and [str(path) for path in found.failed] == [
        *(str(images / name) for name in ("003.png", "017.png")),
        f"file://{images}/vanished.png",
    ]
    reasons = list(found.failed.values())
    assert "is not an image" in reasons[0] and "truncated" in reasons[1] and "no such image file" in reasons[2]
    assert len({row.index for row in iterate_results(tmp_path / "found")}) == 41
    with pytest.raises(UserError, match=r"3 images cannot be read, more than --max_errors 2. The first: .*goes on"):
        run_job(str(peak_model), places, output=str(tmp_path / "found"), actors=1, max_errors=2)
    with pytest.raises(UserError, match=r"none of 1 images can be read. The first: .*003.png"):
        run_job(str(peak_model), [str(images / "003.png")], output=str(tmp_path / "none"), actors=1)


def test_windows_of_a_large_image_are_shared_among_actors(ray, peak_model, images, tmp_path):
    pixels = np.random.default_rng(3).integers(0, 256, (30, 25, 3), np.uint8).repeat(18, 0).repeat(20, 1)
    Image.fromarray(pixels).save(images / "000-large.png")
    few = [str(images / name) for name in ("000-large.png", "000.png", "001.png")]
    options = {"tile": 40, "overlap": 16}
    wanted = predict(str(peak_model), few, output=str(tmp_path / "local"), pictures=False, **options)
    output = tmp_path / "found"
    assert run_job(str(peak_model), few, output=str(output), actors=2, load=options).images == 3
    assert_same(read_results(output), wanted)
    assert len(wanted[0].detections) > 20 and not list((output / "windows").iterdir())
    (output / "parts" / "image-000000000.parquet").unlink()
    assert run_job(str(peak_model), few, output=str(output), actors=1, load=options).images == 3
    assert_same(read_results(output), wanted)


@pytest.mark.parametrize(("tile", "told"), [(None, ": 2 detections, the most"), (32, "tiles hold 2 detections")])
def test_warnings_of_actors_are_told(ray, graphs, images, tmp_path, caplog, tile, told):
    """Where an image or a tile has as many detections as the model reports at most, some may be missing."""
    spec = replace(graphs.CARD.spec, postprocess=Postprocess(max_detections=2))
    graphs.write(tmp_path / "full" / "model.onnx", replace(graphs.CARD, spec=spec).to_json())
    load = {} if tile is None else {"tile": tile, "overlap": 4}
    run_job(str(tmp_path / "full"), [str(images)], output=str(tmp_path / "found"), actors=1, load=load)
    warnings = [record.getMessage() for record in caplog.records if told in record.getMessage()]
    assert 1 <= len(warnings) == len(set(warnings)) <= 5
    if tile is None:
        assert all(str(images) in text for text in warnings) and re.search(r"\d+ more warning", caplog.text)


def test_a_model_for_gpus_is_checked_where_there_is_none(trained):
    packed = pack_model(trained)
    assert packed.check(1, {"device": "cuda", "precision": "bf16"}).class_names
    with pytest.raises(UserError, match="device 'cuda' cannot be used"):
        packed.load(1, device="cuda")


def test_no_port_is_open_to_others(ray):
    """Everything that Ray has started listens on loopback."""
    own, todo = set(), [os.getpid()]
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    while todo:
        own.add(pid := todo.pop())
        todo += children.get(pid, [])
    sockets = set()
    for pid in own:
        for handle in Path(f"/proc/{pid}/fd").glob("*"):
            try:
                sockets.add(os.readlink(handle))
            except OSError:
                continue
    listening = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                listening.append(fields[1].split(":")[0])
    assert len(listening) > 3
    assert {address[-8:] for address in listening} == {"0100007F"}
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_killed_driver_loses_nothing(ray, peak_model, images, wanted, tmp_path):
    """SIGKILL in the middle, then the same job on another cluster; benchmarks/cluster.py kills more, and actors too."""
    output, parts = tmp_path / "found", tmp_path / "found" / "parts"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = ["predict", peak_model, images, "--output", output, "--engine", "ray", "--actors", "1"]
    command = [sys.executable, "-m", "retinanet.cli.main", *map(str, words)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as driver:
        while driver.poll() is None and not list(parts.glob("part-*")):
            time.sleep(0.02)
        driver.kill()
    assert run_job(str(peak_model), [str(images)], output=str(output), actors=1).images == len(wanted)
    assert_same(read_results(output), wanted)
    assert json.loads((output / "images.json").read_text()) == [str(one.path) for one in wanted]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"actors": 3}, "3 actors of 1 CPU do not fit"),
        ({"max_errors": -1}, "--max_errors is at least 0"),
        ({"score": 2.0}, "--score is between 0 and 1"),
        ({"load": {"device": "cuda"}}, "device 'cuda' cannot be used"),
        ({"tile_scale": 2.0}, "--tile_scale is for images that are cut into windows"),
    ],
)
def test_a_slip_ends_the_job_before_it_starts(ray, peak_model, images, tmp_path, options, told, monkeypatch):
    monkeypatch.setattr("retinanet.cluster.engine.count_cores", lambda: 2)
    with pytest.raises(UserError, match=told):
        run_job(str(peak_model), [str(images)], output=str(tmp_path / "found"), **options)
    assert not (tmp_path / "found").exists()
