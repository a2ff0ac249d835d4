"""Scores from embeddings, their training, and the popularity floors."""

from scall_jax.recommenders.bpr import Triples, loss, sample
from scall_jax.recommenders.descent import descend
from scall_jax.recommenders.fit import FitConfig, Fitted, closed, make_fit, opened, ranked
from scall_jax.recommenders.graph import planned, propagate
from scall_jax.recommenders.lightgcn import embed, smooth

__all__ = [
    "FitConfig",
    "Fitted",
    "Triples",
    "closed",
    "descend",
    "embed",
    "loss",
    "make_fit",
    "opened",
    "planned",
    "propagate",
    "ranked",
    "sample",
    "smooth",
]
