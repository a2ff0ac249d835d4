"""Records of a run as plain dictionaries and JSON lines, and their summary."""

from collections.abc import Sequence

import jax
import numpy as np
import polars as pl

from scall_jax.evaluation.ranking import CUTOFFS, STRATA, Metrics
from scall_jax.run.step import Record
from scall_jax.sizes.budget import Budget
from scall_jax.streams import POPULARITY

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
"""Keys that differ from one execution of the same run to the next, disk bytes by a few bytes of bookkeeping."""


ACCOUNT = (
    "table_bytes",
    "policy_bytes",
    "budget_bytes",
    "bytes_parameters",
    "bytes_codes",
    "bytes_metadata",
    "bytes_at_rest",
    "bytes_replay",
    "bytes_training",
)
"""Keys that only the host loop knows: bytes of arrays."""

LEAST_USERS = 20
"""Test users that a segment must have to count in a mean over segments."""


def as_dict(record: Record) -> dict:
    """The fields of `metrics.jsonl` that the record holds; all but times and bytes."""
    record = jax.tree.map(np.asarray, record)
    popularity = int(record.popularity)
    line = {
        "segment": int(record.segment),
        "users": int(record.users),
        "items": int(record.items),
        "new_users": int(record.new_users),
        "new_items": int(record.new_items),
        "interactions": int(record.interactions),
        "dropped_valid_rows": int(record.dropped[0]),
        "dropped_test_rows": int(record.dropped[1]),
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


def frame(record: Record, budgets: Sequence[Budget]) -> pl.DataFrame:
    """Records of L runs of T segments, arrays with leading axes (L, T), as a table.

    Args:
      record: stacked records.
      budgets: of each run.

    Returns:
      A row per run and segment with the columns `run` (from 0), `segment`, `budget` (in words) and then the keys of
      `metrics.jsonl` that come from a record.
    """
    record = jax.tree.map(np.asarray, record)
    rows = []
    for run, budget in enumerate(budgets):
        for t in range(record.segment.shape[1]):
            line = as_dict(jax.tree.map(lambda x, run=run, t=t: x[run, t], record))
            rows.append({"run": run, "segment": line["segment"], "budget": str(budget)} | line)
    return pl.DataFrame(rows, infer_schema_length=None)


def _search(record):
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


def metrics_of(part: str, metrics: Metrics) -> dict:
    """The keys of a line that are about one part, `valid` or `test`."""
    line = {}
    for s, stratum in enumerate(STRATA):
        infix = "" if stratum == "all" else f"_{stratum}"
        line[f"{part}{infix}_users"] = int(metrics.users[s])
        for k, cutoff in enumerate(CUTOFFS):
            line[f"{part}{infix}_recall@{cutoff}"] = _number(metrics.recall[s, k])
            line[f"{part}{infix}_ndcg@{cutoff}"] = _number(metrics.ndcg[s, k])
    return line | {f"{part}_coverage@{cutoff}": _number(metrics.coverage[k]) for k, cutoff in enumerate(CUTOFFS)}


def _number(value) -> float:
    return float(np.float32(value))


def check(record: Record) -> None:
    """Check one record or a stack of them.

    Raises:
      ValueError: training met a loss that is not finite.
      AssertionError: a segment or a probe missed the budget.
    """
    record = jax.tree.map(np.asarray, record)
    segments = np.atleast_1d(record.segment)
    bad = np.atleast_1d(record.bad_step)
    if (bad >= 0).any():
        at = int(np.argmax(bad >= 0))
        raise ValueError(
            f"segment {segments.flat[at]}, step {bad.flat[at]}: the loss is not finite: "
            "lower fit.learning_rate or init_std"
        )
    made = np.arange(record.search.fitness.shape[-1]) < record.search.count[..., None]
    given, most, least = record.search.allocated, record.search.expected[..., None], record.search.least[..., None]
    off = made & ((given > most) | (given < least))
    over = np.atleast_1d(record.allocated > record.budget)
    if over.any():
        at = int(np.argmax(over))
        held, allowed = (np.atleast_1d(x).flat[at] for x in (record.allocated, record.budget))
        raise AssertionError(f"segment {segments.flat[at]} holds {held} units of a budget of {allowed}: {_REPORT}")
    if off.any():
        at = tuple(np.argwhere(off)[0])
        low, high = (np.broadcast_to(x, off.shape)[at] for x in (least, most))
        where = f"segment {np.broadcast_to(record.segment, off.shape[:-1])[at[:-1]]}, probe {at[-1]}"
        raise AssertionError(f"{where} gave out {given[at]} of a budget of {low} to {high} units: {_REPORT}")


_REPORT = "please report this with the run's config.json"


def summarise(lines: list[dict]) -> dict:
    """Means over segments, and over all their users (`pooled`).

    As published, the first segment does not count; nor do segments with fewer than `LEAST_USERS` test users, whose
    means are noise, nor for valid those without valid users.
    """
    later = [line for line in lines if line["segment"] > 0 and line["test_users"] >= LEAST_USERS]
    summary = {"segments": len(lines), "averaged_segments": len(later)}
    for part in ("valid", "test"):
        counted = [line for line in later if line[f"{part}_users"] > 0]
        weights = np.array([line[f"{part}_users"] for line in counted], np.float64)
        for metric in ("recall@20", "ndcg@20"):
            values = np.array([line[f"{part}_{metric}"] for line in counted])
            summary[f"mean_{part}_{metric}"] = float(values.mean()) if counted else None
            pooled = float(values @ weights / weights.sum()) if weights.any() else None
            summary[f"pooled_{part}_{metric}"] = pooled
    for name in ("seconds_fit", "seconds_evaluate", "seconds_search", "seconds_compile"):
        summary[name] = sum(line.get(name, 0.0) for line in lines)
    summary["peak_rss_bytes"] = max((line.get("peak_rss_bytes", 0) for line in lines), default=0)
    return summary
