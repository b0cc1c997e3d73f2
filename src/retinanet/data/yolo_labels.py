"""The lines of YOLO label files: boxes, polygons, boxes with keypoints, and what other tools write there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from retinanet.data.annotations import Box
from retinanet.data.faults import Fault, Faults, name_list, short
from retinanet.data.files import read_text


class LabelReader:
    """Collects the boxes of label files.

    Args:
        class_names: K names, by id.
        keypoints: data.yaml says that points follow each box.
        faults: is given what is wrong with a line, which is then left out.

    Attributes:
        rows: which image each box belongs to, and the box as fractions of it.
    """

    def __init__(self, class_names: Sequence[str], keypoints: bool, faults: Faults) -> None:
        self.rows: list[tuple[int, Box]] = []
        self._class_names = class_names
        self._keypoints = keypoints
        self._faults = faults
        self._with_points: list[int] = []
        self._of_14: dict[int, list[float]] = {}  # lines that may be a box and five landmarks
        self._with_confidence: list[str] = []

    def read_file(self, owner: int, file: Path) -> None:
        """Add the lines of a file that are not empty."""
        try:
            lines = read_text(file).splitlines()
        except Fault as fault:
            self._faults(fault)
            return
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            where = f"{file}, line {line}"
            try:
                numbers = self._read_numbers(where, text)
                name = self._read_name(where, numbers[0])
            except Fault as fault:
                self._faults(fault)
            else:
                self.rows.append((owner, Box(self._read_box(numbers[1:]), name, where)))

    def finish(self) -> bool:
        """Tell what the lines hold beside boxes; whether the numbers are pixels, not fractions."""
        if 2 * sum(map(_has_landmarks, self._of_14.values())) >= max(1, len(self._of_14)):
            self._with_points += self._of_14
            for row, numbers in self._of_14.items():
                owner, box = self.rows[row]
                self.rows[row] = owner, box._replace(xyxy=_from_centre(numbers))
        if self._with_points:
            reason = f"{len(self._with_points)} lines hold keypoints behind the box"
            self._faults(Fault("keypoints", self.rows[self._with_points[0]][1].where, reason))
        if self._with_confidence:
            reason = f"{len(self._with_confidence)} lines have a sixth number"
            self._faults(Fault("confidence", self._with_confidence[0], reason))
        boxes = [box for _, box in self.rows]
        large = [box for box in boxes if max(box.xyxy[2] - box.xyxy[0], box.xyxy[3] - box.xyxy[1]) > 2]
        if 2 * len(large) <= len(boxes):
            return False
        reason = f"{len(large)} of {len(boxes)} boxes are twice as large as their image, so they seem to be pixels"
        self._faults(Fault("pixels", large[0].where, reason))
        return True

    def _read_numbers(self, where: str, text: str) -> list[float]:
        try:
            numbers = [float(word) for word in text.split()]
        except ValueError:
            numbers = []
        count = len(numbers)
        if count == 6 and 0 <= numbers[5] <= 1:
            self._with_confidence.append(where)
        elif count != 5 and (count < 7 or (count % 2 == 0 and not self._keypoints)):
            remedy = (
                "Expected five numbers (class, then centre x and y, width and height as fractions of the image), or a "
                "class and the corners of a polygon."
            )
            raise Fault("broken-annotation", where, short(text.strip()), remedy)
        return numbers

    def _read_name(self, where: str, number: float) -> str:
        if not (number == number // 1 and 0 <= number < len(self._class_names)):
            remedy = f"Expected 0 to {len(self._class_names) - 1}: {name_list(self._class_names)}."
            raise Fault("undeclared-class", where, f"class id {number:g} is not declared", remedy)
        return self._class_names[int(number)]

    def _read_box(self, numbers: list[float]) -> list[float]:
        """xyxy: of a centre and sides, or the extent of a polygon."""
        if len(numbers) > 5 and self._keypoints:
            self._with_points.append(len(self.rows))
        if len(numbers) <= 5 or self._keypoints:
            return _from_centre(numbers)
        if len(numbers) == 14:
            self._of_14[len(self.rows)] = numbers
        if not all(map(math.isfinite, numbers)):  # min and max would step over a NaN
            return [math.nan] * 4
        return [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])]


def _from_centre(numbers: Sequence[float]) -> list[float]:
    x, y, width, height = numbers[:4]
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


def _has_landmarks(numbers: Sequence[float]) -> bool:
    """Whether 14 numbers are a box and five landmarks, as of faces: all of these are -1, or lie inside the box.

    A polygon of seven corners passes only where its first corner is the centre of a box, of which its second corner is
    the size, around all the others.
    """
    x, y, width, height = numbers[:4]
    points = list(zip(numbers[4::2], numbers[5::2], strict=True))
    return all(
        (px, py) == (-1, -1) or (abs(px - x) <= width / 2 + 0.01 and abs(py - y) <= height / 2 + 0.01)
        for px, py in points
    )
