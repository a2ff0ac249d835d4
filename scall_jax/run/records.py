"""Records of a run as plain dictionaries, JSON lines and polars frames, their checks, and their summary."""

from collections.abc import Mapping, Sequence
from typing import Any

import chex
import jax
import numpy as np
import polars as pl

from scall_jax.evaluation.ranking import CUTOFFS, STRATA, Metrics
from scall_jax.run.step import Record
from scall_jax.sizes.budget import Budget
from scall_jax.streams import POPULARITY, Segment

VOLATILE = (
    "seconds_fit",
    "seconds_evaluate",
    "seconds_search",
    "seconds_sizes",
    "seconds_compile",
    "peak_rss_bytes",
    "disk_bytes",
    "policy_disk_bytes",
)
"""Keys of a line that differ from one execution of the same run to the next: times, peak memory, and bytes on disk,
which vary by a few bytes of bookkeeping. On one machine all other keys are reproduced bit for bit."""

ACCOUNT = (
    "bytes_resident",
    "policy_bytes",
    "budget_bytes",
    "bytes_table",
    "bytes_serving",
    "bytes_parameters",
    "bytes_codes",
    "bytes_metadata",
    "bytes_at_rest",
    "bytes_graph",
    "bytes_final_vectors",
    "bytes_counts",
    "bytes_replay",
    "bytes_training",
)
"""Keys of a line that only `run_segments` can fill in, because they count the bytes of concrete arrays."""

LEAST_USERS = 20
"""Test users that a segment must have to count in a mean over segments."""


def as_dict(record: Record) -> dict[str, Any]:
    """The part of a line of `metrics.jsonl` that the record of one segment contains: all but times and bytes.

    Args:
      record: of one segment, without leading axes.

    Returns:
      A dictionary of Python numbers, strings and lists, which JSON can hold.
    """
    chex.assert_rank([record.segment, record.budget, record.action, record.valid.recall], [0, 0, 1, 2])
    record = jax.tree.map(np.asarray, record)
    popularity = int(record.popularity)
    line = {
        "segment": int(record.segment),
        "users": int(record.users),
        "items": int(record.items),
        "new_users": int(record.new_users),
        "new_items": int(record.new_items),
        "interactions": int(record.interactions),
        **rows_of(record),
        "budget_parameters": int(record.budget),
        "allocated_parameters": int(record.allocated),
        "entities_without_parameters": int(record.without),
        "largest_size": int(record.largest),
        "steps": int(record.steps),
        "best_step": int(record.best_step),
        "loss": _number(record.loss),
        "popularity": POPULARITY[popularity] if popularity >= 0 else None,
    }
    for part, metrics in (("valid", record.valid), ("test", record.test)):
        line |= metrics_of(part, metrics)
    if record.action.any() or record.search.count > 0:
        line |= _search(record)
    return line


def rows_of(counted: Record | Segment) -> dict[str, int]:
    """The keys of a line that count the rows of a segment's held-out parts.

    Args:
      counted: record of one segment, or the segment.

    Returns:
      For valid and test the rows (`test_rows`), and of these the ones that no metric counts: `unknown_test_rows`, whose
      user or item is not known at the cut, and `seen_test_rows`, whose pair is known already.
    """
    chex.assert_shape([counted.held_out, counted.unknown, counted.seen], (2,))
    return {
        f"{prefix}{part}_rows": int(counts[number])
        for number, part in enumerate(("valid", "test"))
        for prefix, counts in (("", counted.held_out), ("unknown_", counted.unknown), ("seen_", counted.seen))
    }


def paid_bytes(line: Mapping[str, Any], charge: str) -> int:
    """Bytes of a segment that the budget pays for.

    Args:
      line: of metrics, with the keys of `ACCOUNT`.
      charge: as `Config.charge`.

    Returns:
      At most the line's `budget_bytes`, for methods that have a budget.
    """
    if charge == "replay":
        return line["bytes_at_rest"] + line["bytes_replay"]
    return line[{"table": "bytes_table", "stored": "bytes_at_rest", "serving": "bytes_serving"}[charge]]


