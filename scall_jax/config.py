"""Configuration of a run: frozen, hashable, the same object on the command line and in a notebook."""

import dataclasses
from collections.abc import Iterable

from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.policies import ObserveConfig, PolicyConfig
from scall_jax.recommenders.bigear.config import BigearConfig
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.saros.config import SarosConfig
from scall_jax.sizes import FAMILIES, MOST_POWER, GainsConfig
from scall_jax.sizes.budget import Budget
from scall_jax.tables import (
    ROTATIONS,
    SIZED,
    STORAGES,
    ClusterConfig,
    EvictionConfig,
    ExpandableConfig,
    MixedPrecisionConfig,
    PrunedConfig,
    SequenceConfig,
    SharedMemoryConfig,
)

RECOMMENDERS = ("lightgcn", "mf", "ials", "saros")
"""What may train the vectors; see `Config.recommender`."""

ACTIONS = ("shapes", "prices")
"""What a search's actions may mean; see `SearchConfig.actions`."""

ON_DEVICES = (
    *("uniform", "fixed", "frequency", "shuffled", "random", "full", "gain", "waterfill", "scall", "scall-gain"),
    *("scall-sac", "scall-ddpg", "scall-gp", "scall-dlints", "scall-random", "scall-grid", "dlints"),
)
"""Methods that a run on several devices may have; see `Config.mesh`."""

CHARGES = ("table", "stored", "replay", "serving")
"""What a budget may pay for; see `Config.charge`."""


