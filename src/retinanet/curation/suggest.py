"""``suggest``: which images to annotate next, the most instructive first."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track

from retinanet.curation.ranking import Look, choose, look_at_images
from retinanet.data.dataset import load_dataset, splits
from retinanet.errors import UserError
from retinanet.files import check_writable, write_atomically
from retinanet.inference.documents import quote_formula
from retinanet.inference.paths import find_images
from retinanet.inference.predictor import Predictor
from retinanet.options import explain_unknown_options
from retinanet.spec import check_model_first

FAR = 2.0  # the distance where nothing is known
COLUMNS = ("rank", "image", "value", "unsure", "disputed", "objects", "distance", "reason")


@dataclass(frozen=True)
class Suggestion:
    """An image to annotate.

    Attributes:
        look: what the model makes of it.
        distance: of its features to the nearest image that is annotated or suggested before, in [0, 2].
        reason: a sentence.
    """

    look: Look
    distance: float
    reason: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; without the features."""
        look = self.look
        numbers = {"value": look.value, "unsure": look.unsure, "disputed": look.disputed, "objects": look.objects}
        return {"image": str(look.path), **numbers, "distance": self.distance, "reason": self.reason}


@dataclass(frozen=True)
class Suggestions:
    """What :func:`suggest` chose.

    Attributes:
        chosen: the most instructive first.
        images: that could be chosen.
        annotated: that were known already.
        output: the list as CSV.
    """

    chosen: tuple[Suggestion, ...]
    images: int
    annotated: int
    output: Path

    def summary(self) -> str:
        """For the console."""
        known = f", beside {self.annotated:,} annotated ones" if self.annotated else ""
        lines = [f"{len(self.chosen)} of {self.images:,} images{known}:"]
        lines += [f"  {one.look.path}: {one.reason}" for one in self.chosen[:5]]
        return "\n".join([*lines, f"the list is in {self.output}"])


@explain_unknown_options
def suggest(
    model: str,
    images: list[str],
    *,
    output: str = "next.csv",
    count: int = 20,
    data: str | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> Suggestions:
    """List images to annotate next, with a reason each; in a simulation a random choice taught as much.

    An image counts for candidates that the model is unsure of and for objects that its mirror image disputes, so crowds
    count for more; and for being unlike the annotated images and those already chosen. Copies of those are not chosen.

    Args:
        model: model folder.
        images: files, folders and patterns of images without annotations.
        output: file for the list, CSV.
        count: how many images to choose.
        data: images that are annotated already; neither they nor their copies are chosen.
        device: auto, cpu, cuda, cuda:1, mps.
        overwrite: replace the file of an earlier list.

    Raises:
        UserError: no usable model, no image to choose, or the file is there already.
    """
    images = [str(name) for name in ([images] if isinstance(images, str | Path) else images)]
    check_model_first(model, next(iter(images), ""))
    if count < 1:
        raise UserError(f"--count is at least 1, got {count}")
    path = Path(output)
    if path.is_dir() or (path.exists() and not overwrite):
        raise UserError(f"--output {path} exists. Name another file, or pass --overwrite to replace an earlier list")
    check_writable(path)
    known = _list_annotated(data) if data is not None else []
    annotated = {os.path.realpath(one) for one in known}
    pool = [one for one in find_images(images) if os.path.realpath(one) not in annotated]
    if not pool:
        raise UserError(f"all images of {', '.join(images)} are annotated in {data} already; name others")
    predictor = Predictor.load(model, device=device)
    console = Console(stderr=True)
    quiet = not console.is_terminal
    looks = list(
        track(
            look_at_images(predictor, [*known, *pool]),
            *("looking at images", len(known) + len(pool)),
            console=console,
            transient=True,
            disable=quiet,
        )
    )
    first, rest = looks[: len(known)], looks[len(known) :]
    features = np.stack([look.feature for look in looks])
    places = choose([look.value for look in rest], features[len(first) :], features[: len(first)], count)
    typical = float(np.median([look.value for look in rest]))
    chosen = [Suggestion(rest[row], distance, _explain(rest[row], distance, typical)) for row, distance in places]
    result = Suggestions(tuple(chosen), len(pool), len(known), path)
    write_atomically(path, _make_table(result.chosen).encode("utf-8", "surrogateescape"))
    return result


def _list_annotated(data: str) -> list[Path]:
    """The images of all splits, each once."""
    parts = [load_dataset(data, split) for split in splits(data) or (None,)]
    return list({os.path.realpath(sample.path): sample.path for part in parts for sample in part.samples}.values())


def _explain(look: Look, distance: float, typical: float) -> str:
    """A sentence without a full stop; ``typical`` is the median of the values."""
    if look.unsure >= look.disputed:
        why = f"its candidates are as unsure as {look.unsure:.1f} of score 0.5"
    else:
        why = f"its mirror image disputes {look.disputed:.1f} objects"
    times = f", {look.value / typical:.1f} times the usual in all" if typical else ""
    near = f"; distance {distance:.2f} to the nearest known image" if distance < FAR else ""
    return f"{why}{times}; about {look.objects:.0f} objects{near}"


def _make_table(chosen: tuple[Suggestion, ...]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for rank, one in enumerate(chosen, start=1):
        look = one.look
        numbers = [f"{number:.3f}" for number in (look.value, look.unsure, look.disputed, look.objects, one.distance)]
        writer.writerow([rank, quote_formula(str(look.path)), *numbers, one.reason])
    return text.getvalue()
