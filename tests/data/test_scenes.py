"""The scenes of the demo: repeatable, tightly boxed, imbalanced."""

from dataclasses import replace

import numpy as np
import pytest

from retinanet.data.painting import paint
from retinanet.data.scenes import FINE, GLYPHS, LEAST_VISIBLE, MOST_OBJECTS, SMALLEST, plan_scene

SIZE = (96, 128)


@pytest.fixture(scope="module")
def scenes():
    return [plan_scene(0, "train", index, (256, 320)) for index in range(64)]


def pixels(scene):
    return np.asarray(paint(scene), dtype=np.int64)


def test_a_scene_depends_on_its_name_alone():
    first = pixels(plan_scene(3, "val", 7, SIZE))
    plan_scene(3, "val", 6, SIZE)
    assert np.array_equal(first, pixels(plan_scene(3, "val", 7, SIZE)))
    for other in ((4, "val", 7), (3, "train", 7), (3, "val", 9)):
        assert (np.abs(first - pixels(plan_scene(*other, SIZE))) > 8).mean() > 0.2


@pytest.mark.parametrize("index", [2, 18, 25])
def test_boxes_are_tight_around_the_pixels_that_show_the_object(index):
    """Independent of masks: repaint one thing in black, its shadow as it was; what changes is what is seen of it."""
    scene = plan_scene(0, "val", index, SIZE)
    before = pixels(scene)
    assert len(scene.things) > 2
    for i, thing in enumerate(scene.things):
        things = list(scene.things)
        things[i] = replace(thing, colour=np.zeros(3))
        changed = np.abs(pixels(replace(scene, things=tuple(things))) - before).max(-1)
        x1, y1, x2, y2 = (int(edge) for edge in (*np.floor(scene.boxes[i, :2]), *np.ceil(scene.boxes[i, 2:])))
        inside = changed[y1:y2, x1:x2] > 0
        assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        assert inside.sum() >= scene.areas[i] >= 0.5 * inside.sum()
        changed[y1:y2, x1:x2] = 0
        assert changed.max() < 25  # what shines through the smooth edge of a thing on top


def test_every_object_is_mostly_visible_and_its_area_is_what_is_seen(scenes):
    for scene in scenes[:8]:
        canvas = np.full([side * FINE + 2 * 1024 for side in scene.size], -1)  # with a margin: nothing is cut off
        for i, thing in enumerate(scene.things):
            y, x = thing.corner[0] + 1024, thing.corner[1] + 1024
            window = canvas[y : y + thing.mask.shape[0], x : x + thing.mask.shape[1]]
            window[thing.mask] = i
        inside = canvas[1024:-1024, 1024:-1024]
        for i, thing in enumerate(scene.things):
            seen = (inside == i).sum()
            assert seen / FINE**2 == scene.areas[i]
            assert seen >= LEAST_VISIBLE * thing.mask.sum()
            rows, columns = np.nonzero(inside == i)
            box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            assert np.array_equal(np.array(box) / FINE, scene.boxes[i])


def test_classes_are_imbalanced_and_all_there(scenes):
    counts = np.bincount([thing.label for scene in scenes for thing in scene.things], minlength=len(GLYPHS))
    assert counts.min() > 5
    assert counts[0] > 0.35 * counts.sum()
    assert counts[-1] < 0.08 * counts.sum()
    assert sum(glyph.share for glyph in GLYPHS) == pytest.approx(1)
    assert len({glyph.name for glyph in GLYPHS}) == len(GLYPHS)


def test_a_dense_scene_holds_what_was_asked_for():
    scene = plan_scene(0, "train", 8, (256, 192), 75)  # without a number, scene 8 is empty
    assert 70 <= len(scene.things) <= 75
    sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
    assert sides.min() > 5 and sides.max() < 32 and (scene.boxes >= 0).all() and (scene.boxes[:, 2] <= 192).all()
    assert (scene.areas >= LEAST_VISIBLE * np.array([thing.mask.sum() for thing in scene.things]) / FINE**2).all()
    assert np.array_equal(pixels(scene), pixels(plan_scene(0, "train", 8, (256, 192), 75)))


def test_some_scenes_are_empty_and_some_are_crowded(scenes):
    counts = [len(scene.things) for scene in scenes]
    assert counts.count(0) >= 4
    assert all(scene.boxes.shape == (count, 4) for scene, count in zip(scenes, counts, strict=True))
    assert 18 <= max(counts) <= MOST_OBJECTS


def test_sizes_span_small_to_half_the_image(scenes):
    boxes = np.concatenate([scene.boxes for scene in scenes])
    assert (boxes >= 0).all() and (boxes <= [320, 256, 320, 256]).all()
    longer = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert SMALLEST / 2 < longer.min() < 1.5 * SMALLEST
    assert 0.35 * 256 < longer.max() <= 0.5 * 256 * 1.1


def test_objects_stand_out_from_the_ground(scenes):
    scene = next(scene for scene in scenes if 4 < len(scene.things) < 9)
    picture = pixels(scene)
    bare = pixels(replace(scene, things=()))
    for thing, (x1, y1, x2, y2) in zip(scene.things, scene.boxes.round().astype(int), strict=True):
        region = np.abs(picture - bare)[y1:y2, x1:x2].sum(-1)
        assert np.percentile(region, 75) > 60, GLYPHS[thing.label].name
