import sys

import pytest
import torch

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import Interrupted, UserError
from retinanet.types import Detections, RawOutput, Target

FOUND = Detections(
    torch.tensor([[10.0, 20, 30, 60], [0.5, 1.25, 2.0, 3.5], [5, 5, 6, 7]]),
    torch.tensor([0.75, 0.5, 0.25]),
    torch.tensor([2, 0, 2]),
    ("ant", "bee", "cow"),
)
NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), ("ant",))


def test_names_and_length():
    assert FOUND.names == ["cow", "ant", "cow"] and len(FOUND) == 3
    assert NOTHING.names == [] and len(NOTHING) == 0


def test_above_includes_the_threshold():
    kept = FOUND.above(0.5)
    assert kept.scores.tolist() == [0.75, 0.5] and kept.labels.tolist() == [2, 0]
    assert kept.boxes.tolist() == FOUND.boxes[:2].tolist() and kept.class_names == FOUND.class_names
    assert len(FOUND.above(0.9)) == 0 and len(FOUND.above(0)) == 3


def test_to_dicts():
    assert FOUND.to_dicts()[1] == {"box": [0.5, 1.25, 2.0, 3.5], "score": 0.5, "label": 0, "name": "ant"}
    assert [row["name"] for row in FOUND.to_dicts()] == FOUND.names and NOTHING.to_dicts() == []


def test_to_coco():
    assert FOUND.to_coco(7, (11, 12, 90)) == [
        {"image_id": 7, "category_id": 90, "bbox": [10, 20, 20, 40], "score": 0.75},
        {"image_id": 7, "category_id": 11, "bbox": [0.5, 1.25, 1.5, 2.25], "score": 0.5},
        {"image_id": 7, "category_id": 90, "bbox": [5, 5, 1, 2], "score": 0.25},
    ]
    assert [row["category_id"] for row in FOUND.to_coco("a")] == [3, 1, 3]
    assert NOTHING.to_coco(1) == []


def test_to_coco_loses_no_digit():
    """Sides are differences of float32 corners; in float32 they would be rounded again."""
    corners = torch.tensor([[1000.1, 0.1, 1000.3, 777.7]])
    box = Detections(corners, torch.tensor([0.1]), torch.tensor([0]), ("ant",)).to_coco(1)[0]["bbox"]
    exact = corners.double()
    assert box == [*exact[0, :2].tolist(), *(exact[0, 2:] - exact[0, :2]).tolist()]


def test_to_supervision_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"needs the package supervision: pip install supervision"):
        FOUND.to_supervision()


def test_to_supervision(monkeypatch):
    class Stand:
        class Detections:
            def __init__(self, **fields):
                self.fields = fields

    monkeypatch.setitem(sys.modules, "supervision", Stand)
    fields = FOUND.to_supervision().fields
    assert fields["xyxy"].tolist() == FOUND.boxes.tolist() and fields["confidence"].tolist() == [0.75, 0.5, 0.25]
    assert fields["class_id"].tolist() == [2, 0, 2] and fields["data"]["class_name"].tolist() == ["cow", "ant", "cow"]
    assert NOTHING.to_supervision().fields["data"]["class_name"].shape == (0,)


def test_target_rows_stay_together():
    target = Target(torch.arange(12.0).reshape(3, 4), torch.tensor([4, 5, 6]), torch.tensor([True, False, True]))
    for keep in (torch.tensor([True, False, True]), torch.tensor([0, 2])):
        some = target.select(keep)
        assert some.labels.tolist() == [4, 6] and some.ignore.tolist() == [True, True]
        assert some.boxes[:, 0].tolist() == [0, 8] and len(some) == 2
    assert target.select(torch.tensor([2, 0])).labels.tolist() == [6, 4]


def test_empty_target():
    empty = Target.empty()
    assert len(empty) == 0 and empty.boxes.shape == (0, 4)
    assert (empty.boxes.dtype, empty.labels.dtype, empty.ignore.dtype) == (torch.float32, torch.int64, torch.bool)
    assert len(empty.select(torch.zeros(0, dtype=torch.bool))) == 0


def test_raw_output_knows_its_grids_and_classes():
    lattice = AnchorLattice()
    logits = tuple(torch.zeros(2, 9 * 5, *grid) for grid in lattice.grids(97, 131))
    deltas = tuple(torch.zeros(2, 9 * 4, *grid) for grid in lattice.grids(97, 131))
    raw = RawOutput(logits, deltas, lattice, BoxCoder())
    assert raw.grids == ((13, 17), (7, 9), (4, 5), (2, 3), (1, 2)) and raw.num_classes == 5


def test_user_errors_are_value_errors():
    assert issubclass(UserError, ValueError) and issubclass(Interrupted, UserError)


def test_arrays_give_the_numbers_of_tensors(monkeypatch):
    """An exported model finds numpy arrays."""

    class Stand:
        class Detections:
            def __init__(self, **fields):
                self.fields = fields

    monkeypatch.setitem(sys.modules, "supervision", Stand)
    on_threshold = Detections(
        torch.zeros(4, 4), torch.tensor([0.9, 0.7, 0.3, 0.29]), torch.tensor([0, 0, 1, 1]), ("a", "b")
    )
    assert on_threshold.above({"a": 0.9}).scores.tolist() == pytest.approx([0.9, 0.3])  # b: 0.3, the default
    assert on_threshold.above({"a": 0.0, "b": 1.0}).labels.tolist() == [0, 0]
    for found in (FOUND, NOTHING, on_threshold):
        arrays = Detections(found.boxes.numpy(), found.scores.numpy(), found.labels.numpy(), found.class_names)
        assert len(arrays) == len(found) and arrays.names == found.names
        assert arrays.to_dicts() == found.to_dicts()
        assert arrays.to_coco(7) == found.to_coco(7)
        for score in (0.0, 0.25, 0.3, 0.5, 0.9, {}, {"a": 0.7, "b": 0.29}):
            assert arrays.above(score).to_dicts() == found.above(score).to_dicts()
        fields, wanted = arrays.to_supervision().fields, found.to_supervision().fields
        assert all((fields[key] == wanted[key]).all() for key in ("xyxy", "confidence", "class_id"))
    tenth = torch.tensor([0.1])
    at = Detections(torch.zeros(1, 4), tenth, torch.zeros(1, dtype=torch.int64), ("ant",))
    arrays = Detections(at.boxes.numpy(), at.scores.numpy(), at.labels.numpy(), at.class_names)
    assert len(at.above(0.1)) == len(arrays.above(0.1)) == 1  # 0.1 as float32 is the limit, not as float64
