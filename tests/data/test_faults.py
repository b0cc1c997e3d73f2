import pickle
from pathlib import Path

import pytest

from retinanet.data.faults import KINDS, Fault, Notes, short
from retinanet.errors import UserError


def test_a_fault_is_a_message_with_its_parts():
    fault = Fault("bad-size", "a.txt, line 3", "is odd", "Make it even.", members=[Path("a.txt")])
    assert str(fault) == "a.txt, line 3: is odd. Make it even." and isinstance(fault, UserError)
    assert str(Fault("bad-size", "", "2 files are odd", "Fix them.")) == "2 files are odd. Fix them."
    assert fault.severity == "error" and fault.sentence == "a.txt, line 3: is odd"
    copy = pickle.loads(pickle.dumps(fault))
    assert (str(copy), copy.kind, copy.members) == (str(fault), "bad-size", (Path("a.txt"),))


def test_training_stops_at_an_error_and_keeps_the_rest():
    notes = Notes()
    notes(Fault("empty-image", "a.jpg", "has no boxes"))
    assert notes == [f"a.jpg: has no boxes. {KINDS['empty-image'].remedy}"]
    fault = Fault("bad-size", "a.jpg", "is odd")
    with pytest.raises(Fault) as caught:
        notes(fault)
    assert caught.value is fault


def test_values_for_messages_are_short_and_harmless():
    assert short("a" * 100) == "a" * 60 + "..."
    assert short("\x1b[31mred\n") == "\\x1b[31mred\\n"
    assert short([1] * 1000) == "a list"
    assert short(None) == "None"
    assert short("\ud800") == "\\ud800"
