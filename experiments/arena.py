"""The arena: SCALL and its rivals at the same bytes on the same stream.

    python -m experiments.arena --cut.new-entities 1600                            # online-retail
    python -m experiments.arena --data yelp2019_a.parquet --cut.segments 4
    python -m experiments.arena --cut.new-entities 1600 --method uniform s2pnm --mean-sizes 32 64   # pays for a network
    python -m experiments.arena --method uniform frequency --mean-sizes 2 8 --replays 0 .1 .2 .5   # rows against width
    python -m experiments.arena --report                                           # tables and pictures, no runs

Every method gets the same constant number of bytes, and pays for everything that it stores: table, sizes, scales,
codes; with `--charge serving` for LightGCN's graph or final vectors too, with `--charge table` for the table alone. The
table has both the bytes of the table and those of all that serving needs, at the end of the stream. `--mean-sizes` are
float32 parameters per entity at the end of the stream. Baselines (popularity, ease) and `full` are outside the budget.
With `--replays` the rows that a segment trains on again are paid for too, 8 bytes each, and cost embedding width: the
rows themselves, not a reservoir to draw them from. Methods that cannot use a budget are listed with the reason.

Each cell is a row of --results as soon as it is finished, and is not run again; several streams share one file. Writes,
beside the file, the table of all of its cells with tests against uniform sizes of LightGCN in float32, areas under the
curves of Recall@20 over memory, and for each stream a picture of Recall@20 by megabytes that serving needs. Cost: the
sum of the runs, 20 to 200 seconds each on one core; methods with searches and `bigear` several times as much.
Expect least squares in four bits ahead of all others by much, `bigear` behind it, `frequency` level with uniform or
ahead of it, and methods that decide entity by entity or share rows level with uniform or behind.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from experiments import cell_file, compare
from scall_jax import FitConfig
from scall_jax.analysis import figures, memory_curves, plots, report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, stream_flags
from scall_jax.cli.cli import cli
from scall_jax.methods.registry import BASELINES

ROW = ("stream", "flags", "most steps", "bias", "replay", "mean size", "MB")
"""Columns that tell settings apart."""

_ALS = "recommender=ials,table=packed_int4,sizes.minimum=0"

METHODS = (
    "uniform",
    "frequency",
    "frequency@sizes.ranking=coherence",
    "spectral",
    "uniform@recommender=saros,saros.prequential=false",
    "uniform@table=packed_int4",
    "evict_count",
    "evict_age",
    "evict_score",
    "memo",
    "reid",
    "uniform@cut.replay-by=neighbourhood",
    "bigear",
    "lce",
    "s2pnm",
    "binary_hash",
    "quotient_remainder",
    "shared_memory",
    "mixed_precision",
    "pep",
    f"uniform@{_ALS}",
    f"frequency@{_ALS}",
    f"waterfill@{_ALS}",
    f"gain@{_ALS}",
    "scall",
    "scall-random",
    "popularity-decayed",
    "ease",
)
"""Methods, on LightGCN where they name no recommender."""

LEGEND = {
    f"gain@{_ALS}": "least squares, 4 bits, sizes by gains",
    f"uniform@{_ALS}": "least squares, 4 bits, one size",
    "uniform@table=packed_int4": "LightGCN, 4 bits, one size",
    "uniform": "LightGCN, one size",
    "frequency": "LightGCN, sizes by frequency",
    "scall": "LightGCN, SCALL",
    "evict_count": "LightGCN, eviction by count",
    "bigear": "BiGeaR",
}
"""Methods in the pictures, on each base the best and rivals of other kinds, and what they are called there."""


@dataclasses.dataclass(frozen=True)
class Arena(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = METHODS
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (0.5, 2.0, 8.0)
    """Budgets, in float32 parameters per entity at the end of the stream."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the runs; a run for each."""
    fit: FitConfig = FitConfig(steps=300)
    """Training of a segment."""
    charge: str = "stored"
    """What the budget pays for: table, stored, replay or serving, as in `experiments.run`."""
    replays: tuple[float, ...] = ()
    """Values of --cut.replay to compare; each is a cell of its own, and the budget pays 8 bytes for each replayed row
    before it pays for the table."""
    report: bool = False
    """Write tables and pictures of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/arena.parquet")
    """File of the finished cells."""
    out: Path = Path("runs/arena")
    """Folder for the run in progress and for compiled programs."""


class Curve(NamedTuple):
    """Quality over memory of one method, by ascending budget."""

    megabytes: list[float]
    """Bytes in 10^6."""
    mean: list[float]
    """Means over segments and seeds."""
    spread: list[float]
    """Standard deviations over seeds."""
    last: list[float]
    """Means over seeds of the last segment with enough test users."""


def cells(flags: Arena) -> tuple[list[compare.Cell], list[compare.Cell]]:
    """The runs that can be made, seed by seed, so that an unfinished arena has about as many of each; and those that
    cannot, of one seed, with the reason in the column `refused`.

    Raises:
      ValueError: a flag is wrong for all runs, or no run can be made.
    """
    found, refused, streams, sizes = [], [], {}, {}
    reasons: dict[tuple[str, ...], str] = {}
    for shown, cell in _all_cells(flags):
        (method,) = cell.method
        steps = "-" if method in BASELINES else str(flags.fit.steps)
        shown = {"flags": cell_file.shared_flags(flags), "most steps": steps} | shown
        # Raises where anything but the budget is wrong, which is wrong for all runs.
        method_flags.make_config(cell, method)
        if cell.cut not in streams:
            streams[cell.cut] = stream_flags.load_stream(dataclasses.replace(flags, cut=cell.cut))
        stream = streams[cell.cut]
        if method in BASELINES or method == "full":
            shown = shown | {"MB": "-"}
        else:
            entities = sum(stream.known(stream.bounds[-1].train))
            # Six decimals of a megabyte are whole bytes.
            megabytes = round(4e-6 * float(cell.budget.mean_size or 0) * entities, 6)
            cell = dataclasses.replace(cell, budget=run_flags.BudgetFlags(megabytes=megabytes))
            shown = shown | {"MB": f"{megabytes:.4g}"}
            other = sizes.setdefault(shown["MB"], shown["mean size"])
            if other != shown["mean size"]:
                raise ValueError(f"--mean-sizes {other} and {shown['mean size']} are both {shown['MB']} MB: give one")
        # Whether a budget can be used does not depend on the seed.
        setting = tuple(shown.values())
        if setting not in reasons:
            reasons[setting] = _reason(method_flags.make_config(cell, method), stream)
            if reasons[setting]:
                refused.append(compare.Cell(shown | {"refused": reasons[setting]}, cell))
        if not reasons[setting]:
            found.append(compare.Cell(shown, cell))
    if not found:
        lines = [f"- {label(shown)}: {shown['refused']}" for shown, _ in refused]
        raise ValueError("\n".join(["no method can use its budget:", *lines]))
    return sorted(found, key=lambda cell: cell.flags.seed), refused


def _reason(config: Any, stream: Any) -> str:
    """Why a run cannot be made; empty where it can."""
    try:
        method_flags.trace_init(config, stream)
    except ValueError as error:
        return str(error)
    return ""


def _all_cells(flags: Arena) -> Iterator[compare.Cell]:
    """The cells of `experiments.compare`; with `flags.replays` once for each of these, replay charged."""
    for shown, cell in compare.cells(flags):
        if not flags.replays:
            yield compare.Cell(shown, cell)
        elif cell.method[0] in BASELINES:
            # Baselines do not train on replay.
            yield compare.Cell(shown | {"replay": "-"}, cell)
        else:
            for part in flags.replays:
                cut = dataclasses.replace(cell.cut, replay=part)
                changed = dataclasses.replace(cell, cut=cut, charge="replay")
                yield compare.Cell(shown | {"replay": f"{part:g}"}, changed)


def label(shown: dict[str, Any]) -> str:
    """Name of a line in plots and lists: the method, its replay where that is a column, its bias where it has one."""
    replay, bias = shown.get("replay") or "-", shown["bias"]
    options = ("" if replay == "-" else f", replay {replay}") + ("" if bias in ("-", "none") else f", bias {bias}")
    return shown["method"] + options


def curves(frame: pl.DataFrame, metric: str, memory: str = "budget MB") -> dict[str, Curve]:
    """Quality over memory of the methods within the budget.

    Args:
      frame: finished cells of one stream, with the same flags and one number of steps.
      metric: on test, `recall@20` or `ndcg@20`.
      memory: the column of a method's bytes, whose median over seeds is taken.

    Returns:
      A curve by method.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for _, part in frame.filter(pl.col("MB") != "-").group_by("line", "MB", maintain_order=True):
        means, last = part[metric].to_numpy(), part[f"last {metric}"].to_numpy()
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
        # A mean over seeds of one budget would differ in its last bits by their number.
        at = np.median(part[memory].cast(float).to_numpy())
        point = (float(at), float(np.mean(means)), spread, float(np.mean(last)))
        found.setdefault(part["line"][0], []).append(point)
    return {m: Curve(*(list(x) for x in zip(*sorted(points), strict=True))) for m, points in found.items()}


