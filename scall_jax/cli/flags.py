"""The flags of a run: a stream, a budget, methods and their options."""

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

import jax

from scall_jax import streams
from scall_jax.cli.nearest import advice
from scall_jax.config import Config, SearchConfig, SizesConfig, WarmStartConfig
from scall_jax.methods.registry import METHODS
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.policies import ObserveConfig, PolicyConfig
from scall_jax.recommenders.bigear.config import BigearConfig
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.run import auto, make_run, placement, records
from scall_jax.run.processes import ALONE, ProcessesConfig
from scall_jax.sizes import GainsConfig
from scall_jax.sizes.budget import Budget
from scall_jax.streams.wording import spelled_as_flags
from scall_jax.tables import (
    ClusterConfig,
    EvictionConfig,
    ExpandableConfig,
    MixedPrecisionConfig,
    PrunedConfig,
    SequenceConfig,
    SharedMemoryConfig,
)

GROUPS = {"popularity": tuple(m for m in METHODS if m.startswith("popularity-"))}
"""Names that stand for several methods."""

_CHOSEN_BY_AUTO = ("recommender", "table", "bias", "charge")
"""Flags that the candidates of auto have values of their own for."""


@dataclasses.dataclass(frozen=True)
class BudgetFlags:
    """The budget; give at most one of these."""

    mean_size: float | None = None
    """Parameters (float32) per user and item known so far; the default budget is a mean size of 8."""
    megabytes: float | None = None
    """Constant size of the table in 10^6 bytes, instead of a mean size."""
    schedule: tuple[float, ...] = ()
    """A mean size for each segment, instead of one for all; the last one holds for all later segments."""
    part: float = 1.0
    """Part of the budget that is used, such as .25 for one method among others (uniform@budget.part=.25)."""

    def budget(self) -> Budget:
        """The budget that the flags describe.

        Returns:
          Budget.

        Raises:
          ValueError: more than one flag is given, or a value out of its range.
        """
        if not 0 < self.part <= 1:
            raise ValueError(f"--budget.part={self.part}: must lie above 0 and not above 1")
        given = [x for x in (self.mean_size, self.megabytes, self.schedule or None) if x is not None]
        if len(given) > 1:
            raise ValueError("give one of --budget.mean-size, --budget.megabytes and --budget.schedule")
        if self.megabytes is not None:
            return Budget.megabytes(self.megabytes * self.part)
        if self.schedule:
            return Budget.schedule([Budget.mean_size(size * self.part) for size in self.schedule])
        return Budget.mean_size((8 if self.mean_size is None else self.mean_size) * self.part)


@dataclasses.dataclass(frozen=True)
class Columns:
    """How to read a file; names are needed only where they are not the published ones."""

    format: str = "auto"
    """Format of the file; auto looks at its content."""
    separator: str | None = None
    """What separates the fields of text, such as ; or ::. Default: as the first lines look."""
    encoding: str | None = None
    """Encoding of text, such as latin-1 or utf-16; default: utf-8."""
    folder: bool = False
    """--data is a folder, all files of which are parts of one table, in the order of their names."""
    parts: tuple[str, ...] = ()
    """Further files with parts of the table that --data begins, in their order."""
    user: str | None = None
    """Name of the column of users; by default user, user_id, userId, reviewerID and the like are recognised."""
    item: str | None = None
    """Name of the column of items; by default item, item_id, movieId, asin, business_id and the like."""
    timestamp: str | None = None
    """Name of the column of timestamps; by default timestamp, time, ts, date and the like."""
    rating: str | None = None
    """Name of the column of ratings, which --columns.min-rating needs; by default rating, overall or stars."""
    min_rating: float | None = None
    """Keep only rows with at least this rating."""
    time_unit: str = "auto"
    """Unit of numeric timestamps: s, ms, us or ns; auto judges by their size, and refuses rows that disagree."""
    time_format: str | None = None
    """Form of timestamps that are dates, such as '%m/%d/%Y %H:%M' or %Y%m%d; by default ISO 8601 is read."""
    missing: tuple[str, ...] = streams.MISSING
    """Texts that stand for a missing value, besides the empty one."""
    skip_incomplete: bool = False
    """Leave rows out in which a value is missing, and say how many, instead of ending with an error."""