def _check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """Bounds of sizes, and the parameters of the methods that choose sizes without learning.

    A size is counted in coordinates of an embedding; in the storage packed, a coordinate is a float32 parameter.

    Raises:
      ValueError: bounds out of order, a value out of its range, or an unknown family or ranking.
    """

    minimum: int = 1
    """Smallest size (d_min), in coordinates, unless the budget is too small; 0 allows entities without any."""
    maximum: int = 128
    """Largest size (d_max), in coordinates."""
    rho: float | None = 0.35
    """Methods fixed and shuffled: users' share of the budget, 0 to 1; None is their share of the entities."""
    user_shape: float = 0.5
    """Methods fixed and shuffled: shape of the users' sizes, above 0, for pareto above 1; smaller is more skewed for
    powerlaw."""
    item_shape: float = 0.5
    """Methods fixed and shuffled: shape of the items' sizes, above 0, for pareto above 1."""
    family: str = "powerlaw"
    """Methods fixed and shuffled: family of sizes, powerlaw, pareto, truncnorm, truncexp or lognormal."""
    power: float = 0.5
    """Method frequency: sizes are proportional to the frequency to this power, 0 to 64."""
    ranking: str = "segment"
    """Frequency that sizes follow: segment, interactions in the current segment (published); total, all so far; or
    coherence, those of the segment, each user's times how well the user's items go together (`methods.coherence`)."""

    def __post_init__(self) -> None:
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            reason = "need 0 <= minimum <= maximum and maximum >= 1"
            raise ValueError(f"minimum={self.minimum}, maximum={self.maximum}: {reason}")
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"rho={self.rho}: a share lies between 0 and 1")
        for name in ("user_shape", "item_shape"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be greater than 0")
        if not 0 <= self.power <= MOST_POWER:
            raise ValueError(f"power={self.power}: must lie between 0 and {MOST_POWER:g}")
        _check_choice("family", self.family, FAMILIES)
        _check_choice("ranking", self.ranking, ("segment", "total", "coherence"))


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """The embeddings that a segment starts from.

    Raises:
      ValueError: a negative factor or standard deviation, or an unknown rotation.
    """

    enabled: bool = True
    """Start from the embeddings of the segment before; otherwise from random ones."""
    shrink: float = 0.3
    """Factor on the embeddings that are carried over; 1 keeps their length."""
    rotation: str = "none"
    """Turn embeddings to principal axes before sizes change: none; blocks, within the coordinates between the sizes in
    use, so that what keeps its size keeps its vector; or full, so that smaller sizes keep the most of long vectors."""
    init_std: float = 0.1
    """Standard deviation of the coordinates of new embeddings."""
    grow_std: float = 0.01
    """Standard deviation of the coordinates that an entity gains when its size grows."""

    def __post_init__(self) -> None:
        for name in ("shrink", "init_std", "grow_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        _check_choice("rotation", self.rotation, ROTATIONS)


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """The search for sizes: how many probes it makes, how they are trained, and what they are rewarded for.

    A probe is a short training of a segment with sizes to be judged. Its fitness is the mean of Recall@20 and NDCG@20
    on the validation part.

    Raises:
      ValueError: a value out of its range, or an unknown choice.

    >>> SearchConfig(probes=20).probes, SearchConfig.published().probes
    (20, 50)
    """

    probes: int | None = None
    """Probes of a segment, at most, rounded up to whole rounds; None takes 12, and 24 with the recommender ials, where
    a probe is a whole fit of a second or less."""
    probes_at_once: int = 1
    """Probes of a round, which are trained together; the policy learns after each round."""
    probe_steps: int = 50
    """Training steps of a probe (published: 200)."""
    start: str = "warm"
    """Parameters that a probe starts from: warm, those of the segment before; or fresh ones (published)."""
    on: str = "current"
    """Segment that probes train on: the current one, which is to be sized, or the previous one (published)."""
    reference: str = "uniform"
    """What rewards are relative to: a uniform probe, or the last_fit at its first evaluation (published)."""
    common: bool = True
    """Probes of a segment share their random numbers, so that they differ in nothing but their sizes."""
    low: float = 0.7
    """Fitness relative to the reference that earns reward 0 (published: 0.7 or 0.9)."""
    high: float = 1.2
    """Fitness relative to the reference that earns reward 10 (published: 1.2 or 1.1)."""
    most_ratio: float | None = 4.0
    """Fitness relative to the reference is capped here, since an early reference may be close to 0; None: it is not
    (published)."""
    map: str = "log"
    """Scale on which an action's numbers mean shapes within the family's range: log, or linear (published)."""
    family: str = "powerlaw"
    """Family of sizes: powerlaw, pareto, truncnorm, truncexp or lognormal."""
    concentration: float | None = None
    """How closely drawn sizes follow the expected ones, above 0; None takes the expected ones themselves."""
    learn_concentration: bool = False
    """Learn the concentration, as the fourth number of an action."""
    actions: str = "shapes"
    """What an action means: shapes, the users' share of the budget and a distribution of sizes for each side
    (published); or prices, how the gains of coordinates are weighed that sizes follow from (`scall.prices`)."""
    converge: bool = False
    """Stop a search once the users' share in the policy's best action has settled (published)."""
    tolerance: float = 0.01
    """With converge: a round is settled if it moves that share by less than this."""
    settled_rounds: int = 4
    """With converge: settled rounds in a row, the last one not counted, after which a search stops."""
    least_probes: int = 10
    """With converge: probes that a search must exceed before it stops."""

    def __post_init__(self) -> None:
        for name in ("probes", "probes_at_once", "probe_steps", "settled_rounds"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"search {name}={getattr(self, name)}: must be at least 1")
        if not self.low < self.high:
            raise ValueError(f"search low={self.low}, high={self.high}: need low < high")
        if self.most_ratio is not None and not self.most_ratio > 0:
            raise ValueError(f"search most_ratio={self.most_ratio}: must be greater than 0, or None")
        if self.concentration is not None and not self.concentration > 0:
            raise ValueError(f"search concentration={self.concentration}: must be greater than 0")
        _check_choice("search start", self.start, ("fresh", "warm"))
        _check_choice("search on", self.on, ("previous", "current"))
        _check_choice("search reference", self.reference, ("uniform", "last_fit"))
        _check_choice("search actions", self.actions, ACTIONS)
        if self.actions == "prices" and (self.learn_concentration or self.concentration is not None):
            raise ValueError(
                "search actions=prices: sizes follow exactly, so that there is no concentration; leave it out"
            )
        _check_choice("search map", self.map, ("log", "linear"))
        _check_choice("search family", self.family, FAMILIES)

    @classmethod
    def published(cls) -> "SearchConfig":
        """The settings of the official code of SCALL: probes of 200 steps, rewards by the last fit's first 200.

        There a search goes on until it has settled; here 50 probes are the bound.
        """
        return cls(
            probes=50,
            probe_steps=200,
            start="fresh",
            on="previous",
            reference="last_fit",
            common=False,
            most_ratio=None,
            map="linear",
            converge=True,
        )

    @property
    def planned_probes(self) -> int:
        """Probes of a segment, at most, before they are rounded up.

        >>> SearchConfig().planned_probes, Config(recommender="ials").search.planned_probes
        (12, 24)
        """
        return 12 if self.probes is None else self.probes

    def probe_fit(self, fit: FitConfig) -> FitConfig:
        """The configuration of a probe's training.

        Args:
          fit: the segment's training.

        Returns:
          FitConfig: the same for `probe_steps` steps, with one evaluation at the end.

        >>> SearchConfig(probe_steps=20).probe_fit(FitConfig(steps=300)).steps
        20
        """
        return dataclasses.replace(fit, steps=self.probe_steps, eval_every=self.probe_steps)


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run does to a stream. Together with the stream and a key it determines the result.

    Raises:
      ValueError: an unknown choice.

    >>> config = Config(method="frequency", budget=Budget.mean_size(4), sizes=SizesConfig(maximum=64))
    >>> dataclasses.replace(config, method="uniform").sizes.maximum
    64
    """

    method: str = "fixed"
    """Method that chooses sizes or ranks items, one of `scall_jax.METHODS`."""
    budget: Budget = Budget.mean_size(8)
    """Memory that the embeddings may take at each segment, in float32 parameters of 4 bytes."""
    sizes: SizesConfig = SizesConfig()
    """Bounds of sizes, and the parameters of the methods that choose them without learning."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """The embeddings that a segment starts from."""
    fit: FitConfig = FitConfig()
    """Training of a segment."""
    gains: GainsConfig = GainsConfig()
    """Methods gain, waterfill and those that search over prices: the fit that gains are read off, and their weights."""
    search: SearchConfig = SearchConfig()
    """Methods that search: the probes and their rewards."""
    policy: PolicyConfig = PolicyConfig()
    """Methods scall, scall-* and dlints: parameters of the policy."""
    observe: ObserveConfig = ObserveConfig()
    """Methods scall, scall-* and dlints: what the policy observes."""
    recommender: str = "lightgcn"
    """What trains the vectors and ranks by them: lightgcn; mf, matrix factorisation, trained in the same way; ials,
    implicit alternating least squares with weights that fade, which solves for them; or saros, matrix factorisation
    trained in the order of time."""
    ials: IalsConfig = IalsConfig()
    """Recommender ials: how long it solves, and parameters that it chooses for itself unless they are given."""
    saros: SarosConfig = SarosConfig()
    """Recommender saros: what a block is, and the steps that are made for it."""
    table: str = "packed"
    """Storage of methods that choose sizes: packed spends the budget on float32 coordinates, packed_bfloat16 and
    packed_int8, 4, 3, 2 and 1 (bits a coordinate) hold more coordinates in the same bytes, and masked is the full-width
    array that they are tested against. Methods with a storage of their own replace it."""
    shared_memory: SharedMemoryConfig = SharedMemoryConfig()
    """Method shared_memory: width, hashes and signatures."""
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig()
    """Method mixed_precision: width, groups and the search for their bits."""
    pruned: PrunedConfig = PrunedConfig()
    """Method pep: width and thresholds."""
    eviction: EvictionConfig = EvictionConfig()
    """Methods evict_*: width of a row, and what it is given up by."""
    memo: ExpandableConfig = ExpandableConfig()
    """Method memo: how much of a block is frozen."""
    reid: ClusterConfig = ClusterConfig()
    """Method reid: who may share a row, and with whom."""
    s2pnm: SequenceConfig = SequenceConfig()
    """Method s2pnm: what is kept of a user, and the steps of its training."""
    bigear: BigearConfig = BigearConfig()
    """Method bigear: what a teacher teaches."""
    charge: str = "table"
    """What the budget pays for: table, as in the literature; stored: that, and the sizes and the items' bias; replay:
    what is stored, and 8 bytes for each row of the segment's replay; serving: what is stored, and LightGCN's graph or
    its final vectors, whichever is smaller."""
    bias: str = "none"
    """What is added to every item's score: none, or decayed: the log of its decayed count of interactions, with the
    half-life that ranks best on valid."""
    mesh: MeshConfig = ONE
    """Devices that a run is spread over: with recommender ials, lightgcn or mf, a packed table and a method of
    `ON_DEVICES`. Sizes and metrics are those of one device as far as the guide to several devices says."""
    candidates: str = "all"
    """Items that are ranked: all known ones, or only those of the segment's held-out part (the published protocol)."""

    def __post_init__(self) -> None:
        _check_choice("bias", self.bias, ("none", "decayed"))
        _check_choice("candidates", self.candidates, ("all", "segment"))
        _check_choice("table", self.table, STORAGES)
        _check_choice("charge", self.charge, CHARGES)
        _check_choice("recommender", self.recommender, RECOMMENDERS)
        if self.mesh.devices > 1:
            self._check_on_devices()
        if self.fit.served_bits is not None and self.recommender != "lightgcn":
            raise ValueError(
                f"fit.served_bits={self.fit.served_bits}: recommender={self.recommender!r} serves from its table: "
                "choose table=packed_int4 or the like"
            )
        if self.fit.rounding != "after" and self.recommender not in ("lightgcn", "mf"):
            raise ValueError(
                f"fit.rounding={self.fit.rounding!r}: recommender={self.recommender!r} makes no steps within rounding: "
                "choose lightgcn or mf, or leave it out"
            )
        if self.recommender == "ials" and self.search.probes is None:
            object.__setattr__(self, "search", dataclasses.replace(self.search, probes=24))

    def _check_on_devices(self) -> None:
        """Refuse what runs on one device alone."""
        if self.fit.served_bits is not None:
            raise ValueError(
                f"mesh.devices={self.mesh.devices}: fit.served_bits={self.fit.served_bits} is for one device: leave "
                "one of the two out"
            )
        for name, value, choices in (
            ("recommender", self.recommender, ("ials", "lightgcn", "mf")),
            ("fit.rounding", self.fit.rounding, ("after",)),
            ("table", self.table, tuple(name for name in SIZED if name != "masked")),
            ("method", self.method, ON_DEVICES),
            ("sizes.ranking", self.sizes.ranking, ("segment", "total")),
        ):
            if value not in choices:
                raise ValueError(
                    f"mesh.devices={self.mesh.devices}: {name} {value} runs on one device: choose "
                    f"{' or '.join(choices)}, or leave mesh.devices out"
                )
