"""What one machine bears: rows to read and cut, entities to give sizes to and to fit; and what devices share.

    python -m experiments.scale --rows 1e7 1e8 --sizes 1e5 1e6 1e7 1e8 --entities 1e5 1e6 1e7
    python -m experiments.scale --rows --sizes --entities --devices 1 2 4 --batch 8192 --steps 5
    python -m experiments.scale --report

Each measurement is a process of its own, so that its peak of memory is its own, and a row of --results as soon as it is
finished; what is there is not measured again. Rows: Parquet parts with text ids are written to --out, read as one table
and cut into ten segments; beside it stands what Polars takes to count the distinct ids and find the last time of the
same files. Sizes: counts by Zipf's law are ordered, sizes at 2 bytes an entity in four bits are given out by frequency,
laid out, and a pool is filled, written by Orbax and read again. Entities: one segment with three rows for each entity,
ten in eleven of which are users, is fitted at 2 bytes an entity, by least squares in four bits (--sweeps of fixed
strength) and by matrix factorisation (--steps of --batch); valid and test are the last 10,000 rows each, or a tenth,
since to rank all items for all users grows with the product of both.

Devices: a CPU is made to be so many, and one such segment with --shared entities is run by least squares and by matrix
factorisation. Counted, not timed, is what the busiest device does in each phase (`experiments.device_work`): products
and solves, other arithmetic, bytes that are summed over devices and gathered from them, and how often devices wait for
each other. Beside the products stands how many times the equal part of one device's they are.
Cost: half an hour on two cores for the defaults, and 16 GB of memory; 4 GB of disk. With --devices three minutes for
each number of them. Expect seconds and memory to grow as rows and entities do, products and solves to be shared to a
few percent, and other arithmetic hardly at all.
"""

import dataclasses
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import polars as pl

from experiments import cell_file, device_work
from scall_jax import Budget, Config, FitConfig, SizesConfig, run_segments, sizes, streams, tables
from scall_jax.analysis import report
from scall_jax.cli.cli import cli
from scall_jax.ops.devices import MeshConfig
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.run.process_memory import peak_rss_bytes

_PART = 5_000_000
_START = 1_500_000_000
_SECONDS = 10**8
_PRIME = 1_000_000_007
_HELD_OUT = 10_000
# Of LightGCN on several devices JAX's profiler makes no trace: the process ends.
_SHARED = ("shared ials", "shared mf")


@dataclasses.dataclass(frozen=True)
class Scale:
    """Flags of the measurements."""

    rows: tuple[float, ...] = (1e7, 1e8)
    """Rows to read and cut."""
    sizes: tuple[float, ...] = (1e5, 1e6, 1e7, 1e8)
    """Entities to give sizes to."""
    entities: tuple[float, ...] = (1e5, 1e6, 1e7)
    """Entities to fit."""
    sweeps: int = 2
    """Sweeps of least squares."""
    steps: int = 20
    """Steps of matrix factorisation."""
    batch: int = 65_536
    """Triples of a step."""
    max_memory: float = 16_000.0
    """Megabytes that reading may take."""
    devices: tuple[int, ...] = ()
    """Numbers of devices that share a segment."""
    shared: float = 1e5
    """Entities of that segment."""
    report: bool = False
    """Write the table of what is in the file, and measure nothing."""
    results: Path = Path("experiments/results/scale.parquet")
    """File of the finished measurements."""
    out: Path = Path("runs/scale")
    """Folder for files of rows and checkpoints."""
    measure: str = ""
    """One measurement, in this process: its name and its number, such as `rows:1e7`."""


