"""Every notebook runs from top to bottom, and shows what it printed."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

from scall_jax import policies, tables
from scall_jax.methods.scall import search

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


TINY = {"users": 80, "items": 60, "interactions": 2_000}


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


SHORT = {
    "01_first_run": {"shop": TINY, "segments": 2, "recommender": "mf", "steps": 4},
    "02_budgets_by_vmap": {
        "mean_sizes": (1, 16),
        "seeds": (0,),
        "cut": {"segments": 40, "max_segments": 2},
        "training": {"steps": 2, "eval_every": 2, "layers": 0, "batch": 64},
    },
    "03_inside_the_policy": {
        "cut": {"segments": 60, "max_segments": 2},
        "training": {"steps": 2, "eval_every": 2, "layers": 0, "batch": 64},
        "search": {"probes": 2, "probe_steps": 2},
    },
    "04_your_own_method": {
        "shop": TINY,
        "training": {"layers": 0, "batch": 64, "steps": 2, "eval_every": 2},
        "search": {"probes": 2, "probe_steps": 2},
    },
    "05_streaming": {
        "shop": TINY | {"users": 800, "interactions": 8_000},
        "segments": 5,
        "recommender": "mf",
        "steps": 4,
    },
}
"""Values in place of those of a notebook's first cell, with which its run is short."""


@by_name
def test_notebook_runs(path, monkeypatch, capsys):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "reader", None)  # The notebook's own import is undone at the end.
    del sys.modules["reader"]
    monkeypatch.setattr(policies, "POLICIES", policies.POLICIES.copy())
    monkeypatch.setattr(search.policies, "POLICIES", policies.POLICIES)
    monkeypatch.setitem(tables.STORAGES, "packed_float16", None)
    first, *others = code_cells(path)
    assert first["metadata"]["tags"] == ["parameters"]
    named = {"__name__": "__main__"}
    exec("".join(first["source"]), named)
    assert SHORT[path.stem].keys() <= named.keys()
    named |= SHORT[path.stem]
    for cell in others:
        exec(compile("".join(cell["source"]), str(path), "exec"), named)
    pyplot.close("all")
    CHECKS[path.stem](named, capsys.readouterr().out)


def _first_run(named, printed):
    assert all(line["bytes_table"] <= line["budget_bytes"] for line in named["lines"])
    assert "folded in" in printed and str(named["model"]) in printed


def _budgets(named, printed):
    assert named["by_total"].sum(axis=1).tolist() == [1000, 16000]
    assert named["by_size"]["mean_size"].to_list() == [1, 16] and "asked for: [1000, 16000]" in printed


def _policy(named, printed):
    (line,) = named["searched"]
    assert len(line["probe_rewards"]) == 2 and "130 numbers" in printed and "scall" in printed


def _own_method(named, printed):
    lines = {name: found[-1] for name, found in named["results"].items()}
    assert len(lines) == 4 and len(lines["one-plus-one (policy)"]["probe_rewards"]) == 2
    twice, once = (lines[f"fading{kind}"]["allocated_parameters"] for kind in (" in 16 bits (storage)", " (allocator)"))
    # The storage of the notebook pays a byte for each size, the one of the package less.
    assert 1.9 * once < twice <= 2 * once + 1


def _streaming(named, printed):
    model, reader = re.search(r"model:  (\[.*\])\nreader: (\[.*\])\n", printed).groups()
    assert model == reader and model.count("i") == 5
    assert all(len(values) == 5 for values in named["found"].values())
    assert named["newer"].segment == named["model"].segment + 1


CHECKS = {
    "01_first_run": _first_run,
    "02_budgets_by_vmap": _budgets,
    "03_inside_the_policy": _policy,
    "04_your_own_method": _own_method,
    "05_streaming": _streaming,
}


@by_name
def test_notebook_shows_its_outputs_and_no_errors(path):
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    shows = [bool(re.search(r"print\(|plt\.show", "".join(cell["source"]))) for cell in cells]
    assert all(cell["outputs"] for cell, shown in zip(cells, shows, strict=True) if shown)
    assert sum(shows) > 1 and cells[-1]["outputs"]
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
    # Tests draw nowhere, a notebook in its page.
    environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
    nbclient.NotebookClient(fresh, timeout=1200, kernel_name="python3").execute(env=environment)
    ran = [cell.outputs for cell in fresh.cells if cell.cell_type == "code"]
    for kept, outputs in zip(code_cells(path), ran, strict=True):
        assert words(kept["outputs"]) == words(outputs)


def test_every_notebook_is_run_and_names_no_folder_of_a_machine():
    assert [path.stem for path in NOTEBOOKS] == list(SHORT) == list(CHECKS)
    for path in NOTEBOOKS:
        assert not re.search(r"/(tmp|home|work|root|Users)/", path.read_text())