def areas(found: dict[str, Curve], metric: str, charge: str) -> str:
    """Areas under curves over memory.

    Args:
      found: curves by method. Methods without the least or the largest budget have no area; a budget between them that
        a method lacks is left out of its area.
      metric: its name, for the header.
      charge: what the budgets pay for, for the header.

    Returns:
      Markdown table, best first; empty where there is one budget only.
    """
    budgets = sorted({megabytes for curve in found.values() for megabytes in curve.megabytes})
    rows = []
    for method, curve in found.items():
        if len(budgets) < 2 or (curve.megabytes[0], curve.megabytes[-1]) != (budgets[0], budgets[-1]):
            continue
        start, end = memory_curves.per_megabyte(curve.megabytes, curve.mean)
        values = [
            memory_curves.area(curve.megabytes, quality, logarithmic)
            for quality in (curve.mean, curve.last)
            for logarithmic in (False, True)
        ]
        rows.append([method, *(f"{v:.4f}" for v in values), f"{start:.3g}", f"{end:.3g}"])
    header = [f"{metric} over MB ({charge})", "AUC-A", "AUC-A log", "AUC-L", "AUC-L log"]
    header += [f"per MB ({charge}), {end}" for end in ("least", "most")]
    return report.markdown(header, sorted(rows, key=lambda row: row[2], reverse=True)) if rows else ""