def write_parts(folder: Path, rows: int) -> None:
    """Parquet parts of a stream with text ids, a tenth as many users and a thirtieth as many items as rows.

    Args:
      folder: of the parts; it must not exist.
      rows: in all.
    """
    rng, unfinished = np.random.default_rng(0), folder.with_suffix(".tmp")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for number, first in enumerate(range(0, rows, _PART)):
        at = np.arange(first, min(first + _PART, rows))
        seconds = _START + at * _SECONDS // rows + rng.integers(0, 1000, len(at))
        # Entities arrive all the time, and the early ones of those that are there come most often.
        there = ((at + 1) / rows) ** 0.7
        columns = {"timestamp": pl.Series(seconds)}
        for name, most, skew, factor in (("user_id", rows // 10, 3, 7919), ("item_id", rows // 30, 2, 104_729)):
            entity = (most * there * rng.random(len(at)) ** skew).astype(np.int64)
            columns[name] = pl.Series(entity * factor % _PRIME).cast(pl.String)
        pl.DataFrame(columns).write_parquet(unfinished / f"part-{number:05d}.parquet")
    unfinished.rename(folder)


def of_rows(flags: Scale, count: int) -> dict[str, Any]:
    """Seconds and peak of reading and cutting so many rows, and of Polars' own pass over the files."""
    folder = flags.out / f"rows-{count}"
    start = time.perf_counter()
    read = streams.read(folder, folder=True, max_memory=flags.max_memory)
    middle, of_reading = time.perf_counter(), peak_rss_bytes()
    stream = streams.cut(read, segments=10)
    end = time.perf_counter()
    users, items = stream.known(stream.bounds[-1].end)
    return {
        "users": users,
        "items": items,
        "read s": middle - start,
        "cut s": end - middle,
        "peak of reading": of_reading,
    }


def of_polars(flags: Scale, count: int) -> dict[str, Any]:
    """Seconds and peak of the pass over the files by Polars alone."""
    start = time.perf_counter()
    distinct = [pl.col(name).n_unique() for name in ("user_id", "item_id")]
    scan = pl.scan_parquet(flags.out / f"rows-{count}" / "*.parquet")
    scan.select(*distinct, pl.col("timestamp").max()).collect(engine="streaming")
    return {"read s": time.perf_counter() - start}


def _stored_coordinates(entities: int) -> int:
    return tables.STORAGES["packed_int4"].budget_units(2 * entities, (entities, 0), 16, False)


def of_sizes(flags: Scale, count: int) -> dict[str, Any]:
    """Seconds of sizes, layout, pool and checkpoint of so many entities."""
    total = _stored_coordinates(count)
    users = 10 * count // 11
    items = count - users
    rng = np.random.default_rng(0)
    frequency = jnp.asarray((rng.random(count) ** -0.7).astype(np.int32))
    recency = jnp.asarray(rng.permutation(count).astype(np.int32))

    @jax.jit
    def plan_of(frequency: jax.Array, recency: jax.Array) -> jax.Array:
        active = jnp.ones(count, bool)
        order = sizes.order_by(frequency, recency, frequency, active)
        shares = sizes.power_shares(frequency[order], 0.5, jnp.int32(total), (0, 16), jnp.int32(count))
        own = sizes.assign(sizes.allocate(shares, jnp.int32(total), 0, 16, num_active=jnp.int32(count)), order)
        return jnp.concatenate([own, jnp.zeros(2, jnp.int32)])

    storage = tables.STORAGES["packed_int4"].build(total, users, items, 16)

    @jax.jit
    def stored_of(key: jax.Array, plan: jax.Array):
        layout = storage.layout(plan)
        return storage.store(storage.fresh(key, layout, 0.1), layout)

    key, begun = jax.random.key(0), time.perf_counter()
    planning = plan_of.lower(frequency, recency).compile()
    pooling = stored_of.lower(key, jax.eval_shape(plan_of, frequency, recency)).compile()
    start = time.perf_counter()
    plan = jax.block_until_ready(planning(frequency, recency))
    planned = time.perf_counter()
    del frequency, recency
    stored = jax.block_until_ready(pooling(key, plan))
    pooled = time.perf_counter()
    exported = storage.export(stored, plan, (users, items))
    before = hashlib.sha256(np.asarray(stored.codes).tobytes()).hexdigest()
    folder = (flags.out / f"checkpoint-{count}").absolute()
    shutil.rmtree(folder, ignore_errors=True)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        checkpointer.save(folder, exported)
        del stored
        restored, again = storage.restore(checkpointer.restore(folder), (users, items))
    equal = bool((again == plan).all()) and hashlib.sha256(np.asarray(restored.codes).tobytes()).hexdigest() == before
    shutil.rmtree(folder)
    end = time.perf_counter()
    return {
        "users": users,
        "items": items,
        "compile s": start - begun,
        "sizes s": planned - start,
        "pool s": pooled - planned,
        "checkpoint s": end - pooled,
        "spent": int(plan.sum()) / total,
        "restored": equal,
        "table": sum(array.nbytes for name, array in exported.items() if not name.startswith("metadata")),
    }


def _stream_of(count: int) -> streams.Stream:
    """A stream of one segment whose rows have every entity: three rows an entity, ten in eleven of which are users."""
    rng, users = np.random.default_rng(0), 10 * count // 11
    items, rows = count - users, 3 * count

    def drawn(number: int, skew: int) -> np.ndarray:
        found = (number * rng.random(rows) ** skew).astype(np.int64)
        found[:number] = np.arange(number)
        return found

    rows_read = streams.from_arrays(drawn(users, 2), drawn(items, 3), np.arange(rows))
    part = min(_HELD_OUT, rows // 10) / rows
    return streams.cut(rows_read, segments=1, replay=0.0, split=(1 - 2 * part, part, part))


def _config(flags: Scale, recommender: str, devices: int = 1) -> Config:
    return Config(
        method="uniform",
        budget=Budget.mean_size(0.5),
        recommender=recommender,
        table="packed_int4",
        sizes=SizesConfig(minimum=0, maximum=16),
        ials=IalsConfig(sweeps=flags.sweeps, half_life=1.0, users_half_life=1.0, unobserved=0.1, regularisation=0.01),
        fit=FitConfig(batch=flags.batch, steps=flags.steps, eval_every=flags.steps),
        mesh=MeshConfig(devices),
    )


def of_segment(flags: Scale, count: int, recommender: str) -> dict[str, Any]:
    """Seconds of a segment with so many entities by a recommender, and bytes of the table."""
    stream, config = _stream_of(count), _config(flags, recommender)
    start, of_stream = time.perf_counter(), peak_rss_bytes()
    (line,) = run_segments(config, stream, jax.random.key(0))
    return {
        "users": line["users"],
        "items": line["items"],
        "compile s": line["seconds_compile"],
        "segment s": time.perf_counter() - start - line["seconds_compile"],
        "prepare s": line["seconds_sizes"],
        "fit s": line["seconds_fit"],
        "evaluate s": line["seconds_evaluate"],
        "ranked": line["valid_users"] + line["test_users"],
        "peak of the stream": of_stream,
        "table": line["bytes_table"],
        "largest size": line["largest_size"],
    }


def of_devices(flags: Scale, devices: int, recommender: str) -> dict[str, Any]:
    """By phase, what the busiest of so many devices does."""
    stream = _stream_of(int(flags.shared))
    found = device_work.of_segment(_config(flags, recommender, devices), stream)
    return {
        f"{phase} {name}": round(max(getattr(work, name) for work in each))
        for phase, each in found.items()
        for name in device_work.Work._fields
    }


MEASUREMENTS = {
    "rows": of_rows,
    "polars": of_polars,
    "sizes": of_sizes,
    "ials": lambda flags, count: of_segment(flags, count, "ials"),
    "mf": lambda flags, count: of_segment(flags, count, "mf"),
    **{f"shared {name}": functools.partial(of_devices, recommender=name) for name in ("ials", "mf")},
}
"""By name: functions of the flags and a number."""


def _measured(flags: Scale, name: str, count: int) -> dict[str, Any]:
    """A measurement in a process of its own."""
    arguments = [sys.executable, "-m", "experiments.scale", "--measure", f"{name}:{count}", "--out", str(flags.out)]
    for field in ("sweeps", "steps", "batch", "max_memory", "shared"):
        arguments += [f"--{field.replace('_', '-')}", str(getattr(flags, field))]
    environment = dict(os.environ)
    if name.startswith("shared"):
        flag = f"--xla_force_host_platform_device_count={count}"
        environment |= {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}", "NPROC": str(4 * count)}
    found = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    if found.returncode:
        return {"failed": found.stderr.strip().splitlines()[-1] if found.stderr.strip() else str(found.returncode)}
    return json.loads(found.stdout.splitlines()[-1])


def _jobs(flags: Scale) -> list[tuple[str, int]]:
    by_kind = {("rows", "polars"): flags.rows, ("sizes",): flags.sizes, ("ials", "mf"): flags.entities}
    by_kind |= {_SHARED: flags.devices}
    return [(name, int(count)) for names, counts in by_kind.items() for count in counts for name in names]


def _settings(flags: Scale, name: str) -> dict[str, Any]:
    """Flags that a measurement depends on."""
    alone = name.removeprefix("shared ")
    found = {"sweeps": flags.sweeps} if alone == "ials" else {"steps": flags.steps, "batch": flags.batch}
    if alone != name:
        return found | {"entities": int(flags.shared)}
    return found if name in ("ials", "mf") else {}


def _table(frame: pl.DataFrame) -> str:
    """The page: a table for each kind of measurement."""
    if frame.is_empty():
        return "Nothing has been measured yet.\n"
    shown = {"rows": ("rows", "polars"), "sizes": ("sizes",), "entities": ("ials", "mf")}
    text = ["# What one machine bears", "", "By `python -m experiments.scale`; its help says what is measured."]
    for title, names in shown.items():
        part = frame.filter(pl.col("measured").is_in(names))
        part = part.select(column for column in part.columns if part[column].null_count() < len(part))
        if len(part):
            rows = [[_shown(value) for value in row] for row in part.sort("count", "measured").iter_rows()]
            text += ["", f"## {title.capitalize()}", "", report.markdown(part.columns, rows)]
    shared = frame.filter(pl.col("measured").is_in(_SHARED))
    if len(shared) and "failed" in shared.columns:
        shared = shared.filter(pl.col("failed").is_null())
    if len(shared):
        text += ["", "## Devices", "", _by_phase(shared)]
    return "\n".join(text) + "\n"


def _by_phase(frame: pl.DataFrame) -> str:
    """A line for each recommender, phase and number of devices: the busiest device's work, in millions."""
    lines, one = [], {}
    for row in frame.sort("measured", "entities", "count").to_dicts():
        for phase in ("prepare", "fit", "evaluate"):
            work = [row[f"{phase} {name}"] or 0 for name in device_work.Work._fields]
            case = row["measured"], row["entities"], phase
            if row["count"] == 1:
                one[case] = work[0]
            part = row["count"] * work[0] / one[case] if one.get(case) else None
            lines.append(
                [
                    row["measured"].removeprefix("shared "),
                    f"{row['entities']:,}",
                    phase,
                    str(row["count"]),
                    *(f"{1e-6 * value:,.1f}" for value in work[:-1]),
                    f"{work[-1]:,}",
                    "-" if part is None else f"{part:.2f}",
                    row["commit"],
                ]
            )
    names = ["recommender", "entities", "phase", "devices", "products M", "other M", "summed MB", "gathered MB"]
    return report.markdown([*names, "exchanges", "of an equal part", "commit"], lines)


def _shown(value: Any) -> str:
    """A cell of the table; bytes, which are the large numbers, with separators."""
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else f"{value:.2f}" if isinstance(value, float) else str(value)


def main(flags: Scale) -> str:
    """Measure what is not in the file yet; the text of the page, or the line of one measurement."""
    if flags.measure:
        name, count = flags.measure.split(":")
        before = peak_rss_bytes()
        found = MEASUREMENTS[name](flags, int(float(count)))
        line = json.dumps(found | {"imports": before, "peak": peak_rss_bytes()})
        print(line)
        return line
    for name, count in [] if flags.report else _jobs(flags):
        wanted = {"measured": name, "count": count} | _settings(flags, name)
        if any(row.items() >= wanted.items() for row in cell_file.read(flags.results).to_dicts()):
            continue
        folder = flags.out / f"rows-{count}"
        if name == "rows" and not folder.exists():
            write_parts(folder, count)
        row = {"measured": name, "count": count, "commit": cell_file.commit()} | _measured(flags, name, count)
        print(row, flush=True)
        # What did not fit is a result.
        cell_file.add(flags.results, row | _settings(flags, name))
    text = _table(cell_file.read(flags.results))
    flags.results.with_suffix(".md").write_text(text)
    print(text)
    return text


if __name__ == "__main__":
    cli(Scale, main, __doc__)
