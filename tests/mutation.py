"""Mutation testing: does a test fail when one operator or number of a function is changed?

    python -m tests.mutation [--mutants 520] [--seed 0] [--only streams/] [--out mutants.jsonl]

Cost: 20 to 40 minutes of one core. Expect: a line for each mutant, killed or survived, and the survivors at the end,
which are either equivalent to the original or a test that is missing (experiments/results/trust.md judges them).

A mutant is a change at one place of a function's body: a comparison, an arithmetic or logical operator, a number, a
condition, or one of two names that mean opposite things (min and max, left and right). Docstrings, messages of errors
and assertions of shapes are left alone. The tests of the mutated file are collected once, before JAX starts; a child
process then takes the mutant's code into the function objects that there are and runs the tests, the quickest first,
until one fails. So a mutant costs seconds, most of which is the compilation of what it changed. The libraries mutmut
and cosmic-ray start JAX and collect the tests anew for each mutant, or fork after JAX has threads, which hangs.
"""

import argparse
import ast
import copy
import gc
import importlib
import json
import os
import random
import signal
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from _pytest.doctest import DoctestItem

ROOT = Path(__file__).parent.parent


class Target(NamedTuple):
    """Files that are mutated together, and what tests them."""

    files: tuple[str, ...]
    """Patterns of paths below the package."""
    tests: tuple[str, ...]
    """Names of test files; the doctests of the mutated files run too."""
    functions: tuple[str, ...] = ()
    """Names of the outermost functions that are mutated; all if empty."""
    weight: float = 1.0
    """How many mutants a place brings, relative to the others: fewer where each compiles programs for 10 s."""


def _files(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}.py" for name in names)


TARGETS = {
    "sizes": Target(
        ("sizes/*.py",), ("test_budgets", "test_bisection", "test_sizes", "test_sample", "test_gains"), weight=0.45
    ),
    "evaluation": Target(("evaluation/*.py",), ("test_evaluation", "test_strata"), weight=0.6),
    "cut": Target(
        (
            *_files("streams", "boundaries", "cut", "enough_users", "interactions", "memory", "numpy_ops", "replay"),
            *_files("streams", "random_choices", "row_order", "segments", "statistics", "stream", "synthetic"),
        ),
        ("test_cut_exactly", "test_cut"),
        weight=2.0,
    ),
    "read": Target(
        (
            *_files("streams", "columns", "embedded", "formats", "gather", "ids", "options", "parsing", "progress"),
            *_files("streams", "read", "sources", "times", "wording"),
        ),
        ("test_read_exactly", "test_read", "test_cut"),
        weight=1.3,
    ),
    "significance": Target(("analysis/significance.py",), ("test_significance",), weight=4.0),
    "account": Target(
        (
            *_files("tables", "__init__", "storage", "sized"),
            *_files("methods", "embedding_phases", "baseline_phases", "context"),
            *_files("run", "loop", "records"),
        ),
        ("test_account_exactly", "test_account", "test_report"),
        (
            *("charged", "most_spent", "sized_units", "bias_bytes", "budget_totals", "_beside_table", "_bookkeeping"),
            *("_account", "paid_bytes", "check", "_check_probes"),
        ),
        weight=2.0,
    ),
}

_COMPARE = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ARITHMETIC = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {
    a: b
    for pair in ("min max", "minimum maximum", "any all", "argmin argmax", "zeros ones", "floor ceil", "left right")
    for a, b in (pair.split(), pair.split()[::-1])
}


class Place(NamedTuple):
    """A place where a function may be changed."""

    file: str
    function: str  # The outermost one, with the name of its class.
    index: int  # The position of the node in the order of `ast.walk`.
    kind: str
    line: int


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """The outermost functions of a file, those of its classes included."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield node.name, node
        if isinstance(node, ast.ClassDef):
            yield from ((f"{node.name}.{x.name}", x) for x in node.body if isinstance(x, ast.FunctionDef))


def _left_alone(node: ast.AST) -> bool:
    called = node.value if isinstance(node, ast.Expr) else None
    is_text = isinstance(called, ast.Constant)
    is_check = isinstance(called, ast.Call) and ast.unparse(called.func).startswith(("chex.", "warnings."))
    # That two lists are equally long is asserted too.
    is_check |= isinstance(node, ast.keyword) and node.arg == "strict"
    return (
        is_text or is_check or isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr | ast.arguments | ast.AnnAssign)
    )


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function's body that may be changed."""
    yield node
    for name, field in ast.iter_fields(node):
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and name not in ("returns", "decorator_list") and not _left_alone(child):
                yield from _walk(child)


