"""One compact Parquet file of finished cells, to which each is added as soon as it is finished.

An experiment of many hours goes on where it stopped, on another machine too: what is in the file is not run again. A
row is a cell: what it was (a hash of configuration, stream and seed), means, seconds, and the mean test Recall@20 of
each user, which the tests of `scall_jax.analysis.significance` need. The run folder is deleted once the row is written.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from experiments import compare
from scall_jax import Config
from scall_jax.analysis import report, significance
from scall_jax.cli import commands, method_flags, stream_flags
from scall_jax.run import records, removal, text_files
from scall_jax.streams import Stream

DEFAULTS = 1
"""Which defaults `Config` has: raised when one of them changes, so that cells made by the old one are made anew."""
LEAST_SQUARES = 3
"""Raised when fits by least squares come to other results, so that the cells with such fits are made anew."""


def identity(config: Config, stream: Stream, seed: int) -> str:
    """What a cell is known by: a hash of all that its result follows from, but the version of the code.

    Of the configuration what differs from the defaults enters, so that a new option leaves finished cells as they are.
    """
    of_config = dataclasses.asdict(config)
    del of_config["mesh"]
    differing = _differing(of_config, dataclasses.asdict(Config()))
    # Either number is only ever raised.
    version = DEFAULTS + (LEAST_SQUARES if fits_by_least_squares(config) else 0)
    text = json.dumps([version, differing, stream.fingerprint, seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def fits_by_least_squares(config: Config) -> bool:
    """Whether a run fits by least squares, be it only for the gains that its sizes come from.

    >>> [fits_by_least_squares(Config(method)) for method in ("scall", "scall-gain", "waterfill", "auto")]
    [False, True, True, True]
    """
    by_gains = "gain" in config.method or config.method in ("waterfill", "auto") or config.search.actions == "prices"
    return by_gains or config.recommender == "ials"


def _differing(values: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Entries of nested dictionaries that are not those of others.

    >>> _differing({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 2, "d": 4}})
    {'b': {'d': 3}}
    """
    found = {}
    for name, value in values.items():
        before = defaults.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            value, before = _differing(value, before), {}
        if value != before:
            found[name] = value
    return found


