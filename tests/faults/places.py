"""The folders that are damaged: runs of a tiny stream, finished and not, one of auto, and an exported model."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax

import scall_jax
from scall_jax import Budget, Config, run_segments, streams
from scall_jax.analysis import comparison
from scall_jax.run import auto
from scall_jax.serving import reader
from tests.faults.damage import Use
from tests.faults.outcomes import contents
from tests.helpers import small_config, tiny_arguments

KEY = jax.random.key(0)

CONFIGS = {
    "popularity": small_config("popularity-decayed"),
    "ials": small_config("uniform", recommender="ials", table="packed_int4"),
    "search": small_config("scall"),
}
"""Runs: one without parameters, one with codes, and one whose checkpoint has the memory of a search."""


def tiny_stream(seed: int = 7) -> streams.Stream:
    """Three segments with replayed rows; ids of users are text."""
    rows = streams.synthetic(jax.random.key(seed), users=60, items=40, interactions=1500)
    users = rows.user_ids.gather(rows.user)
    return streams.cut(streams.from_arrays(users, 3 * rows.item + 1, rows.time, "tiny"), segments=3, replay=0.2)


def write_rows(path: Path) -> Path:
    """A file of a stream that is large enough for the command, which asks for 20 test users in a segment."""
    rows = streams.synthetic(jax.random.key(1), users=100, items=150, interactions=3000)
    users, items = rows.user_ids.gather(rows.user), rows.item_ids.gather(rows.item)
    lines = [f"{u},{i},{t}" for u, i, t in zip(users, items, rows.time.tolist(), strict=True)]
    path.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
    return path


def arguments(data: Path, out: Path, *more: str) -> list[str]:
    """Flags of a run over that file that takes a second."""
    return tiny_arguments(data, out, "--method", "popularity-decayed", "--no-compilation-cache", *more)


def continued(config: Config, stream: streams.Stream, folder: Path) -> dict[str, Any]:
    """A run that goes on in a folder: all that is in it afterwards."""
    run_segments(config, stream, KEY, folder=folder)
    return contents(folder)


def served(folder: Path) -> dict[str, Any]:
    """A model that is loaded: what it recommends to everyone, its sizes, and where it says that it comes from."""
    model = scall_jax.load(folder)
    origin = {key: value for key, value in model.origin.items() if key not in ("jax", "device")}
    return {
        "rows": model.recommend(k=5).rows(),
        "sizes": model.sizes().rows(),
        "origin": origin,
        "budget": model.budget._asdict(),
    }


def exported(folder: Path) -> list[Any]:
    """An exported model, read without this library: what it recommends to everyone."""
    model = reader.load(folder)
    return [[user, reader.recommend(model, user, 5)] for user in [*model[0], "nobody"]]


def compared(folder: Path) -> dict[str, Any]:
    """A finished run, as it is read to be compared."""
    run = comparison.read_run(folder)
    return {"identity": run.identity, "summary": run.summary, "lines": run.lines}


def stopped_run(root: Path, name: str) -> tuple[Use, Use]:
    """A run of one of `CONFIGS` that was stopped after two of three segments: continued, and loaded.

    Args:
      root: a folder, in which the runs are made where they are not there yet.
      name: of the configuration.
    """
    config, stream, whole = CONFIGS[name], tiny_stream(), root / name / "whole"

    def stop(line: dict[str, Any]) -> None:
        shutil.copytree(whole, root / name / f"after-{line['segment']}", dirs_exist_ok=True)

    if not (root / name / "after-1").exists() or len(contents(whole)["lines"]) < 3:
        run_segments(config, stream, KEY, folder=whole, on_segment=stop)
    older, here = root / name / "after-0", root / name / "after-1"
    return (
        Use(f"{name} continued", here, lambda folder: continued(config, stream, folder), older),
        Use(f"{name} loaded", here, served, older),
    )


def exported_model(root: Path, name: str) -> Use:
    """The exported model of a run of `stopped_run`."""
    path = root / name / "exported"
    if not path.exists():
        scall_jax.load(root / name / "whole").export(path)
    return Use(f"{name} exported", path, exported)


def finished_run(root: Path) -> Use:
    """A run that the command has finished: summary, plots and report are in its folder."""
    from scall_jax.cli.commands import run_command

    path = root / "finished" / "popularity-decayed"
    if not path.exists():
        root.mkdir(parents=True, exist_ok=True)
        given = arguments(write_rows(root / "rows.csv"), root / "finished")
        run_command([flag for flag in given if flag != "--no-report"])
    return Use("finished compared", path, compared)


@contextlib.contextmanager
def few_candidates(second: str) -> Iterator[None]:
    """Within this context, auto has two candidates: decayed popularity and `second`, `uniform` or `popularity-all`."""
    every = auto.candidates

    def some(config: Config) -> dict[str, Config]:
        other = every(config)["ials int4 uniform"]
        other = other if second == "uniform" else dataclasses.replace(every(config)["popularity"], method=second)
        return {"popularity": every(config)["popularity"], second: other}

    with mock.patch.object(auto, "candidates", some):
        yield


def auto_run(root: Path, second: str = "uniform") -> tuple[Use, Use]:
    """A finished run of auto with two candidates: continued, and loaded."""
    stream, path = tiny_stream(), root / f"auto-{second}"
    config = Config(auto.NAME, Budget.mean_size(4), ials=dataclasses.replace(CONFIGS["ials"].ials, sweeps=2))

    def answer(folder: Path) -> dict[str, Any]:
        with few_candidates(second):
            auto.run_auto(config, stream, KEY, folder)
        return contents(folder)

    if not path.exists():
        answer(path)
    return Use("auto continued", path, answer), Use("auto loaded", path, served)