def frame(record: Record, budgets: Sequence[Budget]) -> pl.DataFrame:
    """The records of L runs of T segments as a table.

    Args:
      record: stacked records: each leaf has leading axes (L, T).
      budgets: the L runs' budgets.

    Returns:
      A row per run and segment with the columns `run` (from 0), `segment`, `budget` (as text), and then the keys of
      `as_dict`; a key that a row lacks is null there.

    Raises:
      ValueError: the number of budgets is not L.

    >>> from scall_jax import Config, scan, streams
    >>> rows = streams.synthetic(jax.random.key(0), users=60, items=40, interactions=1500)
    >>> result = scan(Config("popularity-all"), streams.cut(rows, segments=3), jax.random.key(0))
    >>> result.frame.shape[0], result.frame.columns[:3]
    (3, ['run', 'segment', 'budget'])
    >>> np.array_equal(result.frame["test_recall@20"], result.record.test.recall[:, 0, 2])
    True
    """
    chex.assert_rank([record.segment, record.action, record.valid.recall], [2, 3, 4])
    chex.assert_equal_shape_prefix(jax.tree.leaves(record), 2)
    if len(budgets) != record.segment.shape[0]:
        raise ValueError(f"{len(budgets)} budgets of {record.segment.shape[0]} runs: give one for each")
    record = jax.tree.map(np.asarray, record)
    rows: list[dict[str, Any]] = []
    for run, budget in enumerate(budgets):
        for t in range(record.segment.shape[1]):
            line = as_dict(jax.tree.map(lambda x, run=run, t=t: x[run, t], record))
            rows.append({"run": run, "segment": line["segment"], "budget": str(budget)} | line)
    return pl.DataFrame(rows, infer_schema_length=None)


def _search(record: Record) -> dict[str, Any]:
    made = slice(0, int(record.search.count))
    return {
        "action": [_number(x) for x in record.action],
        "probes": int(record.search.count),
        "probe_budget_parameters": int(record.search.expected),
        "probe_allocated_parameters": [int(x) for x in record.search.allocated[made]],
        "probe_reference": _number(record.search.reference),
        "probe_fitness": [_number(x) for x in record.search.fitness[made]],
        "probe_rewards": [_number(x) for x in record.search.reward[made]],
        "probe_actions": [[_number(x) for x in action] for action in record.search.action[made]],
    }


def metrics_of(part: str, metrics: Metrics) -> dict[str, float]:
    """The keys of a line that describe one held-out part of a segment.

    Args:
      part: `valid` or `test`, the prefix of the keys.
      metrics: of the part.

    Returns:
      Users, Recall@K and NDCG@K by stratum of users, coverage@K and the number of candidates; K in `CUTOFFS`.
    """
    chex.assert_shape([metrics.recall, metrics.ndcg], (len(STRATA), len(CUTOFFS)))
    line: dict[str, float] = {}
    for s, stratum in enumerate(STRATA):
        infix = "" if stratum == "all" else f"_{stratum}"
        line[f"{part}{infix}_users"] = int(metrics.users[s])
        for k, cutoff in enumerate(CUTOFFS):
            line[f"{part}{infix}_recall@{cutoff}"] = _number(metrics.recall[s, k])
            line[f"{part}{infix}_ndcg@{cutoff}"] = _number(metrics.ndcg[s, k])
    line |= {f"{part}_coverage@{cutoff}": _number(metrics.coverage[k]) for k, cutoff in enumerate(CUTOFFS)}
    return line | {f"{part}_candidates": int(metrics.candidates)}


def _number(value: Any) -> float:
    return float(np.float32(value))


class Diverged(ValueError):
    """A training came to numbers that are not finite, or not to a solution."""


def check(record: Record) -> None:
    """Check that training and every metric are finite, and that the budget was met.

    Args:
      record: of one segment, or stacked records with any leading axes.

    Raises:
      Diverged: training met a loss that is not finite or systems that float32 does not solve, or a number of the
        record is not finite.
      AssertionError: a segment or a probe missed the budget.
    """
    chex.assert_equal_shape([record.segment, record.bad_step, record.budget, record.allocated, record.search.count])
    record = jax.tree.map(np.asarray, record)
    segments, bad = np.ravel(record.segment), np.ravel(record.bad_step)
    if (bad >= 0).any():
        at = int(np.argmax(bad >= 0))
        reason = f"segment {segments[at]}, step {bad[at]}: the loss is not finite: lower fit.learning_rate or init_std"
        if np.isfinite(np.ravel(record.loss)[at]):
            reason += (
                "; or, with recommender ials, float32 does not solve its systems: raise ials.regularisation or "
                "ials.unobserved, or give ials.solver=exact"
            )
        raise Diverged(reason)
    _check_finite(record)
    allocated, budget = np.ravel(record.allocated), np.ravel(record.budget)
    if (allocated > budget).any():
        at = int(np.argmax(allocated > budget))
        raise AssertionError(
            f"segment {segments[at]} has {allocated[at]} budget units of a budget of {budget[at]}: {_REPORT}"
        )
    _check_probes(record)


