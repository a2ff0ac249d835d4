"""The code in the documentation runs as it stands there, and what it names exists."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import METHODS, Config, tables
from scall_jax.cli.flags import Main
from scall_jax.cli.follow import Follow
from scall_jax.cli.help_page import all_flags
from scall_jax.config import SizesConfig

ROOT = Path(__file__).parent.parent
GUIDES = ROOT / "docs" / "guides"
PAGES = [ROOT / "README.md", *sorted(path for path in (ROOT / "docs").rglob("*.md") if "tables" not in path.parts)]


def python_blocks(path: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", path.read_text(), re.DOTALL)


def run(path: Path, block: str) -> dict:
    named = {}
    exec(compile(block, str(path), "exec"), named)
    return named


def test_the_method_of_the_guide_holds_the_budget_and_fades(capsys):
    page = GUIDES / "adding_a_method.md"
    (code,) = python_blocks(page)
    assert len(code.splitlines()) < 60
    named = run(page, code)
    assert re.search(r"Recall@20 0\.[0-9]+ in \d+ bytes", capsys.readouterr().out)
    lines, stream = named["lines"], named["stream"]
    assert len(lines) == len(stream) == 4 and "fading" not in METHODS
    for t, line in enumerate(lines):
        entities = sum(stream.known(stream.bounds[t].train))
        allowed = 4 * int(4.3 * entities)
        sizes = line["bytes_at_rest"] - 4 * line["allocated_parameters"]
        assert allowed - 8 < line["bytes_at_rest"] <= allowed and 0 < sizes < entities

    segment = jax.tree.map(jnp.asarray, stream.segment(3))
    allocate = jax.jit(named["fading"](SizesConfig(maximum=30)))
    num_active = int(segment.users + segment.items)
    for total in (1, 50, num_active, 3 * num_active + 1, 29 * num_active, 10**6):
        got = np.asarray(allocate(jax.random.key(0), segment, jnp.int32(total)))
        assert got.sum() == min(total, 30 * num_active)
    total, recency = np.asarray(segment.total, float), np.asarray(segment.recency)
    got = np.asarray(allocate(jax.random.key(0), segment, jnp.int32(6 * num_active)))
    value = total * 2.0 ** ((recency - recency.max()) / named["HALF_LIFE"])
    order = np.argsort(-value)[: np.count_nonzero(total)]
    assert (np.diff(got[order]) <= 0).all() and got[order[0]] > 3 * got[order[-1]]
    # An entity with as many rows as another one and a later last row gets no less, and once at least more.
    pairs = [(a, b) for a in order for b in order if total[a] == total[b] and recency[a] > recency[b]]
    assert all(got[a] >= got[b] for a, b in pairs) and any(got[a] > got[b] for a, b in pairs)


@pytest.mark.slow
def test_the_storage_of_the_guide_holds_twice_the_parameters_and_restores_what_it_exports(monkeypatch):
    monkeypatch.setitem(tables.STORAGES, "packed_float16", None)  # the page enters it, the end of the test removes it
    page = GUIDES / "adding_a_storage.md"
    (code,) = python_blocks(page)
    named = run(page, code)
    for t, line in enumerate(named["lines"]):
        entities = sum(named["stream"].known(named["stream"].bounds[t].train))
        assert line["allocated_parameters"] == (4 * 4 * entities - (entities + 2)) // 2

    storage, known = named["build"](7, 2, 2, 5), (2, 1)
    plan = jnp.array([3, 1, 2, 0, 1, 0])
    stored = storage.store(jnp.linspace(-1.0, 1.0, 7) / 3, storage.layout(plan))
    exported = storage.export(stored, plan, known)
    assert stored.dtype == jnp.float16 and exported["parameters"].nbytes == 14
    restored, sizes = storage.restore(exported, known)
    assert (restored == stored).all() and restored.dtype == stored.dtype and (sizes == plan).all()


@pytest.mark.parametrize("page", ["own_data", "budgets"])
def test_the_code_of_a_guide_runs(page):
    named = {}
    for block in python_blocks(GUIDES / f"{page}.md"):
        exec(compile(block, page, "exec"), named)
    if page == "own_data":
        assert len(named["rows"]) == 6
    else:
        assert int(named["sizes"].allocate(named["shares"], 20, 1, 16).sum()) == 20


def test_readme_and_the_page_of_runs_show_the_same_first_program():
    (readme,) = python_blocks(ROOT / "README.md")
    first, _ = python_blocks(ROOT / "docs" / "runs.md")
    assert readme == first
    named = run(ROOT / "README.md", "\n".join(line for line in readme.splitlines() if "import" in line))
    assert named["Config"] is Config


def test_readme_is_short():
    prose = re.sub(r"```.*?```", "", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    assert len(prose.split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_flags_and_files_that_a_page_names_exist(page):
    text = page.read_text()
    flags = {flag.name for flag in [*all_flags(Main), *all_flags(Follow)]}
    named = set(re.findall(r"--([a-z][a-z-]*(?:\.[a-z-]+)+)", text))
    command = re.findall(r"scall-jax run((?:[^`\n]|\\\n)*)", text)
    named |= {flag for line in command for flag in re.findall(r"--([a-z][a-z.-]*)", line)}
    assert named <= flags | {"help-all"}
    paths = re.findall(r"`((?:scall_jax|experiments|tests|notebooks|docs)/[\w/.-]+\.\w+)`", text)
    assert all((ROOT / path).exists() for path in paths), paths
    modules = re.findall(r"python -m (experiments\.\w+)", text)
    stems = [ROOT / module.replace(".", "/") for module in modules]
    assert all(stem.with_suffix(".py").exists() or (stem / "__main__.py").exists() for stem in stems)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_run_as_they_stand(page):
    """They write beside the main job, whose folder is full, and sweep a file that is cut to its length."""
    text = page.read_text().replace("\\\n", " ")
    assert not re.search(r"scall-jax run[^`\n]*--out runs/demo\b", text)
    sweeps = re.findall(r"experiments\.sweep_budgets[^`\n]*--data[^`\n]*", text)
    assert [command for command in sweeps if "--cut." not in command] == []


def test_links_of_the_readme_lead_to_files():
    links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text())
    assert links and all((ROOT / link).exists() for link in links)


def test_every_method_has_a_line_on_the_page_of_methods():
    text = (ROOT / "docs" / "methods.md").read_text()
    assert [name for name in METHODS if f"`{name}`" not in text] == []


def test_the_fold_in_of_the_guide_runs():
    (code,) = python_blocks(GUIDES / "recommenders.md")
    named = run(GUIDES / "recommenders.md", code)
    assert named["scores"].shape == (100,) and named["scores"][jnp.array([3, 14, 15])].min() > named["scores"].mean()
