"""What `auto` costs against the best of its candidates: all of them, by seed, on one stream at several budgets.

    python -m experiments.auto_choice --cut.new-entities 1600                                     # online-retail
    python -m experiments.auto_choice --data yelp2019_a.parquet --cut.segments 4
    python -m experiments.auto_choice --data movietweetings --cut.segments 8
    python -m experiments.auto_choice --data amazon_beauty.parquet --cut.segments 4 --cut.shuffle-ties

Every candidate of `auto` runs over the whole stream at 4, 8 and 32 bytes an entity, which pay for all that serving
needs. From their lines follows what auto would have served, with all candidates kept and with the race that it runs.
The best fixed candidate is chosen by test on one half of the seeds and scored on the other. Each candidate's run is a
row of --results as soon as it is finished, and is not run again. Writes, beside the file, tables of all of its rows,
and prints them. Cost: 8 runs a seed and budget, of 10 to 60 seconds each on one core. Expect auto within 3% of the best
fixed candidate, and its race within 3 times the seconds of the dearest one.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from experiments import cell_file, compare
from scall_jax import Config
from scall_jax.analysis import report
from scall_jax.cli import commands
from scall_jax.cli.cli import cli
from scall_jax.run import auto, race, records, removal, text_files
from scall_jax.streams import Stream

_KEPT = ("segment", "valid_users", "valid_recall@20", "valid_ndcg@20", "test_users", "test_recall@20", "bytes_serving")
"""What a row keeps of each segment's line."""

_SECONDS = ("seconds_fit", "seconds_evaluate", "seconds_search", "seconds_sizes")
"""Seconds of a segment's work; compiling comes once, and not again where programs are kept."""

SAFE = "ials int4 uniform"
"""The candidate that auto must not lose to."""

Lines = dict[str, list[dict[str, Any]]]
"""Lines of metrics by candidate."""


@dataclasses.dataclass(frozen=True)
class AutoChoice(compare.Compare):
    """Flags; all those of `experiments.compare` apply, but --method."""

    method: tuple[str, ...] = ("uniform",)
    """Not used: the candidates say what runs."""
    mean_sizes: tuple[float, ...] = (1.0, 2.0, 8.0)
    """Budgets, in float32 parameters per entity."""
    seeds: tuple[int, ...] = (0, 1, 2, 3)
    """Seeds of the runs; a run of each candidate for each."""
    report: bool = False
    """Write the tables of what is in the file, and run nothing."""
    results: Path = Path("experiments/results/auto_choice.parquet")
    """File of the finished runs."""
    out: Path = Path("runs/auto_choice")
    """Folder for the run in progress and for compiled programs."""


def run(flags: AutoChoice) -> None:
    """Run what the file lacks, seed by seed."""
    base = compare.cell_flags(flags, flags.out, "uniform", flags.mean_sizes[0], flags.seeds[0])
    _, streams = compare.refuse(flags, [compare.Cell({}, base)])
    stream = streams[flags.cut]
    flags.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    for seed in flags.seeds:
        for size in flags.mean_sizes:
            cell = compare.cell_flags(flags, flags.out, "uniform", size, seed)
            (config,), _ = compare.refuse(flags, [compare.Cell({}, cell)])
            found = auto.candidates(config)
            fits, _ = auto.feasible(found, stream)
            for name in (name for name, count in fits.items() if count == len(stream)):
                # Whatever changes a candidate is another setting.
                setting = dataclasses.replace(config, method="auto")
                shown = {"setting": cell_file.identity(setting, stream, 0)}
                _run_one(flags, cell, stream, found[name], shown | {"mean size": f"{size:g}", "candidate": name})


def _run_one(flags: AutoChoice, cell: AutoChoice, stream: Stream, config: Config, shown: Mapping[str, str]) -> None:
    """Run one candidate by one seed, unless the file has it."""
    frame, name = cell_file.read(flags.results), cell_file.identity(config, stream, cell.seed)
    if not frame.is_empty() and name in frame["cell"]:
        return
    folder = flags.out / name
    _, lines = commands.run_method(cell, config, stream, folder)
    row = {"cell": name, "commit": cell_file.commit(), "stream": Path(stream.source).name, "seed": cell.seed, **shown}
    row |= {key: [line[key] for line in lines] for key in _KEPT}
    row |= {"seconds": [sum(line[key] for key in _SECONDS) for line in lines]}
    row |= {"seconds_compile": sum(line["seconds_compile"] for line in lines)}
    cell_file.add(flags.results, row)
    removal.remove_run(folder)


def lines_of(frame: pl.DataFrame) -> Lines:
    """Lines by candidate of one stream, budget and seed."""
    return {
        row["candidate"]: [{key: row[key][t] for key in (*_KEPT, "seconds")} for t in range(len(row["valid_users"]))]
        for row in frame.to_dicts()
    }


def fixed(lines: list[dict[str, Any]]) -> float:
    """Mean test Recall@20 over the segments that count."""
    return float(np.mean([line["test_recall@20"] for line in records.averaged(lines)]))


def served(lines: Lines, chosen: Sequence[race.Choice]) -> float:
    """Mean test Recall@20 of the leaders over the segments that count."""
    any_line = next(iter(lines.values()))
    counted = [line["segment"] for line in records.averaged(any_line)]
    return float(np.mean([lines[chosen[t].leader][t]["test_recall@20"] for t in counted]))


