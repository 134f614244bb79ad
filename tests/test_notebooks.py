"""The notebooks run from top to bottom, and are stored with outputs that fit a repository."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient: pip install 'clearstate[dev]'")

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PRIVATE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|work|Users|var|opt|private)/|[A-Z]:\\\\")  # absolute paths


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_with_outputs_small_and_without_paths(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 3e6
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [output.get("text", "") + str(dict(output.get("data", {}), **{"image/png": ""})) for output in outputs]
    assert not [found for text in texts for found in PRIVATE.findall(text)]
    assert pictures(notebook) > 0


def test_a_path_is_found_so_the_test_above_can_fail():
    assert PRIVATE.search("wrote /home/somebody/runs/best")
    assert not PRIVATE.search("docs/tmp/a and https://arxiv.org/home/x")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient: pip install 'clearstate[dev]'")
    pytest.importorskip("ipykernel", reason="needs ipykernel: pip install 'clearstate[dev]'")
    monkeypatch.delenv("CLEARSTATE_VOICEBANK", raising=False)
    notebook = nbformat.read(path, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=1_800, kernel_name="python3", resources=folder).execute()
    stored = nbformat.read(path, as_version=4)
    assert pictures(notebook) == pictures(stored) > 0
