"""Memory budgets: how many parameters the tables may hold at each segment of the stream."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """Parameters allowed at a segment; build one with `mean_size`, `megabytes` or `schedule`.

    Exactly one field is set. A parameter is a float32, 4 bytes; a megabyte is 10^6 bytes, as in the SCALL paper.
    """

    size: float | None = None
    """Mean embedding size over all users and items seen so far: the budget grows with the stream."""
    mb: float | None = None
    """A constant number of megabytes (10^6 bytes) of float32 parameters."""
    steps: tuple["Budget", ...] = ()
    """A budget for each segment; the last one holds for all later segments."""

    def __post_init__(self):
        if sum((self.size is not None, self.mb is not None, bool(self.steps))) != 1:
            raise ValueError("a budget is one of mean size, megabytes or schedule: give exactly one")
        value = self.size if self.size is not None else self.mb
        if value is not None and not (np.isfinite(value) and value > 0):
            name = "mean size" if self.size is not None else "megabytes"
            raise ValueError(f"budget {name} of {value}: must be finite and greater than 0")

    @classmethod
    def mean_size(cls, size: float) -> "Budget":
        """`size` parameters for each user and item seen so far, P_t = size x (n_u + n_v)."""
        return cls(size=float(str(size)))

    @classmethod
    def megabytes(cls, mb: float) -> "Budget":
        """A constant P = mb x 10^6 / 4 parameters."""
        return cls(mb=float(str(mb)))

    @classmethod
    def schedule(cls, budgets: Sequence["Budget"]) -> "Budget":
        """One budget per segment; the last one holds on."""
        return cls(steps=tuple(budgets))

    def parameters(self, segment: int, entities: int) -> int:
        """Parameters at `segment` (from 0) when `entities` users and items are known, rounded down."""
        if self.steps:
            return self.steps[min(segment, len(self.steps) - 1)].parameters(segment, entities)
        # of the decimal number as it was given: 0.7 x 90 is 63, in binary floating point less
        if self.size is not None:
            return math.floor(Fraction(str(self.size)) * entities)
        return math.floor(Fraction(str(self.mb)) * 250_000)

    def __str__(self):
        if self.steps:
            return "schedule " + ", ".join(map(str, self.steps))
        return f"mean size {self.size:g}" if self.size is not None else f"{self.mb:g} MB"
