"""The exact vector of a user who was not there in training, from the items' vectors and their Gram matrix alone."""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.sums import padded_product
from scall_jax.recommenders.ials.problem import Hyper
from scall_jax.recommenders.served import FoldIn, Served

_EXACT = jax.lax.Precision.HIGHEST


class ItemModel(NamedTuple):
    """What a fold-in needs of a fit; it is never changed by one."""

    vectors: jax.Array
    """f32[V, D], the items' vectors."""
    bias: jax.Array
    """f32[V], added to the items' scores in the loss of the fit."""
    gram: jax.Array
    """f32[D, D], sum of the outer products of the known items' vectors."""
    biased: jax.Array
    """f32[D], sum of the known items' bias x vector."""
    known: jax.Array
    """i32[], known items."""
    hyper: Hyper
    """Of the fit."""


def item_model(vectors: jax.Array, bias: jax.Array, known: jax.Array | int, hyper: Hyper) -> ItemModel:
    """Prepare fold-ins.

    Args:
      vectors: f32[V, D], the items' vectors, as they are stored.
      bias: f32[V], added to their scores in the loss of the fit; zeros without one.
      known: items that are known, the first ones.
      hyper: of the fit.

    Returns:
      ItemModel.
    """
    chex.assert_rank([vectors, bias], [2, 1])
    chex.assert_equal_shape_prefix([vectors, bias], 1)
    vectors = jnp.where((jnp.arange(vectors.shape[0]) < known)[:, None], vectors, 0.0)
    gram, biased = padded_product(vectors, vectors), padded_product(vectors, bias[:, None])[:, 0]
    return ItemModel(vectors, bias, gram, biased, jnp.asarray(known), hyper)


@functools.partial(jax.jit, static_argnames="exponent")
def fold_in(
    model: ItemModel,
    items: jax.Array,
    ages: jax.Array,
    count: jax.Array | int | None = None,
    size: jax.Array | int | None = None,
    *,
    repeats: jax.Array | None = None,
    exponent: float = 1.0,
) -> jax.Array:
    """The vector that training would give a user with these interactions; the model stays as it is.

    Args:
      model: of `item_model`.
      items: i32[m], distinct known items that the user has met.
      ages: f32[m], how long ago, in segments.
      count: i32[], how many of the m are in use, the first ones; None for all. Padding lets one program serve users
        with different numbers of interactions, and `vmap` serve many users at once.
      size: i32[], coordinates of the vector; None for all D.
      repeats: i32[m], how often the user has met each item, for a fit whose weights grow with it; None otherwise.
      exponent: nu of the fit.

    Returns:
      f32[D], 0 from `size` on. Scores are `model.vectors @ vector + model.bias`.

    One item with vector [1], met just now: (1 + .5 x 1 + lambda (1 + .5 x 1)) x = 1.

    >>> hyper = Hyper(jnp.float32(0), jnp.float32(0.5), jnp.float32(1.0), jnp.float32(0))
    >>> model = item_model(jnp.ones((1, 1)), jnp.zeros(1), 1, hyper)
    >>> round(float(fold_in(model, jnp.array([0]), jnp.zeros(1))[0]), 4)
    0.3333
    """
    chex.assert_rank([items, ages], 1)
    chex.assert_equal_shape([items, ages])
    width, hyper = model.gram.shape[0], model.hyper
    used = jnp.arange(items.shape[0]) < (items.shape[0] if count is None else count)
    weight = jnp.where(used, jnp.exp2(-ages * hyper.users_fading), 0.0)
    if repeats is not None:
        weight *= jnp.log2(1.0 + repeats.astype(jnp.float32))
    vectors = model.vectors[items]
    weighted = weight[:, None] * vectors
    regularisation = hyper.regularisation * (used.sum() + hyper.unobserved * model.known) ** exponent
    matrix = hyper.unobserved * model.gram + jnp.matmul(weighted.T, vectors, precision=_EXACT)
    matrix += regularisation * jnp.eye(width)
    right = jnp.matmul(1 - model.bias[items], weighted, precision=_EXACT) - hyper.unobserved * model.biased
    has = jnp.arange(width) < (width if size is None else size)
    matrix = jnp.where(has[:, None] & has[None, :], matrix, jnp.eye(width))
    factor = jax.scipy.linalg.cho_factor(matrix, lower=True)
    return jax.scipy.linalg.cho_solve(factor, jnp.where(has, right, 0.0))


class Solving(NamedTuple):
    """`Served.fold`: what `ItemModel` has beside the items' vectors.

    The bias is that of the fit. What ranks, `Served.bias`, may be a multiple of it.
    """

    bias: jax.Array
    """f32[V]."""
    gram: jax.Array
    """f32[D, D]."""
    biased: jax.Array
    """f32[D]."""
    known: jax.Array
    """i32[]."""
    hyper: Hyper
    """Of the fit."""


def solving(vectors: jax.Array, bias: jax.Array, known: jax.Array, hyper: Hyper) -> Solving:
    """Prepare fold-ins of a model that is served; arguments as in `item_model`, the bias that of the fit."""
    return Solving(*item_model(vectors, bias, known, hyper)[1:])


def make_fold_in(exponent: float) -> FoldIn:
    """Fold-in of users who have met their items just now.

    Args:
      exponent: nu of the fit.

    Returns:
      Function as `FoldIn` describes it, for a `Served` whose `fold` is of `solving`.
    """

    def fold_in_now(served: Served, items: jax.Array, count: jax.Array) -> jax.Array:
        model = ItemModel(served.items, *served.fold)
        return fold_in(model, items, jnp.zeros(items.shape[0]), count, exponent=exponent)

    return fold_in_now
