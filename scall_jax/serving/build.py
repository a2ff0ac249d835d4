"""From a state after a segment, and the rows that have come since, to the fields of a model."""

import dataclasses
import importlib.metadata
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import polars as pl

from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping, MethodPhases
from scall_jax.methods.state import RunState
from scall_jax.run.auto import feasible, run_as_far
from scall_jax.run.checkpoint import Snapshot, snapshot
from scall_jax.run.programs import Programs, Step
from scall_jax.run.race import NONE_LEFT, faded, score, survivors
from scall_jax.serving.data import AutoGoingOn, Candidate, GoingOn, ModelBudget, ModelData, Seen, Waiting
from scall_jax.serving.ids import Ids
from scall_jax.streams import HALF_LIVES, POPULARITY, Growing, Interactions, Segment, Stream, advance
from scall_jax.streams.growing import Late, joined, numbered
from scall_jax.streams.numpy_ops import counts
from scall_jax.streams.segments import compact_graph
from scall_jax.streams.statistics import decayed_counts

M = TypeVar("M", bound=ModelData)


class Fitted(NamedTuple):
    """A segment that has been run."""

    config: Config
    """Of the run."""
    phases: MethodPhases
    """Of its method."""
    serve: Any
    """`MethodPhases.serve`, compiled."""
    state: RunState
    """After the segment."""
    books: Bookkeeping
    """Of the stream."""
    stream: Stream
    """Of which it is the last segment that was run."""
    line: dict[str, Any]
    """Of `metrics.jsonl`."""
    origin: dict[str, Any]
    """`ModelData.origin`, as far as the run says."""


def fields(fitted: Fitted, waiting: pl.DataFrame | None, going_on: GoingOn | AutoGoingOn | str) -> dict[str, Any]:
    """The fields of a model.

    Args:
      fitted: the last segment that was run.
      waiting: rows that are in no segment yet (`streams.Growing.waiting`), with which the held-out rows of the segment
        count as met, also where there are none; None for a run that has ended, which is as its last evaluation was.
      going_on: as the field of this name.

    Returns:
      Arguments of `Model`.
    """
    stream, line, books, config = fitted.stream, fitted.line, fitted.books, fitted.config
    # What was searched or spent answers no requests, and has no values here.
    state = fitted.state._replace(planner=(), totals=jnp.zeros(stream.most_segments, jnp.int32))
    segment = stream.segment(line["segment"])
    row = jnp.int32(POPULARITY.index(line["popularity"]) if line["popularity"] else 0)
    served = fitted.serve(state, segment, row, books.width(state.plan))
    known = (int(segment.users), int(segment.items))
    statistic = line["popularity"] or fallback(int(segment.period))
    found: dict[str, Any] = {
        "config": config,
        "segment": line["segment"],
        "budget": ModelBudget(
            rule=config.budget,
            charge=config.charge,
            allowed=line["budget_bytes"],
            table=line["bytes_table"],
            at_rest=line["bytes_at_rest"],
            serving=line["bytes_serving"],
        ),
        "users": Ids(stream.user_ids[: known[0]]),
        "items": Ids(stream.item_ids[: known[1]]),
        "served": served._replace(
            users=served.users[: known[0]],
            items=served.items[: known[1]],
            bias=served.bias[: known[1]],
        ),
        "fold_in": fitted.phases.fold_in,
        "popularity": np.asarray(segment.popularity)[POPULARITY.index(statistic), : known[1]],
        "popularity_name": statistic,
        "seen": _seen(segment, stream, known),
        "table": _table(books, state, segment, stream, known),
        "stored": books.exporter.export(state.params, state.plan, known),
        "origin": _origin(fitted),
        "going_on": going_on,
        "waiting": NOTHING,
    }
    if waiting is None:
        return found
    return found | _since(stream, waiting, known[1], statistic)


NOTHING = Waiting(Ids(pl.Series([], dtype=pl.String)), Seen(np.zeros(1, np.uint32), np.zeros(0, np.uint32)))
"""No rows wait."""


def update(model: M, rows: Interactions | pl.DataFrame, late: Late) -> M:
    """The model that new rows lead to; see `Model.update`."""
    before = model.going_on
    if isinstance(before, str):
        raise ValueError(before)
    new = advance(before.growing, rows, late)
    if len(new.stream) == len(before.growing.stream):
        if not len(new.waiting):
            return model
        since = _since(new.stream, new.waiting, len(model.items), model.popularity_name)
        changed: Any = since | {"going_on": before._replace(growing=new)}
        return dataclasses.replace(model, **changed)
    if isinstance(before, AutoGoingOn):
        changed = _led(before, new)
    else:
        step, kept, _ = _advanced(before.programs, before.snapshot, len(before.growing.stream), new)
        fitted = _fitted(before.programs, step, new, dict(model.origin))
        changed = fields(fitted, new.waiting, before._replace(snapshot=kept, line=step.line, growing=slim(new)))
    return dataclasses.replace(model, **changed)


def _advanced(programs: Programs, before: Snapshot, first: int, new: Growing) -> tuple[Step, Snapshot, list[float]]:
    """Run segments: what the last one leaves, the state after it, and what each adds to a candidate of auto."""
    programs.check(before, new.stream)
    scores, step = [], None
    # A segment's step is used before the next one is made; only the last one is of use here.
    for step in programs.advance(before, new.stream, first):
        scores.append(score(step.line))
    assert step is not None
    return step, snapshot(step.state, step.books.exporter), scores


