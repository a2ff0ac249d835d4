"""The flags of a run: a stream, a budget, methods and their options."""

import dataclasses
from pathlib import Path
from typing import ClassVar

from scall_jax import streams
from scall_jax.config import SearchConfig, SizesConfig, WarmStartConfig
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.policies import ObserveConfig, PolicyConfig
from scall_jax.recommenders.bigear.config import BigearConfig
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.run.processes import ALONE, ProcessesConfig
from scall_jax.sizes import GainsConfig
from scall_jax.sizes.budget import Budget
from scall_jax.tables import (
    ClusterConfig,
    EvictionConfig,
    ExpandableConfig,
    MixedPrecisionConfig,
    PrunedConfig,
    SequenceConfig,
    SharedMemoryConfig,
)


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
