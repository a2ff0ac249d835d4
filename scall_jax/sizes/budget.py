"""Memory budgets: how many parameters the tables may hold at each segment of the stream."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np


@dataclasses.dataclass(frozen=True)
class Budget:
    """Parameters allowed at a segment; build one with `mean_size`, `megabytes` or `schedule`.

    Exactly one field is set. A parameter is a float32 number of 4 bytes; a megabyte is 10^6 bytes, as in the SCALL
    paper (arXiv 2407.15411).

    Raises:
      ValueError: no field or several fields set; a size or a number of megabytes that is not finite and positive.

    >>> Budget.mean_size(8).parameters(segment=0, entities=1000)
    8000
    >>> Budget.megabytes(0.1).parameters(segment=0, entities=1000)
    25000
    >>> print(Budget.schedule([Budget.mean_size(8), Budget.mean_size(4)]))
    schedule mean size 8, mean size 4
    """

    size: float | None = None
    """Mean embedding size, in parameters, over all users and items known so far: the budget grows with the stream."""
    mb: float | None = None
    """A constant number of megabytes (10^6 bytes) of float32 parameters."""
    steps: tuple["Budget", ...] = ()
    """A budget for each segment; the last one holds for all later segments."""

    def __post_init__(self) -> None:
        if sum((self.size is not None, self.mb is not None, bool(self.steps))) != 1:
            raise ValueError("a budget is one of mean size, megabytes or schedule: give exactly one")
        value = self.size if self.size is not None else self.mb
        if value is not None and not (np.isfinite(value) and value > 0):
            name = "mean size" if self.size is not None else "megabytes"
            raise ValueError(f"budget {name} of {value}: must be finite and greater than 0")

    @classmethod
    def mean_size(cls, size: float) -> "Budget":
        """A budget P_t = size x (n_u + n_v) that grows with the users n_u and items n_v known at segment t.

        Args:
          size: parameters for each user and item.
        """
        return cls(size=float(str(size)))

    @classmethod
    def megabytes(cls, mb: float) -> "Budget":
        """A constant budget of mb x 10^6 / 4 parameters.

        Args:
          mb: megabytes of 10^6 bytes.
        """
        return cls(mb=float(str(mb)))

    @classmethod
    def schedule(cls, budgets: Sequence["Budget"]) -> "Budget":
        """One budget per segment.

        Args:
          budgets: by segment; the last one holds for all later segments.

        Raises:
          ValueError: no budgets, or something among them that is none.
        """
        for number, budget in enumerate(budgets):
            if not isinstance(budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ValueError(
                    f"schedule, number {number}: {budget!r} is no budget: Budget.mean_size({budget!r}), for example"
                )
        return cls(steps=tuple(budgets))

    def parameters(self, segment: int, entities: int) -> int:
        """Parameters allowed at a segment, rounded down.

        Args:
          segment: number of the segment, from 0.
          entities: users and items known at its cut.

        Returns:
          The number of float32 parameters.
        """
        if self.steps:
            return self.steps[min(segment, len(self.steps) - 1)].parameters(segment, entities)
        # Exact decimal arithmetic: in binary floating point 0.7 * 90 < 63.
        if self.size is not None:
            return math.floor(Fraction(str(self.size)) * entities)
        return math.floor(Fraction(str(self.mb)) * 250_000)

    def __str__(self) -> str:
        if self.steps:
            return "schedule " + ", ".join(map(str, self.steps))
        return f"mean size {self.size:g}" if self.size is not None else f"{self.mb:g} MB"
