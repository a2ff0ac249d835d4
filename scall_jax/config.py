"""Configuration of a run: frozen, hashable, the same object on the command line and in a notebook."""

import dataclasses

from scall_jax.policies import ObserveConfig, PolicyConfig
from scall_jax.recommenders.fit import FitConfig
from scall_jax.sizes import FAMILIES
from scall_jax.sizes.budget import Budget
from scall_jax.tables import STORAGES, MixedPrecisionConfig, PrunedConfig, SharedMemoryConfig


def _choose(name, value, choices):
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """Bounds of sizes, and the parameters of the methods that choose them without learning."""

    minimum: int = 1
    """Smallest size (d_min) while the budget allows it for all; 0 leaves entities of too small a share without
    parameters of their own at any budget."""
    maximum: int = 128
    """Largest size (d_max)."""
    rho: float | None = 0.35
    """`fixed`, `shuffled`: users' share of the budget; None for their share of the entities."""
    user_shape: float = 0.5
    """`fixed`, `shuffled`: shape of the users' size distribution; smaller is more skewed for the power law."""
    item_shape: float = 0.5
    """`fixed`, `shuffled`: shape of the items' size distribution."""
    family: str = "powerlaw"
    """`fixed`, `shuffled`: family of the size distributions."""
    power: float = 0.5
    """`frequency`: sizes are proportional to frequency to this power."""
    ranking: str = "segment"
    """Frequency that sizes follow: of the current `segment` (as published) or in `total`."""

    def __post_init__(self):
        if not 0 <= self.minimum <= self.maximum or self.maximum < 1:
            reason = "need 0 <= minimum <= maximum and maximum >= 1"
            raise ValueError(f"minimum={self.minimum}, maximum={self.maximum}: {reason}")
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"rho={self.rho}: a share lies between 0 and 1")
        for name in ("user_shape", "item_shape", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be greater than 0")
        _choose("family", self.family, FAMILIES)
        _choose("ranking", self.ranking, ("segment", "total"))


@dataclasses.dataclass(frozen=True)
class WarmStartConfig:
    """What a segment starts from."""

    enabled: bool = True
    """From the embeddings of the segment before; otherwise afresh."""
    shrink: float = 0.3
    """Factor on the embeddings that are carried over."""
    rotate: bool = True
    """Turn embeddings to their principal axes before sizes change."""
    init_std: float = 0.1
    """Standard deviation of new embeddings."""
    grow_std: float = 0.01
    """Standard deviation of coordinates that an entity gains."""

    def __post_init__(self):
        for name in ("shrink", "init_std", "grow_std"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How sizes are searched."""

    probes: int = 12
    """At most this many probes per segment, rounded up to whole rounds."""
    probes_at_once: int = 1
    """Probes of a round, made together."""
    probe_steps: int = 50
    """Training steps of a probe (200 as published)."""
    start: str = "warm"
    """Probes start from `fresh` parameters (published) or `warm` ones, resized."""
    on: str = "current"
    """Probe on the `previous` segment's data (published) or on the train and valid parts of the `current` one."""
    reference: str = "uniform"
    """Rewards relative to a probe with `uniform` sizes or to the first evaluation of the `last_fit` (published)."""
    common: bool = True
    """Probes of a segment share their random numbers."""
    low: float = 0.7
    """Fitness by the reference that earns reward 0 (published: 0.7 or 0.9)."""
    high: float = 1.2
    """Fitness by the reference that earns reward 10 (published: 1.2 or 1.1)."""
    map: str = "log"
    """Shapes from actions: `log` or `linear` (published) in the family's range."""
    family: str = "powerlaw"
    """Family of the size distributions."""
    concentration: float | None = None
    """Of the sampled sizes around the expected ones; None: the expected ones."""
    learn_concentration: bool = False
    """The concentration is the fourth number of the action."""
    converge: bool = False
    """Stop early once the greedy users' share has settled (published)."""
    tolerance: float = 0.01
    """Settled: moved by less than this ..."""
    settled_rounds: int = 5
    """... in each of so many rounds ..."""
    least_probes: int = 10
    """... and after more than so many probes."""

    def __post_init__(self):
        for name in ("probes", "probes_at_once", "probe_steps", "settled_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"search {name}={getattr(self, name)}: must be at least 1")
        if not self.low < self.high:
            raise ValueError(f"search low={self.low}, high={self.high}: need low < high")
        if self.concentration is not None and not self.concentration > 0:
            raise ValueError(f"search concentration={self.concentration}: must be greater than 0")
        _choose("search start", self.start, ("fresh", "warm"))
        _choose("search on", self.on, ("previous", "current"))
        _choose("search reference", self.reference, ("uniform", "last_fit"))
        _choose("search map", self.map, ("log", "linear"))
        _choose("search family", self.family, FAMILIES)

    @classmethod
    def published(cls) -> "SearchConfig":
        """The settings of the official code: probes of 200 steps, rewards by the last fit's first 200.

        There probes go on until they settle; here 50 is the bound.
        """
        return cls(
            probes=50,
            probe_steps=200,
            start="fresh",
            on="previous",
            reference="last_fit",
            common=False,
            map="linear",
            converge=True,
        )

    def probe_fit(self, fit: FitConfig) -> FitConfig:
        """The training of a probe: as the segment's, for `probe_steps`, evaluated once at the end."""
        return dataclasses.replace(fit, steps=self.probe_steps, eval_every=self.probe_steps)


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run does to a stream. With stream and key it determines the result."""

    method: str = "fixed"
    """How sizes are chosen, or which popularity ranks items: one of `scall_jax.METHODS`."""
    budget: Budget = Budget.mean_size(8)
    """Parameters that the table may hold."""
    sizes: SizesConfig = SizesConfig()
    """Bounds and shapes of sizes."""
    warm_start: WarmStartConfig = WarmStartConfig()
    """What a segment starts from."""
    fit: FitConfig = FitConfig()
    """Training of one segment."""
    search: SearchConfig = SearchConfig()
    """`scall`: how sizes are searched."""
    policy: PolicyConfig = PolicyConfig()
    """`scall`: parameters of the policy."""
    observe: ObserveConfig = ObserveConfig()
    """`scall`: what the policy sees."""
    table: str = "packed"
    """Storage of methods that choose sizes: `packed` holds the budget and no more, `packed_bfloat16` and `packed_int8`
    hold more coordinates in its bytes, `masked` is the full-width reference."""
    shared_memory: SharedMemoryConfig = SharedMemoryConfig()
    """`shared_memory`: width, hashes and signatures."""
    mixed_precision: MixedPrecisionConfig = MixedPrecisionConfig()
    """`mixed_precision`: width, groups and the search for their bits."""
    pruned: PrunedConfig = PrunedConfig()
    """`pep`: width and thresholds."""
    charge: str = "parameters"
    """What the budget pays for: `parameters`; `all` that serving needs, sizes, codes and the items' bias included;
    `replay`: that, and 8 bytes for each row of the segment's replay."""
    bias: str = "none"
    """`decayed` adds to every item's score the log of its decayed count, half-life chosen on valid."""
    candidates: str = "all"
    """Items ranked: `all` known ones, or only those of the `segment`'s held-out part (the published protocol)."""

    def __post_init__(self):
        _choose("bias", self.bias, ("none", "decayed"))
        _choose("candidates", self.candidates, ("all", "segment"))
        _choose("table", self.table, STORAGES)
        _choose("charge", self.charge, ("parameters", "all", "replay"))