def _check_finite(record: Record) -> None:
    """Nothing that is not a number is written: neither JSON nor a mean over segments could hold it."""
    for path, values in jax.tree_util.tree_leaves_with_path(record):
        if np.issubdtype(values.dtype, np.floating) and not np.isfinite(values).all():
            bad = ~np.isfinite(values).reshape(*record.segment.shape, -1).all(-1)
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise Diverged(
                f"segment {record.segment[bad][0]}: {name} is not finite: lower fit.learning_rate or init_std, or, if "
                f"training looks sound, {_REPORT}"
            )


def _check_probes(record: Record) -> None:
    search = record.search
    made = np.arange(search.fitness.shape[-1]) < search.count[..., None]
    most, least = search.expected[..., None], search.least[..., None]
    wrong = made & ((search.allocated > most) | (search.allocated < least))
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        low, high = (np.broadcast_to(x, wrong.shape)[at] for x in (least, most))
        raise AssertionError(
            f"segment {record.segment[at[:-1]]}, probe {at[-1]} has {search.allocated[at]} budget units of a budget of "
            f"{low} to {high}: {_REPORT}"
        )


_REPORT = "please report this with the run's config.json"


def summarise(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Average the lines of a run over segments, and over all users of these segments (`pooled`).

    As published, the first segment does not count; nor do segments with fewer than `LEAST_USERS` test users, whose
    means are noise, nor, in means over valid, those without valid users.

    Args:
      lines: of `metrics.jsonl`, or the rows of `frame` of one run (`frame.to_dicts()`).

    Returns:
      A dictionary with `mean_` and `pooled_` Recall@20 and NDCG@20 of valid and test (None where no segment counts),
      the number of segments and of those that count, the test users of the latter, the share of their test rows that no
      metric counts (`rows_of`; None for lines that do not say), the mean number of steps or sweeps of a fit, seconds by
      phase, and peak memory in bytes.

    >>> zero = {f"{part}_{name}": 0 for part in ("valid", "test") for name in ("users", "recall@20", "ndcg@20")}
    >>> rows = [(0, 30, 0.9), (1, 20, 0.1), (2, 60, 0.3)]
    >>> lines = [zero | {"segment": t, "test_users": n, "test_recall@20": x} for t, n, x in rows]
    >>> summary = summarise(lines)
    >>> summary["averaged_segments"], summary["mean_test_recall@20"], summary["pooled_test_recall@20"]
    (2, 0.2, 0.25)
    """
    later = averaged(lines)
    users = [line["test_users"] for line in later]
    summary: dict[str, Any] = {
        "segments": len(lines),
        "averaged_segments": len(later),
        "least_test_users": min(users, default=None),
        "most_test_users": max(users, default=None),
        "dropped_share": _dropped_share(later),
    }
    for part in ("valid", "test"):
        counted = [line for line in later if line[f"{part}_users"] > 0]
        weights = np.array([line[f"{part}_users"] for line in counted], np.float64)
        for metric in ("recall@20", "ndcg@20"):
            values = np.array([line[f"{part}_{metric}"] for line in counted])
            summary[f"mean_{part}_{metric}"] = float(values.mean()) if counted else None
            pooled = float(values @ weights / weights.sum()) if weights.any() else None
            summary[f"pooled_{part}_{metric}"] = pooled
    summary["mean_steps"] = float(np.mean([line.get("steps", 0) for line in later])) if later else None
    for name in ("seconds_fit", "seconds_evaluate", "seconds_search", "seconds_compile"):
        summary[name] = sum(line.get(name, 0.0) for line in lines)
    summary["peak_rss_bytes"] = max((line.get("peak_rss_bytes", 0) for line in lines), default=0)
    return summary


def averaged(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that count in means over segments: after the first, with at least `LEAST_USERS` test users."""
    return [line for line in lines if line["segment"] > 0 and line["test_users"] >= LEAST_USERS]


def _dropped_share(lines: list[dict[str, Any]]) -> float | None:
    if not lines or any("test_rows" not in line for line in lines):
        return None
    dropped = sum(line["unknown_test_rows"] + line["seen_test_rows"] for line in lines)
    return dropped / sum(line["test_rows"] for line in lines)
