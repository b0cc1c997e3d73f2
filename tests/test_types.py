import torch

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import Interrupted, UserError
from retinanet.types import RawOutput, Target


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
