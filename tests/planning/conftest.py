"""Facts and machines to plan for."""

from dataclasses import replace

import pytest

from retinanet.planning.fingerprint import Fingerprint, Spread
from retinanet.planning.machine import GB, Host

CELLS = Fingerprint(
    images=205,
    val_images=87,
    classes={"Platelets": 209, "RBC": 2381, "WBC": 214},
    short=Spread(480, 480, 480, 480, 480),
    long=Spread(640, 640, 640, 640, 640),
    side=Spread(20, 82, 103, 124, 300),
    small=36.0,
    aspect=Spread(0.3, 0.8, 1, 1.2, 3),
    objects=Spread(1, 9, 14, 19, 30),
    crowded_objects=30,
    crowding=0.006,
    copies=0,
)
LAPTOP = Host("cpu", 2, 16 * GB, None, 100 * GB, bf16=False, here=True)


@pytest.fixture
def facts():
    """Changes the facts about 292 images of blood cells."""
    return lambda **changes: replace(CELLS, **changes)


@pytest.fixture
def host():
    """Changes a laptop of two cores and 16 GB."""
    return lambda **changes: replace(LAPTOP, **changes)