def _kinds(node: ast.AST) -> list[str]:
    """The changes that a node allows."""
    kinds = []
    if isinstance(node, ast.Compare):
        kinds += [f"compare {i}" for i, op in enumerate(node.ops) if type(op) in _COMPARE]
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _ARITHMETIC:
        kinds.append("operator")
    if isinstance(node, ast.BoolOp):
        kinds.append("and or")
    if isinstance(node, ast.UnaryOp) and not isinstance(node.op, ast.UAdd):
        kinds.append("without sign")
    if isinstance(node, ast.Constant) and isinstance(node.value, bool | int | float):
        kinds.append("constant")
    if isinstance(node, ast.Constant) and node.value in ("left", "right"):
        kinds.append("name")
    if isinstance(node, ast.Attribute) and node.attr in _NAMES:
        kinds.append("name")
    if isinstance(node, ast.Name) and node.id in ("min", "max", "any", "all", "minimum", "maximum"):
        kinds.append("name")
    if isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(node.test, ast.Compare | ast.BoolOp):
        kinds.append("condition")
    return kinds


def _change(node: Any, kind: str) -> None:
    """Make a change in place."""
    if kind.startswith("compare"):
        at = int(kind.split()[1])
        node.ops[at] = _COMPARE[type(node.ops[at])]()
    elif kind == "operator":
        node.op = _ARITHMETIC[type(node.op)]()
    elif kind == "and or":
        node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
    elif kind == "without sign":
        node.op = ast.UAdd()
        if not isinstance(node.operand, ast.Constant):
            # +x is x for numbers and arrays; a condition without its `not` is taken as it is.
            node.__class__, node.values, node.op = ast.BoolOp, [node.operand, node.operand], ast.And()
    elif kind == "constant":
        node.value = not node.value if isinstance(node.value, bool) else node.value + 1
    elif kind == "condition":
        node.test = ast.UnaryOp(ast.Not(), node.test)
    elif isinstance(node, ast.Constant):
        node.value = _NAMES[node.value]
    elif isinstance(node, ast.Attribute):
        node.attr = _NAMES[node.attr]
    else:
        node.id = _NAMES[node.id]


def places(target: Target) -> list[Place]:
    """All places of a target's files where a function may be changed."""
    found = []
    for path in sorted({path for pattern in target.files for path in (ROOT / "scall_jax").glob(pattern)}):
        for name, function in _functions(ast.parse(path.read_text())):
            if target.functions and name not in target.functions:
                continue
            for index, node in enumerate(_walk(function)):
                line = getattr(node, "lineno", function.lineno)
                found += [Place(str(path.relative_to(ROOT)), name, index, kind, line) for kind in _kinds(node)]
    return found


def mutant(place: Place) -> tuple[types.CodeType, str, str]:
    """The code of a changed function, and its line before and after the change."""
    path = ROOT / place.file
    tree = ast.parse(path.read_text())
    original = dict(_functions(tree))[place.function]
    before = copy.deepcopy(original)
    _change(list(_walk(original))[place.index], place.kind)
    ast.fix_missing_locations(tree)
    changed = ast.unparse(original).splitlines(), ast.unparse(before).splitlines()
    differ = [(a, b) for a, b in zip(*changed, strict=True) if a != b] or [("", "")]
    code = compile(tree, str(path), "exec")
    return _code_of(code, place.function, original), differ[0][1].strip(), differ[0][0].strip()


def _code_of(code: types.CodeType, name: str, function: ast.FunctionDef) -> types.CodeType:
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            if part.co_qualname == name:
                return part
            if name.startswith(part.co_qualname + "."):
                return _code_of(part, name, function)
    raise LookupError(f"{name} has no code of its own")


def _take_in(place: Place, code: types.CodeType) -> int:
    """Put a mutant's code into every function object that has the original's; how many there are."""
    found = [
        x
        for x in gc.get_objects()
        if isinstance(x, types.FunctionType)
        and x.__code__.co_qualname == place.function
        and Path(x.__code__.co_filename) == ROOT / place.file
    ]
    for function in found:
        function.__code__ = code
    return len(found)


