"""``predict`` on videos: the frames, their times, the sound, what is broken, and what is counted."""

import csv
import json
import os
import signal
import socket
import sys
import threading
from collections import Counter
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import islice

import numpy as np
import pytest

from retinanet.cli.main import main
from retinanet.errors import Interrupted, UserError
from retinanet.inference import film as film_module
from retinanet.inference.film import AHEAD, FilmReader
from retinanet.inference.paths import Source, find_videos
from retinanet.inference.predictor import Predictor
from retinanet.inference.tracks import Counts, Tracker, find_crossing, read_lines
from retinanet.inference.video import VideoConfig, VideoRun
from retinanet.prediction import predict
from retinanet.types import Detections

av = pytest.importorskip("av", reason="videos need PyAV: pip install 'retinanet[video]'")
RED, GREY = (230, 30, 30), (90, 90, 90)
TICK = Fraction(1, 1000)


def render(path, times=range(0, 600, 40), size=(64, 96), sound=None, turn=None, codec="libx264", first=0):
    """A film with a red block in the upper left corner; its brightness changes with each frame."""
    with av.open(str(path), "w") as film:
        video = film.add_stream(codec, rate=25, options={"g": "5", "bf": "0"})
        video.height, video.width, video.pix_fmt = *size, "yuv420p" if size[0] % 2 == size[1] % 2 == 0 else "yuv444p"
        video.codec_context.time_base = TICK
        if turn is not None:
            video.set_display_rotation(turn)
        track = film.add_stream(sound, rate=8000 if "mulaw" in sound else 48000, layout="mono") if sound else None
        for number, time in enumerate(times):
            pixels = np.full((*size, 3), GREY, np.uint8) + np.uint8(5 * number % 100)
            pixels[: size[0] // 2, : size[1] // 2] = RED
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = time + first, TICK
            film.mux(video.encode(frame))
        film.mux(video.encode())
        if track:
            rate = track.codec_context.sample_rate
            samples = (9000 * np.sin(np.arange(1024) / 9)).astype(np.int16)[None]
            for number in range(max(times) * rate // 1000 // 1024):
                piece = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
                piece.sample_rate, piece.time_base = rate, Fraction(1, rate)
                piece.pts = 1024 * number + first * rate // 1000
                film.mux(track.encode(piece))
            film.mux(track.encode())
    return path


def decode(path):
    """The times in seconds and the pixels of a film."""
    with av.open(str(path)) as film:
        frames = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in film.decode(video=0)]
    return [time for time, _ in frames], [pixels for _, pixels in frames]


def read_table(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def model(written, card, tmp_path_factory):
    return str(written(tmp_path_factory.mktemp("model") / "model.onnx", card.to_json()))


def test_detections_are_those_of_the_predictor_on_each_frame(exported, tmp_path):
    film = render(tmp_path / "film.mkv")
    result = predict(str(exported), str(film), output=str(tmp_path / "out"), score=0.0)
    assert result == [] and result.failed == {}
    (video,) = result.videos
    assert (video.frames, video.analysed, video.broken, video.dropped) == (15, 15, 0, 0)
    rows = read_table(tmp_path / "out" / "film.csv")
    times, frames = decode(film)
    assert len(times) == 15
    wanted = [
        (number, f"{time:.3f}", row["name"], f"{row['score']:.4f}", *(f"{side:.2f}" for side in row["box"]))
        for number, (time, detections) in enumerate(zip(times, Predictor.load(exported)(frames), strict=True))
        for row in detections.to_dicts()
    ]
    got = [
        (int(row["frame"]), *(row[name] for name in ("time", "label", "score", "xmin", "ymin", "xmax", "ymax")))
        for row in rows
    ]
    assert got == wanted
    counts = Counter(row["label"] for row in rows)
    document = json.loads((tmp_path / "out" / "film.json").read_text())
    assert {name: entry["detections"] for name, entry in document["classes"].items()} == dict(counts)
    assert document["source"] == str(film) and document["analysed"] == 15


@pytest.mark.parametrize(("name", "first"), [("film.mp4", 0), ("film.mkv", 0), ("film.ts", 7_000)])
def test_the_film_keeps_times_colours_and_sound(model, tmp_path, name, first):
    times = [0, 40, 80, 300, 310, 900, 1000, 1040]  # of a phone, whose rate changes
    film = render(tmp_path / name, times, sound="aac", first=first)
    predict(model, str(film), output=str(tmp_path / "out"), score=1.0)
    copied, frames = decode(tmp_path / "out" / "film.mp4")
    start = av.open(str(film)).start_time / 1e6
    np.testing.assert_allclose(copied, [time - start for time in decode(film)[0]], atol=1e-3)
    red, grey = frames[0][10, 10].astype(int), frames[0][50, 80].astype(int)
    assert abs(red - RED).max() < 8 and abs(grey - GREY).max() < 8

    def packets(path):
        with av.open(str(path)) as one:
            found = [
                (bytes(packet), float(packet.pts * packet.time_base)) for packet in one.demux(audio=0) if packet.size
            ]
        return tuple(zip(*found, strict=True))

    (data, heard), (source, said) = packets(tmp_path / "out" / "film.mp4"), packets(film)
    if name != "film.ts":  # where each packet has a header of its own
        assert data == source
    np.testing.assert_allclose(heard, np.array(said) - start, atol=2e-3)
    assert len(source) > 40


def test_sound_that_mp4_cannot_hold_is_left_out_and_told(model, tmp_path, caplog):
    film = render(tmp_path / "film.mov", sound="pcm_mulaw")
    predict(model, str(film), output=str(tmp_path / "out"))
    assert "the sound (pcm_mulaw) is left out, because MP4 cannot hold it" in caplog.text
    with av.open(str(tmp_path / "out" / "film.mp4")) as copy:
        assert len(copy.streams.audio) == 0 and len(list(copy.decode(video=0))) == 15


@pytest.mark.parametrize(("turn", "corner"), [(90, "lower left"), (-90, "upper right"), (180, "lower right")])
def test_films_of_a_turned_phone_are_upright(model, tmp_path, turn, corner):
    """A display rotation counts anticlockwise, as FFmpeg documents av_display_rotation_get."""
    film = render(tmp_path / "film.mp4", turn=turn)
    predict(model, str(film), output=str(tmp_path / "out"), score=0.0)
    height, width = (96, 64) if abs(turn) == 90 else (64, 96)
    _, frames = decode(tmp_path / "out" / "film.mp4")
    assert frames[0].shape == (height, width, 3)
    y, x = 0.3 * height, 0.3 * width
    y, x = (height - y if "lower" in corner else y), (width - x if "right" in corner else x)
    assert abs(frames[0][int(y), int(x)].astype(int) - RED).max() < 40
    assert max(float(row["xmax"]) for row in read_table(tmp_path / "out" / "film.csv")) == width


def test_odd_sides_become_even(model, tmp_path):
    film = render(tmp_path / "film.mkv", size=(63, 95))
    predict(model, str(film), output=str(tmp_path / "out"), score=0.0)
    assert decode(tmp_path / "out" / "film.mp4")[1][0].shape == (64, 96, 3)
    assert {row["xmax"] for row in read_table(tmp_path / "out" / "film.csv")} >= {"95.00"}


def test_every_takes_one_frame_of_so_many(model, tmp_path):
    film = render(tmp_path / "film.mp4")
    options = VideoConfig(every=4, table="csv")
    (video,) = predict(model, str(film), output=str(tmp_path / "out"), score=1.0, video=options).videos
    assert (video.frames, video.analysed, video.seconds) == (15, 4, 0.48)
    rows = read_table(tmp_path / "out" / "film.csv")
    assert [(row["frame"], row["time"], row["label"]) for row in rows] == [
        ("0", "0.000", ""), ("4", "0.160", ""), ("8", "0.320", ""), ("12", "0.480", ""),
    ]  # fmt: skip
    np.testing.assert_allclose(decode(tmp_path / "out" / "film.mp4")[0], [0, 0.16, 0.32, 0.48], atol=1e-4)


def test_a_table_alone(model, tmp_path):
    film = render(tmp_path / "film.mp4", sound="aac")
    predict(model, str(film), output=str(tmp_path / "out"), pictures=False)
    assert sorted(os.listdir(tmp_path / "out")) == ["film.csv", "film.json"]


def test_parquet_says_what_csv_says(model, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow: pip install pyarrow")
    film = render(tmp_path / "film.mp4")
    for table in ("csv", "parquet"):
        predict(model, str(film), output=str(tmp_path / table), score=0.2, video=VideoConfig(table=table))
    rows = parquet.read_table(tmp_path / "parquet" / "film.parquet").to_pylist()
    lines = read_table(tmp_path / "csv" / "film.csv")
    assert [(row["frame"], row["label"], f"{row['xmax']:.2f}") for row in rows] == [
        (int(line["frame"]), line["label"], line["xmax"]) for line in lines
    ]
    assert {row["track"] for row in rows} == {None}


def spoil(path, numbers):
    """Overwrite the data of some packets."""
    with av.open(str(path)) as film:
        packets = [(packet.pos, packet.size) for packet in film.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for number in numbers:
        start, size = packets[number]
        data[start : start + size] = b"\xff" * size
    path.write_bytes(data)


def test_broken_frames_are_counted(model, tmp_path, capsys):
    film = render(tmp_path / "film.mp4")
    spoil(film, [6, 7])
    assert main(["predict", model, str(film), "--output", str(tmp_path / "out")]) == 0
    assert "13 of 13 frames looked at, 0.6 seconds, 2 broken" in capsys.readouterr().out
    assert [float(row["time"]) for row in read_table(tmp_path / "out" / "film.csv")][::2][-1] == 0.56


def test_what_is_no_video_is_told_and_the_others_are_written(model, tmp_path, capsys):
    good = render(tmp_path / "good.mp4")
    whole = good.read_bytes()
    (tmp_path / "text.mp4").write_text("no video " * 500)
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\ngood.mp4\n#EXT-X-ENDLIST\n")
    with av.open(str(tmp_path / "sound.mp4"), "w") as film:
        track = film.add_stream("aac", rate=48000, layout="mono")
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        silence.sample_rate = 48000
        film.mux(track.encode(silence))
        film.mux(track.encode())
    spoiled = render(tmp_path / "spoiled.mp4")
    spoil(spoiled, range(15))
    assert main(["predict", model, str(tmp_path / "*.mp4"), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "5 of 6 videos could not be read" in error
    for name in ("text.mp4 cannot be opened as a video", "cut.mp4 ", "list.mp4 ", "sound.mp4 "):
        assert str(tmp_path / name) in error
    assert f"{spoiled}: not one frame can be decoded" in error
    assert sorted(os.listdir(tmp_path / "out")) == ["good.csv", "good.json", "good.mp4"]


def test_a_film_that_is_cut_off_ends_early(model, tmp_path, caplog):
    film = render(tmp_path / "film.mkv", range(0, 4000, 40))
    film.write_bytes(film.read_bytes()[: -film.stat().st_size // 2])
    (video,) = predict(model, str(film), output=str(tmp_path / "out")).videos
    assert 0 < video.frames < 90 and "film.mkv ends after" in caplog.text
    assert len(decode(tmp_path / "out" / "film.mp4")[0]) == video.analysed


def run_by_hand(tmp_path, film, detect, **options):
    """A run with a function in the place of the model."""
    names = Predictor.__new__(Predictor)
    names.tiling = (1, 1)  # so that no limit is asked for
    names.backend = type("Backend", (), {"spec": type("Spec", (), {"class_names": ("a", "b")})})
    run = VideoRun(names, detect, 0.5, tmp_path / "out", VideoConfig(**options), True)
    return run.predict(Source(str(film), str(film), "film"))


def no_detections(images):
    for _ in images:
        yield Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), ("a", "b"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_film_is_whole_up_to_there(tmp_path, number):
    film = render(tmp_path / "film.mp4", range(0, 8000, 40), sound="aac")

    def detect(images):
        for place, detections in enumerate(no_detections(images)):
            if place == 10:
                os.kill(os.getpid(), number)
            yield detections

    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"results of the first .* seconds are in"):
        run_by_hand(tmp_path, film, detect)
    assert signal.getsignal(number) is before
    times, _ = decode(tmp_path / "out" / "film.mp4")
    assert 11 <= len(times) < 50
    document = json.loads((tmp_path / "out" / "film.json").read_text())
    assert document["interrupted"] and document["analysed"] == len(times)
    assert len(read_table(tmp_path / "out" / "film.csv")) == len(times)


def test_nothing_is_left_after_an_error(tmp_path):
    film = render(tmp_path / "film.mp4")

    def detect(images):
        yield next(no_detections(images))
        raise MemoryError

    with pytest.raises(MemoryError):
        run_by_hand(tmp_path, film, detect)
    assert os.listdir(tmp_path) == ["film.mp4"]
    assert not any(thread.name == "video" for thread in threading.enumerate())


def open_film(path):
    return FilmReader(Source(str(path), str(path), "film"))


def test_no_more_frames_are_decoded_than_can_wait(tmp_path):
    reader = open_film(render(tmp_path / "film.mp4", range(0, 8000, 40)))
    frames = reader.frames(1, threading.Event(), None)
    for taken, _ in enumerate(frames, start=1):
        assert reader.decoded <= taken + AHEAD + 2
    assert taken == reader.decoded == 200
    reader.close()


def test_a_live_source_waits_for_nobody(tmp_path):
    reader = open_film(render(tmp_path / "film.mp4", range(0, 2000, 40)))
    reader.live = True
    frames = reader.frames(1, threading.Event(), None)
    taken = [next(frames)]
    while reader.decoded < 50:
        os.sched_yield()
    taken += frames
    assert len(taken) + reader.dropped == 50 and AHEAD <= len(taken) <= AHEAD + 2
    assert [frame.number for frame in taken] == list(range(len(taken)))
    reader.close()


def test_the_sound_of_a_live_source_waits_for_nobody(tmp_path):
    reader = open_film(render(tmp_path / "film.mp4", range(0, 4000, 40), sound="aac"))
    reader.live, packets = True, []
    frames = reader.frames(1, threading.Event(), lambda packet, start: packets.append(packet))
    next(frames)
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "video")
    thread.join(60)
    assert not thread.is_alive() and reader.decoded == 100 and len(packets) < 10
    assert len([0 for _ in frames]) < AHEAD + 2 and len(packets) > 150
    reader.close()


@contextmanager
def sending(content, *, again=False):
    """A server on this machine that sends bytes to whoever connects, once or for as long as they are taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve():
            connection, _ = server.accept()
            with connection, suppress(OSError):
                connection.sendall(content)
                while again:
                    connection.sendall(content)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        thread.join(60)
        assert not thread.is_alive()


def test_a_stream_over_the_network(model, tmp_path, caplog):
    content = render(tmp_path / "film.ts", range(0, 2000, 40), sound="aac").read_bytes()
    with sending(content) as address:
        (video,) = predict(model, address, output=str(tmp_path / "out"), score=0.0).videos
    assert video.source == address and video.frames > 40 and video.analysed + video.dropped == video.frames
    assert "the stream ended by itself after" in caplog.text and not video.interrupted
    times, frames = decode(tmp_path / "out" / "127_0_0_1.mp4")
    assert len(times) == video.analysed and frames[0].shape == (64, 96, 3)


def test_an_interrupted_stream_is_whole_up_to_there(tmp_path):
    content = render(tmp_path / "film.ts", range(0, 2000, 40)).read_bytes()

    def detect(images):
        for place, detections in enumerate(no_detections(images)):
            if place == 10:
                os.kill(os.getpid(), signal.SIGINT)
            yield detections

    with sending(content, again=True) as address:
        result = run_by_hand(tmp_path, address, detect)
    assert result.interrupted and result.analysed >= 11
    assert len(decode(tmp_path / "out" / "film.mp4")[0]) == result.analysed


@pytest.mark.parametrize(("code", "reason"), [(401, "401 Unauthorized"), (404, "404 Not Found"), (503, "5XX")])
def test_a_server_that_refuses_is_told_without_the_password(model, tmp_path, capsys, code, reason):
    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(code)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Refuse) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        address = f"127.0.0.1:{server.server_port}/film.mp4"
        assert main(["predict", model, f"http://me:secret@{address}", "--output", str(tmp_path / "out")]) == 2
        server.shutdown()
        thread.join()
    error = capsys.readouterr().err
    assert f"http://{address} cannot be opened as a video (Server returned {reason}" in error
    assert "secret" not in error and error.count("\n") == 1 and os.listdir(tmp_path) == []


def test_a_server_that_says_nothing_is_not_waited_for(model, tmp_path, monkeypatch):
    monkeypatch.setattr(film_module, "TIMEOUT", 0.2)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(UserError, match=r"cannot be opened as a video \(no answer for"),
    ):
        predict(model, f"tcp://127.0.0.1:{server.getsockname()[1]}", output=str(tmp_path / "out"))


def test_a_camera_that_is_stuck_in_its_driver_is_not_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(film_module, "TIMEOUT", 0.1)
    reader, pulled_out = open_film(render(tmp_path / "film.mp4")), threading.Event()
    whole = reader._decode
    reader.live = True

    def decode_some(with_sound):
        yield from islice(whole(with_sound), 3)
        pulled_out.wait(60)

    reader._decode = decode_some
    frames = list(reader.frames(1, threading.Event(), None))
    reader.close()
    pulled_out.set()
    assert len(frames) == 3 and "the camera gives no frames" in caplog.text


def test_what_an_earlier_prediction_wrote_goes(model, tmp_path):
    film, out = render(tmp_path / "film.mp4"), tmp_path / "out"
    predict(model, str(film), output=str(out))
    (out / "other.mp4").touch()
    predict(model, str(film), output=str(out), overwrite=True, pictures=False)
    assert sorted(os.listdir(out)) == ["film.csv", "film.json", "other.mp4"]
    predict(model, str(film), output=str(tmp_path), pictures=False)  # beside the film itself
    predict(model, str(film), output=str(tmp_path), pictures=False, overwrite=True)
    assert film.exists()


@pytest.mark.parametrize(
    ("line", "is_met"),
    [("0,32,96,32", True), ("-9,-9,200,200", True), ("96,0,96,64", True), ("-5,20,20,-5", True),
     ("0,65,96,65", False), ("-20,10,10,-20", False), ("97,0,200,64", False), ("-50,-50,-1,-1", False)],
)  # fmt: skip
def test_a_line_that_nothing_can_cross_is_told(tmp_path, line, is_met):
    pytest.importorskip("trackers", reason="tracking needs trackers: pip install 'retinanet[track]'")
    film = render(tmp_path / "film.mp4", range(0, 80, 40))
    if is_met:
        run_by_hand(tmp_path, film, no_detections, track=True, lines=line)
        return
    with pytest.raises(UserError, match=r"--lines [-\d,]+ lies outside of the frames, which are 96 x 64 pixels"):
        run_by_hand(tmp_path, film, no_detections, track=True, lines=line)
    assert os.listdir(tmp_path) == ["film.mp4"]


def test_results_are_replaced_only_on_request_and_the_source_never(model, tmp_path):
    film = render(tmp_path / "film.mp4")
    predict(model, str(film), output=str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"holds results already \(film.csv\)"):
        predict(model, str(film), output=str(tmp_path / "out"))
    predict(model, str(film), output=str(tmp_path / "out"), overwrite=True)
    with pytest.raises(UserError, match=r"film.mp4 would replace a video that is to be read"):
        predict(model, str(film), output=str(tmp_path), overwrite=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["film.mp4", "image.png"], "film.mp4 is a video and image.png is not: predict images and videos one after"),
        (["image.png", "--every", "2"], "--every is for videos, and no video, camera or address of one is given"),
        (["image.png", "--track"], "--track is for videos"),
        (["film.mp4", "--every", "0"], "--every is at least 1, got 0"),
        (["film.mp4", "--lines", "0,0,9,9"], "--lines counts tracked objects; add --track"),
        (["film.mp4", "--lines", "0,0,9"], "'0,0,9' is no line: expected x1,y1,x2,y2 in pixels"),
        (["film.mp4", "--track", "--lines", "5,5,5,5"], "'5,5,5,5' is no line"),
        (["none.mp4"], "no video at none.mp4: expected a file, or a pattern such as"),
        (["film.mp4", "rtsp://me:secret@10.0.0.1/a"], "rtsp://10.0.0.1/a is read while it plays: give one"),
        (["camera:77"], "there is no camera /dev/video77"),
    ],
)
def test_what_cannot_be_meant_is_told_in_a_sentence(model, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    render(tmp_path / "film.mp4")
    (tmp_path / "image.png").write_bytes(b"")
    assert main(["predict", model, *words, "--output", "out"]) == 2
    error = capsys.readouterr().err
    assert message in error and "secret" not in error and "Traceback" not in error


def test_sources():
    (one,) = find_videos(["rtsp://me:secret@10.0.0.1:554/door/main.sdp?x=1"])
    assert (one.shown, one.name, one.device) == ("rtsp://10.0.0.1:554/door/main.sdp", "10_0_0_1_door_main", None)
    assert [source.name for source in find_videos(["https://example.org/a/film.webm"])] == ["example_org_a_film"]
    assert find_videos(["https://example.org/a.jpg", "*.png"]) == []


def test_files_of_one_name_get_different_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a/film.mp4", "b/film.mp4", "b/film.avi"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert len({source.name for source in find_videos(["a/film.mp4", "b/*.mp4", "b/film.avi"])}) == 3


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [("av", [], "[video]"), ("trackers", ["--track"], "[track]"), ("pyarrow", ["--table", "parquet"], "pyarrow")],
)
def test_a_missing_package_is_named(model, tmp_path, monkeypatch, capsys, package, words, extra):
    film = render(tmp_path / "film.mp4")
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["predict", model, str(film), *words, "--output", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "pip install" in error and extra in error and error.count("\n") == 1


def test_an_ffmpeg_without_the_encoder_is_told(model, tmp_path, monkeypatch):
    film = render(tmp_path / "film.mp4")
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with pytest.raises(UserError, match="no encoder libx264; pass --pictures false"):
        predict(model, str(film), output=str(tmp_path / "out"))
    predict(model, str(film), output=str(tmp_path / "out"), pictures=False)


def found(*rows):
    """Detections (x, y, label) of 10 x 10 pixels."""
    boxes = np.array([[x - 5, y - 5, x + 5, y + 5] for x, y, _ in rows], np.float32).reshape(-1, 4)
    return Detections(boxes, np.full(len(rows), 0.9, np.float32), np.array([row[2] for row in rows], int), ("a", "b"))


def test_lines_are_crossed_where_the_hand_made_path_crosses_them():
    line, short = read_lines("50,0,50,100 0,60,20,60")
    counts = Counts(("a", "b"), [line, short])
    path = [(40, 20), (48, 20), (50, 20), (52, 22), (60, 20), (49, 20), (49, 150), (60, 150), (30, 150), (30, 50)]
    for x, y in path:  # the line goes down: its left is where x is larger
        counts.add(found((x, y, 0), (200, 200, 1)), [7, -1])
    # there at (52, 22), back at (49, 20); beyond its ends a line is not crossed
    assert counts.crossings == {(0, "a", "to_left"): 1, (0, "a", "to_right"): 1}
    assert counts.describe_lines() == ["1 left, 1 right", "0 left, 0 right"]
    entry = counts.to_dict()
    assert entry["lines"][0] == {"line": [50, 0, 50, 100], "crossed": {"a": {"to_left": 1, "to_right": 1}}}
    assert entry["classes"]["a"] == {"detections": 10, "mean_per_frame": 1.0, "most_in_a_frame": 1, "tracks": 1}
    assert entry["classes"]["b"]["tracks"] == 0


def test_a_crossing_is_that_of_the_exact_geometry():
    """Against fractions: the signs of the four triangles."""
    rng = np.random.default_rng(0)
    crossed = 0
    for _ in range(400):
        points = [tuple(map(int, point)) for point in rng.integers(0, 12, (4, 2))]
        a, b, p, q = points

        def side(a, b, c):
            return Fraction(b[0] - a[0]) * (c[1] - a[1]) - Fraction(b[1] - a[1]) * (c[0] - a[0])

        signs = side(a, b, p), side(a, b, q), side(p, q, a), side(p, q, b)
        if 0 in signs:
            continue
        there = signs[0] * signs[1] < 0 and signs[2] * signs[3] < 0
        crossed += there
        way = find_crossing((*a, *b), p, q)
        assert (way is not None) == there
        assert way is None or (way == "to_right") == (signs[1] > 0)
    assert crossed > 50


def test_an_object_is_of_the_class_that_it_has_most_often():
    counts = Counts(("a", "b"))
    for label in (1, 0, 0):
        counts.add(found((5, 5, label)), [3])
    assert counts.tracks == {"a": 1} and counts.detections == {"a": 2, "b": 1} and counts.most == {"a": 1, "b": 1}


def test_tracks_follow_objects_and_the_film_shows_them(tmp_path):
    pytest.importorskip("trackers", reason="tracking needs trackers: pip install 'retinanet[track]'")
    film = render(tmp_path / "film.mp4", range(0, 1000, 40))

    def detect(images):
        for place, _ in enumerate(images):  # one goes right and is not seen once, one goes left, one stands
            yield found(*([(20 + 2 * place, 10, 0)] * (place != 9)), (80 - 2 * place, 40, 1), (10, 55, 1))

    result = run_by_hand(tmp_path, film, detect, track=True, lines="45,0,45,64")
    assert result.counts.tracks == {"a": 1, "b": 2}
    assert result.counts.crossings == {(0, "a", "to_left"): 1, (0, "b", "to_right"): 1}
    rows = read_table(tmp_path / "out" / "film.csv")
    assert {row["track"] for row in rows if row["label"] == "a" and int(row["frame"]) > 1} == {
        next(row["track"] for row in rows if row["label"] == "a" and row["track"])
    }
    assert "line 45,0,45,64: a 1 to the left, 0 to the right; b 0 to the left, 1 to the right" in result.summary()
    _, frames = decode(tmp_path / "out" / "film.mp4")
    assert frames[0][5, 45].min() > 150  # the white line


def test_numbers_are_given_in_the_order_of_the_detections():
    pytest.importorskip("trackers", reason="tracking needs trackers: pip install 'retinanet[track]'")
    tracker = Tracker(0.3, 25.0)
    first, second = (20, 20, 0), (70, 70, 1)
    assert tracker.number(found(), 0.0) == []
    assert tracker.number(found(first, second), 0.04) == [-1, -1]
    ordered = tracker.number(found(first, second), 0.08)
    assert sorted(ordered) == [0, 1] and tracker.number(found(second, first), 0.12) == ordered[::-1]


def test_options_of_another_type_are_told(tmp_path):
    with pytest.raises(UserError, match=r"video\.every: expected a whole number, got '2'"):
        VideoConfig(every="2")
    with pytest.raises(UserError, match=r"video\.lines: expected a text"):
        VideoConfig(lines=[(0, 1, 2, 3)])
    with pytest.raises(UserError, match=r"video: expected VideoConfig\(...\), or a dict of its fields; got 5"):
        predict("model", "film.mp4", video=5)


def test_options_as_a_dict(model, tmp_path):
    film = render(tmp_path / "film.mp4")
    (video,) = predict(model, str(film), output=str(tmp_path / "out"), video={"every": 5}).videos
    assert video.analysed == 3
    with pytest.raises(UserError, match="evry"):
        predict(model, str(film), output=str(tmp_path / "out"), video={"evry": 5})
