"""Tables and plots of finished runs; matplotlib is imported when a plot is made, and only then."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chex
import numpy as np

from scall_jax.config import Config
from scall_jax.evaluation.ranking import CUTOFFS
from scall_jax.methods.registry import EMBEDDING_METHODS
from scall_jax.run import records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Lines = list[dict[str, Any]]
"""Lines of `metrics.jsonl` of one run, one per segment."""

_COLUMNS = (
    ("method", ("method",), "{}"),
    ("mean size", ("mean_size",), "{:.2f}"),
    ("table MB", ("table_mb",), "{:.3f}"),
    ("serving MB", ("serving_mb",), "{:.3f}"),
    ("Recall@20", ("mean_test_recall@20",), "{:.4f}"),
    ("NDCG@20", ("mean_test_ndcg@20",), "{:.4f}"),
    ("by user R@20", ("pooled_test_recall@20",), "{:.4f}"),
    ("by user N@20", ("pooled_test_ndcg@20",), "{:.4f}"),
    ("valid R@20", ("mean_valid_recall@20",), "{:.4f}"),
    ("test users", ("least_test_users", "most_test_users"), "{}-{}"),
    ("dropped", ("dropped_share",), "{:.0%}"),
    ("search s", ("seconds_search",), "{:.1f}"),
    ("fit s", ("seconds_fit",), "{:.1f}"),
    ("eval s", ("seconds_evaluate",), "{:.1f}"),
    ("compile s", ("seconds_compile",), "{:.1f}"),
)

COLUMNS_NOTE = (
    "table MB: parameters and codes, which budgets pay for; serving MB: all that answers a request, with sizes, the "
    "items' bias, and LightGCN's graph or final vectors, whichever is smaller; "
    "test users: of the segment with the least and of that with the most; dropped: part of the test rows that no "
    "metric counts, since their user or item is not known yet or their pair is known already"
)
"""What some columns of `table` mean, for below it."""

FEW_USERS = 100
"""Test users below which a segment's mean is mostly noise."""


def table(summaries: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of runs: means over the segments after the first, and over all their test users.

    Args:
      summaries: of the runs, each `describe(...) | records.summarise(...)`.

    Returns:
      The table, a row per run.
    """
    header = [title for title, _, _ in _COLUMNS]
    return markdown(header, [[cell(summary, keys, form) for _, keys, form in _COLUMNS] for summary in summaries])


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown table with the first column aligned to the left and the others to the right.

    Args:
      header: titles of the columns.
      rows: cells, as many in each row as there are titles.

    Returns:
      The table without a final line break.

    >>> print(markdown(["method", "Recall@20"], [["uniform", "0.083"], ["frequency", "0.087"]]))
    | method    | Recall@20 |
    |-----------|----------:|
    | uniform   |     0.083 |
    | frequency |     0.087 |
    """
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]

    def line(cells: Sequence[str]) -> str:
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if c else "-") for c, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation over seeds.

    Args:
      values: a metric of each seed; None where no segment has enough test users.

    Returns:
      Text with four decimals; a dash where a value is None.

    >>> mean_and_spread([0.1, 0.2])
    '0.1500 ± 0.0707'
    """
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "-"
    return f"{np.mean(known):.4f}" + (f" ± {np.std(known, ddof=1):.4f}" if len(known) > 1 else "")


_QUALITY = ("mean_test_recall@20", "mean_test_ndcg@20", "pooled_test_recall@20", "mean_valid_recall@20")


def row_over_seeds(summaries: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The cells of one method's row in a table over seeds.

    Args:
      summaries: of the method's runs, each `describe(...) | records.summarise(...)`.

    Returns:
      Text by the column's title; quality as mean ± standard deviation over seeds, bytes and users of the first run.
    """
    row = {"seeds": str(len(summaries))}
    titles = ("Recall@20", "NDCG@20", "by user R@20", "valid R@20")
    for title, metric in zip(titles, _QUALITY, strict=True):
        row[title] = mean_and_spread([summary[metric] for summary in summaries])
    row["table MB"], row["serving MB"] = (cell(summaries[0], (f"{x}_mb",), "{:.3f}") for x in ("table", "serving"))
    row["test users"] = cell(summaries[0], ("least_test_users", "most_test_users"), "{}-{}")
    row["dropped"] = cell(summaries[0], ("dropped_share",), "{:.0%}")
    for title, metric in (("fit s", "seconds_fit"), ("search s", "seconds_search")):
        row[title] = f"{np.mean([summary[metric] for summary in summaries]):.0f}"
    return row


