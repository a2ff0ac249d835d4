"""Parameters of implicit alternating least squares, and the ones that a run chooses for itself."""

import dataclasses
import math

UNOBSERVED = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Weights of a pair's zero to choose from."""
HALF_LIVES = (0.25, 1.0, math.inf)
"""Half-lives to choose from, in segments."""
USERS_HALF_LIVES = (1.0, 0.25, math.inf)
"""The same when users are solved for a last time; the first one where nothing is known yet."""
REGULARISATIONS = (0.001, 0.003, 0.01)
"""Regularisations to choose from."""
SOLVERS = {"exact": math.inf, "cg": 0, "blocks": 0, "auto": 16}
"""Padded width from which each solver approximates: blocks in blocks of columns, the others by conjugate gradients."""


@dataclasses.dataclass(frozen=True)
class IalsConfig:
    """Implicit alternating least squares with weights that fade (`recommenders.ials`).

    Raises:
      ValueError: a value out of its range.
    """

    sweeps: int = 8
    """Solves of all users and all items, at most."""
    tolerance: float = 1e-3
    """Stop when a sweep lowers the loss by less than this part of what the fit explains, which is the loss with all
    vectors at 0 less that with its own."""
    half_life: float | None = None
    """Age at which an interaction counts half, in lengths of the segment; inf for no fading. None chooses on valid."""
    users_half_life: float | None = None
    """The same when users are solved for a last time, given the items' vectors. None chooses on valid, or takes
    half_life where that is given."""
    unobserved: float | None = None
    """Weight of the zero that every pair has as a target (alpha_0). None chooses on valid."""
    regularisation: float | None = None
    """Weight of the squared vectors (lambda). None chooses on valid."""
    exponent: float = 1.0
    """Power by which the regularisation of an entity grows with its interactions (nu)."""
    counts: bool = False
    """Weights grow with the number n of times that a pair was met, as log2(1 + n); otherwise only its last
    time counts."""
    warm: bool = False
    """Start from the vectors of the segment before, instead of random ones."""
    solver: str = "auto"
    """How systems are solved: exact; cg, by a few conjugate gradients from the vector of the sweep before; blocks, a
    block of columns after another from there (iALS++), each block exactly; or auto, by conjugate gradients where
    vectors are padded to 16 coordinates or more, from where on they reach the same loss sooner."""
    cg_steps: int = 2
    """Conjugate gradients of a half sweep; the last half sweep goes on until its systems are solved."""
    block: int = 16
    """Columns of a block of solver blocks."""
    narrowest: int = 16
    """Narrowest width that systems are padded to, the next ones being twice as wide each. As each width is compiled by
    itself, a run whose sizes are all alike compiles sooner by one that holds them all."""
    choice_width: int | None = None
    """Coordinates of the fits by which half-life, alpha_0 and lambda are chosen, since what is best depends on them.
    None follows the run: about as many as an entity of the first segment has on average, 8 or 16."""
    choice_sweeps: int = 8
    """Sweeps of these fits, at most. Parameters by which vectors shrink to nothing may rank well after few sweeps, so
    that these fits go as far as those that they choose for."""
    probe_sweeps: int = 4
    """Sweeps of a probe, which is a whole fit."""

    def width_of_choice(self, mean: float) -> int:
        """Coordinates of the fits that choices are made by.

        Args:
          mean: coordinates that an entity of the first segment has on average.

        >>> [IalsConfig().width_of_choice(mean) for mean in (4.0, 15.2, 100.0)]
        [8, 16, 16]
        """
        if self.choice_width is not None:
            return self.choice_width
        # More of them would take most of a run's time.
        return min(max(8 * round(mean / 8), 8), 16)

    def __post_init__(self) -> None:
        for name in ("sweeps", "choice_width", "choice_sweeps", "probe_sweeps", "cg_steps", "block", "narrowest"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"ials {name}={getattr(self, name)}: must be at least 1")
        if self.solver not in SOLVERS:
            raise ValueError(f"ials solver={self.solver!r}: choose one of {', '.join(SOLVERS)}")
        for name in ("half_life", "users_half_life", "unobserved", "regularisation"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"ials {name}={value}: must be greater than 0, or None to choose it on valid")
        for name in ("tolerance", "exponent"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"ials {name}={getattr(self, name)}: must not be negative")
