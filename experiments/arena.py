"""The arena: SCALL and its rivals at the same bytes on the same stream.

    python -m experiments.arena                                              # online-retail, two budgets, one seed
    python -m experiments.arena --data clicks.parquet --mean-sizes .5 2 8 32 --seeds 0 1 2 --fit.steps 1000
    python -m experiments.arena --method uniform frequency --mean-sizes 2 8 --replays 0 .1 .2 .5   # rows against width
    python -m experiments.arena --method uniform uniform@recommender=saros memo reid evict_count evict_age evict_score
    python -m experiments.arena --method uniform s2pnm --mean-sizes 32 64   # its network is paid for

Every method gets the same constant number of bytes, and pays for everything that it stores: table, sizes, scales,
codes; with `--charge serving` for LightGCN's graph or final vectors too, with `--charge table` for the table alone. All
columns, axes and figures per MB say which of these their bytes are. `--mean-sizes` are float32 parameters per entity at
the end of the stream. A cell is a run folder; finished cells are kept, an interrupted one continues. Writes the table
of `experiments.compare`, arena.parquet (a row per run and segment, bytes by charge included), arena.png (Recall@20 by
megabytes, the best outside the budget as a line) and below the table areas under the curves of Recall@20 and NDCG@20
over memory and tests of the method that valid prefers against every other, with the variance over users and over seeds
(two seeds at least; a claim takes 8), corrected by Holm's rule. Baselines (popularity, ease) and `full` are outside the
budget; the bytes that they take are listed. With `--replays` the rows that a segment trains on again are paid for too,
8 bytes each, and cost embedding width: the rows themselves, not a reservoir to draw them from. Methods that cannot use
a budget are listed with the reason and left out there. Cost: the sum of the runs, 20 minutes by default on one core.
Expect `frequency` ahead or level from mean size 2 on, and `mixed_precision` beside it in the middle; on a stream like
Yelp SCALL's searches are ahead at half a parameter an entity and level or a little behind elsewhere; methods that
decide entity by entity or share rows are level with uniform sizes or behind.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from experiments import compare, strata
from scall_jax import FitConfig
from scall_jax.analysis import memory_curves, plots, report, significance
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli
from scall_jax.evaluation.user_strata import StrataConfig
from scall_jax.methods.registry import BASELINES
from scall_jax.run import folder as run_folder
from scall_jax.run import records

COLUMNS = (
    "segment",
    "users",
    "items",
    "test_users",
    "test_recall@20",
    "test_ndcg@20",
    "valid_recall@20",
    "valid_ndcg@20",
    *records.ACCOUNT,
    "seconds_fit",
    "seconds_search",
)
"""Keys of a line of metrics that go to arena.parquet."""


@dataclasses.dataclass(frozen=True)
class Arena(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = (
        "uniform",
        "random",
        "frequency",
        "fixed",
        "spectral",
        "scall",
        "scall-random",
        "binary_hash",
        "quotient_remainder",
        "popularity-decayed",
        "ease",
    )
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (2.0, 8.0)
    """Budgets, in float32 parameters per entity at the end of the stream."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the runs; a run for each."""
    fit: FitConfig = FitConfig(steps=200)
    """Training of a segment."""
    charge: str = "stored"
    """What the budget pays for: table, stored, replay or serving, as in `experiments.run`."""
    replays: tuple[float, ...] = ()
    """Values of --cut.replay to compare; each is a cell of its own, and the budget pays 8 bytes for each replayed row
    before it pays for the table."""
    by_strata: bool = False
    """Also write the tables of `experiments.strata`."""
    strata: StrataConfig = StrataConfig()
    """How coherence is computed, with --by-strata."""
    out: Path = Path("runs/arena")
    """Folder of the cells and the results."""


class Curve(NamedTuple):
    """Quality over memory of one method, by ascending budget."""

    megabytes: list[float]
    """Budgets in 10^6 bytes."""
    mean: list[float]
    """Means over segments and seeds."""
    spread: list[float]
    """Standard deviations over seeds."""
    last: list[float]
    """Means over seeds of the last segment with enough test users."""


def cells(flags: Arena) -> tuple[list[compare.Cell], list[str]]:
    """The runs that can be made, and Markdown lines with the reasons why others cannot.

    Raises:
      ValueError: a flag is wrong for all runs, or no run can be made.
    """
    found, refused, streams, sizes = [], [], {}, {}
    for shown, cell in _all_cells(flags):
        (method,) = cell.method
        # Raises where anything but the budget is wrong, which is wrong for all runs.
        run_flags.make_config(cell, method)
        if cell.cut not in streams:
            streams[cell.cut] = run_flags.load_stream(dataclasses.replace(flags, cut=cell.cut))
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
        try:
            run_flags.trace_init(run_flags.make_config(cell, method), stream)
        except ValueError as error:
            refused.append(f"- {label(shown)} at mean size {shown['mean size']}: {error}")
            continue
        found.append(compare.Cell(shown, cell))
    refused = list(dict.fromkeys(refused))
    if not found:
        raise ValueError("\n".join(["no method can use its budget:", *refused]))
    return found, refused


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
                out = cell.out.with_name(f"replay{part:g}-{cell.out.name}")
                changed = dataclasses.replace(cell, cut=cut, charge="replay", out=out)
                yield compare.Cell(shown | {"replay": f"{part:g}"}, changed)


def label(shown: dict[str, str]) -> str:
    """Name of a line in plots and lists: the method, its replay where that is a column, its bias where it has one."""
    replay, bias = shown.get("replay", "-"), shown["bias"]
    options = ("" if replay == "-" else f", replay {replay}") + ("" if bias in ("-", "none") else f", bias {bias}")
    return shown["method"] + options