def cross_fitted(by_seed: Mapping[int, dict[str, float]], scores: Mapping[int, float]) -> float:
    """Scores relative to the best fixed candidate, which is chosen on the seeds of the other half.

    Args:
      by_seed: by seed the fixed candidates' means.
      scores: by seed what is compared with them.

    Returns:
      Mean over both halves of score / best fixed - 1.

    >>> by_seed = {0: {"a": 0.2, "b": 0.1}, 1: {"a": 0.1, "b": 0.4}}
    >>> round(cross_fitted(by_seed, {0: 0.2, 1: 0.2}), 2)
    1.5
    """
    seeds = sorted(by_seed)
    halves = seeds[::2], seeds[1::2]
    found = []
    for mine, other in (halves, halves[::-1]):
        means = {name: np.mean([by_seed[seed][name] for seed in other]) for name in by_seed[seeds[0]]}
        best = max(means, key=lambda name: means[name])
        found.append(np.mean([scores[s] for s in mine]) / np.mean([by_seed[s][best] for s in mine]) - 1)
    return float(np.mean(found))


def _seconds(lines: Lines, chosen: Sequence[race.Choice] | None = None) -> float:
    """Seconds of all candidates, or of those of a race, in those of the dearest one over the whole stream."""
    whole = {name: sum(line["seconds"] for line in found) for name, found in lines.items()}
    spent = sum(
        line["seconds"]
        for name, found in lines.items()
        for t, line in enumerate(found)
        if chosen is None or name in chosen[t].valid
    )
    return spent / max(whole.values())


def _setting(frame: pl.DataFrame) -> list[str] | None:
    """Cells of the table of one stream and budget; None where no seed has all candidates."""
    parts = {key[0]: lines_of(part) for key, part in frame.group_by("seed", maintain_order=True)}
    most = max(len(lines) for lines in parts.values())
    parts = {seed: lines for seed, lines in parts.items() if len(lines) == most}
    by_seed = {seed: {name: fixed(found) for name, found in lines.items()} for seed, lines in parts.items()}
    full = {seed: served(lines, race.follow_the_leader(lines)) for seed, lines in parts.items()}
    races = {seed: race.successive_halving(lines, len(set(lines) - {race.FLOOR})) for seed, lines in parts.items()}
    raced = {seed: served(lines, races[seed]) for seed, lines in parts.items()}
    safe = np.mean([by_seed[seed][SAFE] for seed in parts])
    means = {name: np.mean([by_seed[seed][name] for seed in parts]) for name in by_seed[next(iter(parts))]}
    best = max(means, key=lambda name: means[name])
    leaders = sorted({races[seed][-1].leader for seed in parts})
    cost = [_seconds(lines) for lines in parts.values()], [_seconds(parts[s], races[s]) for s in parts]
    relative = [f"{cross_fitted(by_seed, scores):+.1%}" if len(parts) > 1 else "-" for scores in (full, raced)]
    return [
        str(len(parts)),
        f"{best} {means[best]:.4f}",
        f"{means['popularity']:.4f}",
        f"{safe:.4f}",
        report.mean_and_spread(list(full.values())),
        report.mean_and_spread(list(raced.values())),
        *relative,
        f"{np.mean(list(raced.values())) / safe - 1:+.1%}",
        *(f"{np.mean(found):.1f}" for found in cost),
        ", ".join(leaders),
    ]


def tables(frame: pl.DataFrame) -> str:
    """Markdown of all rows of the file: a line for each stream and budget, and one for each candidate."""
    columns = ["stream", "bytes an entity", "seeds", "best fixed", "popularity", SAFE, "auto, all kept", "auto"]
    columns += ["all kept to best", "auto to best", f"auto to {SAFE}", "cost, all kept", "cost", "last leaders"]
    lines, ordered = [], frame.sort("stream", pl.col("mean size").cast(float), "seed", maintain_order=True)
    for (_, *key), part in ordered.group_by("setting", "stream", "mean size", maintain_order=True):
        found = _setting(part)
        if found is not None:
            lines.append([str(key[0]), f"{4 * float(str(key[1])):g}", *found])
    first = report.markdown(columns, lines)
    rows = []
    for (_, *key), part in ordered.group_by("setting", "stream", "mean size", "candidate", maintain_order=True):
        values = [fixed(lines_of(one)[str(key[2])]) for _, one in part.group_by("seed", maintain_order=True)]
        seconds = np.mean([sum(found) for found in part["seconds"].to_list()])
        compiled = part["seconds_compile"].mean()
        bytes_each = f"{4 * float(str(key[1])):g}"
        rows.append([str(key[0]), bytes_each, str(key[2]), str(len(values)), report.mean_and_spread(values)])
        rows[-1] += [f"{seconds:.0f}", f"{compiled:.0f}"]
    second = report.markdown(["stream", "bytes", "candidate", "seeds", "Recall@20", "s", "compile s"], rows)
    return f"{first}\n\n{second}"


def main(flags: AutoChoice) -> str:
    """Run what is not in the file yet; the text of the tables."""
    flags = compare.checked(flags)
    if not flags.report:
        run(flags)
    frame = cell_file.finished(flags.results)
    versions = ", ".join(frame["commit"].unique(maintain_order=True))
    text = f"{tables(frame)}\n\n{_NOTE} Commits: {versions}."
    head = (
        "# What auto costs against its candidates\n\nBy `python -m experiments.auto_choice`; its help has the commands."
    )
    text_files.write_atomically(flags.results.with_suffix(".md"), f"{head}\n\n{text}\n")
    print(f"\n{text}")
    return text


_NOTE = """Test Recall@20, mean ± standard deviation over seeds, over the segments after the first with enough test
users. To best: relative to the fixed candidate that is best on test by the seeds of one half, both scored on the
other, over both halves. Cost: seconds of all candidates' work, in those of the dearest candidate over the whole stream,
without compiling.""".replace("\n", " ")

if __name__ == "__main__":
    cli(AutoChoice, main, __doc__)
