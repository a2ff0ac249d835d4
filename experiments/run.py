"""The main job: a stream in, a recommender within its budget out, several methods side by side.

    python -m experiments.run                                        # online-retail, mean size 8
    python -m experiments.run --data clicks.csv --columns.user uid --budget.megabytes 4 --out runs/clicks
    python -m experiments.run --help

Writes a folder per method: config.json, metrics.jsonl (a line per segment), summary.json (last: its presence marks a
finished run), sizes/, users/ (each test user's metrics), checkpoints/ and plots; beside them table.md and quality.png.
The default run takes 4 minutes on two CPU cores; expect Recall@20 of
.083 for uniform, .087 for frequency, .083 for scall and .077 for the best popularity floor (one seed).
"""

import dataclasses
import json
import shlex
import sys
from pathlib import Path

import jax
import numpy as np
import tyro

from experiments.progress import Progress
from scall_jax import (
    METHODS,
    PROBED,
    Budget,
    Config,
    FitConfig,
    checkpoint,
    heap,
    make_run,
    records,
    report,
    run_segments,
    streams,
)
from scall_jax.config import CarryConfig, SearchConfig, SizesConfig
from scall_jax.policies import ObserveConfig, PolicyConfig
from scall_jax.tables import MixedPrecisionConfig, PrunedConfig, SharedMemoryConfig

GROUPS = {"popularity": tuple(m for m in METHODS if m.startswith("popularity-"))}


@dataclasses.dataclass(frozen=True)
class BudgetFlags:
    """Give at most one; without any, mean size 8."""

    mean_size: float | None = None
    """Parameters per user and item seen so far."""
    megabytes: float | None = None
    """Constant size of the table in 10^6 bytes."""
    schedule: tuple[float, ...] = ()
    """Mean size per segment; the last one holds on."""

    def budget(self) -> Budget:
        """The budget that the flags describe."""
        given = [x for x in (self.mean_size, self.megabytes, self.schedule or None) if x is not None]
        if len(given) > 1:
            raise ValueError("give one of --budget.mean-size, --budget.megabytes and --budget.schedule")
        if self.megabytes is not None:
            return Budget.megabytes(self.megabytes)
        if self.schedule:
            return Budget.schedule([Budget.mean_size(size) for size in self.schedule])
        return Budget.mean_size(8 if self.mean_size is None else self.mean_size)


@dataclasses.dataclass(frozen=True)
class Columns:
    """How to read a file; names are needed only where they are not the published ones."""

    format: str = "auto"
    """One of `scall_jax.streams.FORMATS`."""
    user: str | None = None
    item: str | None = None
    timestamp: str | None = None
    rating: str | None = None
    min_rating: float | None = None
    """Keep only rows rated at least this."""
    time_unit: str = "auto"
    """s, ms or us."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the stream is cut; see `scall_jax.streams.cut`."""

    new_entities: int | None = None
    """New users + items per segment (default: 800 for online-retail, 3000 for movietweetings, else 15000)."""
    segments: int | None = None
    """Instead: this many segments of equally many rows."""
    at: tuple[str, ...] = ()
    """Instead: timestamps at which segments start."""
    max_segments: int | None = None
    """Stop after this many segments."""
    replay: float = 0.2
    """Earlier rows trained on again, as a part of the segment's training rows."""
    k_core: int = 0
    """Keep users and items with at least this many rows (looks at the whole file)."""
    shuffle_ties: bool = False
    """Order rows of equal time at random: for day-granular data."""
    published: bool = False
    """The published protocol: 80/0/20, selection on test. For comparison only."""


