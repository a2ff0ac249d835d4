"""Every notebook runs from top to bottom, and shows what it printed."""

import json
import re
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path: Path) -> list[dict]:
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def words(outputs: list[dict]) -> list[str]:
    """What a cell printed or showed, without numbers, whose last digits differ between machines."""
    printed = "".join(
        "".join(out["text"]) for out in outputs if out["output_type"] == "stream" and out["name"] == "stdout"
    )
    shown = ["".join(out["data"]["text/plain"]) for out in outputs if "data" in out]
    return [
        re.sub(r"[\d.,]+", "#", text) for text in re.sub(r"[─┬┴┼═╪╞╡ ]+", " ", "\n".join([printed, *shown])).split("\n")
    ]


@pytest.mark.slow
@by_name
def test_notebook_runs(path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    source = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    # The same cells with little training on a short stream.
    short = {
        "steps=100, eval_every=50": "steps=4, eval_every=2",
        "segments=6, max_segments=3": "segments=20, max_segments=2",
    }
    for long, brief in short.items():
        assert long in source
        source = source.replace(long, brief)
    exec(compile(source, str(path), "exec"), {"__name__": "__main__"})
    pyplot.close("all")
    assert "scan and host loop" in capsys.readouterr().out


@by_name
def test_notebook_shows_its_outputs_and_no_errors(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert all(cell["outputs"] for cell in cells)
    assert not any(
        out["output_type"] == "error" or out.get("name") == "stderr" for cell in cells for out in cell["outputs"]
    )
    assert path.stat().st_size < 200_000


@by_name
def test_notebook_reads_results_by_name(path):
    source = "\n".join("".join(cell["source"]) for cell in code_cells(path))
    assert not re.search(r"\b(recall|ndcg)\[", source)


@pytest.mark.slow
@by_name
def test_kept_outputs_are_those_of_a_fresh_run(path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    fresh = nbformat.read(path, 4)
    nbclient.NotebookClient(fresh, timeout=1200, kernel_name="python3").execute()
    ran = [cell.outputs for cell in fresh.cells if cell.cell_type == "code"]
    for kept, outputs in zip(code_cells(path), ran, strict=True):
        assert words(kept["outputs"]) == words(outputs)


def test_notebooks_exist():
    assert NOTEBOOKS