def commit() -> str:
    """The commit that the code is of, with `+` where files differ from it; empty outside a repository."""
    try:
        made = ["git", "-C", str(Path(__file__).parent)]
        found = subprocess.run([*made, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*made, "diff", "--quiet", "HEAD", "--", "*.py"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return ""
    return found.stdout.strip() + "+" * bool(changed)


def read(path: Path) -> pl.DataFrame:
    """The finished cells, a row for each; without columns where the file does not exist yet."""
    return pl.read_parquet(path) if path.exists() else pl.DataFrame()


def finished(path: Path) -> pl.DataFrame:
    """The finished cells, a row for each.

    Raises:
      ValueError: there is none.
    """
    frame = read(path)
    if frame.is_empty():
        raise ValueError(f"{path} has no cells yet: run some, without --report")
    return frame


def add(path: Path, row: dict[str, Any], settings: Sequence[str] = ()) -> None:
    """Add a cell. A reader finds the file either without it or with it, and several processes may add at a time.

    Args:
      path: of the file.
      row: of the cell.
      settings: columns that tell cells apart. A row that is equal in all of them is of an earlier version, and dropped.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    new = pl.DataFrame([row], schema_overrides={"by_user": pl.List(pl.Float32)})
    temporary = path.with_name(path.name + ".tmp")
    with path.with_name(path.name + ".lock").open("w") as lock:
        # The system frees the lock when the process ends, however it does.
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = read(path)
        if "cell" in row and not before.is_empty():
            # What could not be run once may be run now.
            before = before.filter((pl.col("cell") != row["cell"]) | ~_refused(before))
        if settings and set(settings) <= set(before.columns):
            before = before.filter(~pl.all_horizontal(pl.col(x).eq_missing(pl.lit(row[x])) for x in settings))
        pl.concat([before, new], how="diagonal_relaxed").write_parquet(temporary, compression="zstd")
        os.replace(temporary, path)


def _refused(frame: pl.DataFrame) -> pl.Series:
    """bool by row: a cell that could not be run."""
    if "refused" not in frame.columns:
        return pl.Series([False] * len(frame), dtype=pl.Boolean)
    return frame["refused"].is_not_null()


_SHOWN = ("data", "method", "biases", "mean_sizes", "seeds", "replays", "fit.steps")
"""Flags that have columns of their own."""

_CHOICES = ("by_width", "width", "few", "few_seeds", "only", "floors", "shares", "shapes", "rotations", "widths")
"""Flags that say which cells there are."""

_OUTSIDE = ("resume", "overwrite", "out", "results", "report", "tensorboard", "compilation_cache", "max_memory", "mesh")
"""Flags that change no result."""


def shared_flags(flags: Any) -> str:
    """The flags of an experiment that are not the default, as they are spelled, so that cells of other flags differ.

    Args:
      flags: a dataclass of flags. Those that columns of their own show, that say which cells there are, or that change
        no result are left out.
    """
    skip = _SHOWN + _CHOICES + _OUTSIDE
    spelled = []

    def differing(now: Any, before: Any, name: str) -> None:
        if dataclasses.is_dataclass(now):
            for field in dataclasses.fields(now):
                if f"{name}{field.name}" not in skip:
                    differing(getattr(now, field.name), getattr(before, field.name), f"{name}{field.name}.")
        elif now != before:
            spelled.append(f"{name[:-1].replace('_', '-')}={now}")

    differing(flags, type(flags)(), "")
    return " ".join(spelled) or "-"


def by_seed(flags: compare.Compare, settings: Sequence[tuple[float, str]], shown: dict[str, str]) -> list[compare.Cell]:
    """Cells seed by seed, so that an unfinished comparison has about as many of each.

    Args:
      flags: of the comparison; the first of its biases is that of all cells.
      settings: mean size and method of each cell of a seed.
      shown: columns and values that all cells have beside the bias, the mean size and the method.

    Returns:
      A cell for each seed and setting.
    """
    found = []
    for seed in flags.seeds:
        for size, method in settings:
            cell = dataclasses.replace(compare.cell_flags(flags, flags.out, method, size, seed), bias=flags.biases[0])
            columns = {"bias": flags.biases[0], "mean size": f"{size:g}", "method": method}
            found.append(compare.Cell(shown | columns, cell))
    return found


def publish(
    path: Path,
    frame: pl.DataFrame,
    row: Sequence[str],
    base: str,
    title: str,
    below: Sequence[str] = (),
    arm: str = "method",
) -> str:
    """Print finished cells as a table, each arm beside a base, and write it beside their file.

    Args:
      path: of the file.
      frame: rows of `read`.
      row: columns that tell settings apart; the mean size is among them.
      base: the arm that the others are tested against.
      title: what stands above the table, in Markdown.
      below: what stands below it.
      arm: column of what is compared within a setting.

    Returns:
      The text of the table and of what is below it.
    """
    # Methods without a budget have no mean size.
    shown = frame.sort(pl.col("mean size").cast(float, strict=False), maintain_order=True)
    text = "\n\n".join([comparison(shown, row, arm, base), note(frame), *below])
    text_files.write_atomically(path.with_suffix(".md"), f"{title}\n\n{text}\n")
    print(f"\n{text}")
    return text


def keep_refused(path: Path, flags: compare.Compare, found: Sequence[compare.Cell]) -> None:
    """Add cells that cannot be run, with what they show and without results; those that are there are not added again.

    Args:
      path: of the file.
      flags: of the comparison.
      found: the cells.
    """
    cuts = dict.fromkeys(cell.cut for _, cell in found)
    streams = {cut: stream_flags.load_stream(dataclasses.replace(flags, cut=cut)) for cut in cuts}
    version = commit()
    for shown, cell in found:
        stream = streams[cell.cut]
        name = identity(method_flags.make_config(cell, *cell.method), stream, cell.seed)
        known = read(path)
        if known.is_empty() or name not in known["cell"]:
            what = {"cell": name, "commit": version, "stream": Path(stream.source).name, "seed": cell.seed}
            add(path, what | shown | {"by_user": []})


def names(flags: compare.Compare, found: Sequence[compare.Cell]) -> list[str]:
    """What the file knows some cells by."""
    configs, streams = compare.refuse(flags, found)
    cells = zip(found, configs, strict=True)
    return [identity(config, streams[cell.flags.cut], cell.flags.seed) for cell, config in cells]


def run(path: Path, flags: compare.Compare, found: Sequence[compare.Cell]) -> pl.DataFrame:
    """Run the cells that the file lacks, in their order.

    Args:
      path: of the file.
      flags: of the comparison; scratch folders and compiled programs go to `flags.out`.
      found: the cells. What they show becomes columns.

    Returns:
      All rows of the file, those of other streams and flags included.

    Raises:
      ValueError: a cell cannot be run; none has been then.
    """
    configs, streams = compare.refuse(flags, found)
    flags.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    version = commit()
    for (shown, cell), config in zip(found, configs, strict=True):
        stream, frame = streams[cell.cut], read(path)
        name = identity(config, stream, cell.seed)
        if not frame.is_empty() and name in frame.filter(~_refused(frame))["cell"]:
            continue
        # A run that was stopped is found again by its name, whatever runs are asked for then.
        folder = flags.out / name
        summary, lines = commands.run_method(cell, config, stream, folder)
        row = {"cell": name, "commit": version, "stream": Path(stream.source).name, "seed": cell.seed}
        row |= {"flags": shared_flags(flags)}
        add(path, row | shown | results(folder, summary, lines), settings=("stream", "seed", "flags", *shown))
        removal.remove_run(folder)
    return read(path)


def results(folder: Path, summary: dict[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Columns of a cell's results.

    Args:
      folder: of the run, which holds the metrics of each user.
      summary: of the run.
      lines: of its metrics, one for each segment.
    """
    names = {
        "recall@20": "mean_test_recall@20",
        "ndcg@20": "mean_test_ndcg@20",
        "valid recall@20": "mean_valid_recall@20",
        "seconds fit": "seconds_fit",
        "seconds search": "seconds_search",
    }
    parts = {title: summary[key] for title, key in names.items()}
    parts |= {f"{name} MB": 1e-6 * lines[-1][f"bytes_{name}"] for name in ("table", "serving")}
    counted = records.averaged(lines)
    parts |= {f"last {m}": counted[-1][f"test_{m}"] if counted else None for m in ("recall@20", "ndcg@20")}
    by_user = significance.user_values([folder])[0].astype(np.float32)
    steps = sum(line.get("steps", 0) for line in lines)
    return parts | {"segments": len(lines), "steps": steps, "by_user": by_user.tolist()}


def comparison(frame: pl.DataFrame, row: Sequence[str], arm: str, base: str) -> str:
    """Markdown table of finished cells, each arm beside a base.

    Args:
      frame: rows of `read`.
      row: columns that tell settings apart.
      arm: column of what is compared within a setting.
      base: the arm that the others are tested against.

    Returns:
      A line for each setting and arm, in the order of the file: means with their spread over seeds, bytes at the end of
      the stream where the file has them, the difference from the base in the mean over users with its 95% interval, the
      two-sided p-value of no difference and that of more than 2%, both corrected by Holm's rule for their number in the
      table.

    Raises:
      ValueError: two rows of one group have the same seed, so that they are no evidence of the variance over seeds.
    """
    groups = {key: part for key, part in frame.group_by([*row, arm], maintain_order=True)}
    for key, part in groups.items():
        if part["seed"].is_duplicated().any():
            raise ValueError(
                f"{key}: a seed stands there twice: columns that tell its rows apart are missing in the table"
            )
    compared = {}
    for key, part in groups.items():
        other = groups.get((*key[:-1], base))
        if key[-1] != base and other is not None and min(len(part), len(other)) > 1:
            by_user = [values["by_user"].to_list() for values in (part, other)]
            # Another cut may have other test users.
            if len({len(values) for values in by_user[0] + by_user[1]}) > 1:
                continue
            ours, theirs = map(np.array, by_user)
            compared[key] = significance.compare_means(ours, theirs)
    kinds = [[getattr(found, name) for found in compared.values()] for name in ("p_value", "p_equal")]
    p_values = dict(zip(compared, zip(*map(significance.holm, kinds), strict=True), strict=True))
    lines, sizes = [], [name for name in ("table MB", "serving MB") if name in frame.columns]
    for key in sorted(groups, key=lambda key: tuple(map(str, key[:-1]))):
        part, found = groups[key], compared.get(key)
        means = [report.mean_and_spread(part[name].to_list()) for name in ("recall@20", "ndcg@20", "valid recall@20")]
        # Cells of an earlier version may lack them.
        means += ["-" if part[name].mean() is None else f"{part[name].mean():.3f}" for name in sizes]
        seconds = [f"{part[name].mean():.0f}" for name in ("seconds fit", "seconds search")]
        tested = ["-", "-", "-"]
        if found is not None:
            difference = f"{found.estimate:+.4f} ({found.low:+.4f} to {found.high:+.4f})"
            tested = [difference, *(f"{p:.2g}" for p in p_values[key])]
        lines.append([*map(str, key), str(len(part)), *means, *seconds, *tested])
    columns = ["seeds", "Recall@20", "NDCG@20", "valid R@20", *sizes, "fit s", "search s"]
    columns += [f"by user R@20 less that of {base}", "p", "p of 2%"]
    return report.markdown([*row, arm, *columns], lines)


def note(frame: pl.DataFrame) -> str:
    """How to read `comparison`, and the commits that its cells were made at."""
    versions = ", ".join(frame["commit"].unique(maintain_order=True))
    text = f"Mean ± standard deviation over seeds; 95% intervals in brackets. {significance.READING}"
    return f"{text} Both p are corrected by Holm's rule for all rows. Commits: {versions}."
