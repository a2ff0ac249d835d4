"""Parameters of BiGeaR."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class BigearConfig:
    """BiGeaR.

    Raises:
      ValueError: a value out of its range.
    """

    top: int = 50
    """Items of each layer that the teacher teaches a user (published: 100, of which the second half weighs 0.7%)."""
    fading: float = 0.1
    """The r-th of them weighs exp(-fading r)."""
    users: int = 256
    """Users that are taught in a step (published: those of the batch)."""
    distillation: float = 1.0
    """Weight of what is taught; 0 trains without a teacher's lists."""
    sharpness: float = 1.0
    """The gradient of a sign at x is that of a normal distribution, sharpness / sqrt(pi) exp(-(sharpness x)^2), at
    most 1."""

    def __post_init__(self) -> None:
        for name in ("top", "users"):
            if getattr(self, name) < 1:
                raise ValueError(f"bigear {name}={getattr(self, name)}: must be at least 1")
        for name in ("fading", "distillation"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"bigear {name}={getattr(self, name)}: must not be negative")
        if not self.sharpness > 0:
            raise ValueError(f"bigear sharpness={self.sharpness}: must be greater than 0")
