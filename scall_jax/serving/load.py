"""Read a model from a run folder: the same state, segment and bias that the run's last evaluation had."""

import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from scall_jax.config import Config
from scall_jax.methods.phases import Bookkeeping, Method
from scall_jax.methods.state import RunState
from scall_jax.run import checkpoint, manifest
from scall_jax.run import folder as run_folder
from scall_jax.run.auto import leader_folder
from scall_jax.run.step import make_run
from scall_jax.run.stream_files import read_stream
from scall_jax.run.update_files import read_growing, read_kept
from scall_jax.serving.data import ModelBudget, Seen
from scall_jax.serving.ids import Ids
from scall_jax.serving.model import Model
from scall_jax.streams import HALF_LIVES, POPULARITY, Segment, Stream
from scall_jax.streams.segments import compact_graph


def load(path: str | Path, *, method: Method | None = None) -> Model:
    """Read the model that a run has left after its last finished segment.

    Args:
      path: a run folder, such as `runs/demo/uniform`; it is not written to. Of a run of auto the leader is read.
      method: a method that `METHODS` does not list, as in `run_segments`.

    Returns:
      Model. Its recommendations are those that the run's last test metrics are of.

    Raises:
      ValueError: the folder holds no finished segment, a file of it is not what the run wrote, or its method has no way
        to answer requests; the message names the file.
    """
    folder = Path(path)
    if not (folder / manifest.NAME).exists():
        raise ValueError(f"{folder} is no run folder: give one that has a {manifest.NAME}, such as runs/demo/uniform")
    stored = manifest.settled(folder, lambda: _read_files(folder))
    if isinstance(stored, Path):
        return load(stored, method=method)
    config, line, stream = stored.config, stored.line, stored.stream
    phases = make_run(config, method=method).method
    if phases.serve is None:
        raise ValueError(f"method {config.method} has no way to answer requests: write its `MethodPhases.serve`")
    key = jax.random.key(0)  # Nothing here is random: the key of a template says which kind of key there is.
    shapes = jax.eval_shape(lambda key: phases.init(key, stream), key)._replace(key=key)
    books = phases.bookkeeping(shapes, stream)
    state = checkpoint.revive(stored.snapshot, shapes, books.exporter, str(folder))
    # What was searched or spent answers no requests, and has no values here.
    state = state._replace(planner=(), totals=jnp.zeros(len(stream), jnp.int32))
    segment = stream.segment(line["segment"])
    row = jnp.int32(POPULARITY.index(line["popularity"]) if line["popularity"] else 0)
    width = books.width(state.plan)
    served = jax.jit(phases.serve, static_argnums=3)(state, segment, row, width)
    known = (int(segment.users), int(segment.items))
    counts = line["popularity"] or fallback(int(segment.period))
    return Model(
        config=config,
        segment=line["segment"],
        budget=ModelBudget(
            rule=config.budget,
            charge=config.charge,
            allowed=line["budget_bytes"],
            table=line["bytes_table"],
            at_rest=line["bytes_at_rest"],
            serving=line["bytes_serving"],
        ),
        users=Ids(stream.user_ids[: known[0]]),
        items=Ids(stream.item_ids[: known[1]]),
        served=served._replace(
            users=served.users[: known[0]],
            items=served.items[: known[1]],
            bias=served.bias[: known[1]],
        ),
        fold_in=phases.fold_in,
        popularity=np.asarray(segment.popularity)[POPULARITY.index(counts), : known[1]],
        popularity_name=counts,
        seen=_seen(segment, stream, known),
        table=_table(books, state, segment, stream, known),
        stored=books.exporter.export(state.params, state.plan, known),
        origin=_origin(stored.identity, stream, line),
    )


class _Stored(NamedTuple):
    """What the files of a run folder hold."""

    identity: dict[str, Any]
    config: Config
    line: dict[str, Any]
    stream: Stream
    snapshot: checkpoint.Snapshot


def _read_files(folder: Path) -> _Stored | Path:
    found = manifest.check(folder)
    leader = leader_folder(folder)
    if leader is not None:
        return leader
    identity = run_folder.read_identity(folder / run_folder.CONFIG)
    config = run_folder.config_of(identity["config"], folder / run_folder.CONFIG)
    lines = run_folder.finished_lines(folder, found)
    if not lines:
        raise ValueError(f"{folder} has no finished segment yet: wait for the run, or --resume it")
    kept = read_kept(folder, found)
    stream = read_stream(folder, found) if kept is None else read_growing(folder, found).stream
    fingerprint = identity["stream"]["fingerprint"] if kept is None else kept.fingerprint
    if stream.fingerprint != fingerprint:
        raise ValueError(f"{folder / manifest.STREAM[0]} is not the stream of the run: make the run anew")
    snapshot = checkpoint.read(folder / "checkpoints", lines[-1]["segment"])
    return _Stored(identity, config, lines[-1], stream, snapshot)


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


def _origin(identity: dict[str, Any], stream: Stream, line: dict[str, Any]) -> dict[str, Any]:
    return {
        "scall_jax": importlib.metadata.version("scall_jax"),
        "jax": identity.get("jax"),
        "device": identity.get("device"),
        "method": identity["config"]["method"],
        "config": identity["config"],
        "key": identity["key"],
        "stream": identity["stream"] | {"span": stream.span},
        "segment": line["segment"],
        "rows": stream.bounds[line["segment"]].train,
        "test_recall@20": line["test_recall@20"],
    }
