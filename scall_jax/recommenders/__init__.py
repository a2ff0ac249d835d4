"""Scores from embeddings, their training, and the popularity floors."""

from scall_jax.recommenders.bpr import Triples, loss, sample
from scall_jax.recommenders.descent import train_step
from scall_jax.recommenders.fit import FitConfig, FitResult, evaluate_params, from_buffer, make_fit, to_buffer
from scall_jax.recommenders.graph import propagate, with_chunks
from scall_jax.recommenders.lightgcn import embed, smooth

__all__ = [
    "FitConfig",
    "FitResult",
    "Triples",
    "embed",
    "evaluate_params",
    "from_buffer",
    "loss",
    "make_fit",
    "propagate",
    "sample",
    "smooth",
    "to_buffer",
    "train_step",
    "with_chunks",
]
