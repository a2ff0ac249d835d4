"""SCALL against uniform, fixed and frequency sizes, and against searches without a network at equal probes.

    python -m experiments.scall                                               # online-retail, mean size 4, 3 seeds
    python -m experiments.scall --data yelp.parquet --mean-sizes 2 4 8 16 --fit.steps 1000 --out runs/scall-yelp

Takes the flags of `experiments.compare`. Below the table: paired tests of `--ours` against every other method of the
same budget, over users (one user's mean over segments and seeds) and over seeds. With `--choose`, `frequency` runs with
some powers and `fixed` with some actions by the first seed; those best on valid get a row `on valid`, by all seeds.
Cost: 13 probes of 50 steps add 650 steps to each segment's `--fit.steps`. Expect `scall` level with `frequency`,
and ahead of `uniform` at mean size 4 (experiments/results/online-retail-scall.md).
"""

import dataclasses
import itertools
import json
from pathlib import Path

from experiments import compare
from scall_jax.analysis import significance
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli


@dataclasses.dataclass(frozen=True)
class Scall(compare.Compare):
    """Flags; all those of `experiments.compare` apply."""

    method: tuple[str, ...] = ("uniform", "fixed", "frequency", "shuffled", "scall", "scall-random", "popularity")
    """Methods to compare."""
    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    ours: str = "scall"
    """Method that is tested against every other."""
    choose: bool = False
    """Also run `frequency` and `fixed` with the parameters that are best on valid."""
    powers: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    """Powers of `frequency` that --choose tries."""
    shares: tuple[float, ...] = (0.35, 0.6)
    """Users' shares of the budget of `fixed` that --choose tries."""
    shapes: tuple[float, ...] = (0.25, 0.5, 1.5)
    """Shapes of `fixed`, the same on both sides, that --choose tries."""
    out: Path = Path("runs/scall")
    """Folder of the cells and the table."""


def variants(flags: Scall, size: float, seed: int) -> dict[str, dict[str, Scall]]:
    """Runs to choose from at one budget.

    Args:
      flags: of the comparison.
      size: budget in parameters per entity.
      seed: of the runs.

    Returns:
      Flags of each run by method and by its parameters as text.
    """
    changes: dict[str, dict[str, dict[str, float]]] = {"frequency": {f"p={p:g}": {"power": p} for p in flags.powers}}
    changes["fixed"] = {
        f"rho={rho:g} a={a:g}": {"rho": rho, "user_shape": a, "item_shape": a}
        for rho, a in itertools.product(flags.shares, flags.shapes)
    }

    def cell(method: str, label: str, change: dict[str, float]) -> Scall:
        out = flags.out / method / f"{label.replace(' ', '-')}-mean{size:g}-seed{seed}"
        sizes = dataclasses.replace(flags.sizes, **change)
        return dataclasses.replace(
            compare.cell_flags(flags, out, method, size, seed), sizes=sizes, bias=flags.biases[0]
        )

    return {
        method: {label: cell(method, label, change) for label, change in found.items()}
        for method, found in changes.items()
    }


def choose(flags: Scall) -> tuple[list[compare.Cell], str]:
    """Try all parameters by the first seed.

    Args:
      flags: of the comparison.

    Returns:
      Cells of the parameters that are best on valid, by all seeds, and a Markdown list of what was tried.
    """
    first, *others = flags.seeds
    chosen, lines = [], []
    for size in flags.mean_sizes:
        tried = variants(flags, size, first)
        shown = [
            compare.Cell({"method": f"{method} {label}", "bias": flags.biases[0], "mean size": f"{size:g}"}, cell)
            for method, changes in tried.items()
            for label, cell in changes.items()
        ]
        compare.run_cells(dataclasses.replace(flags, out=flags.out / f"tried-mean{size:g}"), shown)
        for method, changes in tried.items():
            valid = {label: _valid(cell.out) for label, cell in changes.items()}
            best = max(valid, key=valid.__getitem__)
            columns = {"method": f"{method} on valid", "bias": flags.biases[0], "mean size": f"{size:g}"}
            best_cells = [changes[best], *(variants(flags, size, seed)[method][best] for seed in others)]
            chosen += [compare.Cell(columns, cell) for cell in best_cells]
            all_tried = ", ".join(f"{label} {value:.4f}" for label, value in valid.items())
            lines.append(f"- {method} at mean size {size:g}: {best}; valid Recall@20 by seed {first}: {all_tried}")
    return chosen, "\n".join(lines)


def _valid(folder: Path) -> float:
    return json.loads((folder / "summary.json").read_text())["mean_valid_recall@20"] or 0.0


def tests(flags: Scall, folders: compare.Groups) -> str:
    """Markdown list of the tests of `flags.ours` against every other method of the same budget."""
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
    note = "By users' means over all segments but the first; p-values are not corrected for their number."
    return "\n".join([note, "", *lines]) if lines else ""


def main(flags: Scall) -> list[dict[str, str]]:
    """Run all cells and test; a row per method, bias and budget."""
    flags = compare.checked(flags)
    if flags.ours not in run_flags.expand(flags.method):
        raise ValueError(f"--ours {flags.ours!r} is not among the methods: {', '.join(flags.method)}")
    found, chosen, tried = compare.cells(flags), [], ""
    if flags.choose:
        # Refuse a cell that cannot be run before any parameters are tried, which takes long.
        compare.refuse(flags, found)
        chosen, tried = choose(flags)

    def below(folders: compare.Groups) -> str:
        return "\n\n".join(filter(None, [tests(flags, folders), tried]))

    return compare.run_cells(flags, [*found, *chosen], below)


if __name__ == "__main__":
    cli(Scall, main, __doc__)
