"""Images that hold more than a model reports of one: no evaluation may pass over them in silence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from retinanet.spec import ModelSpec
from retinanet.types import Detections, Sample


@dataclass(frozen=True)
class CutImages:
    """The images in which ``max_detections`` of a model leaves out objects, or may do so.

    Attributes:
        cap: the most detections of an image.
        crowded: images with more objects than that, ignore regions left out.
        full: images with that many detections, of which the last is good enough to be shown.
        worst: id of the image with the most objects among these.
        objects: how many it holds.
    """

    cap: int
    crowded: int
    full: int
    worst: int | str
    objects: int

    def __str__(self) -> str:
        kinds = [
            f"{self.crowded} images hold more objects than that" if self.crowded else "",
            f"{self.full} have that many detections that are good enough to be shown" if self.full else "",
        ]
        return (
            f"the model reports at most {self.cap} detections of an image: {', and '.join(filter(None, kinds))}; worst "
            f"is image {self.worst} with {self.objects} objects. Raise postprocess.max_detections: in the config.json "
            "of the model, or in training (--postprocess.max_detections)"
        )


def find_cut_images(spec: ModelSpec, samples: Sequence[Sample], detections: Sequence[Detections]) -> CutImages | None:
    """What the cap of a model leaves out of N annotated images in which it made N detections; None if nothing.

    Of a model of windows it is not known here: the cap is that of a window.
    """
    if spec.tiling is not None:
        return None
    cap = spec.postprocess.max_detections
    objects = [int((~sample.target.ignore).sum()) for sample in samples]
    crowded = [count > cap for count in objects]
    full = [spec.is_at_limit(found) for found in detections]
    cut = [row for row in range(len(samples)) if crowded[row] or full[row]]
    if not cut:
        return None
    worst = max(cut, key=lambda row: objects[row])
    return CutImages(cap, sum(crowded), sum(full), samples[worst].image_id, objects[worst])