def cell(summary: Mapping[str, Any], keys: Sequence[str], form: str) -> str:
    """A cell of a table.

    Args:
      summary: of a run.
      keys: of its values.
      form: format of the values, in the order of their keys.

    Returns:
      Text, a dash where the summary lacks a value.

    >>> cell({"least": 36, "most": 76}, ("least", "most"), "{}-{}"), cell({}, ("least",), "{}")
    ('36-76', '-')
    """
    values = [summary.get(key) for key in keys]
    return "-" if None in values else form.format(*values)


def warnings(lines: Lines, config: Config) -> list[str]:
    """What to know before the means over a run's segments are believed.

    Args:
      lines: of metrics of the run.
      config: of the run.

    Returns:
      A sentence each, without a final full stop, on a budget that is not spent, on segments whose means few users
      decide, and on segments with hardly more candidates than are recommended.
    """
    counted = records.averaged(lines)
    few = [line for line in counted if line["test_users"] < FEW_USERS]
    found = _unspent(lines, config)
    if few:
        users = ", ".join(str(line["test_users"]) for line in few)
        found.append(f"{_segments(few, counted)}: under {FEW_USERS} test users ({users}) decide a mean")
    certain = [line for line in counted if line.get("test_candidates", CUTOFFS[-1] + 1) <= CUTOFFS[-1]]
    if certain:
        items = ", ".join(str(line["test_candidates"]) for line in certain)
        found.append(
            f"{_segments(certain, counted)}: {CUTOFFS[-1]} candidate items or fewer ({items}), so that "
            f"Recall@{CUTOFFS[-1]} is next to certain"
        )
    return found


def _unspent(lines: Lines, config: Config) -> list[str]:
    """Sentences on segments that spend less than 95% of their budget; by the last of them."""
    full = [line for line in lines if 0 < _at_maximum(line, config) < line["budget_parameters"]]
    other = [line for line in lines if line["budget_bytes"] and line not in full]
    paid = functools.partial(records.paid_bytes, charge=config.charge)
    other = [line for line in other if paid(line) < 0.95 * line["budget_bytes"]]
    found = []
    for unspent, reason in ((full, f"all sizes are at the maximum {config.sizes.maximum}"), (other, "bytes are left")):
        if unspent:
            spent, budget = (1e-6 * x for x in (paid(unspent[-1]), unspent[-1]["budget_bytes"]))
            found.append(f"{_segments(unspent, lines)}: {reason}: {spent:.2g} of {budget:.3g} MB used")
    return found


def _at_maximum(line: Mapping[str, Any], config: Config) -> int:
    """Budget units of a plan in which every entity has the largest size, 0 for other plans and storages."""
    most = config.sizes.maximum * (line["users"] + line["items"])
    method = EMBEDDING_METHODS.get(config.method)
    return most if method is not None and method.budget_is_data and line["allocated_parameters"] == most else 0


def _segments(some: Lines, all_lines: Lines) -> str:
    if len(some) == len(all_lines) > 1:
        return "every segment"
    numbers = ", ".join(str(line["segment"]) for line in some)
    return f"segment {numbers}" if len(some) == 1 else f"segments {numbers}"


def warning_lines(found: Mapping[str, Sequence[str]]) -> str:
    """Markdown list of the warnings of runs.

    Args:
      found: warnings by the run's name.

    Returns:
      A line for each distinct warning, with the names of the runs that it holds for if there are others; empty without
      warnings.

    >>> print(warning_lines({"uniform": ["few users", "bytes are left"], "ease": ["few users"]}))
    - Warning: few users
    - Warning, uniform: bytes are left
    """
    names: dict[str, list[str]] = {}
    for name, texts in found.items():
        for text in texts:
            names.setdefault(text, []).append(name)
    heads = {text: "" if len(own) == len(found) else f", {', '.join(own)}" for text, own in names.items()}
    return "\n".join(f"- Warning{head}: {text}" for text, head in heads.items())


