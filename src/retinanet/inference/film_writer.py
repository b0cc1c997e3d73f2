"""Frames and sound into an MP4 film, through PyAV."""

from __future__ import annotations

from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from PIL import Image

from retinanet.errors import UserError
from retinanet.inference.film import FilmReader, import_av

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