def _fitted(programs: Programs, step: Step, new: Growing, origin: dict[str, Any]) -> Fitted:
    phases = programs.run.method
    return Fitted(programs.config, phases, programs.serve, step.state, step.books, new.stream, step.line, origin)


def _led(before: AutoGoingOn, new: Growing) -> dict[str, Any]:
    """The fields of the model that leads after new segments, which candidates that run and still fit are run on."""
    try:
        fits, reasons = feasible({name: one.programs.config for name, one in before.candidates.items()}, new.stream)
    except ValueError as error:
        raise ValueError(f"{error}; {NONE_LEFT}") from error
    first, found = len(before.growing.stream), {}
    for name, one in before.candidates.items():

        def run(part: Growing, name: str = name, one: Candidate = one) -> None:
            found[name] = _advanced(one.programs, one.snapshot, first, part)

        if error := run_as_far(run, new, first, fits[name]):
            reasons[name] = str(error)
    leader, stay = "", list(found)
    totals = {name: before.candidates[name].score for name in stay}
    for t in range(first, len(new.stream)):
        stay = [name for name in stay if len(found[name][2]) > t - first]
        if not stay:
            raise ValueError("; ".join(["no candidate of auto comes to an end", *reasons.values(), NONE_LEFT]))
        totals = {name: faded([found[name][2][t - first]], totals[name]) for name in stay}
        leader = max(totals, key=lambda name: totals[name])
        stay = survivors(totals, t + 1, before.began)
    one, step = before.candidates[leader], found[leader][0]
    candidates = {name: before.candidates[name]._replace(snapshot=found[name][1], score=totals[name]) for name in stay}
    fitted = _fitted(one.programs, step, new, dict(one.origin))
    return fields(fitted, new.waiting, AutoGoingOn(slim(new), candidates, before.began))


def slim(found: Growing) -> Growing:
    """The same rows without what has been worked out of them, such as their order by user."""
    stream = found.stream
    return Growing(dataclasses.replace(stream, reserved=stream.capacity), found.waiting)


def _since(stream: Stream, waiting: pl.DataFrame, items: int, statistic: str) -> dict[str, Any]:
    """Fields that follow from all rows so far, the held-out ones of the last segment included; none need wait."""
    last = stream.bounds[-1]
    item, _ = numbered(stream.item_ids, waiting["item"])
    everything = np.concatenate([stream.item[: last.end], item])
    if statistic in ("all", "segment"):
        start = 0 if statistic == "all" else last.start
        popular = counts(everything[start:], int(everything.max()) + 1)
    else:
        popular = decayed_counts(everything, int(everything.max()) + 1, int(statistic.removeprefix("decayed-")))
    held_out = pl.DataFrame({"user": stream.user_ids.gather(stream.user[last.train : last.end])})
    both = joined(held_out.with_columns(item=pl.lit(0)), waiting.select("user", item=pl.lit(0)))
    met = pl.DataFrame({"user": both["user"], "row": everything[last.train :]}).filter(pl.col("row") < items)
    met = met.unique(maintain_order=True)
    user, ids = numbered(both["user"].clear(), met["user"])
    rows = met["row"].to_numpy()
    order = np.lexsort((rows, user))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(user, minlength=len(ids)))]).astype(np.uint32)
    return {
        "popularity": popular[:items].astype(np.float32),
        "waiting": Waiting(Ids(ids), Seen(offsets, rows[order].astype(np.uint32))),
    }


def fallback(period: int) -> str:
    """Counts that users are ranked by of whom nothing is known, where the run has chosen none.

    Args:
      period: rows between the last two cuts.

    Returns:
      Of `streams.POPULARITY` the decayed counts whose half-life is nearest to the period, as a ratio.

    >>> fallback(1400), fallback(10)
    ('decayed-1000', 'decayed-250')
    """
    ratios = np.abs(np.log(np.array(HALF_LIVES) / max(period, 1)))
    return f"decayed-{HALF_LIVES[int(ratios.argmin())]}"


def _seen(segment: Segment, stream: Stream, known: tuple[int, int]) -> Seen:
    compact = compact_graph(segment.graph, stream.capacity.users, known)
    return Seen(compact["offsets"], compact["items"])


def _table(
    books: Bookkeeping, state: RunState, segment: Segment, stream: Stream, known: tuple[int, int]
) -> pl.DataFrame:
    """Sizes of all known entities; see `Model.sizes`."""
    ids = [stream.user_ids[: known[0]], stream.item_ids[: known[1]]]
    if ids[0].dtype != ids[1].dtype:
        ids = [one.cast(pl.String) for one in ids]
    users = stream.capacity.users
    node = np.concatenate([np.arange(known[0]), users + np.arange(known[1])])
    return pl.DataFrame(
        {
            "id": pl.concat(one.alias("id") for one in ids),
            "side": np.repeat(["users", "items"], known),
            "size": books.sizes(state.plan)[node],
            "bits": books.bits(state.plan)[node],
            "frequency": np.asarray(segment.total)[node],
        }
    )


def _origin(fitted: Fitted) -> dict[str, Any]:
    stream, line = fitted.stream, fitted.line
    about = {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint, "span": stream.span}
    return fitted.origin | {
        "scall_jax": importlib.metadata.version("scall_jax"),
        "stream": about,
        "segment": line["segment"],
        "rows": stream.bounds[line["segment"]].train,
        "test_recall@20": line["test_recall@20"],
    }