class Runner:
    """A pytest plugin that runs the collected tests in child processes: once as they are, then for each mutant."""

    def __init__(self, sample: list[Place], write: Any):
        """`write` is called with the result of each mutant."""
        self.sample, self.write, self.failed = sample, write, None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember the first failure."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        """Take the place of pytest's own loop."""
        backends = importlib.import_module("jax._src.xla_bridge")._backends
        if backends:
            raise RuntimeError("JAX has started while tests were collected: a child process would hang")
        # A file that is named is collected whole, functions whose names begin with "test" included.
        session.items[:] = [x for x in session.items if isinstance(x, DoctestItem) or x.path.parent == ROOT / "tests"]
        read, out = os.pipe()
        status, seconds = self._child(lambda: self._timed(session.items, out), 3600)
        os.close(out)
        with os.fdopen(read) as lines:
            durations = dict(json.loads(line) for line in lines)
        if status != "passed":
            raise RuntimeError(f"the tests fail without a mutant, or hang: {status}")
        session.items.sort(key=lambda item: durations[item.nodeid])
        print(f"{len(session.items)} tests, {seconds:.0f} s", flush=True)
        for place in self.sample:
            code, before, after = mutant(place)
            status, spent = self._child(
                lambda code=code, place=place: self._mutated(session.items, place, code), 3 * seconds + 60
            )
            self.write(
                place._asdict() | {"before": before, "after": after, "status": status, "seconds": round(spent, 2)}
            )
        return True

    def _timed(self, items: list[pytest.Item], out: int) -> str:
        """Run all tests and write how long each took."""
        spent = []
        for item in items:
            start = time.perf_counter()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
            spent.append((item.nodeid, time.perf_counter() - start))
            if self.failed:
                return f"failed {self.failed}"
        os.write(out, "\n".join(json.dumps(pair) for pair in spent).encode())
        return "passed"

    def _mutated(self, items: list[pytest.Item], place: Place, code: types.CodeType) -> str:
        if not _take_in(place, code):
            return "not found"
        for item, after in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
            if self.failed:
                return f"killed by {self.failed}"
        return "survived"

    def _child(self, body: Any, limit: float) -> tuple[str, float]:
        """Run a function in a child process; its result, or what ended the process, and seconds."""
        read, write = os.pipe()
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            process = os.fork()
        if not process:
            try:
                os.write(write, body().encode())
            except BaseException as error:
                os.write(write, f"killed by {type(error).__name__}".encode())
            os._exit(0)
        os.close(write)
        while not os.waitpid(process, os.WNOHANG)[0]:
            if time.perf_counter() - start > limit:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                os.close(read)
                return "killed by time", time.perf_counter() - start
            time.sleep(0.02)
        with os.fdopen(read) as result:
            return result.read() or "killed by a crash", time.perf_counter() - start


def _sampled(mutants: int, seed: int, only: str) -> dict[str, list[Place]]:
    """Places drawn without replacement: each target's number is in proportion to its places times its weight.

    More mutants of the same seed are these and others.
    """
    found = {name: [p for p in places(target) if only in p.file] for name, target in TARGETS.items()}
    total = sum(TARGETS[name].weight * len(of_target) for name, of_target in found.items())
    counts = {name: round(mutants * TARGETS[name].weight * len(x) / max(total, 1)) for name, x in found.items()}
    drawn = {}
    for name, of_target in found.items():
        random.Random(f"{seed} {name}").shuffle(of_target)
        drawn[name] = sorted(of_target[: counts[name]])
    return drawn


def _done(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []


def main() -> None:
    """Parse arguments, and run the mutants of one target after another, each in a process of its own."""
    parser = argparse.ArgumentParser(description="Mutation testing")
    parser.add_argument("--mutants", type=int, default=520)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="part of a file's path")
    parser.add_argument("--target", choices=TARGETS, help="one target; all by default")
    parser.add_argument(
        "--out", type=Path, default=Path("mutants.jsonl"), help="a line of JSON for each mutant; goes on"
    )
    arguments = parser.parse_args()
    sample = _sampled(arguments.mutants, arguments.seed, arguments.only)
    if arguments.target is None:
        for name in sample:
            status = os.spawnv(
                os.P_WAIT, sys.executable, [sys.executable, "-m", "tests.mutation", *sys.argv[1:], "--target", name]
            )
            if status:
                sys.exit(status)
        lines = _done(arguments.out)
        survived = [line for line in lines if line["status"] == "survived"]
        for line in survived:
            print(f"{line['file']}:{line['line']}: {line['before']}  ->  {line['after']}")
        print(f"{len(lines)} mutants, {len(survived)} survived")
        return
    done = {Place(**{name: line[name] for name in Place._fields}) for line in _done(arguments.out)}
    chosen, target = [x for x in sample[arguments.target] if x not in done], TARGETS[arguments.target]
    files = sorted({place.file for place in chosen})

    def write(line: dict[str, Any]) -> None:
        print(f"{line['status'][:60]:60} {line['file']}:{line['line']}  {line['after'][:60]}", flush=True)
        with arguments.out.open("a") as out:
            out.write(json.dumps(line) + "\n")

    if chosen:
        tests = [f"tests/{name}.py" for name in target.tests]
        quiet = ["-o", "addopts=", "-p", "no:cacheprovider", "-p", "no:terminal", "-m", "not slow"]
        sys.exit(pytest.main([*quiet, "--doctest-modules", *tests, *files], plugins=[Runner(chosen, write)]))


if __name__ == "__main__":
    main()