@dataclasses.dataclass(frozen=True)
class Cut:
    """How the stream is cut into segments; see `scall_jax.streams.cut`."""

    new_entities: int | None = None
    """New users + items that a segment brings; default: 1600 for online-retail, 3000 for movietweetings. scall-jax run
    cuts another file into as many parts of equally many rows, up to 12, as leave 200 test users in each; experiments
    take 15000."""
    segments: int | None = None
    """Number of segments of equally many rows, instead of --cut.new-entities."""
    rows: int | None = None
    """Rows of every segment, instead of --cut.new-entities; those that are left wait for scall-jax update."""
    at: tuple[str, ...] = ()
    """Timestamps at which segments start, instead of --cut.new-entities."""
    max_segments: int | None = None
    """Segments after which to stop."""
    replay: float = 0.2
    """Rows of earlier segments that are trained on again, as a part of the segment's training rows."""
    replay_by: str = "uniform"
    """How these rows are chosen: uniform at random; or neighbourhood, those of a random user and of the users nearest
    to it by items."""
    k_core: int = 0
    """Keep only users and items with at least this many rows; this looks at the whole file."""
    shuffle_ties: bool = False
    """Order rows of equal time at random, for timestamps that are whole days."""
    published: bool = False
    """The published protocol: train on the first 80% of replayed and new rows, select models and test on the rest. For
    comparison only."""