def describe(method: str, lines: Lines) -> dict[str, Any]:
    """The columns of `table` that `records.summarise` does not give.

    Args:
      method: its name.
      lines: of metrics of a run.

    Returns:
      A dictionary with `method`, `mean_size` in parameters per entity, and in 10^6 bytes `table_mb` and `serving_mb`,
      all after the last segment. A baseline has no mean size, and no `table_mb` unless it stores parameters.
    """
    last = lines[-1]
    entities = last["users"] + last["items"]
    return {
        "method": method,
        "mean_size": last["allocated_parameters"] / entities if last["budget_parameters"] else None,
        "table_mb": 1e-6 * last["bytes_table"] or None,
        "serving_mb": 1e-6 * last["bytes_serving"],
    }


def has_matplotlib() -> bool:
    """Whether plots can be made: matplotlib is optional (the extra `plot`)."""
    return importlib.util.find_spec("matplotlib") is not None


def plot_quality(path: Path, runs: Mapping[str, Lines], title: str) -> None:
    """Plot test Recall@20 and NDCG@20 by segment, with a line per run.

    Args:
      path: of the picture.
      runs: lines of metrics by the run's name.
      title: above the picture.
    """
    figure, axes = _figure(1, 2)
    for axis, metric in zip(axes, ("recall@20", "ndcg@20"), strict=True):
        for name, lines in runs.items():
            shown = [line for line in lines if line["test_users"] > 0]
            style = "--" if name.startswith("popularity") else "-"
            axis.plot(
                [x["segment"] for x in shown],
                [x[f"test_{metric}"] for x in shown],
                style,
                label=name,
                marker=".",
            )
        axis.set(xlabel="segment", ylabel=f"test {metric}", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path, title)


def plot_budgets(path: Path, curves: Mapping[str, Mapping[float, Sequence[float]]], title: str) -> None:
    """Plot test Recall@20 by bytes for each entity, with a line per method.

    Args:
      path: of the picture.
      curves: by the method's name, values of several seeds by bytes.
      title: above the picture.
    """
    figure, (axis,) = _figure(1, 1)
    for name, values in curves.items():
        at = sorted(values)
        means = [float(np.mean(values[x])) for x in at]
        spread = [float(np.std(values[x], ddof=1)) if len(values[x]) > 1 else 0.0 for x in at]
        axis.errorbar(at, means, spread, label=name, marker=".", capsize=2, lw=1)
    axis.set_xscale("log", base=2)
    ticks = sorted({x for values in curves.values() for x in values})
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set(xlabel="bytes of the table for each user and item", ylabel="test recall@20")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    _save(figure, path, title)


def plot_memory(path: Path, lines: Lines, title: str) -> None:
    """Plot the budget, the bytes of the table and of serving, and the bytes on disk by segment.

    Args:
      path: of the picture.
      lines: of metrics of a run.
      title: above the picture.
    """
    figure, (axis,) = _figure(1, 1)
    segments = [line["segment"] for line in lines]
    axis.plot(segments, [1e-6 * x["budget_bytes"] for x in lines], "k-", lw=3, alpha=0.3, label="budget")
    axis.plot(segments, [1e-6 * x["bytes_table"] for x in lines], ".-", label="table")
    axis.plot(segments, [1e-6 * x["bytes_serving"] for x in lines], "s:", label="serving")
    axis.plot(segments, [1e-6 * (x["disk_bytes"] or np.nan) for x in lines], "x--", label="table and sizes on disk")
    axis.set(xlabel="segment", ylabel="MB (10^6 bytes)", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path, title)


def plot_sizes(path: Path, users: np.ndarray, items: np.ndarray, title: str) -> None:
    """Plot the sizes of one segment from the largest to the smallest, for users and items.

    Args:
      path: of the picture.
      users: i32[n_u], sizes of the known users.
      items: i32[n_v], sizes of the known items.
      title: above the picture.
    """
    chex.assert_rank([users, items], 1)
    figure, (axis,) = _figure(1, 1)
    for name, sizes in (("users", users), ("items", items)):
        axis.step(np.arange(1, len(sizes) + 1), np.sort(sizes)[::-1], where="mid", label=name)
    axis.set(xlabel="rank by frequency", ylabel="embedding size", xscale="log", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path, title)


