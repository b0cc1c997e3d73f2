"""The function for CVAT, against its SDK where that is installed, and against stand-ins of its published format."""

import sys
import types

import pytest
from PIL import Image

from retinanet.errors import UserError
from retinanet.serving.cvat import Function, create


def stand_in():
    """What ``cvat_sdk.auto_annotation`` has of what we use."""
    made = types.SimpleNamespace
    return made(
        label_spec=lambda name, id, **options: made(name=name, id=id, **options),
        DetectionFunctionSpec=lambda *, labels: made(labels=labels),
        rectangle=lambda label_id, points, **options: made(
            label_id=label_id, points=list(points), frame=0, type="rectangle", **options
        ),
    )


@pytest.fixture(params=["sdk", "stand-in"])
def function(request, peak_model, monkeypatch):
    module = pytest.importorskip("cvat_sdk.auto_annotation") if request.param == "sdk" else stand_in()
    monkeypatch.setitem(sys.modules, "cvat_sdk", types.SimpleNamespace(auto_annotation=module))
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", module)
    return create(str(peak_model))


def context(threshold=None):
    return types.SimpleNamespace(frame_name="a.png", conf_threshold=threshold)


def test_the_labels_are_the_classes(function):
    assert isinstance(function, Function)
    assert [(label.id, label.name, str(label.type)) for label in function.spec.labels] == [
        (0, "spot", "rectangle"),
        (1, "half", "rectangle"),
    ]


def test_boxes_are_rectangles_in_pixels(function):
    image = Image.new("RGB", (40, 32), (153, 153, 153))  # scores 0.6 and 0.3
    shapes = function.detect(context(), image)
    assert [(shape.label_id, str(shape.type), shape.frame) for shape in shapes] == [
        (0, "rectangle", 0),
        (1, "rectangle", 0),
    ]
    assert shapes[0].points == pytest.approx([0, 0, 40, 32])
    assert all(isinstance(side, float) for side in shapes[0].points)
    assert [shape.label_id for shape in function.detect(context(0.5), image)] == [0]
    assert function.detect(types.SimpleNamespace(frame_name="b"), Image.new("L", (40, 32))) == []


def test_without_the_sdk(peak_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "cvat_sdk", None)
    monkeypatch.setitem(sys.modules, "cvat_sdk.auto_annotation", None)
    with pytest.raises(UserError, match="pip install cvat-cli"):
        create(str(peak_model))
