"""Fuzzing: readers, configurations and models are given bytes, and must answer right, or refuse in one line, in time.

    python -m tests.faults.fuzz reader -max_total_time=60    # guided by coverage, needs atheris

A target takes bytes and raises `Wrong` where something else comes of them. `tests/faults/test_fuzz.py` calls the same
targets with hypothesis.
"""

import dataclasses
import functools
import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scall_jax import Config, streams
from scall_jax.run import config_file
from scall_jax.serving import reader
from tests.faults.outcomes import EXACT, FAILURE, Outcome

SECONDS = 5
"""A target that takes longer hangs."""


class Wrong(Exception):
    """What a target found."""


def _place() -> Path:
    """A folder of this process, made when it is first asked for."""
    if not hasattr(_place, "path"):
        _place.path = Path(tempfile.mkdtemp())  # pyright: ignore[reportFunctionMemberAccess]
    return _place.path  # pyright: ignore[reportFunctionMemberAccess]


def _refused_well(error: ValueError, name: str) -> None:
    text = str(error)
    if "\n" in text.strip() or name not in text:
        raise Wrong(f"not one line that names {name}: {text[:300]!r}") from error


def reader_target(data: bytes) -> None:
    """A file of any bytes, read with and without options: codes within vocabularies, times in range, or a line."""
    path = _place() / "input"
    path.write_bytes(data)
    options: tuple[dict[str, Any], ...] = ({}, {"skip_incomplete": True, "encoding": "latin-1"})
    for given in options:
        try:
            rows = streams.read(path, max_memory=200, **given)
        except ValueError as error:
            _refused_well(error, "input")
            continue
        whole = len(rows.user) == len(rows.item) == len(rows.time) > 0
        codes = all(
            x.min() >= 0 and x.max() < len(ids) == ids.n_unique() and not ids.null_count()
            for x, ids in ((rows.user, rows.user_ids), (rows.item, rows.item_ids))
        )
        if not (whole and codes and rows.time.min() >= 0 and rows.time.max() < 253402300800000):
            raise Wrong(f"{rows!r} makes no sense")


_PLAIN = re.compile(r"[a-z][a-z0-9]{0,7}")


def rows_target(data: bytes) -> None:
    """Rows drawn from bytes, written in a drawn layout: what is read must be what was written."""
    draws = list(data.ljust(8, b"\0"))
    separator = (",", ";", "|", "\t", "::", " ")[draws[0] % 6]
    end, quoted = ("\n", "\r\n")[draws[1] % 2], draws[2] % 2 == 1 and separator in (",", ";", "|")
    texts = [found[0] for found in _PLAIN.finditer(data[4:].decode("latin-1").lower())] or ["a"]
    unit = (1, 1000, 10**6, 10**9)[draws[3] % 4]
    rows = [(f"u{text}", f"i{texts[-1 - k]}", 1600000000 + 7 * k) for k, text in enumerate(texts)]

    def field(text: str) -> str:
        return f'"{text}{separator}"' if quoted else text

    lines = [separator.join(["user", "item", "timestamp"])]
    lines += [separator.join([field(u), field(i), str(t * unit)]) for u, i, t in rows]
    path = _place() / "input"
    path.write_bytes((end.join(lines) + end).encode())
    found = streams.read(path)
    back = separator.strip() if quoted else ""
    wanted = [(u + back, i + back, 1000 * t) for u, i, t in rows]
    users, items = found.user_ids.gather(found.user).to_list(), found.item_ids.gather(found.item).to_list()
    got = list(zip(users, items, found.time.tolist(), strict=True))
    if got != wanted:
        raise Wrong(f"{got[:3]} read, {wanted[:3]} written")


def config_target(data: bytes) -> None:
    """A config.json of any bytes: a configuration that comes back as it was, or a line that names the file."""
    path = _place() / "config.json"
    path.write_bytes(data)
    try:
        stored = config_file.read_identity(path)
        config = config_file.config_of(stored["config"], path)
    except ValueError as error:
        _refused_well(error, "config.json")
        return
    if not isinstance(config, Config):
        raise Wrong(f"{config!r} is no configuration")
    again = config_file.config_of(json.loads(json.dumps(dataclasses.asdict(config))), path)
    if json.dumps(dataclasses.asdict(again)) != json.dumps(dataclasses.asdict(config)):
        raise Wrong(f"{config} comes back as {again}")


def flags_target(data: bytes) -> None:
    """A command line of any words: it is parsed, or ends with exit code 2."""
    import contextlib
    import io

    from scall_jax.cli.cli import cli
    from scall_jax.cli.flags import Main
    from scall_jax.cli.method_flags import make_config

    words = [word for word in data.decode("utf-8", "replace").replace("\0", "").split("\n") if word]
    silent = io.StringIO()
    with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
        try:
            cli(Main, lambda flags: [make_config(flags, method) for method in flags.method], None, words, "program")
        except SystemExit as end:
            if end.code not in (0, 2):
                raise Wrong(f"exit code {end.code} for {words}") from end


