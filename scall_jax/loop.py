"""Running over a stream: on the host with checkpoints and a run folder, or as one scan."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import checkpoint, compilation, heap, records, tables
from scall_jax.allocators import sides
from scall_jax.budgets import Budget
from scall_jax.config import Config
from scall_jax.methods import Method, method_of
from scall_jax.phases import Phases, apart
from scall_jax.recommenders.fit import training_bytes
from scall_jax.reference import Kept, Reference
from scall_jax.run import Record, Run, make_run
from scall_jax.state import RunState, bias_bytes
from scall_jax.streams import Segment, Stream
from scall_jax.tables.table import nbytes


def scan(config: Config, stream: Stream, key: jax.Array) -> tuple[RunState, Record]:
    """The whole run as one compiled `lax.scan`; records with a leading axis of segments.

    Raises:
      ValueError: a non-finite loss, after the fact.
    """
    program, arguments = scan_program(config, stream, key)
    state, record = program(*arguments)
    records.check(record)
    return state, record


def scan_program(config: Config, stream: Stream, key: jax.Array) -> tuple[Callable, tuple]:
    """The jitted function that `scan` calls, and its arguments: to lower, compile and time it by oneself."""
    run = make_run(config)
    return compilation.jit(lambda s, xs: jax.lax.scan(run.step, s, xs)), (run.init(key, stream), stream.stack())


def sweep(
    config: Config, stream: Stream, keys: Sequence[jax.Array], budgets: Sequence[Budget]
) -> tuple[RunState, Record]:
    """Several runs of one method as one compiled program, mapped over keys and budgets.

    Args:
      config: of all runs; its budget is ignored.
      stream: of all runs.
      keys, budgets: of each run, L of both. Budgets are data: the pool is as large as the largest of them.

    Returns:
      Final states and records with a leading axis L; of records the second axis is that of segments.

    Raises:
      ValueError: L differs or is 0; a method whose storage cannot be shared by budgets; a non-finite loss, after the
        fact.
    """
    program, arguments = sweep_program(config, stream, keys, budgets)
    states, record = program(*arguments)
    records.check(record)
    return states, record


def sweep_program(
    config: Config, stream: Stream, keys: Sequence[jax.Array], budgets: Sequence[Budget]
) -> tuple[Callable, tuple]:
    """The jitted function that `sweep` calls, and its arguments: to lower, compile and time it by oneself.

    Raises:
      ValueError: as `sweep`, but for what is found after the fact.
    """
    if len(keys) != len(budgets) or not len(budgets):
        raise ValueError(f"{len(keys)} keys and {len(budgets)} budgets: give as many of both, at least one")
    check_sweep(config)
    run = make_run(config)
    states = [
        make_run(dataclasses.replace(config, budget=budget)).init(key, stream)
        for key, budget in zip(keys, budgets, strict=True)
    ]
    largest = max(states, key=lambda state: state.held.units)
    states = [state._replace(params=largest.params, held=largest.held) for state in states]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return compilation.jit(jax.vmap(lambda s, xs: jax.lax.scan(run.step, s, xs), (0, None))), (states, stream.stack())


def check_sweep(config: Config) -> None:
    """Raise ValueError where runs of different budgets are different programs."""
    method = method_of(config.method)
    if isinstance(method, Method) and method.storage is not None:
        raise ValueError(f"{config.method}: shapes of its storage follow from the budget: run budgets one by one")


def run_segments(
    config: Config,
    stream: Stream,
    key: jax.Array,
    *,
    folder: Path | None = None,
    progress: Callable | None = None,
    on_probes: Callable | None = None,
    on_compiled: Callable[[], object] | None = None,
    on_segment: Callable[[dict], object] | None = None,
    method: Method | Reference | None = None,
) -> list[dict]:
    """Run over a stream segment by segment; the lines of `metrics.jsonl`.

    Args:
      config, stream, key: determine the result.
      folder: run folder. Metrics, sizes and a checkpoint are written there after each segment; a folder that holds some
        segments of the same run is continued.
      progress, on_probes, method: as in `make_run`.
      on_compiled: called after each program is compiled, before any runs; `jax.clear_caches` drops what tracing left.
      on_segment: called with each new line.

    Raises:
      ValueError: a non-finite loss; a folder of another run.
    """
    folder = None if folder is None else Path(folder)
    run = make_run(config, progress, on_probes, method)
    method = method or method_of(config.method)

    def init(key):
        return run.init(key, stream)

    shapes = jax.eval_shape(init, key)
    storage = _storage(config, method, shapes, stream)
    lines = [] if folder is None else _open_folder(folder, config, stream, key)
    if len(lines) == len(stream):
        return lines
    # before there is a state: what compiling takes for a moment holds it afterwards
    phases = Phases(run, shapes, stream.segment(len(lines)), not isinstance(method, Reference), on_compiled)
    # one program, and not kept: operation by operation, each would be one that is
    begin = compilation.compiled(init, key)
    if on_compiled is not None:
        on_compiled()
    state = jax.block_until_ready(begin(key))
    del begin
    heap.give_back()
    if lines:
        state = checkpoint.restore(folder / "checkpoints", len(lines) - 1, state, storage)
    for t in range(len(lines), len(stream)):
        segment = jax.device_put(stream.segment(t))
        heap.give_back()
        state, line, record = _one_segment(run, phases, storage, state, segment)
        line |= _account(config, stream, state, line, storage)
        if isinstance(method, Reference):
            line |= method.describe(state.params)
        if folder is not None:
            _store(folder, storage, state, line, record, segment)
        lines.append(line)
        if on_segment is not None:
            on_segment(line)
        del segment, record  # or the next segment is made beside them
    return lines


def _one_segment(run: Run, phases: Phases, storage: tables.Storage | Kept, state: RunState, segment: Segment):
    found, seconds_search = None, 0.0
    if run.search_when == "before":
        (state, found), seconds_search = phases("search", *apart(state), segment)
    prepared, seconds_prepare = phases("prepare", state, segment)
    params, prepared = prepared.params, prepared._replace(params=())
    bytes_training = 0 if isinstance(storage, Kept) else training_bytes(storage, params)
    state = state._replace(params=())  # carried over: training needs the room
    fitted, seconds_fit = phases("fit", params, state, segment, prepared)
    (state, record), seconds_evaluate = phases("evaluate", *apart(state), segment, prepared, fitted)
    if run.search_when == "after":
        (state, found), seconds_search = phases("search", *apart(state), segment)
    record = record if found is None else record._replace(search=found)
    records.check(record)
    line = records.as_dict(record) | {
        "table_bytes": nbytes(state.params),
        "disk_bytes": None,
        "bytes_training": bytes_training,
        "policy_bytes": nbytes(state.chooser),
        "seconds_fit": seconds_fit,
        "seconds_evaluate": seconds_evaluate,
        "seconds_search": seconds_search,
        "seconds_sizes": seconds_prepare,
        "seconds_compile": phases.take_seconds_compile(),
        "peak_rss_bytes": heap.peak_rss_bytes(),
    }
    return state, line, record


def _account(config: Config, stream: Stream, state: RunState, line: dict, storage: tables.Storage | Kept) -> dict:
    """Bytes that serving needs, by charge, from the arrays themselves; and what the budget allows."""
    t = line["segment"]
    known = tuple(np.asarray(state.known).tolist())
    exported = storage.export(state.params, state.plan, known)
    charges = tables.charged(exported)
    if not isinstance(storage, Kept):
        charges["metadata"] += bias_bytes(config, known[1])
    full = config.method == "full"
    allowed = sum(known) * config.sizes.maximum if full else config.budget.parameters(t, sum(known))
    return {
        "budget_bytes": 0 if isinstance(storage, Kept) else 4 * allowed,
        **{f"bytes_{name}": value for name, value in charges.items()},
        "bytes_at_rest": sum(charges.values()),
        "bytes_replay": stream.replay_bytes(t),
    }


def _storage(config: Config, method: Method | Reference, state: RunState, stream: Stream) -> tables.Storage | Kept:
    """Of a run's states."""
    users, items = stream.capacity.users, stream.capacity.items
    if isinstance(method, Reference):
        return method.kept(users, items)
    kind = tables.kind_of(config, method.storage)
    return kind.build(state.held.units, users, items, config.sizes.maximum)


