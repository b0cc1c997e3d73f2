"""Frames and sound out of a video and into one, through PyAV; the one place that knows it."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.errors import UserError
from retinanet.inference.paths import Source

AHEAD = 8  # decoded frames that wait for the network
TIMEOUT = 10.0  # seconds without an answer of a camera or a server
BT709 = 1  # in the tables of H.273: the colours of HD video
STUDIO = 1  # luma from 16 to 235
ENCODER = {"preset": "veryfast", "crf": "20"}
# A film whose writer is killed is playable nearly up to its last key frame; one that ends well is an ordinary MP4, in
# which frames and sound keep their times though the encoder reorders frames and sound may begin before the first one.
MUXER = {
    "movflags": "hybrid_fragmented+frag_keyframe+negative_cts_offsets",
    "avoid_negative_ts": "disabled",
    "flush_packets": "1",
}
_log = logging.getLogger(__name__)


def import_av() -> Any:
    """PyAV.

    Raises:
        UserError: it is not installed.
    """
    try:
        import av
    except ImportError:
        raise UserError('videos are read with PyAV, which is not installed: pip install "retinanet[video]"') from None
    av.logging.set_level(av.logging.PANIC)  # FFmpeg's own lines on a broken frame name neither file nor fix
    return av


@dataclass(frozen=True)
class Frame:
    """One frame.

    Attributes:
        number: its place among the frames that could be decoded, from 0.
        tick: its time in units of the film's time base, from the film's start.
        time: the same in seconds.
        pixels: (H, W, 3) uint8 RGB, upright.
    """

    number: int
    tick: int
    time: float
    pixels: NDArray[np.uint8]


class FilmReader:
    """Decodes a video in a thread, a few frames ahead; frames keep their own time stamps.

    A film waits for whoever reads it. A live source does not: frames that come while ``AHEAD`` others wait are dropped.

    Args:
        source: what to open.

    Attributes:
        decoded: frames so far, with those that were not asked for.
        broken: packets and frames that could not be decoded.
        dropped: frames of a live source for which there was no time.
        reached: time of the last frame in seconds.
        length: seconds that the file claims to have; None of a live source and where it claims nothing.
        rate: frames per second, on average; a camera may say nothing, then 30 is assumed.
        live: whether it comes as it happens.

    Raises:
        UserError: it cannot be opened, or has no video.
    """

    def __init__(self, source: Source) -> None:
        av = import_av()
        local = "://" not in source.address
        only_files = {"protocol_whitelist": "file"} if local and source.device is None else {}  # not what it refers to
        over_tcp = {"rtsp_transport": "tcp"} if source.address.startswith("rtsp") else {}  # no packet is lost
        try:
            waits = None if local else (TIMEOUT, TIMEOUT)
            self._input = av.open(source.address, format=source.device, options=only_files | over_tcp, timeout=waits)
        except (OSError, ValueError) as error:  # what FFmpeg says is an OSError or a ValueError
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"{source.shown} cannot be opened as a video ({reason}). Check that it plays") from None
        if not self._input.streams.video:
            self._input.close()
            raise UserError(f"{source.shown} has no video that can be read; the file may be cut off, or only sound")
        self._errors = (av.error.FFmpegError, ValueError)
        self._video = self._input.streams.video[0]
        self.sound = next(iter(self._input.streams.audio), None)
        self.time_base: Fraction = self._video.time_base
        self.rate = Fraction(self._video.average_rate or self._video.guessed_rate or 30)
        seconds = (self._input.duration or 0) / 1e6
        if self._video.duration:  # the sound may be longer
            seconds = float(self._video.duration * self.time_base)
        self.live = source.device is not None or not (local or seconds)
        self.length = None if self.live else seconds or None
        start = None if self.live else self._input.start_time
        self._start = None if start is None else Fraction(start, 1_000_000)
        self.decoded = self.broken = self.dropped = 0
        self.reached = 0.0
        self._tick = -1

    def frames(
        self, every: int, stop: threading.Event, take_sound: Callable[[Any, Fraction], None] | None
    ) -> Generator[Frame]:
        """Every so many frames, until the film ends or ``stop`` is set.

        Args:
            every: 1 for all.
            stop: ends the reading.
            take_sound: is given the packets of the sound as they are, in the thread of the caller, and the time in
                seconds at which the film starts.
        """
        waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
        places = threading.Semaphore(AHEAD)  # for frames only: a camera whose sound waited would fall behind
        left = threading.Event()  # the caller wants no more

        def wait_for_place() -> bool:
            while not left.is_set():
                if places.acquire(timeout=0.1):
                    return True
            return False

        def read() -> None:
            end: Any = None
            try:
                for packet, frame in self._decode(take_sound is not None):
                    if stop.is_set() or left.is_set():
                        break
                    if frame is None:
                        waiting.put(packet)
                    elif (self.decoded - 1) % every == 0:
                        if places.acquire(blocking=False) or (not self.live and wait_for_place()):
                            waiting.put(self._convert(frame))
                        else:
                            self.dropped += self.live
            except BaseException as error:  # told where the frames are used
                end = error
            waiting.put(end)

        thread = threading.Thread(target=read, name="video", daemon=True)
        thread.start()
        try:
            while (entry := waiting.get()) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                if isinstance(entry, Frame):
                    places.release()
                    yield entry
                elif take_sound is not None:
                    take_sound(entry, self._start or Fraction(0))
        finally:
            left.set()
            thread.join()

    def _decode(self, with_sound: bool) -> Iterator[tuple[Any, Any]]:
        """Each packet with each of its frames; packets of sound, without one, once the film's start is known."""
        streams = [self._video, *([self.sound] if with_sound and self.sound is not None else [])]
        packets = iter(self._input.demux(streams))
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except self._errors as error:  # the file is cut off, or the camera is gone
                self.broken += 1
                _log.warning("reading stopped after %.1f seconds: %s", self.reached, getattr(error, "strerror", error))
                return
            if packet.stream is not self._video:
                if packet.dts is not None and self._start is not None:
                    yield packet, None
                continue
            try:
                frames = packet.decode()
            except self._errors:
                self.broken += 1
                continue
            for frame in frames:
                if frame.is_corrupt:
                    self.broken += 1
                else:
                    self._count(frame)
                    yield packet, frame

    def _convert(self, frame: Any) -> Frame:
        pixels = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
        return Frame(self.decoded - 1, self._tick, self.reached, np.ascontiguousarray(pixels))

    def _count(self, frame: Any) -> None:
        """Note the time of a frame; time only goes on, whatever the file says."""
        if self._start is None:
            self._start = Fraction(0) if frame.pts is None else frame.pts * self.time_base
        if frame.pts is None:
            tick = self._tick + max(1, round(1 / (self.rate * self.time_base)))
        else:
            tick = frame.pts - round(self._start / self.time_base)
        self._tick = max(tick, self._tick + 1)
        self.decoded += 1
        self.reached = float(self._tick * self.time_base)

    def close(self) -> None:
        """Let go of the file or the camera."""
        self._input.close()


