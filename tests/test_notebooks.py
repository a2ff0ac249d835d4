"""Every notebook runs from top to bottom."""

import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs(path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and not any(cell["outputs"] for cell in cells)
    source = "\n".join("".join(cell["source"]) for cell in cells)
    # the same cells, trained for a moment
    source = source.replace("steps=100, eval_every=50", "steps=4, eval_every=2").replace("max_segments=4", "segments=2")
    source = source.replace("new_entities=800, segments=2", "segments=20, max_segments=2")
    exec(compile(source, str(path), "exec"), {"__name__": "__main__"})
    pyplot.close("all")
    assert "scan and host loop" in capsys.readouterr().out


def test_notebooks_exist():
    assert NOTEBOOKS