def _store(folder: Path, storage, state: RunState, line: dict, record: Record, segment: Segment) -> None:
    users, items = sides(segment)
    known = np.asarray(state.known)
    reference = isinstance(storage, Kept)
    sizes = np.zeros(users + items + 2, np.int32) if reference else np.asarray(storage.sizes(state.plan))
    (folder / "sizes").mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "sizes" / f"segment-{line['segment']:04d}.npz",
        users=sizes[: known[0]],
        items=sizes[users : users + known[1]],
        shared=sizes[-2:],
        user_frequency=np.asarray(segment.frequency)[: known[0]],
        item_frequency=np.asarray(segment.frequency)[users : users + known[1]],
    )
    tested = segment.test
    count = int(tested.count)
    (folder / "users").mkdir(exist_ok=True)
    np.savez_compressed(
        folder / "users" / f"segment-{line['segment']:04d}.npz",
        users=np.asarray(tested.users)[:count],
        metrics=np.asarray(record.test.by_user)[:count],
    )
    # the checkpoint counts last: whatever it says is finished has its line and its sizes
    path = checkpoint.save(folder / "checkpoints", line["segment"], state, storage)
    line["disk_bytes"] = checkpoint.table_bytes(path)
    line["policy_disk_bytes"] = checkpoint.policy_bytes(path)
    records.append_line(folder / "metrics.jsonl", line)
    checkpoint.publish(path)


