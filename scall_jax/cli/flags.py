"""The flags of a run: a stream, a budget, methods and their options."""

import dataclasses
from pathlib import Path

import jax

from scall_jax import streams
from scall_jax.config import Config, SearchConfig, SizesConfig, WarmStartConfig
from scall_jax.methods.registry import METHODS
from scall_jax.policies import ObserveConfig, PolicyConfig
from scall_jax.recommenders.fit import FitConfig
from scall_jax.run import make_run, records
from scall_jax.sizes.budget import Budget
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
    warm_start: WarmStartConfig = WarmStartConfig()
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
        warm_start=WarmStartConfig(shrink=1.0, rotate=False, init_std=0.01, grow_std=0.0),
        bias="none",
    )


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
        carry=flags.warm_start,
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
