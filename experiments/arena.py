"""The arena: SCALL and its rivals at the same bytes on the same stream.

    python -m experiments.arena                                              # online-retail, two budgets, one seed
    python -m experiments.arena --data clicks.parquet --mean-sizes .5 2 8 32 --seeds 0 1 2 --fit.steps 1000

Every method gets the same constant number of bytes, and pays for everything that serving needs: parameters, codes,
sizes, scales. `--mean-sizes` are float32 parameters per entity at the end of the stream. A cell is a run folder;
finished cells are kept, an interrupted one continues. Writes the table of `experiments.compare`, arena.parquet (a row
per run and segment, bytes by charge included), arena.png (Recall@20 by megabytes) and below the table areas under the
curve over memory and tests of the method that valid prefers against every other, corrected after Holm. Cost: the sum of
the runs. Methods that cannot use a budget are named with their reason and left out there. Expect methods that size by
frequency ahead where few parameters bind, and level where many are left.
"""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import polars as pl

from experiments import compare, memory, run, significance, strata
from scall_jax import FitConfig, make_run, records, report
from scall_jax.methods import REFERENCES
from scall_jax.strata import StrataConfig

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
    """Flags; those of `experiments.compare` hold."""

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
    )
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (2.0, 8.0)
    """Budgets, in float32 parameters per entity at the end of the stream."""
    seeds: tuple[int, ...] = (0,)
    """Of the runs."""
    fit: FitConfig = FitConfig(steps=200)
    charge: str = "all"
    """What the budget pays for."""
    by_strata: bool = False
    """Also write the tables of `experiments.strata`."""
    strata: StrataConfig = StrataConfig()
    """--by-strata: how coherence is computed."""
    out: Path = Path("runs/arena")
    """Folder of the cells and the results."""


def cells(flags: Arena) -> tuple[list[tuple[dict, run.Main]], list[str]]:
    """Columns and flags of the runs that can be made, and why the others cannot."""
    stream = run.load_stream(flags)
    entities = sum(stream.known(stream.bounds[-1].train))
    found, refused = [], []
    for shown, cell in compare.cells(flags):
        (method,) = cell.method
        if method not in REFERENCES:
            megabytes = 4e-6 * float(cell.budget.mean_size) * entities
            cell = dataclasses.replace(cell, budget=run.BudgetFlags(megabytes=megabytes))
            shown = shown | {"MB": f"{megabytes:.4g}"}
        else:
            shown = shown | {"MB": "-"}
        try:
            make_run(run.make_config(cell, method)).init(jax.random.key(0), stream)
        except ValueError as error:
            refused.append(f"- {method} at mean size {shown['mean size']}: {error}")
            continue
        found.append((shown, cell))
    return found, list(dict.fromkeys(refused))


def _lines(folder: Path) -> list[dict]:
    return records.read_lines(folder / "metrics.jsonl")


def to_frame(groups: dict[tuple, list[Path]]) -> pl.DataFrame:
    """A row per run and segment: the columns of the table, the folder, and `COLUMNS`; null where a run has none."""
    rows = []
    for key, folders in groups.items():
        for folder in folders:
            rows += [dict(key) | {"run": str(folder)} | {c: x.get(c) for c in COLUMNS} for x in _lines(folder)]
    return pl.DataFrame(rows, infer_schema_length=None)


def curves(groups: dict[tuple, list[Path]]) -> dict[str, dict[str, list]]:
    """By method with a budget: megabytes ascending, and for each mean, spread and last segment of Recall@20."""
    found = {}
    for key, folders in groups.items():
        shown = dict(key)
        if shown["MB"] == "-":
            continue
        lines = [_lines(folder) for folder in folders]
        means = [records.summarise(x)["mean_test_recall@20"] for x in lines]
        if any(mean is None for mean in means):
            continue  # no segment has enough test users
        last = [[x for x in run_lines if x["test_users"] >= records.LEAST_USERS][-1] for run_lines in lines]
        spread = float(np.std(means, ddof=1)) if len(means) > 1 else 0.0
        point = (float(shown["MB"]), float(np.mean(means)), spread, float(np.mean([x["test_recall@20"] for x in last])))
        found.setdefault(shown["method"], []).append(point)
    named = ("megabytes", "mean", "spread", "last")
    return {
        m: dict(zip(named, map(list, zip(*sorted(points), strict=True)), strict=True)) for m, points in found.items()
    }


def areas(found: dict[str, dict[str, list]]) -> str:
    """Markdown table of the areas over memory, best first; empty with a single budget."""
    most = max((len(x["megabytes"]) for x in found.values()), default=0)
    rows = []
    for method, x in found.items():
        if most < 2 or len(x["megabytes"]) < most:
            continue
        start, end = memory.per_megabyte(x["megabytes"], x["mean"])
        values = (
            memory.area(x["megabytes"], x["mean"]),
            memory.area(x["megabytes"], x["mean"], logarithmic=True),
            memory.area(x["megabytes"], x["last"]),
            memory.area(x["megabytes"], x["last"], logarithmic=True),
        )
        rows.append([method, *(f"{v:.4f}" for v in values), f"{start:.3g}", f"{end:.3g}"])
    header = ["method", "AUC-A", "AUC-A log", "AUC-L", "AUC-L log", "per MB, least", "per MB, most"]
    return report.markdown(header, sorted(rows, key=lambda row: row[2], reverse=True)) if rows else ""


def tests(groups: dict[tuple, list[Path]]) -> list[str]:
    """Per budget, the method that valid prefers against each other; p over users after Holm, and over seeds."""
    lines = []
    for budget in sorted({dict(key)["MB"] for key in groups} - {"-"}, key=float):
        here = {dict(key)["method"]: folders for key, folders in groups.items() if dict(key)["MB"] in (budget, "-")}
        valid = {m: _valid(folders) for m, folders in here.items()}
        best = max(valid, key=valid.get)
        others = [m for m in here if m != best]
        results = [significance.compare_runs(here[best], here[m]) for m in others]
        corrected = memory.holm([r["users"] for r in results])
        for m, r, p in zip(others, results, corrected, strict=True):
            seeds = f", over seeds {r['seeds']:.2g}" if len(here[m]) > 1 else ""
            gain = f"Recall@20 {r['difference']:+.4f}, p over {r['count']} users {p:.2g}{seeds}"
            lines.append(f"- {budget} MB: {best} - {m}: {gain}")
    return lines


def _valid(folders):
    found = [json.loads((folder / "summary.json").read_text())["mean_valid_recall@20"] for folder in folders]
    return float(np.mean([0.0 if x is None else x for x in found]))


def main(flags: Arena) -> list[dict]:
    """Run all cells; a row per method and budget."""
    flags = run.by_protocol(flags)
    found, refused = cells(flags)

    def more(rows, groups):
        del rows
        to_frame(groups).write_parquet(flags.out / "arena.parquet")
        if flags.by_strata:
            named = {strata.name_of(folders[0], flags.out): folders for folders in groups.values()}
            strata.write(flags.out, named, run.load_stream(flags), flags.strata)
        by_method = curves(groups)
        series = {m: (x["megabytes"], x["mean"], x["spread"]) for m, x in by_method.items()}
        report.plot_lines(flags.out / "arena.png", series, str(flags.data), "MB at rest (10^6 bytes)", "test Recall@20")
        parts = [areas(by_method), "\n".join(tests(groups)), "\n".join(refused)]
        return "\n\n".join(part for part in parts if part)

    return compare.run_cells(flags, found, "experiments.arena", more)


if __name__ == "__main__":
    run.cli(Arena, main, __doc__)