def _open_folder(folder, config, stream, key) -> list[dict]:
    """Create a run folder, or return the lines of the segments that it has finished of the same run."""
    identity = {
        "config": dataclasses.asdict(config),
        "stream": {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint},
        "key": np.asarray(jax.random.key_data(key)).tolist(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
    }
    identity = json.loads(json.dumps(identity))
    path = folder / "config.json"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        records.write_atomically(path, json.dumps(identity, indent=2) + "\n")
    other = read_identity(path)
    other["stream"]["source"] = stream.source  # the same rows may lie elsewhere
    for name in ("config", "key", "stream"):
        if other[name] != identity[name]:
            raise ValueError(
                f"{folder} holds another run ({_difference(other, identity, name)}): choose another folder"
            )
    done = checkpoint.finished(folder / "checkpoints")
    lines = [line for line in records.read_lines(folder / "metrics.jsonl") if done and line["segment"] <= done[-1]]
    if done and [line["segment"] for line in lines] != list(range(done[-1] + 1)):
        raise ValueError(
            f"{folder}: metrics.jsonl has {len(lines)} of the {done[-1] + 1} segments of the checkpoint: "
            "make the run anew in another folder, or delete this one"
        )
    records.write_atomically(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    return lines


def read_identity(path: Path) -> dict:
    """What the config.json of a run folder says: `config`, `stream`, `key`.

    Raises:
      ValueError: the file is not that of a run.
    """
    try:
        found = json.loads(path.read_text())
        if {"config", "stream", "key"} <= found.keys() and isinstance(found["stream"], dict):
            return found
    except (ValueError, AttributeError):
        pass
    raise ValueError(f"{path} is not that of a run: choose another folder")


def _difference(other, identity, name):
    if not isinstance(other[name], dict):
        return f"{name} {other[name]} there, {identity[name]} here"
    if name == "stream" and other[name].get("segments") == identity[name]["segments"]:
        return "rows, or how they were cut, differ"
    keys = [k for k in identity[name] if other[name].get(k) != identity[name][k]]
    return ", ".join(f"{name}.{k} {other[name].get(k)!r} there, {identity[name][k]!r} here" for k in keys)
