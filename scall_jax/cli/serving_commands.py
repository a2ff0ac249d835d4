"""The commands that use what a run has learned: recommend and export."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from scall_jax.cli.cli import Positional, cli
from scall_jax.run.folder import named_errors
from scall_jax.run.parquet import as_system_errors
from scall_jax.run.whole_file import replaced
from scall_jax.serving import load

RECOMMEND = """
Recommend items by the model that a run has left, as lines of CSV.

    scall-jax recommend runs/demo/uniform --users 17850 13047 --k 5
    scall-jax recommend runs/demo/uniform --users new --items 85123A 71053   # someone who has met these two

The column source says what a line comes from: the user's own vector (known), the vector that the given items lead to
(folded in), or popularity.
"""
"""What `scall-jax recommend` does, as its help shows it."""

EXPORT = """
Write the model that a run has left to a folder that can be read without this library: arrays in safetensors, ids in
Parquet, a manifest with the bytes of each, a card, and a reader in NumPy.

    scall-jax export runs/demo/uniform --out models/uniform
    scall-jax export runs/demo/uniform --scoring models/uniform.stablehlo   # the scores as one program
"""
"""What `scall-jax export` does, as its help shows it."""


@dataclasses.dataclass(frozen=True)
class Recommend:
    """Flags of `scall-jax recommend`."""

    run: Positional[Path] = Path(".")
    """Folder of a run, such as runs/demo/uniform."""
    users: tuple[str, ...] = ()
    """Ids of users, as in the file that the run read; none: all known users."""
    k: int = 10
    """Items of each user."""
    items: tuple[str, ...] = ()
    """Ids of items that these users have met: a user whom the run does not know is folded in from them."""
    seen: bool = False
    """Recommend what a user has met, too."""
    out: Path | None = None
    """File to write, .csv or .parquet; none: standard output."""


@dataclasses.dataclass(frozen=True)
class Export:
    """Flags of `scall-jax export`."""

    run: Positional[Path] = Path(".")
    """Folder of a run, such as runs/demo/uniform."""
    out: Path | None = None
    """Folder to write, which must not exist or be empty."""
    scoring: Path | None = None
    """File to write, which must not exist: the scores as a StableHLO program that jax.export reads."""


def recommend_job(flags: Recommend) -> pl.DataFrame:
    """Recommend, and print or write the rows.

    Args:
      flags: of the request.

    Returns:
      The rows.

    Raises:
      ValueError: a folder that holds no model, a request that no model answers, a file of another kind, or one that
        cannot be written; what was there before is there still.
    """
    if flags.out is not None and flags.out.suffix not in (".csv", ".parquet"):
        raise ValueError(f"--out {flags.out}: give a name that ends with .csv or .parquet")
    if flags.items and not flags.users:
        raise ValueError("--items: name the users who have met them by --users")
    model = load(flags.run)
    given = {user: list(flags.items) for user in flags.users} if flags.items else None
    frame = model.recommend(list(flags.users) or None, flags.k, exclude_seen=not flags.seen, items_of=given)
    if flags.out is None:
        frame.write_csv(sys.stdout)
        return frame
    with named_errors(flags.out, "choose another --out"), replaced(flags.out) as file, as_system_errors(flags.out):
        if flags.out.suffix == ".csv":
            frame.write_csv(file)
        else:
            frame.write_parquet(file)
    return frame


def export_job(flags: Export) -> None:
    """Export the model of a run.

    Args:
      flags: of the export.

    Raises:
      ValueError: a folder that holds no model, or one that cannot be written.
    """
    if flags.out is None and flags.scoring is None:
        raise ValueError("name a folder to write: scall-jax export RUN --out FOLDER")
    model = load(flags.run)
    if flags.out is not None:
        path = model.export(flags.out)
        nbytes = sum(file.stat().st_size for file in path.iterdir())
        print(f"{model}: {nbytes:,} bytes in {path}/, listed in {path / 'manifest.json'}")
    if flags.scoring is not None:
        path = model.export_scoring(flags.scoring)
        print(f"{model}: scores of {len(model.items):,} items in {path}, {path.stat().st_size:,} bytes")


def recommend_command(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """The command line `scall-jax recommend`; arguments and errors as in `run_command`."""
    cli(Recommend, recommend_job, RECOMMEND, arguments, program)


def export_command(arguments: Sequence[str] | None = None, program: str | None = None) -> None:
    """The command line `scall-jax export`; arguments and errors as in `run_command`."""
    cli(Export, export_job, EXPORT, arguments, program)