class FilmWriter:
    """Writes an MP4 film: H.264 frames at the times given, and sound as it comes.

    Args:
        path: of the film.
        reader: whose time base the frames have, and whose sound may be kept.

    Attributes:
        keeps_sound: whether MP4 can hold the reader's sound.

    Raises:
        UserError: FFmpeg was built without the encoder.
    """

    def __init__(self, path: Path, reader: FilmReader) -> None:
        self._av = import_av()
        if "libx264" not in self._av.codecs_available:
            raise UserError("this FFmpeg has no encoder libx264; pass --pictures false for tables without a film")
        self._output = self._av.open(str(path), "w", format="mp4", options=MUXER)
        self._video = self._output.add_stream("libx264", rate=reader.rate, options=ENCODER)
        self._video.pix_fmt = "yuv420p"
        self._time_base = reader.time_base
        self._began = False
        self._early: list[tuple[Any, Fraction]] = []  # the sound before the first frame
        self._sound: Any = None
        if reader.sound is not None:
            with suppress(ValueError):
                self._sound = self._output.add_stream_from_template(reader.sound)
        self.keeps_sound = self._sound is not None

    def write_frame(self, picture: Image.Image, tick: int) -> None:
        """Add a frame; its sides are made even, as players want them, by a copy of the last row or column.

        Args:
            picture: RGB.
            tick: its time, greater than the one before.
        """
        pixels = np.asarray(picture)
        height, width = pixels.shape[:2]
        if not self._began:
            context = self._video.codec_context
            context.height, context.width = height + height % 2, width + width % 2
            context.time_base = self._time_base
            context.colorspace = context.color_primaries = context.color_trc = BT709
            context.color_range = STUDIO
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = tick, self._time_base
        self._output.mux(self._video.encode(frame))
        self._began = True
        while self._early:
            self.write_sound(*self._early.pop(0))

    def write_sound(self, packet: Any, start: Fraction) -> None:
        """Add a packet of the reader's sound without decoding it, moved by the time at which the film starts."""
        if not self._began:
            self._early.append((packet, start))
            return
        shift = round(start / packet.time_base)
        packet.pts = packet.dts - shift if packet.pts is None else packet.pts - shift
        packet.dts -= shift
        packet.stream = self._sound
        self._output.mux(packet)

    def __enter__(self) -> FilmWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._began:
                self._output.mux(self._video.encode())  # what the encoder holds back
        finally:
            self._output.close()
