"""Every benchmark can be started: names that it takes from the package are there."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=[path.stem for path in BENCHMARKS])
def test_it_imports_what_exists(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    assert (runpy.run_path(str(path))["__doc__"] or "").strip()