def plot_histories(path: Path, files: Sequence[Path], title: str) -> None:
    """Plot sizes and frequencies by segment of the entities that grew and that shrank the most.

    Only entities known in the third segment are candidates, because later ones have short histories.

    Args:
      path: of the picture.
      files: the sizes of each segment, as a run writes them (sizes/segment-NNNN.npz), in order.
      title: above the picture.
    """
    steps: list[dict[str, np.ndarray]] = []
    for file in files:
        with np.load(file) as stored:
            steps.append(dict(stored))
    figure, axes = _figure(2, 2)
    axes = axes.reshape(2, 2)
    for row, side in zip(axes, ("user", "item"), strict=True):
        early = len(steps[min(2, len(steps) - 1)][f"{side}s"])
        for entity in _movers(steps, f"{side}s", early):
            for axis, name in zip(row, (f"{side}s", f"{side}_frequency"), strict=True):
                known = [(t, step[name][entity]) for t, step in enumerate(steps) if entity < len(step[name])]
                axis.plot(*zip(*known, strict=True), ".-", label=f"{side} {entity}")
        row[0].set(xlabel="segment", ylabel="embedding size", ylim=(0, None))
        row[1].set(xlabel="segment", ylabel="interactions in the segment", yscale="symlog", ylim=(0, None))
        row[0].legend(fontsize=8)
        for axis in row:
            axis.grid(alpha=0.3)
    _save(figure, path, title)


def _movers(steps: Sequence[Mapping[str, np.ndarray]], name: str, early: int) -> list[int]:
    """Of the first `early` entities, the two that shrank most from the third segment on, and the two that grew most."""
    change = steps[-1][name][:early].astype(np.int64) - steps[min(2, len(steps) - 1)][name]
    order = np.argsort(change, kind="stable")
    return list(dict.fromkeys([*order[:2], *order[::-1][:2]]))


def plot_lines(
    path: Path,
    series: Mapping[str, tuple[Any, Any, Any]],
    title: str,
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Plot means with their spread over a logarithmic axis.

    Args:
      path: of the picture.
      series: by the line's name its x, mean and spread, three sequences of the same length.
      title: above the picture.
      xlabel, ylabel: of the axes.
      levels: by name the y of horizontal lines.
    """
    # Colours repeat after eight lines; then strokes and markers change, and the legend moves outside the axes.
    many = len(series) > _COLOURS
    figure, (axis,) = _figure(1, 1, width=8.5 if many else 5.5, height=5 if many else 4)
    for number, (name, (x, mean, spread)) in enumerate(series.items()):
        turn = number // _COLOURS % 3
        stroke, marker = ("-", "--", ":")[turn], (".", "s", "^")[turn]
        axis.errorbar(x, mean, yerr=spread, marker=marker, ms=5, ls=stroke, capsize=2, label=name, lw=1.2)
    for number, (name, y) in enumerate((levels or {}).items()):
        axis.axhline(y, color="k", ls=("--", ":", "-.", (0, (1, 4)))[number % 4], lw=1, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axis.grid(alpha=0.3)
    if many:
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axis.legend(fontsize=8)
    _save(figure, path, title)


# The last two colours of matplotlib's cycle of ten are hard to tell from others.
_COLOURS = 8


def _figure(rows: int, columns: int, width: float = 5.5, height: float = 4) -> tuple[Figure, np.ndarray]:
    if not has_matplotlib():
        raise ValueError('plots need matplotlib: pip install "scall_jax[plot]"')
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel()


def _save(figure: Figure, path: Path, title: str) -> None:
    # Matplotlib would read text between dollar signs as mathematics.
    figure.suptitle(title.replace("$", r"\$"))
    for axis in figure.axes:
        if axis.get_xlabel() == "segment":
            axis.locator_params(axis="x", integer=True)
    figure.savefig(path, dpi=110)
