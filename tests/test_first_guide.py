"""The first page of the documentation works as it stands there, from a file to a copy of the model."""

import importlib.metadata
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import polars as pl
import pytest

import scall_jax
from scall_jax.analysis import figures
from scall_jax.cli.main import main

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "start.md"


def _blocks():
    """Language and text of the page's blocks to run, in their order: all of bash and Python after the installation."""
    text = PAGE.read_text().split("## A file")[1]
    found = re.findall(r"```(bash|python)\n(.*?)```", text, re.DOTALL)
    assert [language for language, _ in found].count("python") == 2
    return found


def _check(outputs, folder, segments):
    """What the blocks printed and left, in the words of the page."""
    ten = [pl.read_csv(io.StringIO(text)) for text in outputs if text.startswith("user,rank")]
    both, folded = ten
    assert both["user"].to_list() == ["u102"] * 10 + ["stranger"] * 10
    assert both["source"].to_list() == ["known"] * 10 + ["popularity"] * 10
    assert both["item"].n_unique() > 10 and both["item"].str.contains(r"^i\d+$").all()
    assert len(folded) == 10 and set(folded["source"]) == {"folded in"}
    assert not {"i93", "i17"} & set(folded["item"])
    read = [eval(line) for line in outputs[-1].splitlines()[-2:]]
    run = folder / "runs" / "shop" / "uniform"
    model = scall_jax.load(run)
    now = model.recommend(["u102", "stranger"])["item"].to_list()
    assert read == [now[:10], now[10:]] and now != both["item"].to_list()
    rows = pl.concat(pl.read_csv(folder / name) for name in ("ratings.csv", "later.csv"))
    met = rows.filter((pl.col("customer") == "u102") & (pl.col("stars") >= 3))["product"]
    assert not set(met) & set(now[:10])
    assert model.segment == segments - 1 and any("6,014 new rows" in text for text in outputs)
    page = (run / "report.html").read_text()
    assert "ratings.csv" in page and not re.search(r'(src|href)="(?!#|data:)', page)


def test_the_first_guide_runs_in_one_process(tmp_path, monkeypatch, capsys):
    """With a recommender that compiles fast and is trained little: the commands are what is tested."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "has_matplotlib", lambda: False)
    brief = "--method uniform --recommender mf --table packed --sizes.maximum 16 --cut.replay 0 --cut.segments 2"
    brief += " --fit.steps 4 --fit.eval-every 2 --fit.batch 128"
    outputs = []
    for language, text in _blocks():
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        else:
            command = shlex.split(text.replace("\\\n", " "))
            assert command[0] == "scall-jax"
            main(command[1:] + (brief.split() if command[1] == "run" else []))
        outputs.append(capsys.readouterr().out)
    monkeypatch.delitem(sys.modules, "reader")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place != "models/shop"])
    _check(outputs, tmp_path, segments=2)


def test_every_data_file_of_the_package_is_named_in_the_setup():
    named = (ROOT / "setup.cfg").read_text().split("[options.package_data]")[1].split("[")[0]
    patterns = {"scall_jax": [], "scall_jax/streams": []}
    folder = None
    for line in named.strip().splitlines():
        package, _, values = line.rpartition("=")
        folder = package.strip().replace(".", "/") if package else folder
        patterns[folder] += values.split()
    listed = {path for folder, globs in patterns.items() for one in globs for path in (ROOT / folder).glob(one)}
    others = {path for path in (ROOT / "scall_jax").rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert {path for path in others if path.suffix != ".py"} == listed


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of the checkout, built without network."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building a wheel takes setuptools 77 or later")
    place = tmp_path_factory.mktemp("wheel")
    # A copy, since building leaves folders beside the sources.
    source = place / "source"
    shutil.copytree(ROOT / "scall_jax", source / "scall_jax", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    kept = {path.relative_to(source).as_posix() for path in (source / "scall_jax").rglob("*") if path.is_file()}
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", place]
    subprocess.run([*build, source], check=True, capture_output=True)
    (path,) = place.glob("*.whl")
    inside = {name for name in zipfile.ZipFile(path).namelist() if ".dist-info/" not in name}
    assert inside == kept
    return path


@pytest.mark.slow
def test_the_first_guide_runs_word_for_word_from_a_wheel(wheel, tmp_path):
    """In an environment that has the wheel, and the packages that it needs from the tests' own environment."""
    home, work = tmp_path / "venv", tmp_path / "work"
    venv.create(home, with_pip=False)
    work.mkdir()
    python = home / "bin" / "python"
    (site,) = (home / "lib").glob("python*/site-packages")
    # Packages in a folder that a .pth file names come after the environment's own; editable ones are not among them.
    (site / "needed.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-deps",
        "--no-index",
        "--ignore-installed",
    ]
    subprocess.run([*install, wheel], check=True, capture_output=True)
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    clean |= {"PATH": f"{home / 'bin'}:{os.environ['PATH']}", "JAX_PLATFORMS": "cpu"}

    def run(*command):
        done = subprocess.run(command, cwd=work, env=clean, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run(python, "-c", "import scall_jax; print(scall_jax.__file__, scall_jax.__version__)")
    assert where.split() == [str(site / "scall_jax" / "__init__.py"), scall_jax.__version__]
    for name, rows in (("online-retail", 736_880), ("movietweetings", 141_695)):
        assert int(run(python, "-c", f"from scall_jax import streams; print(len(streams.load({name!r})))")) == rows
    outputs = [run(*(["bash", "-ec"] if language == "bash" else [python, "-c"]), text) for language, text in _blocks()]
    _check(outputs, work, segments=5)
