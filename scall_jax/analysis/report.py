"""Tables of finished runs, and what to know before their figures are believed."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scall_jax.config import Config
from scall_jax.evaluation.ranking import CUTOFFS
from scall_jax.methods.registry import EMBEDDING_METHODS
from scall_jax.run import auto, records

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
    rows = [cells(summary) for summary in summaries]
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def cells(summary: Mapping[str, Any]) -> dict[str, str]:
    """A row of `table`.

    Args:
      summary: of the run, `describe(...) | records.summarise(...)`.

    Returns:
      Text by the column's title.
    """
    return {title: cell(summary, keys, form) for title, keys, form in _COLUMNS}


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
    steps = [summary["mean_steps"] for summary in summaries if summary.get("mean_steps")]
    row["steps"] = f"{np.mean(steps):.1f}" if steps else "-"
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
    # Candidates of auto are charged for serving, whatever the configuration of their run says.
    charge = "serving" if config.method == auto.NAME else config.charge
    paid = functools.partial(records.paid_bytes, charge=charge)
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
