"""The two notebooks run from the first cell to the last, in a kernel, with a short training."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[2] / "docs" / "notebooks"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("name", ["first-model", "why"])  # the second one needs the model of the first
def test_notebook(name, folder, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOKS.parents[1] / "src"))
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    shorter = [('EPOCHS = "shapes", "runs/first", 16', 'EPOCHS = "shapes", "runs/first", 1'), ("train=80", "train=12")]
    for cell in notebook.cells:
        for given, short in shorter:
            cell.source = cell.source.replace(given, short)
    done = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    outputs = [output for cell in done.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_every_notebook_is_run():
    assert {file.stem for file in NOTEBOOKS.glob("*.ipynb")} == {"first-model", "why"}
