"""Frames and sound out of a video, through PyAV."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.errors import UserError
from retinanet.inference.paths import Source

AHEAD = 8  # decoded frames that wait for the network
TIMEOUT = 10.0  # seconds without an answer of a camera or a server
SILENT = f"no answer for {TIMEOUT:g} seconds"
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
        self._errors = (av.error.FFmpegError, OSError, ValueError)  # some of FFmpeg's are neither of the others
        self._source, self._stuck, began = source, False, time.monotonic()
        try:
            waits = None if local and source.device is None else (TIMEOUT, TIMEOUT)
            self._input = av.open(source.address, format=source.device, options=only_files | over_tcp, timeout=waits)
        except self._errors as error:
            fix = "Check that it plays" if local else "Check the address, and whether it needs NAME:PASSWORD@"
            is_silent = time.monotonic() - began >= TIMEOUT  # of which rtsp says something else
            reason = SILENT if is_silent else self._explain(error)
            raise UserError(f"{source.shown} cannot be opened as a video ({reason}). {fix}") from None
        if not self._input.streams.video:
            self._input.close()
            raise UserError(f"{source.shown} has no video that can be read; the file may be cut off, or only sound")
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
            while (entry := self._wait(waiting)) is not None:
                if isinstance(entry, BaseException):
                    raise entry
                if isinstance(entry, Frame):
                    places.release()
                    yield entry
                elif take_sound is not None:
                    take_sound(entry, self._start or Fraction(0))
        finally:
            left.set()
            if not self._stuck:
                thread.join()

    def _wait(self, waiting: queue.SimpleQueue[Any]) -> Any:
        """What the thread gives next, None at the end: the driver of a camera may keep it for ever."""
        while True:
            before = self.decoded
            try:
                return waiting.get(timeout=2 * TIMEOUT if self.live else None)
            except queue.Empty:
                if self.decoded == before:
                    self._stuck = True
                    _log.warning("reading stopped after %.1f seconds: the camera gives no frames", self.reached)
                    return None

    def _explain(self, error: BaseException) -> str:
        """What went wrong, without the password that FFmpeg puts into its messages."""
        if isinstance(error, import_av().error.ExitError):
            return SILENT
        return str(getattr(error, "strerror", None) or error).replace(self._source.address, self._source.shown)

    def _decode(self, with_sound: bool) -> Iterator[tuple[Any, Any]]:
        """Each packet with each of its frames; packets of sound, without one, once the film's start is known."""
        streams = [self._video, *([self.sound] if with_sound and self.sound is not None else [])]
        packets = iter(self._input.demux(streams))
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                if self.live:
                    _log.warning("the stream ended by itself after %.1f seconds", self.reached)
                return
            except self._errors as error:  # the file is cut off, or the camera is gone
                self.broken += 1
                _log.warning("reading stopped after %.1f seconds: %s", self.reached, self._explain(error))
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
        if not self._stuck:  # then a thread is in FFmpeg still
            self._input.close()