def model_target(data: bytes) -> None:
    """An exported model some of whose bytes are others: it recommends what it did, or is refused by the file's name.

    The first byte says which file, the next three say where, and the others are put there.
    """
    folder, whole, right = _model()
    name = sorted(whole)[data[0] % len(whole)] if data else "manifest.json"
    at = int.from_bytes(data[1:4], "big") % (len(whole[name]) + 1)
    (folder / name).write_bytes(whole[name][:at] + data[4:] + whole[name][at + len(data[4:]) :])
    try:
        model = reader.load(folder)
    except ValueError as error:
        return _refused_well(error, name)
    finally:
        (folder / name).write_bytes(whole[name])
    if [reader.recommend(model, user, 3) for user in (*model[0], "nobody")] != right:
        raise Wrong(f"another answer: {len(data) - 4} bytes at {at} of {name}")


def _model() -> tuple[Path, dict[str, bytes], list[Any]]:
    """A small exported model that the package wrote, its files, and what it recommends."""
    if not hasattr(_model, "made"):
        folder = _place() / "model"
        _write_model(folder)
        model = reader.load(folder)
        right = [reader.recommend(model, user, 3) for user in (*model[0], "nobody")]
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        _model.made = folder, files, right  # pyright: ignore[reportFunctionMemberAccess]
    return _model.made  # pyright: ignore[reportFunctionMemberAccess]


def _write_model(folder: Path) -> None:
    """Export the model of popularity over a tiny stream."""
    from tests.faults import places

    with tempfile.TemporaryDirectory() as root:
        places.stopped_run(Path(root), "popularity")
        shutil.copytree(places.exported_model(Path(root), "popularity").folder, folder)


TARGETS: dict[str, Callable[[bytes], None]] = {
    "reader": reader_target,
    "rows": rows_target,
    "config": config_target,
    "flags": flags_target,
    "model": model_target,
}
"""By name; each raises `Wrong`, or any error of the code under test that is no refusal."""


@functools.cache
def seeds(name: str) -> list[bytes]:
    """Inputs to start from."""
    from tests.faults import inputs

    if name in ("reader", "rows"):
        found = []
        for number, case in enumerate(inputs.corpus()[::7]):
            place = _place() / f"seeds-{name}" / str(number)
            place.mkdir(parents=True)
            path = case.write(place)
            if isinstance(path, Path) and path.is_file() and path.stat().st_size < 5000:
                found.append(path.read_bytes())
        return found
    if name == "config":
        return [
            json.dumps(
                {"config": dataclasses.asdict(Config()), "key": [0, 0], "stream": {"segments": 1, "fingerprint": "0"}}
            ).encode()
        ]
    if name == "flags":
        return [b"--budget.mean-size\n4\n--method\nuniform@table=packed_int4", b"--fit.steps\n-1\n--cut.at\n2020-01-01"]
    rng = np.random.default_rng(0)
    return [rng.bytes(6) for _ in range(20)]


def in_a_process(name: str, seconds: int) -> Outcome:
    """Fuzz a target for some seconds in a process of its own; without atheris, by hypothesis-free mutation of seeds."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.faults.fuzz", name, f"-max_total_time={seconds}"]
    done = subprocess.run(command, capture_output=True, text=True)
    runs = re.findall(r"Done (\d+) (?:runs|in)|#(\d+)\s+DONE", done.stderr)
    count = max((int(x) for pair in runs for x in pair if x), default=0)
    if done.returncode != 0:
        return Outcome(f"fuzzing: {name}", f"{seconds} s", FAILURE, done.stderr[-1500:])
    return Outcome(f"fuzzing: {name}", f"{seconds} s", EXACT, f"{count} runs")


def guarded(target: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """A target that may not take longer than `SECONDS`."""

    def late(number: int, frame: object) -> None:
        raise Wrong(f"takes longer than {SECONDS} s")

    def call(data: bytes) -> None:
        signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                target(data)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    return call


def _main() -> None:
    import atheris

    name = sys.argv[1]
    target = guarded(TARGETS[name])
    if name == "model":
        _model()  # Making it takes longer than a target may.
    corpus = _place() / "corpus"
    corpus.mkdir()
    for number, data in enumerate(seeds(name)):
        (corpus / str(number)).write_bytes(data)
        target(data)
    for module in (streams.read.__module__, *INSTRUMENTED[name]):
        for value in vars(sys.modules[module]).values():
            if callable(value) and getattr(value, "__module__", "") == module and hasattr(value, "__code__"):
                atheris.instrument_func(value)
    atheris.Setup([sys.argv[0], "-rss_limit_mb=4000", "-max_len=4096", *sys.argv[2:], str(corpus)], target)
    atheris.Fuzz()


_STREAMS = tuple(
    f"scall_jax.streams.{x}" for x in ("sources", "parsing", "formats", "ids", "times", "gather", "columns")
)
INSTRUMENTED = {
    "reader": _STREAMS,
    "rows": _STREAMS,
    "config": ("scall_jax.run.config_file", "scall_jax.config"),
    "flags": ("scall_jax.cli.flags", "scall_jax.cli.method_flags", "scall_jax.cli.cli"),
    "model": ("scall_jax.serving.reader",),
}
"""Modules whose branches guide the search."""


if __name__ == "__main__":
    _main()
