"""The layers of the package: who may import whom, and where each kind of side effect stands."""

import ast
import configparser
import copy
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
from importlinter import configuration
from importlinter.application import use_cases
from importlinter.domain.contract import registry

from scall_jax.cli.main import main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "scall_jax"
BETWEEN = ("config", "evaluation", "methods", "ops", "policies", "recommenders", "sizes", "streams", "tables")
"""Folders that neither write nor, apart from the readers of streams, read a file."""
READERS = {f"streams/{name}.py" for name in ("embedded", "memory", "parsing", "read", "sources")}
ARRAY_LIBRARIES = {"np", "numpy", "jnp"}
ARRAY_FILES = {"fromfile", "load", "loadtxt", "memmap", "save", "savetxt", "savez", "savez_compressed"}
PATH_METHODS = {"mkdir", "read_bytes", "read_text", "rmtree", "unlink", "write_bytes", "write_text"}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("scall_jax", include_external_packages=True, cache_dir=None)


@pytest.fixture(scope="module")
def contracts():
    """Contracts of pyproject.toml by id."""
    configuration.configure()
    use_cases._register_built_in_contract_types()
    options = use_cases.read_user_options(str(ROOT / "pyproject.toml"))
    made = {}
    for given in options.contracts_options:
        kind = registry.get_contract_class(given["type"])
        made[given["id"]] = kind(given["name"], options.session_options, given)
    return made


def kept(contract, graph) -> bool:
    return contract.check(copy.deepcopy(graph), verbose=False).kept


@pytest.mark.parametrize("name", ["layers", "acyclic", "rivals", "files"])
def test_the_package_keeps_the_contract(name, contracts, graph):
    assert kept(contracts[name], graph), f"run `lint-imports --contract {name}` for the imports that break it"


@pytest.mark.parametrize(
    ("name", "importer", "imported"),
    [
        ("layers", "sizes.budget", "config"),
        ("layers", "ops.indexing", "streams.segments"),
        ("layers", "streams.segments", "ops.indexing"),
        ("layers", "recommenders.fit", "policies.policy"),
        ("layers", "run.step", "cli.flags"),
        ("acyclic", "sizes.shares", "sizes.allocate"),
        ("acyclic", "tables.storage", "tables.packed"),
        ("rivals", "methods.rivals.bet", "methods.scall.search"),
        ("rivals", "methods.rivals.probe_loop", "methods.registry"),
        ("files", "methods.scall.search", "pathlib"),
        ("files", "streams.cut", "os"),
        ("files", "tables.packed", "orbax"),
    ],
)
def test_an_import_the_wrong_way_breaks_the_contract(name, importer, imported, contracts, graph):
    graph = copy.deepcopy(graph)
    importer = f"scall_jax.{importer}"
    imported = f"scall_jax.{imported}" if f"scall_jax.{imported}" in graph.modules else imported
    assert importer in graph.modules
    if name == "acyclic":
        graph.add_import(importer=imported, imported=importer)
    graph.add_import(importer=importer, imported=imported)
    assert not kept(contracts[name], graph)


def test_a_folder_without_a_layer_breaks_the_contract(contracts, graph):
    graph = copy.deepcopy(graph)
    graph.add_module("scall_jax.utils")
    assert not kept(contracts["layers"], graph)


def test_only_the_public_names_and_the_configuration_lie_at_the_top():
    assert sorted(path.name for path in PACKAGE.glob("*.py")) == ["__init__.py", "config.py"]


def file_calls(text: str) -> list[str]:
    """Calls of a module that open, read or write a file."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        match node.func:
            case ast.Name(id="open"):
                found.append(f"open, line {node.lineno}")
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in ARRAY_LIBRARIES and name in ARRAY_FILES:
                found.append(f"{owner}.{name}, line {node.lineno}")
            case ast.Attribute(attr=name) if name in PATH_METHODS:
                found.append(f"{name}, line {node.lineno}")
    return found


def test_nothing_between_reading_and_running_opens_a_file():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        if name.split("/")[0].removesuffix(".py") in BETWEEN and name not in READERS:
            found |= {name: calls} if (calls := file_calls(path.read_text())) else {}
    assert not found


@pytest.mark.parametrize("text", ["open('x')", "np.save('x', 1)", "jnp.load('x')", "Path('x').write_text('')"])
def test_a_call_that_opens_a_file_is_found(text):
    assert file_calls(text)


def test_the_methods_of_a_storage_are_no_calls_of_files():
    assert not file_calls("self.storage.load(stored, layout)")


@pytest.mark.parametrize(
    ("package", "importers"),
    [
        ("orbax", "scall_jax.run"),
        ("matplotlib", "scall_jax.analysis"),
        ("tyro", "scall_jax.cli"),
        ("tqdm", "scall_jax.cli"),
        ("rlax", "scall_jax.policies"),
    ],
)
def test_a_dependency_with_a_purpose_of_its_own_is_imported_in_one_place(package, importers, graph):
    found = graph.find_modules_that_directly_import(package)
    assert len(found) == 1
    assert found.pop().startswith(f"{importers}.")


def test_only_one_module_asks_which_backend_runs():
    names = {"default_backend", "platform_dependent"}
    asks = set()
    for path in PACKAGE.rglob("*.py"):
        nodes = ast.walk(ast.parse(path.read_text()))
        if any(isinstance(node, ast.Attribute) and node.attr in names for node in nodes):
            asks.add(path.relative_to(PACKAGE).as_posix())
    assert asks == {"ops/backend.py"}


def test_the_package_imports_without_what_the_extras_bring():
    code = (
        "import sys\n"
        "for name in ('matplotlib', 'pytest', 'sklearn', 'implicit'):\n"
        "    sys.modules[name] = None\n"
        "import scall_jax, scall_jax.analysis.report, scall_jax.cli.commands, scall_jax.run\n"
        "assert 'experiments' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_the_wheel_holds_the_package_alone():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options.packages.find"]["include"].split() == ["scall_jax*"]
    assert setup["options.package_data"]["scall_jax"].split() == ["py.typed"] and (PACKAGE / "py.typed").exists()
    assert setup["options.entry_points"]["console_scripts"].split(" = ")[1] == "scall_jax.cli.main:main"
    assert callable(main)
