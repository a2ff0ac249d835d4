"""Configuration of a run: frozen, hashable, the same object on the command line and in a notebook."""

import dataclasses

from scall_jax.budgets import Budget
from scall_jax.recommenders.fit import FitConfig
from scall_jax.sizes import FAMILIES


def _choose(name, value, choices):
    if value not in choices:
        raise ValueError(f"unknown {name} {value!r}: choose one of {', '.join(choices)}")


@dataclasses.dataclass(frozen=True)
class SizesConfig:
    """Bounds of sizes, and the parameters of the methods that choose them without learning."""

    minimum: int = 1
    """Smallest size of an entity that has parameters of its own (d_min)."""
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
        if not 0 < self.minimum <= self.maximum:
            raise ValueError(f"minimum={self.minimum}, maximum={self.maximum}: need 0 < minimum <= maximum")
        if self.rho is not None and not 0 <= self.rho <= 1:
            raise ValueError(f"rho={self.rho}: a share lies between 0 and 1")
        for name in ("user_shape", "item_shape", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be greater than 0")
        _choose("family", self.family, FAMILIES)
        _choose("ranking", self.ranking, ("segment", "total"))


@dataclasses.dataclass(frozen=True)
class CarryConfig:
    """What a segment starts from."""

    warm: bool = True
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
class Config:
    """What a run does to a stream. With stream and key it determines the result."""

    method: str = "fixed"
    """How sizes are chosen, or which popularity ranks items: one of `scall_jax.METHODS`."""
    budget: Budget = Budget.mean_size(8)
    """Parameters that the table may hold."""
    sizes: SizesConfig = SizesConfig()
    """Bounds and shapes of sizes."""
    carry: CarryConfig = CarryConfig()
    """What a segment starts from."""
    fit: FitConfig = FitConfig()
    """Training of one segment."""
    table: str = "packed"
    """Storage: `packed` holds the budget and no more, `masked` is the full-width reference."""
    bias: str = "none"
    """`decayed` adds to every item's score the log of its decayed count, half-life chosen on valid."""
    candidates: str = "all"
    """Items ranked: `all` known ones, or only those of the `segment`'s held-out part (the published protocol)."""

    def __post_init__(self):
        _choose("bias", self.bias, ("none", "decayed"))
        _choose("candidates", self.candidates, ("all", "segment"))
        _choose("table", self.table, ("packed", "masked"))