def picture(path: Path, frame: pl.DataFrame, stream: str) -> None:
    """Plot Recall@20 by the megabytes that serving needs; methods outside the budget are levels.

    Args:
      path: of the picture.
      frame: finished cells of one stream and one number of steps. Of methods within the budget those in `LEGEND` are
        shown, or all if there are none of these.
      stream: its name.
    """
    found = curves(frame, "recall@20", "serving MB")
    named = {m: LEGEND.get(m, m) for m in ([m for m in LEGEND if m in found] or found)}
    series = {name: (*found[m][:3],) for m, name in named.items()}
    levels = {}
    for (name,), part in frame.filter(pl.col("MB") == "-").group_by("line", maintain_order=True):
        megabytes, recall = (part[column].to_numpy().mean() for column in ("serving MB", "recall@20"))
        levels[f"{name}, {megabytes:.3g} MB"] = float(recall)
    plots.plot_lines(path, series, stream, "10^6 bytes that serving needs", "test Recall@20", levels)


def below(path: Path, shown: pl.DataFrame) -> list[str]:
    """What stands below the table: areas for each stream, flags and number of steps, and who cannot use a budget.

    Pictures are written beside the file.

    Args:
      path: of the file.
      shown: its rows, with the name of each one's line.

    Returns:
      Markdown.
    """
    parts, ran = [], shown.filter(pl.col("recall@20").is_not_null()).with_columns(pl.col("MB").alias("budget MB"))
    within = ran.filter(pl.col("most steps") != "-")
    settings = within.select("stream", "flags", "most steps").unique(maintain_order=True).rows()
    for number, (stream, flags, steps) in enumerate(settings):
        same = (pl.col("stream") == stream) & (pl.col("flags") == flags)
        part = ran.filter(same & pl.col("most steps").is_in([steps, "-"]))
        for metric in ("recall@20", "ndcg@20"):
            table = areas(curves(part, metric), metric, "budget")
            parts += [f"## {stream}, {flags}, {steps} steps: areas of {metric}\n\n{table}"] if table else []
        if figures.has_matplotlib():
            # A stream of one setting has its name; others are told apart by their order in the file.
            alone = [s for s, *_ in settings].count(stream) == 1
            name = f"{path.stem}-{Path(stream).stem}{'' if alone else f'-{number}'}.png"
            picture(path.with_name(name), part, f"{stream}, {steps} steps")
    if parts:
        parts.append(
            "AUC-A: area under the mean over segments, AUC-L: under the last segment, each divided by the range of "
            "(log) memory. Methods without the least or the largest budget have none."
        )
    refused = shown.filter(pl.col("recall@20").is_null()).to_dicts()
    # Seeds of one method are refused for one reason.
    found = (f"- {x['stream']}, {x['line']}, mean size {x['mean size']}: {x.get('refused')}" for x in refused)
    reasons = list(dict.fromkeys(found))
    return [*parts, *(["\n".join(["## Budgets that cannot be used\n", *reasons])] if reasons else [])]


def publish(path: Path) -> str:
    """Write and print tables and pictures of a file's cells; the text.

    Args:
      path: of the file.
    """
    frame = cell_file.finished(path)
    # Cells of other flags may have no such column.
    columns = ("flags", "replay")
    frame = frame.with_columns(
        (pl.col(c) if c in frame.columns else pl.lit(None, pl.String)).fill_null("-").alias(c) for c in columns
    )
    shown = frame.with_columns(line=pl.Series([label(x) for x in frame.iter_rows(named=True)], dtype=pl.String))
    table = shown.filter(pl.col("recall@20").is_not_null())
    row = [column for column in ROW if column != "replay" or (table["replay"] != "-").any()]
    title = "# The arena\n\nBy `python -m experiments.arena`; its help has the commands."
    return cell_file.publish(path, table, row, "uniform", title, below(path, shown))


def main(flags: Arena) -> str:
    """Run the cells that are not in the file yet; the text of the tables."""
    flags = compare.checked(flags)
    if not flags.report:
        found, refused = cells(flags)
        cell_file.keep_refused(flags.results, flags, refused)
        cell_file.run(flags.results, flags, found)
    return publish(flags.results)


if __name__ == "__main__":
    cli(Arena, main, __doc__)