@dataclasses.dataclass(frozen=True)
class Main:
    """Flags."""

    data: str = "online-retail"
    """online-retail, movietweetings, or the path of a file."""
    method: tuple[str, ...] = ("uniform", "frequency", "scall", "popularity")
    """Methods to run; `popularity` stands for its three floors."""
    budget: BudgetFlags = BudgetFlags()
    seed: int = 0
    """Of everything random, the cut included."""
    out: Path = Path("runs/demo")
    """Folder of the results, with a sub-folder per method."""
    resume: bool = False
    """Continue unfinished runs in the folder, and keep finished ones."""
    overwrite: bool = False
    """Replace runs in the folder."""
    columns: Columns = Columns()
    cut: Cut = Cut()
    sizes: SizesConfig = SizesConfig()
    carry: CarryConfig = CarryConfig()
    fit: FitConfig = FitConfig(steps=300)
    search: SearchConfig = SearchConfig()
    policy: PolicyConfig = PolicyConfig()
    observe: ObserveConfig = ObserveConfig()
    shared_memory: SharedMemoryConfig = SharedMemoryConfig()
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig()
    pruned: PrunedConfig = PrunedConfig()
    protocol: str = "clean"
    """clean, or published: protocol, search and policy of the official code, selection on test included. For
    comparison only; it replaces what the flags say about cut.published, search (but its probes and their steps;
    published: 200 steps, probes until they settle), policy, carry, fit.eval_every (a probe's steps), bias (the
    comparisons' --biases hold) and observe (but its groups, published: 256). The rest of training stays."""
    table: str = "packed"
    """packed, packed_bfloat16, packed_int8 or masked: storage of methods that choose sizes."""
    charge: str = "parameters"
    """What the budget pays for: `parameters`; `all` that serving needs, sizes, codes and the items' bias included;
    `replay`: that, and 8 bytes for each row of the segment's replay."""
    bias: str | None = None
    """decayed: add the log of an item's decayed count to its score; none: do not. Default: decayed for the embedded
    streams, where valid prefers it, else none."""


_NEW_ENTITIES = {"online-retail": 800, "movietweetings": 3000}


def load_stream(main: Main) -> streams.Stream:
    """Read and cut the stream that the flags name."""
    source = streams.load if main.data in streams.EMBEDDED else streams.read
    rows = source(main.data, **dataclasses.asdict(main.columns))
    rules = dataclasses.asdict(main.cut)
    rules["at"] = list(rules["at"]) or None
    if rules["new_entities"] is None and rules["segments"] is None and rules["at"] is None:
        rules["new_entities"] = _NEW_ENTITIES.get(main.data)
    return streams.cut(rows, seed=main.seed, **rules)


def check_stream(stream: streams.Stream) -> None:
    """Raise ValueError where no segment would count in a mean."""
    users, items = len(stream.user_ids), len(stream.item_ids)
    if len(stream) < 2:
        raise ValueError(
            f"{stream.source}: {users:,} users and {items:,} items are one segment, and the first does not count: "
            "give --cut.segments or --cut.new-entities well below their sum, and --cut.max-segments above 1"
        )
    if not any(stream.test(t).count >= records.LEAST_USERS for t in range(1, len(stream))):
        raise ValueError(
            f"{stream.source}: no segment after the first has {records.LEAST_USERS} test users: "
            "cut fewer, longer segments (--cut.segments, --cut.new-entities)"
        )


def check_run(config: Config, stream: streams.Stream) -> None:
    """Raise ValueError where the method cannot use its budget on this stream; nothing is computed."""
    try:
        trace_init(config, stream)
    except ValueError as error:
        raise ValueError(f"{config.method}, {config.budget}: {error}") from None


def trace_init(config: Config, stream: streams.Stream) -> None:
    """`check_run` whose message does not name method and budget."""
    jax.eval_shape(lambda key: make_run(config).init(key, stream), jax.random.key(0))


def by_protocol(flags: Main) -> Main:
    """Flags with the settings of the official code of SCALL where the protocol asks for them.

    Raises:
      ValueError: unknown protocol.
    """
    if flags.protocol not in ("clean", "published"):
        raise ValueError(f"unknown protocol {flags.protocol!r}: choose clean or published")
    if flags.protocol == "clean":
        return flags
    kept = {"probes": flags.search.probes, "probe_steps": flags.search.probe_steps}
    return dataclasses.replace(
        flags,
        cut=dataclasses.replace(flags.cut, published=True),
        search=dataclasses.replace(SearchConfig.published(), **kept),
        policy=PolicyConfig.published(),
        # a probe's reward is relative to the last fit after as many steps
        fit=dataclasses.replace(flags.fit, eval_every=flags.search.probe_steps),
        observe=ObserveConfig(groups=flags.observe.groups),
        carry=CarryConfig(shrink=1.0, rotate=False, init_std=0.01, grow_std=0.0),
        bias="none",
    )


