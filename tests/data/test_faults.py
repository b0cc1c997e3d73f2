import pickle
from pathlib import Path

import pytest

from retinanet.data.faults import Fault, refuse
from retinanet.errors import UserError


def test_a_fault_is_a_message_with_its_parts():
    fault = Fault("wrong", "a.txt, line 3", "is odd", "Make it even.", members=[Path("a.txt")])
    assert str(fault) == "a.txt, line 3: is odd. Make it even." and isinstance(fault, UserError)
    assert str(Fault("wrong", "", "2 files are odd", "Fix them.")) == "2 files are odd. Fix them."
    with pytest.raises(Fault) as caught:
        refuse(fault)
    assert caught.value is fault
    copy = pickle.loads(pickle.dumps(fault))
    assert (str(copy), copy.kind, copy.members) == (str(fault), "wrong", (Path("a.txt"),))
