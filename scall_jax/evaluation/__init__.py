"""Evaluation: full ranking with exact metrics, and strata of users and items."""

from scall_jax.evaluation.in_parts import VectorsInParts, evaluate_in_parts
from scall_jax.evaluation.ranking import (
    BY_USER,
    CUTOFFS,
    STRATA,
    Metrics,
    RankingOptions,
    evaluate,
    evaluate_scores,
)
from scall_jax.evaluation.top import KnownGraph, best_items, mask_seen_items, top_k

__all__ = [
    "BY_USER",
    "CUTOFFS",
    "STRATA",
    "KnownGraph",
    "Metrics",
    "RankingOptions",
    "VectorsInParts",
    "best_items",
    "evaluate",
    "evaluate_in_parts",
    "evaluate_scores",
    "mask_seen_items",
    "top_k",
]
