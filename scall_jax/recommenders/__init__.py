"""Scores from embeddings, their training, and the recommenders outside the budget."""

from scall_jax.recommenders.bpr import Triples, loss, sample
from scall_jax.recommenders.buffers import from_buffer, to_buffer
from scall_jax.recommenders.fit import make_fit
from scall_jax.recommenders.fit_config import FitConfig
from scall_jax.recommenders.fit_result import FitResult
from scall_jax.recommenders.graph import propagate, with_chunks
from scall_jax.recommenders.judge import evaluate_params
from scall_jax.recommenders.lightgcn import LightGcn, embed, smooth

__all__ = [
    "FitConfig",
    "FitResult",
    "LightGcn",
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
    "with_chunks",
]
