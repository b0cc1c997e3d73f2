"""The built-in data set of the demo, planned by :mod:`retinanet.data.scenes`, painted and written to disk as COCO."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from retinanet.data.painting import paint
from retinanet.data.scenes import GLYPHS, MOST_THINGS, SMALLEST, dense_diameter, plan_scene
from retinanet.errors import UserError

DESCRIPTION = "Scenes rendered by retinanet.data.scenes, version 1"


def render_scenes(
    folder: str | Path,
    *,
    train: int = 240,
    val: int = 60,
    test: int = 60,
    size: tuple[int, int] = (256, 320),
    seed: int = 0,
    objects: int | None = None,
) -> Path:
    """Render a data set and write it as COCO: ``annotations/instances_<split>.json`` and ``<split>/*.jpg``.

    The folder appears complete or not at all. One that holds this very data set already is used as it is.

    Args:
        folder: where to; it must not exist, be empty, or hold this data set.
        train: images of the split ``train``.
        val: images of the split ``val``.
        test: images of the split ``test``. A split of 0 images is not written.
        size: (height, width) of the images in pixels, each at least 64.
        seed: not negative; the same seed gives the same files.
        objects: in every image, as small as it takes; 1,500 fit into 1024 x 1024 pixels. By default 0 to 25.

    Returns:
        The folder.

    Raises:
        UserError: if an argument is out of range, or the folder holds anything else.
    """
    folder = Path(folder)
    splits = {"train": train, "val": val, "test": test}
    if min(splits.values()) < 0 or not any(splits.values()) or seed < 0:
        raise UserError(f"need a seed >= 0 and at least one image, got seed {seed} and {splits} images")
    if min(size) < 64:
        raise UserError(f"size is (height, width) in pixels, each at least 64, got {tuple(size)}")
    most = min(int((dense_diameter(size, 1) / SMALLEST) ** 2), MOST_THINGS)
    if objects is not None and not 1 <= objects <= most:
        raise UserError(f"objects in an image of {size[0]} x {size[1]} pixels are 1 to {most}, got {objects}")
    splits = {split: count for split, count in splits.items() if count}
    info = {"description": DESCRIPTION, "seed": seed, "size": list(size), "images": splits}
    info |= {} if objects is None else {"objects": objects}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if _is_complete(folder, info):
            return folder
        raise UserError(
            f"{folder} exists and does not hold the demo data set with seed {seed}, size {tuple(size)} and "
            f"{splits} images. Name a new folder, or remove this one"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "data"
        (made / "annotations").mkdir(parents=True)
        for split, count in splits.items():
            _write_split(made, split, count, (size[0], size[1]), info)
        if folder.exists():
            folder.rmdir()  # empty, as checked; a rename onto it fails on some systems
        made.rename(folder)
    return folder


def _write_split(folder: Path, split: str, count: int, size: tuple[int, int], info: dict[str, Any]) -> None:
    (folder / split).mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        scene = plan_scene(info["seed"], split, index, size, info.get("objects"))
        name = f"{split}_{index:05d}.jpg"
        paint(scene).save(folder / split / name, quality=93, subsampling=0)
        images.append({"id": index + 1, "file_name": name, "height": size[0], "width": size[1]})
        for thing, (x1, y1, x2, y2), area in zip(scene.things, scene.boxes.tolist(), scene.areas.tolist(), strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index + 1,
                    "category_id": thing.label + 1,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": area,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": i, "name": glyph.name, "supercategory": "glyph"} for i, glyph in enumerate(GLYPHS, start=1)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")


def _is_complete(folder: Path, info: dict[str, Any]) -> bool:
    """Whether a folder holds the data set that ``info`` describes, with every image it lists."""
    for split, count in info["images"].items():
        try:
            content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text(encoding="utf-8"))
            names = [image["file_name"] for image in content["images"]]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        if content.get("info") != info or len(names) != count:
            return False
        if not all((folder / split / name).is_file() for name in names):
            return False
    return True
