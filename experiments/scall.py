"""SCALL against uniform, fixed and frequency sizes, and against searches without a network at equal probes.

    python -m experiments.scall                                               # online-retail, mean size 4, 3 seeds
    python -m experiments.scall --data yelp.parquet --mean-sizes 2 4 8 16 --fit.steps 1000 --out runs/scall-yelp

Takes the flags of `experiments.compare`. Below the table: paired tests of `--ours` against every other method of the
same budget, over users (one user's mean over segments and seeds) and over seeds. With `--choose`, `frequency` runs with
some powers and `fixed` with some actions by the first seed; those best on valid get a row `on valid`, by all seeds.
Cost: 13 probes of 50 steps add 650 steps to each segment's `--fit.steps`; tables and commands are in
experiments/results.
"""

import dataclasses
import json
from pathlib import Path

from experiments import compare
from scall_jax.analysis import significance
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli


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
    """Also run `frequency` and `fixed` with the parameters that are best on valid."""
    powers: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """--choose: powers of `frequency`."""
    shares: tuple[float, ...] = (0.35, 0.6)
    """--choose: users' shares of `fixed`."""
    shapes: tuple[float, ...] = (0.25, 0.5, 1.5)
    """--choose: shapes of `fixed`, the same on both sides."""
    out: Path = Path("runs/scall")
    """Folder of the cells and the table."""


def variants(flags: Scall, size: float, seed: int) -> dict[str, dict[str, run_flags.Main]]:
    """Cells to choose from at one budget, by method and parameters."""
    found = {"frequency": {f"p={p:g}": {"power": p} for p in flags.powers}, "fixed": {}}
    for rho in flags.shares:
        for a in flags.shapes:
            found["fixed"][f"rho={rho:g} a={a:g}"] = {"rho": rho, "user_shape": a, "item_shape": a}
    for method, changes in found.items():
        for label, change in changes.items():
            out = flags.out / method / f"{label.replace(' ', '-')}-mean{size:g}-seed{seed}"
            cell = compare.cell_flags(flags, out, method, size, seed)
            cell = dataclasses.replace(cell, sizes=dataclasses.replace(flags.sizes, **change), bias=flags.biases[0])
            changes[label] = cell
    return found


def choose(flags: Scall) -> tuple[list[tuple[dict, run_flags.Main]], str]:
    """Cells of the parameters that are best on valid by the first seed; Markdown list of what was tried."""
    first, *others = flags.seeds
    chosen, lines = [], []
    for size in flags.mean_sizes:
        tried = variants(flags, size, first)
        shown = [
            ({"method": f"{method} {label}", "bias": cell.bias, "mean size": f"{size:g}"}, cell)
            for method, changes in tried.items()
            for label, cell in changes.items()
        ]
        compare.run_cells(dataclasses.replace(flags, out=flags.out / f"tried-mean{size:g}"), shown, "experiments.scall")
        for method, changes in tried.items():
            valid = {label: _valid(cell.out) for label, cell in changes.items()}
            best = max(valid, key=valid.get)
            columns = {"method": f"{method} on valid", "bias": flags.biases[0], "mean size": f"{size:g}"}
            chosen.append((columns, changes[best]))
            chosen += [(columns, variants(flags, size, seed)[method][best]) for seed in others]
            all_tried = ", ".join(f"{label} {value:.4f}" for label, value in valid.items())
            lines.append(f"- {method} at mean size {size:g}: {best}; valid Recall@20 by seed {first}: {all_tried}")
    return chosen, "\n".join(lines)


def _valid(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["mean_valid_recall@20"] or 0.0


def tests(flags: Scall, folders: dict[tuple, list[Path]]) -> str:
    """Markdown list of the tests of `flags.ours`."""
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
            seeds = "" if result["seeds"] is None else f", over seeds {result['seeds']:.2g}"
            lines.append(
                f"- {flags.ours} (bias {shown['bias']}) - {other['method']} (bias {other['bias']}) at mean size "
                f"{shown['mean size']}: Recall@20 {result['difference']:+.4f}, p over {result['count']} users "
                f"{result['users']:.2g}{seeds}"
            )
    said = "By users' means over all segments but the first; p-values are not corrected for their number."
    return "\n".join([said, "", *lines]) if lines else ""


def main(flags: Scall) -> list[dict]:
    """Run, compare and test."""
    flags = compare.checked(flags)
    if flags.ours not in run_flags.expand(flags.method):
        raise ValueError(f"--ours {flags.ours!r} is not among the methods: {', '.join(flags.method)}")
    found, chosen, tried = compare.cells(flags), [], ""
    if flags.choose:
        compare.refuse(flags, found)  # before anything is tried
        chosen, tried = choose(flags)

    def below(rows, folders):
        return "\n\n".join(filter(None, [tests(flags, folders), tried]))

    return compare.run_cells(flags, [*found, *chosen], "experiments.scall", below)


if __name__ == "__main__":
    cli(Scall, main, __doc__)
