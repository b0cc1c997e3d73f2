"""Names for the outputs of a class layer."""

from __future__ import annotations

from functools import cache

from retinanet.errors import UserError

COCO = 80


@cache
def coco_slots() -> dict[int, str]:
    """COCO's category ids -> its 80 class names, ascending; ids between 1 and 90, with gaps."""
    from torchvision.models.detection import RetinaNet_ResNet50_FPN_Weights  # a second to import

    slots = RetinaNet_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # id -> name, "N/A" in the gaps
    return {slot: name for slot, name in enumerate(slots) if name not in ("__background__", "N/A")}


def names_for(
    count: int, given: tuple[str, ...], found: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of so many classes: those given, those in the file, COCO's where there are 80, or numbers.

    Returns:
        The names, and a remark for the report where they were assumed.

    Raises:
        UserError: another number of names was given.
    """
    if given:
        if len(given) != count or len(set(given)) != count:
            raise UserError(f"--class_names: the weights have {count} classes, {len(set(given))} different names given")
        return given, ()
    if len(found) == len(set(found)) == count:
        return found, ()
    why = f"the file's {len(set(found))} different names do not fit" if found else "the file names none"
    if count == COCO:
        return tuple(coco_slots().values()), (f"80 classes, and {why}: COCO's assumed; others with --class_names",)
    return tuple(f"class {number}" for number in range(count)), (f"{why}: give them with --class_names",)