def main(flags: Main) -> list[dict]:
    """Run all methods; the summaries, which are also in their folders."""
    flags = by_protocol(flags)
    methods = expand(flags.method)
    if not methods:
        raise ValueError("--method: name at least one")
    if flags.resume and flags.overwrite:
        raise ValueError("--resume and --overwrite: give one of them")
    configs = {method: make_config(flags, method) for method in methods}
    for method in methods:
        _check_folder(flags, flags.out / method)
    stream = load_stream(flags)
    check_stream(stream)
    for config in configs.values():
        check_run(config, stream)
    print(
        f"{stream.source}: {len(stream.user):,} interactions, {len(stream.user_ids):,} users, "
        f"{len(stream.item_ids):,} items, {len(stream)} segments; budget {flags.budget.budget()}"
    )
    if stream.select_on_test:
        print("published protocol: models and rewards are selected on the test part; figures are optimistic")
    summaries, runs = [], {}
    for method, config in configs.items():
        summary, lines = run_method(flags, config, stream, flags.out / method)
        summaries.append(summary)
        runs[method] = lines
    report.plot_quality(flags.out / "quality.png", runs, f"{stream.source}, {flags.budget.budget()}")
    text = report.table(summaries)
    records.write_atomically(flags.out / "table.md", text + "\n")
    counted = f"segments after the first with at least {records.LEAST_USERS} test users"
    print(f"\n{text}\nmeans over {counted}; by user: over all these users")

    print(f"plots, metrics and checkpoints: {flags.out}/")
    return summaries


def expand(names: tuple[str, ...]) -> list[str]:
    """Methods, groups of them spelled out."""
    return [method for name in names for method in GROUPS.get(name, (name,))]


def make_config(flags: Main, method: str) -> Config:
    """Configuration of one method.

    Raises:
      ValueError: unknown method, or a value out of its range.
    """
    if not 0 <= flags.seed < 2**32:
        raise ValueError(f"seed {flags.seed}: must lie between 0 and 2^32 - 1")
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}: choose one of {', '.join([*METHODS, *GROUPS])}")
    return Config(
        method=method,
        budget=flags.budget.budget(),
        sizes=flags.sizes,
        carry=flags.carry,
        fit=flags.fit,
        search=flags.search,
        policy=flags.policy,
        observe=flags.observe,
        shared_memory=flags.shared_memory,
        mixed_precision=flags.mixed_precision,
        pruned=flags.pruned,
        table=flags.table,
        charge=flags.charge,
        bias=flags.bias or ("decayed" if flags.data in streams.EMBEDDED else "none"),
        candidates="segment" if flags.cut.published else "all",
    )


def _check_folder(flags: Main, folder: Path) -> None:
    if not (folder / "config.json").exists() or flags.resume:
        return
    if not flags.overwrite:
        state = "a finished" if (folder / "summary.json").exists() else "an unfinished"
        raise ValueError(f"{folder} holds {state} run: --resume it, --overwrite it, or choose another --out")


def run_method(flags: Main, config: Config, stream: streams.Stream, folder: Path) -> tuple[dict, list[dict]]:
    """One method over the stream, in its folder."""
    if flags.overwrite and not flags.resume:
        checkpoint.remove_run(folder)
    key = jax.random.key(flags.seed)
    done = folder / "summary.json"
    probes = config.search.probes if config.method in PROBED else 0
    with Progress(config.method, stream, config.fit.steps, probes) as progress:

        def on_segment(line):
            done.unlink(missing_ok=True)  # of a run that goes on; one that is refused keeps it
            progress.segment(line)

        # nobody asks any more for what tracing left in JAX's caches
        callbacks = progress.callbacks | {"on_compiled": jax.clear_caches, "on_segment": on_segment}
        lines = run_segments(config, stream, key, folder=folder, **callbacks)
    last = np.load(folder / "sizes" / f"segment-{len(lines) - 1:04d}.npz")
    title = f"{stream.source}, {config.method}, {config.budget}"
    report.plot_quality(folder / "quality.png", {config.method: lines}, title)
    if last["users"].any():
        report.plot_sizes(folder / "sizes.png", last["users"], last["items"], title)
        report.plot_memory(folder / "memory.png", lines, title)
        report.plot_histories(folder / "histories.png", sorted((folder / "sizes").glob("*.npz")), title)
    summary = report.describe(config.method, lines) | records.summarise(lines)
    records.write_atomically(done, json.dumps(summary, indent=2) + "\n")
    return summary, lines


def command(module: str) -> str:
    """The command line that this process was started with, for the head of a table."""
    return shlex.join(["python", "-m", module, *sys.argv[1:]])


def cli(flags: type = Main, job=main, description: str | None = __doc__, arguments: list[str] | None = None) -> None:
    """Command line of an experiment: bad input and files that cannot be had end with a message and exit code 2."""
    heap.keep_little()
    try:
        job(tyro.cli(flags, args=arguments, description=description))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    cli()
