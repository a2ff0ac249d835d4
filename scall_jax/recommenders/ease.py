"""EASE: a linear item-item model in closed form (Steck, WWW 2019, arXiv 1905.03375); a baseline outside the budget.

Given the binary interactions X of the known users and items, the weights B minimise ||X - X B||^2 + ridge ||B||^2 with
a zero diagonal: with P = (X'X + ridge I)^-1, B_ij = -P_ij / P_jj for i != j. A user's scores are the sum of the rows of
B that belong to the user's items. B has a float32 for each pair of items, and all of its bytes are in the account.
"""

from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import evaluation
from scall_jax.recommenders.baseline import Baseline, Exporter
from scall_jax.recommenders.judge import first_users
from scall_jax.recommenders.served import Served
from scall_jax.streams import RaggedItems, Segment, sides

RIDGES = (1.0, 10.0, 100.0, 1000.0)
"""Ridges of which the one that ranks best on valid is taken."""

MOST_ITEMS = 2**14
"""Items, at most: a matrix of 1 GiB, of which learning holds `COPIES`."""

COPIES = 4
"""Matrices V x V in memory while learning: X'X, its factor or inverse, the weights by it, the best weights so far."""

_BLOCK = 256  # users whose interactions are made dense at once


class Ease(NamedTuple):
    """What EASE has learned."""

    weights: jax.Array  # f32[V, V], zero diagonal; zero where an item is not known
    ridge: jax.Array  # f32[], chosen on valid


def gram(segment: Segment) -> jax.Array:
    """X'X of all interactions before the cut.

    Args:
      segment: the data.

    Returns:
      f32[V, V], the numbers of users who have both items; exact below 2^24.
    """
    users, items = sides(segment)

    def add(number, total):
        user = number * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
        has = _interactions(segment, jnp.minimum(user, users - 1))
        has = jnp.where((user < segment.users)[:, None], has, 0.0)
        return total + jnp.matmul(has.T, has, precision=jax.lax.Precision.HIGHEST)

    return jax.lax.fori_loop(0, -(-segment.users // _BLOCK), add, jnp.zeros((items, items)))


def _interactions(segment: Segment, user: jax.Array) -> jax.Array:
    """Rows of X, f32[B, V]."""
    users, items = sides(segment)
    known = evaluation.KnownGraph(segment.graph, users, segment.items)
    return evaluation.mask_seen_items(jnp.zeros((user.shape[0], items)), known, user, 1.0)


def closed_form(gram: jax.Array, ridge: jax.Array | float) -> jax.Array:
    """The weights that minimise the ridge regression of each item on all others.

    Args:
      gram: f32[V, V], X'X.
      ridge: f32[], greater than 0.

    Returns:
      f32[V, V]; each column is the model of one item.

    >>> weights = closed_form(jnp.array([[3.0, 2.0], [2.0, 3.0]]), ridge=1.0)
    >>> round(float(weights[0, 1]), 4), float(weights[0, 0])
    (0.5, 0.0)
    """
    chex.assert_rank([gram, ridge], [2, 0])
    chex.assert_equal(gram.shape[0], gram.shape[1])
    one = jnp.eye(gram.shape[0])
    inverse = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(gram + ridge * one, lower=True), one)
    return jnp.where(one > 0, 0.0, -inverse / jnp.diag(inverse)[None, :])


def _empty(users: int, items: int) -> Ease:
    if items > MOST_ITEMS:
        raise ValueError(
            f"ease of V={items} items holds {COPIES} matrices V x V, {4e-9 * items**2:.1f} GB each: at most "
            f"{MOST_ITEMS} items; leave ease out, or use fewer items by k_core or max_segments"
        )
    return Ease(jnp.zeros((items, items)), jnp.float32(0))


def _fit(segment: Segment, valid_users: int, **options: Unpack[evaluation.RankingOptions]) -> Ease:
    together, sampled = gram(segment), first_users(segment.valid, valid_users)
    nothing = jnp.zeros(together.shape[0])

    def attempt(number, best):
        ridge = jnp.asarray(RIDGES)[number]
        model = Ease(closed_form(together, ridge), ridge)
        fitness = _rank(model, nothing, segment, sampled, **options).fitness()
        better = fitness > best[0]
        return jax.tree.map(lambda new, old: jnp.where(better, new, old), (fitness, model), best)

    first = jnp.float32(-1), Ease(jnp.zeros_like(together), jnp.float32(0))
    return jax.lax.fori_loop(0, len(RIDGES), attempt, first)[1]


def _rank(
    stored: Ease,
    scores: jax.Array,
    segment: Segment,
    relevant: RaggedItems,
    /,
    **options: Unpack[evaluation.RankingOptions],
) -> evaluation.Metrics:
    known = evaluation.KnownGraph(segment.graph, sides(segment)[0], segment.items)

    def score(first, user):
        del first
        return jnp.matmul(_interactions(segment, user), stored.weights, precision="highest")

    return evaluation.evaluate_scores(score, scores, relevant, known, **options)


def _serve(stored: Ease, segment: Segment, row: jax.Array) -> Served:
    """A user's vector is the user's row of X, the items' vectors are the columns of B."""
    del row
    items = sides(segment)[1]
    return Served(jnp.zeros((0, items)), stored.weights.T, jnp.zeros(items))


def _fold_in(served: Served, items: jax.Array, count: jax.Array) -> jax.Array:
    used = jnp.arange(items.shape[0]) < count
    row = jnp.zeros(served.items.shape[1])
    return row.at[jnp.where(used, items, row.shape[0])].set(1.0, mode="drop")


def _export(stored: Ease, plan, known: tuple[int, int]) -> dict[str, np.ndarray]:
    del plan
    return {
        "parameters": np.asarray(stored.weights)[: known[1], : known[1]],
        "parameters_ridge": np.asarray(stored.ridge),
    }


def _exporter(users: int, items: int) -> Exporter:
    def restore(exported, known):
        written = exported["parameters"]
        if written.shape != (known[1], known[1]) or known[1] > items:
            raise ValueError(f"weights of shape {written.shape} for {known[1]} items of {items}: another stream's?")
        weights = np.zeros((items, items), np.float32)
        weights[: known[1], : known[1]] = written
        return Ease(jnp.asarray(weights), jnp.asarray(exported["parameters_ridge"], jnp.float32)), ()

    return Exporter(_export, restore)


def _describe(stored: Ease) -> dict:
    return {"ridge": float(stored.ridge), "bytes_training": COPIES * stored.weights.nbytes}


EASE = Baseline(
    empty=_empty,
    scores=lambda segment, valid_users, **options: (jnp.zeros(segment.popularity.shape[-1]), jnp.int32(-1)),
    fit=_fit,
    rank=_rank,
    exporter=_exporter,
    # A user's scores are sums over the user's items.
    serves_by=lambda known, graph_bytes: {"graph": graph_bytes},
    describe=_describe,
    serve=_serve,
    fold_in=_fold_in,
)
"""EASE with its ridge chosen on valid, learned afresh in every segment from all interactions before the cut."""
