"""Scores from embeddings, their training, and the popularity floors."""

from scall_jax.recommenders.bpr import Triples, loss, sample
from scall_jax.recommenders.fit import FitConfig, Fitted, make_fit, ranked
from scall_jax.recommenders.graph import propagate
from scall_jax.recommenders.lightgcn import embed, embed_blocks, smooth

__all__ = [
    "FitConfig",
    "Fitted",
    "Triples",
    "embed",
    "embed_blocks",
    "loss",
    "make_fit",
    "propagate",
    "ranked",
    "sample",
    "smooth",
]
