"""Evaluation: full ranking with exact metrics, and strata of users and items."""

from scall_jax.evaluation.ranking import (
    BY_USER,
    CUTOFFS,
    STRATA,
    KnownGraph,
    Metrics,
    RankingOptions,
    evaluate,
    evaluate_scores,
    mask_seen_items,
    top_k,
)

__all__ = [
    "BY_USER",
    "CUTOFFS",
    "STRATA",
    "KnownGraph",
    "Metrics",
    "RankingOptions",
    "evaluate",
    "evaluate_scores",
    "mask_seen_items",
    "top_k",
]