@dataclasses.dataclass(frozen=True)
class Main:
    """Flags of a run, and of the experiments that consist of runs."""

    SHOWN: ClassVar[dict[str, tuple[str, ...]]] = {
        "stream": (
            "data",
            "columns.user",
            "columns.item",
            "columns.timestamp",
            "cut.segments",
            "cut.new-entities",
        ),
        "methods and budget": (
            "method",
            "budget.mean-size",
            "budget.megabytes",
            "budget.schedule",
            "table",
            "charge",
            "sizes.minimum",
            "sizes.maximum",
        ),
        "training": ("recommender", "fit.steps", "search.probes", "bias", "protocol", "seed"),
        "results": ("out", "resume", "overwrite", "report", "compilation-cache"),
    }
    """Flags that `-h` shows, by title."""

    data: str = "online-retail"
    """An embedded stream (online-retail or movietweetings), or the path of a file of interactions."""
    method: tuple[str, ...] = (
        "uniform",
        "frequency@sizes.maximum=32",
        "scall@sizes.maximum=32",
        "frequency@table=packed_int1,budget.part=0.0625,sizes.maximum=32",
        "uniform@recommender=ials,table=packed_int4,sizes.maximum=64,ials.narrowest=64",
        "scall@recommender=ials,table=packed_int4,search.probes=12,ials.probe-sweeps=2,sizes.maximum=80,ials.narrowest=80",
        "popularity",
    )
    """Methods to run, one after the other; popularity stands for its three floors, and auto for the candidate that
    leads on valid. Flags that differ for one method follow its name after an @, as in
    uniform@recommender=ials,table=packed_int4. For a file of one's own the default is auto alone."""
    budget: BudgetFlags = BudgetFlags()
    """What the table may hold."""
    seed: int = 0
    """Seed of everything random, the cut of the stream included."""
    out: Path = Path("runs/demo")
    """Folder of the results, with a sub-folder per method."""
    resume: bool = False
    """Continue unfinished runs in the folder, and keep finished ones."""
    overwrite: bool = False
    """Replace runs in the folder."""
    report: bool = True
    """Write report.html to each run's folder, and beside them one that compares them."""
    tensorboard: bool = False
    """Write event files for TensorBoard below each run's folder, as it goes: quality, loss, bytes, sizes and rewards.
    Needs the extra tensorboard. Programs that report losses are not kept from run to run."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder (at most 1 GB), so that the next run compiles less; without, on
    a terminal, the bars show training steps too."""
    columns: Columns = Columns()
    """How the file is read."""
    max_memory: float | None = None
    """Megabytes (10^6 bytes) that reading the file may take; default: half of what the machine has."""
    cut: Cut = Cut()
    """How the stream is cut."""
    sizes: SizesConfig = SizesConfig()
    """Bounds of sizes, and how methods without a search choose them."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """What a segment starts from."""
    fit: FitConfig = FitConfig(steps=300)
    """Training of a segment."""
    search: SearchConfig = SearchConfig()
    """How sizes are searched."""
    recommender: str = "lightgcn"
    """What trains the vectors and ranks by them: lightgcn; mf, matrix factorisation, trained in the same way; ials,
    implicit alternating least squares with weights that fade, which solves for them; or saros, matrix factorisation
    trained in the order of time."""
    ials: IalsConfig = IalsConfig()
    """Recommender ials: how long it solves, and parameters that it chooses for itself unless they are given."""
    saros: SarosConfig = SarosConfig()
    """Recommender saros: what a block is, and the steps that are made for it."""
    gains: GainsConfig = GainsConfig()
    """Methods gain, waterfill and scall-gain: what coordinates are worth."""
    policy: PolicyConfig = PolicyConfig()
    """The policy of a search."""
    observe: ObserveConfig = ObserveConfig()
    """What a policy sees."""
    shared_memory: SharedMemoryConfig = SharedMemoryConfig()
    """Options of the method shared_memory."""
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig()
    """Options of the method mixed_precision."""
    pruned: PrunedConfig = PrunedConfig()
    """Options of the method pep."""
    eviction: EvictionConfig = EvictionConfig()
    """Options of the methods evict_count, evict_age and evict_score."""
    memo: ExpandableConfig = ExpandableConfig()
    """Options of the method memo."""
    reid: ClusterConfig = ClusterConfig()
    """Options of the method reid."""
    s2pnm: SequenceConfig = SequenceConfig()
    """Options of the method s2pnm."""
    bigear: BigearConfig = BigearConfig()
    """Options of the method bigear."""
    mesh: MeshConfig = ONE
    """Several devices for one run."""
    processes: ProcessesConfig = ALONE
    """Several processes for one run, each with some of its devices; start all of them with the same flags but the
    number."""
    protocol: str = "clean"
    """clean, or published: protocol, search and policy of the official code, selection on test included. For
    comparison only; published replaces the flags cut.published, search (but its probes and their steps), policy,
    warm-start, fit.eval-every (a probe's steps), fit.l2, bias (the comparisons' --biases hold) and observe (but its
    groups). What still differs from the official code is printed."""
    table: str = "packed"
    """Storage of methods that choose sizes: packed (float32), packed_bfloat16, packed_int8, packed_int4, packed_int3,
    packed_int2, packed_int1, or masked."""
    charge: str = "table"
    """What the budget pays for: table, as in the literature; stored: that, and the sizes and the items' bias; replay:
    what is stored, and 8 bytes for each row of the segment's replay; serving: what is stored, and LightGCN's graph or
    its final vectors, whichever is smaller."""
    bias: str | None = None
    """decayed: add the log of an item's decayed count to its score; none: do not. Default: decayed for the embedded
    streams, where valid prefers it, else none."""


PUBLISHED_DIFFERS = (
    "sizes go up to --sizes.maximum, there to 256, and observations have --observe.groups windows, there 256",
    "a search makes at most --search.probes probes of --search.probe-steps steps, there of 200 until it has settled",
    "a fit has the steps, batch, learning rate and patience of --fit, there 10,000 triples a step, a rate from .03 "
    "down to .001, and three evaluations without a gain whose loss falls by less than 5%",
    "negatives are any known items, there items of the segment and its replay",
    "expected sizes are exact and so is the budget, there sizes are means of 100 samples, rounded, and probes may go "
    "over the budget",
    "replayed rows are drawn uniformly, there by a reservoir from a sample 1.1 times as large",
    "test pairs that were met in training are left out, there they count as missed",
    "the policy keeps 2,048 transitions, there 10,000",
)
"""In what a run by the published protocol differs from the official code of SCALL (commit 15d6eb8)."""

_PUBLISHED_L2 = 2e-4  # The official loss has 1e-4 of the whole squared norm, that of `FitConfig.l2` has half of it.

_MOST = 0.9
"""The part of the test rows that must be left out for one reason before the advice names it."""

FLAGS = {field.name: f"--columns.{field.name.replace('_', '-')}" for field in dataclasses.fields(Columns)}
FLAGS |= {field.name: f"--cut.{field.name.replace('_', '-')}" for field in dataclasses.fields(Cut)}
FLAGS |= {"max_memory": "--max-memory"}
"""Flags by the names that `read` and `cut` have for them."""

F = TypeVar("F", bound=Main)

NEW_ENTITIES = {"online-retail": 1600, "movietweetings": 3000}
"""New entities at which the embedded streams are cut, unless a flag says otherwise."""


def load_stream(flags: Main, segments: Literal["auto"] | None = None) -> streams.Stream:
    """Read and cut the stream that the flags name.

    Args:
      flags: of which data, columns, cut and seed matter.
      segments: "auto" cuts a file, where no flag says how, so that segments have enough test users (`streams.cut`).

    Returns:
      Stream.

    Raises:
      ValueError: a file that cannot be read, or a stream that cannot be cut like this.
    """
    options: dict[str, Any] = dataclasses.asdict(flags.columns) | {"max_memory": flags.max_memory}
    parts = options.pop("parts")
    embedded = flags.data in streams.EMBEDDED
    if embedded and (parts or options["folder"]):
        raise ValueError(f"--columns.parts and --columns.folder: {flags.data} is an embedded stream, not a file")
    rules = dataclasses.asdict(flags.cut)
    rules["at"] = list(rules["at"]) or None
    if all(rules[name] is None for name in ("new_entities", "segments", "rows", "at")):
        # The published protocol cuts where its paper does.
        chosen = segments is not None and not embedded and not flags.cut.published
        rules |= {"segments": segments} if chosen else {"new_entities": NEW_ENTITIES.get(flags.data)}
    with spelled_as_flags(FLAGS):
        if embedded:
            rows = streams.load(flags.data, **options)
        else:
            rows = streams.read([flags.data, *parts] if parts else flags.data, **options)
        return streams.cut(rows, seed=flags.seed, **rules)


def check_stream(stream: streams.Stream) -> None:
    """Check that some segment counts in means over segments.

    Args:
      stream: of a run.

    Raises:
      ValueError: there is one segment, or no later one has enough test users.
    """
    users, items = len(stream.user_ids), len(stream.item_ids)
    if len(stream) < 2:
        raise ValueError(
            f"{stream.source}: {users:,} users and {items:,} items are one segment, and the first does not count: "
            "give --cut.segments or --cut.new-entities well below their sum, and --cut.max-segments above 1"
        )
    found = [stream.evaluated(t) for t in range(1, len(stream))]
    if not any(part.users >= records.LEAST_USERS for part in found):
        raise ValueError(f"{stream.source}: {_no_test_users(stream, found)}")


def _no_test_users(stream: streams.Stream, found: list[streams.Evaluated]) -> str:
    """Why no segment after the first can be evaluated, and what helps."""
    rows, strangers, unknown, repeats, _ = (sum(column) for column in zip(*found, strict=True))
    most, users = max(part.users for part in found), len(stream.user_ids)
    text = (
        f"no segment after the first has {records.LEAST_USERS} test users (at most {most:,}): of {rows:,} test rows "
        f"there {strangers:,} have users who are not known at the cut, {unknown:,} have items that are not, and "
        f"{repeats:,} repeat pairs that were met before"
    )
    if users < records.LEAST_USERS:
        return f"{text}. There are {users} users in all, too few for any cut"
    if strangers > _MOST * rows:
        return (
            f"{text}. Users who never come back, such as sessions, cannot be evaluated by this protocol, which ranks "
            "items for known users: name a column of lasting users (--columns.user)"
        )
    if repeats > _MOST * rows:
        return f"{text}. Nothing is left to recommend where users only repeat what they did: take other data"
    if unknown > _MOST * rows:
        return f"{text}. Items are gone before a segment ends: cut more, shorter segments (--cut.segments)"
    return f"{text}. Cut fewer, longer segments (--cut.segments, --cut.new-entities)"


def check_run(config: Config, stream: streams.Stream) -> None:
    """Check that the method can use its budget on this stream; nothing is computed.

    Args:
      config, stream: of a run.

    Raises:
      ValueError: it cannot; the message names method and budget.
    """
    try:
        trace_init(config, stream)
    except ValueError as error:
        raise ValueError(f"{config.method}, {config.budget}: {error}") from None


def trace_init(config: Config, stream: streams.Stream) -> None:
    """As `check_run`, with a message that does not name method and budget."""
    placement.check_devices(config.mesh)
    if config.method == auto.NAME:
        auto.feasible(auto.candidates(config), stream)
    else:
        jax.eval_shape(lambda key: make_run(config).init(key, stream), jax.random.key(0))


def by_protocol(flags: F) -> F:
    """Put in the settings of SCALL's official code where the protocol asks for them.

    Args:
      flags: as given on the command line.

    Returns:
      Flags of the same class.

    Raises:
      ValueError: unknown protocol.
    """
    if flags.protocol not in ("clean", "published"):
        raise ValueError(f"unknown protocol {flags.protocol!r}: choose clean or published")
    if flags.protocol == "clean":
        return flags
    search = {"probes": flags.search.planned_probes, "probe_steps": flags.search.probe_steps}
    return dataclasses.replace(
        flags,
        cut=dataclasses.replace(flags.cut, published=True),
        search=dataclasses.replace(SearchConfig.published(), **search),
        policy=PolicyConfig.published(),
        # A probe's reward is relative to the last fit after as many steps.
        fit=dataclasses.replace(flags.fit, eval_every=flags.search.probe_steps, l2=_PUBLISHED_L2),
        observe=ObserveConfig(groups=flags.observe.groups),
        warm_start=WarmStartConfig(shrink=1.0, rotation="none", init_std=0.01, grow_std=0.0),
        bias="none",
    )


def by_data(flags: F) -> F:
    """Put in the methods for a file of one's own where none are given.

    >>> by_data(Main(data="clicks.csv")).method, len(by_data(Main()).method)
    (('auto',), 7)
    """
    if flags.data in streams.EMBEDDED or flags.method != type(flags)().method:
        return flags
    return dataclasses.replace(flags, method=(auto.NAME,))


def check_auto(flags: Main, spelled: str) -> None:
    """Check that no flag asks for what the method auto chooses by itself.

    Args:
      flags: as given on the command line; what `by_protocol` puts in is not asked for.
      spelled: a method, with flags of its own as `for_method` reads them.

    Raises:
      ValueError: the method is auto, and a flag that it would not heed differs from its default.
    """
    flags, method = for_method(flags, spelled)
    if method != auto.NAME:
        return
    for name in _CHOSEN_BY_AUTO:
        value = getattr(flags, name)
        # Its budget pays for all that serving needs, so that asking for this is heeded.
        if value != getattr(type(flags)(), name) and (name, value) != ("charge", "serving"):
            raise ValueError(
                f"--{name} {value}: method auto chooses recommender, table and bias, and charges for all that serving "
                f"needs: name another --method, such as uniform, or give the flag to one alone: uniform@{name}={value}"
            )


def expand(names: tuple[str, ...]) -> list[str]:
    """Spell out groups of methods.

    >>> expand(("uniform", "popularity"))
    ['uniform', 'popularity-all', 'popularity-segment', 'popularity-decayed']
    """
    return [method for name in names for method in GROUPS.get(name, (name,))]


def for_method(flags: F, spelled: str) -> tuple[F, str]:
    """The flags of one method, with what is spelled after its name put in.

    Args:
      flags: of all methods.
      spelled: a method, and after an @ the flags that differ for it: name=value, separated by commas.

    Returns:
      Flags of the same class, and the method's name.

    Raises:
      ValueError: an unknown flag, or a value that it cannot have.

    >>> flags, method = for_method(Main(), "uniform@table=packed_int4,budget.mean-size=2")
    >>> method, flags.table, flags.budget.mean_size
    ('uniform', 'packed_int4', 2.0)
    """
    method, _, options = spelled.partition("@")
    for option in filter(None, options.split(",")):
        name, equals, text = option.partition("=")
        if not equals:
            raise ValueError(f"method {spelled!r}: {option!r} is not of the form flag=value, such as table=packed_int4")
        path = name.removeprefix("--").replace("-", "_").split(".")
        flags = _replaced(flags, path, text, f"method {spelled!r}: --{name}")
    return flags, method


def _replaced(flags: Any, path: list[str], text: str, where: str) -> Any:
    """A dataclass with the field at a path replaced by a value that is spelled as text."""
    field = path[0]
    names = [f.name for f in dataclasses.fields(flags)] if dataclasses.is_dataclass(flags) else []
    if field not in names:
        near = [x.replace("_", "-") for x in difflib.get_close_matches(field, names, n=1)]
        raise ValueError(f"{where} is no flag" + "".join(f": did you mean {x}?" for x in near))
    if len(path) > 1:
        value = _replaced(getattr(flags, field), path[1:], text, where)
    else:
        allowed = get_type_hints(type(flags))[field]
        value = _spelled(text, [kind for kind in get_args(allowed) if kind is not ...] or (allowed,), where)
        if get_origin(allowed) is tuple:
            # Commas separate flags here, so that there is one value.
            value = (value,)
    changed: Any = flags
    return dataclasses.replace(changed, **{field: value})


_SPELLED: dict[type, Callable[[str], Any]] = {
    type(None): {"None": None, "none": None}.__getitem__,
    bool: {"True": True, "true": True, "False": False, "false": False}.__getitem__,
    int: int,
    float: float,
    str: str,
}


def _spelled(text: str, allowed: Sequence[Any], where: str) -> Any:
    for kind, parse in _SPELLED.items():
        if kind in allowed:
            try:
                return parse(text)
            except (KeyError, ValueError):
                continue
    raise ValueError(f"{where}={text}: a value of type {' or '.join(getattr(a, '__name__', str(a)) for a in allowed)}")


def make_config(flags: Main, method: str) -> Config:
    """The configuration of one method.

    Args:
      flags: of all methods.
      method: one of `scall_jax.METHODS`, with flags of its own as `for_method` reads them.

    Returns:
      Config.

    Raises:
      ValueError: unknown method, a value out of its range, or a flag after an @ that methods cannot differ by.
    """
    if flags.processes != ALONE and type(flags) is not Main:
        raise ValueError("--processes.*: only `scall-jax run` can be several processes; leave them out")
    shared, (flags, method) = flags, for_method(flags, method)
    own = {f.name for f in dataclasses.fields(Config)} - {"method"}
    # A method cannot have a stream, a seed or a folder of its own: the runs are made of what is common to all.
    for field in sorted({f.name for f in dataclasses.fields(Main)} - own):
        if getattr(flags, field) != getattr(shared, field):
            raise ValueError(f"--{field.replace('_', '-')} after an @: it is the same for all methods; give it alone")
    if not 0 <= flags.seed < 2**32:
        raise ValueError(f"seed {flags.seed}: must lie between 0 and 2^32 - 1")
    if method not in (*METHODS, auto.NAME):
        raise ValueError(f"unknown method {method!r}: {advice(method, [*METHODS, auto.NAME, *GROUPS])}")
    return Config(
        method=method,
        budget=flags.budget.budget(),
        sizes=flags.sizes,
        warm_start=flags.warm_start,
        fit=flags.fit,
        recommender=flags.recommender,
        ials=flags.ials,
        saros=flags.saros,
        gains=flags.gains,
        search=flags.search,
        policy=flags.policy,
        observe=flags.observe,
        shared_memory=flags.shared_memory,
        mixed_precision=flags.mixed_precision,
        pruned=flags.pruned,
        eviction=flags.eviction,
        memo=flags.memo,
        reid=flags.reid,
        s2pnm=flags.s2pnm,
        bigear=flags.bigear,
        mesh=flags.mesh,
        table=flags.table,
        charge=flags.charge,
        bias=flags.bias or ("decayed" if flags.data in streams.EMBEDDED else "none"),
        candidates="segment" if flags.cut.published else "all",
    )