def _lines(folder: Path) -> list[dict[str, Any]]:
    return run_folder.read_lines(folder / "metrics.jsonl")


def to_frame(groups: compare.Groups) -> pl.DataFrame:
    """A row per run and segment: the columns of the table, the folder, and `COLUMNS`; null where a run has none."""
    rows = []
    for key, folders in groups.items():
        for folder in folders:
            rows += [dict(key) | {"run": str(folder)} | {c: x.get(c) for c in COLUMNS} for x in _lines(folder)]
    return pl.DataFrame(rows, infer_schema_length=None)


def curves(groups: compare.Groups, metric: str) -> dict[str, Curve]:
    """Quality over memory of the methods within the budget.

    Args:
      groups: finished runs.
      metric: on test, `recall@20` or `ndcg@20`.

    Returns:
      A curve by method; budgets at which no segment has enough test users are left out.
    """
    found: dict[str, list[tuple[float, ...]]] = {}
    for key, folders in groups.items():
        shown = dict(key)
        if shown["MB"] == "-":
            continue
        lines = [_lines(folder) for folder in folders]
        means = [records.summarise(x)[f"mean_test_{metric}"] for x in lines]
        if any(mean is None for mean in means):
            continue
        last = [[x for x in run_lines if x["test_users"] >= records.LEAST_USERS][-1] for run_lines in lines]
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
        point = (float(shown["MB"]), float(np.mean(means)), spread, float(np.mean([x[f"test_{metric}"] for x in last])))
        found.setdefault(label(shown), []).append(point)
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


def outside(groups: compare.Groups) -> list[str]:
    """A Markdown line for each method outside the budget with the bytes that it takes at the end."""
    found = []
    for key, folders in groups.items():
        if dict(key)["MB"] == "-":
            last = _lines(folders[0])[-1]
            table, serving = (1e-6 * last[name] for name in ("bytes_table", "bytes_serving"))
            sizes = f"table {table:.4g} MB, serving {serving:.4g} MB"
            found.append(f"- {dict(key)['method']} is outside the budget: {sizes}")
    return found


def ceiling(groups: compare.Groups, charge: str) -> dict[str, float]:
    """Mean test Recall@20 of the best method outside the budget by its name and the bytes that a budget would pay for;
    empty without any."""
    found = []
    for key, folders in groups.items():
        if dict(key)["MB"] != "-":
            continue
        lines = [_lines(folder) for folder in folders]
        means = [records.summarise(x)["mean_test_recall@20"] for x in lines]
        if not any(mean is None for mean in means):
            megabytes = 1e-6 * records.paid_bytes(lines[0][-1], charge)
            found.append((float(np.mean(means)), f"{label(dict(key))}, {megabytes:.3g} MB"))
    if not found:
        return {}
    best, name = max(found)
    return {name: best}


def tests(groups: compare.Groups) -> list[str]:
    """Markdown lines of the tests: per budget the method within it that valid prefers, against every other method."""
    lines: list[str] = []
    for budget in sorted({dict(key)["MB"] for key in groups} - {"-"}, key=float):
        here = {label(dict(key)): folders for key, folders in groups.items() if dict(key)["MB"] in (budget, "-")}
        within = {label(dict(key)) for key in groups if dict(key)["MB"] == budget}
        valid = {m: _valid(folders) for m, folders in here.items() if m in within}
        best = max(valid, key=valid.__getitem__)
        pairs = {f"{budget} MB: {best} - {m}": (here[best], here[m]) for m in here if m != best}
        lines += significance.tested(pairs)
    note = (
        f"Per budget the method that valid prefers against every other. {significance.READING} p-values are corrected "
        "by Holm's rule for the tests of a budget."
    )
    return [note, "", *lines] if lines else []


def _valid(folders: list[Path]) -> float:
    """Mean valid Recall@20 over seeds; 0 where no segment counts."""
    found = [json.loads((folder / "summary.json").read_text())["mean_valid_recall@20"] for folder in folders]
    return float(np.mean([0.0 if x is None else x for x in found]))


def main(flags: Arena) -> list[dict[str, str]]:
    """Run all cells; a row per method and budget."""
    flags = compare.checked(flags)
    found, refused = cells(flags)

    def below(groups: compare.Groups) -> str:
        to_frame(groups).write_parquet(flags.out / "arena.parquet")
        if flags.by_strata:
            named = {strata.name_of(folders[0], flags.out): folders for folders in groups.values()}
            strata.write(flags.out, named, run_flags.load_stream(flags), flags.strata)
        by_metric = {metric: curves(groups, metric) for metric in ("recall@20", "ndcg@20")}
        series = {m: (x.megabytes, x.mean, x.spread) for m, x in by_metric["recall@20"].items()}
        charge = "replay" if flags.replays else flags.charge
        labels = Path(flags.data).name, f"budget (10^6 bytes, {charge})", "test Recall@20"
        plots.plot_lines(flags.out / "arena.png", series, *labels, ceiling(groups, charge))
        parts = [areas(found, metric, charge) for metric, found in by_metric.items()]
        if any(parts):
            parts.append(
                "AUC-A: area under the mean over segments, AUC-L: under the last segment, each divided by the range of "
                "(log) memory. Methods without the least or the largest budget have none."
            )
        parts += ["\n".join(x) for x in (tests(groups), outside(groups), refused)]
        return "\n\n".join(part for part in parts if part)

    return compare.run_cells(flags, found, below)


if __name__ == "__main__":
    cli(Arena, main, __doc__)
