"""Programs of torch.export, by the rules of all exported models."""

import numpy as np
import pytest
import torch

from retinanet.images.preprocess import Preprocess
from retinanet.predict.card import Card
from retinanet.predict.predictor import Predictor
from retinanet.types import UserError

CARD = Card(("spot",), Preprocess(short=32, long=64))


class Peak(torch.nn.Module):
    """One box, the whole image, scored by its brightest value."""

    def forward(self, images, sizes):
        peak = images.amax((1, 2, 3)).float() / 255
        sides = sizes.flip(1).float()
        boxes = torch.cat([sides * 0, sides], dim=1)[:, None]
        return boxes, peak[:, None], (peak[:, None] * 0).long(), (peak * 0 + 1).long()


@pytest.fixture(scope="module")
def program():
    number, height, width = (torch.export.Dim(name) for name in ("N", "H", "W"))
    example = (torch.zeros(2, 3, 32, 64, dtype=torch.uint8), torch.tensor([[32, 64], [30, 60]]))
    return torch.export.export(Peak(), example, dynamic_shapes=({0: number, 2: height, 3: width}, {0: number}))


def saved(program, path, **extra):
    torch.export.save(program, path, extra_files=extra)
    return path


def test_detections_are_those_of_the_program(program, tmp_path):
    saved(program, tmp_path / "model.pt2", **{"retinanet.json": CARD.to_json()})
    predictor = Predictor.load(tmp_path, batch_size=2)
    assert predictor.backend.name == "torch.export fp32" and predictor.class_names == ("spot",)
    images = [np.full((10 * n, 20, 3), 50 * n, np.uint8) for n in range(1, 6)]
    for image, found in zip(images, predictor(images), strict=True):
        assert found.boxes.tolist() == [[0, 0, 20, image.shape[0]]] and found.labels.tolist() == [0]
        assert isinstance(found.boxes, np.ndarray) and found.scores == pytest.approx(image.max() / 255)


def test_a_compiled_program_runs_only_by_its_own_name(program, tmp_path):
    saved(program, tmp_path / "model.pt2", **{"retinanet.json": CARD.to_json()})
    (tmp_path / "model.compiled.pt2").write_bytes(b"made elsewhere")
    assert Predictor.load(tmp_path).backend.name == "torch.export fp32"


def test_files_that_cannot_be_used(program, tmp_path, capfd):
    good = saved(program, tmp_path / "good.pt2", **{"retinanet.json": CARD.to_json()}).read_bytes()
    path = tmp_path / "bad.pt2"
    for content in (b"", b"hello", good[:500], good[:-100]):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"bad\.pt2 is damaged, or not a model"):
            Predictor.load(path)
    with pytest.raises(UserError, match="not a model that retinanet exported"):
        Predictor.load(saved(program, tmp_path / "bare.pt2"))
    assert capfd.readouterr() == ("", "")
