"""How a segment is trained by gradients: what users set."""

import dataclasses

from scall_jax.tables.compressed.few_bits import BITS


@dataclasses.dataclass(frozen=True)
class FitConfig:
    """Training of one segment."""

    layers: int = 3
    """Propagations of LightGCN; 0 is matrix factorisation."""
    batch: int = 2048
    """Triples per step."""
    steps: int = 1000
    """Steps, at most."""
    learning_rate: float = 0.02
    """Learning rate of Adam at the start."""
    decay: float = 0.95
    """Factor on the learning rate every `decay_every` steps."""
    decay_every: int = 200
    """Steps between decays."""
    least_learning_rate: float = 0.001
    """The learning rate does not fall below this."""
    l2: float = 1e-4
    """Weight of half the mean squared norm of a batch's own embeddings."""
    eval_every: int = 100
    """Steps between evaluations on valid."""
    patience: int = 4
    """Evaluations without improvement before stopping; twice as many while the training loss still falls."""
    valid_users: int = 4096
    """Users that early stopping looks at, at most; a random sample."""
    rounding: str = "after"
    """For storages that round: round after the training, or train within it: each step reads coordinates as they would
    be stored, with the scales of the last evaluation, and changes those that are not rounded (straight-through)."""
    served_bits: int | None = None
    """LightGCN ranks and serves by final vectors (after propagation) in 1, 2, 3, 4 or 8 bits a coordinate, with a scale
    for each vector; None: in float32."""
    positives: str = "segment"
    """Positives are drawn from the user's interactions in the `segment` or from `all` of them."""

    def __post_init__(self):
        for name in ("batch", "steps", "decay_every", "eval_every", "patience", "valid_users"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.layers < 0:
            raise ValueError(f"layers={self.layers}: must not be negative")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate={self.learning_rate}: must be greater than 0")
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay={self.decay}: must lie above 0 and not above 1, which is no decay")
        for name in ("least_learning_rate", "l2"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name}={getattr(self, name)}: must not be negative")
        if self.served_bits is not None and (self.served_bits not in BITS or not self.layers):
            raise ValueError(
                f"served_bits={self.served_bits} at layers={self.layers}: choose one of {', '.join(map(str, BITS))}, "
                "and at least one layer; without propagation the table serves: choose table=packed_int4 or the like"
            )
        if self.rounding not in ("after", "within"):
            raise ValueError(f"rounding={self.rounding!r}: choose after or within")
        if self.positives not in ("segment", "all"):
            raise ValueError(f"positives={self.positives!r}: choose segment or all")
