"""Parameters of SAROS."""

import dataclasses

UPDATES = ("block", "click")
"""What an update is made for: see `SarosConfig.update`."""


@dataclasses.dataclass(frozen=True)
class SarosConfig:
    """Training in the order of time (SAROS, Burashnikova et al., JAIR 2021, arXiv 2012.06910; `recommenders.saros`).

    Raises:
      ValueError: a value out of its range, or an unknown update.

    >>> SarosConfig(update="click").update
    'click'
    """

    update: str = "block"
    """What an update is made for: block, all pairs of its clicks and non-clicks (the paper); or click, that click and
    the block's non-clicks (the published code)."""
    clicks: int = 1
    """Clicks of a user in a row that make a block with the same sampled exposures; with one, both updates agree."""
    exposures: int = 5
    """Items that are drawn for a block by their frequency in the segment and stand for items shown and not clicked;
    those that the user has met are left out."""
    least: int | None = None
    """Users with fewer blocks in the segment are skipped (b); None takes the 5th percentile of the segment's users."""
    most: int | None = None
    """Blocks of a user that are trained on, the first ones (B); None takes the 95th percentile."""
    momentum: float = 0.0
    """Momentum of the updates (mu); 0 is plain descent. Any other holds another array as large as the table."""
    learning_rate: float = 0.1
    """Step length (published: .01, for vectors that start between 0 and 1)."""
    l2: float = 0.01
    """Weight of the mean squared norms of a block's user, clicks and non-clicks."""
    passes: int = 10
    """Passes over a segment's blocks, at most (published: 200)."""
    probe_passes: int = 1
    """The same of a probe."""
    patience: int = 2
    """Passes without a gain on valid before stopping."""
    prequential: bool = True
    """Rank the clicks of each block before it is learned from, in a segment's first pass. The non-clicks of earlier
    blocks leave out what their users click later in the segment, so that these figures are somewhat too good."""

    def __post_init__(self) -> None:
        if self.update not in UPDATES:
            raise ValueError(f"saros update={self.update!r}: choose block or click")
        for name in ("clicks", "exposures", "passes", "probe_passes", "patience"):
            if getattr(self, name) < 1:
                raise ValueError(f"saros {name}={getattr(self, name)}: must be at least 1")
        for name in ("least", "most"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"saros {name}={value}: must be at least 1, or None")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError(f"saros least={self.least}, most={self.most}: need least <= most")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"saros momentum={self.momentum}: must lie between 0 and 1, without 1")
        if not self.learning_rate > 0:
            raise ValueError(f"saros learning_rate={self.learning_rate}: must be greater than 0")
        if not self.l2 >= 0:
            raise ValueError(f"saros l2={self.l2}: must not be negative")
