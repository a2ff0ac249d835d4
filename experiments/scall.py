"""SCALL against uniform, fixed and frequency sizes, and against searches without a network at equal probes.

    python -m experiments.scall                                               # online-retail, mean size 4, 3 seeds
    python -m experiments.scall --data yelp.parquet --mean-sizes 2 4 8 16 --fit.steps 1000 --out runs/scall-yelp

Takes the flags of `experiments.compare`. Below the table: paired tests of `--ours` against every other method of the
same budget, over users (one user's mean over segments and seeds) and over seeds. With `--choose`, adds as rows the
powers of `frequency` and the actions of `fixed` out of small grids, and says which of them is best on valid. Cost: a
searched run costs about two plain ones at 12 probes of 50 steps; tables and commands are in experiments/results.
"""

import dataclasses
from pathlib import Path

from experiments import compare, run, significance
from scall_jax import SEARCHED
from scall_jax.methods import REFERENCES


@dataclasses.dataclass(frozen=True)
class Scall(compare.Compare):
    """Flags; those of `experiments.compare` hold."""

    method: tuple[str, ...] = ("uniform", "fixed", "frequency", "shuffled", "scall", "scall-random", "popularity")
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    ours: str = "scall"
    """The method that the tests are about."""
    choose: bool = False
    """Also run `frequency` and `fixed` with other parameters; the best on valid gets a row."""
    powers: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """--choose: powers of `frequency`."""
    shares: tuple[float, ...] = (0.35, 0.6)
    """--choose: users' shares of `fixed`."""
    shapes: tuple[float, ...] = (0.25, 0.5, 1.5)
    """--choose: shapes of `fixed`, the same on both sides."""
    out: Path = Path("runs/scall")
    """Folder of the cells and the table."""


def cells(flags: Scall) -> list[tuple[dict, run.Main]]:
    """Those of `experiments.compare` and the variants to choose from."""
    found = compare.cells(flags)
    if not flags.choose:
        return found
    variants = [("frequency", f"p={p:g}", {"power": p}) for p in flags.powers]
    for rho in flags.shares:
        for a in flags.shapes:
            shape = {"rho": rho, "user_shape": a, "item_shape": a}
            variants.append(("fixed", f"rho={rho:g} a={a:g}", shape))
    for method, label, change in variants:
        for size in flags.mean_sizes:
            for seed in flags.seeds:
                out = flags.out / method / f"{label.replace(' ', '-')}-mean{size:g}-seed{seed}"
                cell = compare.cell_flags(flags, out, method, size, seed)
                cell = dataclasses.replace(cell, sizes=dataclasses.replace(flags.sizes, **change), bias=flags.biases[0])
                shown = {"method": f"{method} {label}", "bias": flags.biases[0], "mean size": f"{size:g}"}
                found.append((shown, cell))
    return found


def tests(flags: Scall, rows: list[dict], folders: dict[tuple, list[Path]]) -> str:
    """Markdown list of the tests of `flags.ours`, and what valid chooses."""
    named = {key: dict(key) for key in folders}
    lines = []
    for ours, shown in named.items():
        if shown["method"] != flags.ours:
            continue
        for theirs, other in named.items():
            same_size = other["mean size"] in (shown["mean size"], "-")
            if theirs == ours or not same_size:
                continue
            result = significance.compare_runs(folders[ours], folders[theirs])
            seeds = "" if other["method"] in REFERENCES else f", over seeds {result['seeds']:.2g}"
            lines.append(
                f"- {flags.ours} (bias {shown['bias']}) - {other['method']} (bias {other['bias']}) at mean size "
                f"{shown['mean size']}: Recall@20 {result['difference']:+.4f}, p over {result['count']} users "
                f"{result['users']:.2g}{seeds}"
            )
    for method in ("frequency", "fixed"):
        for size in sorted({row["mean size"] for row in rows}):
            tried = [row for row in rows if row["method"].startswith(method) and row["mean size"] == size]
            if len(tried) > 1:
                best = max(tried, key=lambda row: float(row["valid R@20"].split()[0]))
                found = f"{best['method']}, test Recall@20 {best['Recall@20']}"
                lines.append(f"- best {method} on valid at mean size {size}: {found}")
    return "\n".join(lines)


def main(flags: Scall) -> list[dict]:
    """Run, compare and test."""
    flags = run.by_protocol(flags)
    if flags.ours not in (*SEARCHED, *run.expand(flags.method)):
        raise ValueError(f"--ours {flags.ours!r} is not among the methods: {', '.join(flags.method)}")
    return compare.run_cells(
        flags, cells(flags), "experiments.scall", lambda rows, folders: tests(flags, rows, folders)
    )


if __name__ == "__main__":
    run.cli(Scall, main, __doc__)
