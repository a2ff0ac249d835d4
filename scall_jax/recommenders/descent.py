"""A step of training on a table, strip by strip of columns: forward, loss, backward and Adam.

LightGCN acts on each column by itself and only the loss joins columns, through one number a triple. So the forward pass
adds up margins over strips, and the backward pass lets the moments absorb a strip's gradient as soon as it is known: no
gradient of the whole table exists, nor any array of nodes x width. That is why Adam is written out here; it is
`optax.adam`, whose arithmetic the tests hold it to.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.nonnegative import dynamic_slice, take
from scall_jax.recommenders import bpr
from scall_jax.recommenders.lightgcn import embed_strips, smooth_to_side
from scall_jax.streams import Graph
from scall_jax.tables.strips import over_sided_strips, over_strips
from scall_jax.tables.table import Table

_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class Moments(NamedTuple):
    """Of Adam (Kingma and Ba, ICLR 2015), in buffers of a table."""

    count: jax.Array  # i32[], steps made
    mean: jax.Array  # of gradients
    square: jax.Array  # of their squares


def no_moments(buffer: jax.Array) -> Moments:
    """Before the first step."""
    return Moments(jnp.int32(0), jnp.zeros_like(buffer), jnp.zeros_like(buffer))


def descend(
    table: Table,
    rate: Callable[[jax.Array], jax.Array],
    layers: int,
    l2: float,
    buffer: jax.Array,
    moments: Moments,
    layout,
    graph: Graph,
    rows: jax.Array,
    triples: bpr.Triples,
    item_bias: jax.Array,
    scratch: tuple[jax.Array, jax.Array],
):
    """One step.

    Args:
      table, layers, l2: static.
      rate: learning rate by the number of steps made.
      buffer, moments: of the table.
      layout: of the table.
      graph: of N nodes.
      rows: i32[3 B], nodes of users, positives and negatives in this order.
      triples, item_bias: as in `bpr.loss`.
      scratch: two f32[3 B, width], zero beyond the columns in use (`lightgcn.blank`); reused from step to step.

    Returns:
      (loss f32[], buffer, moments, scratch).
    """
    final, own = scratch = embed_strips(table, layers, buffer, layout, graph, rows, scratch)

    def part(array, first, count):
        return dynamic_slice(array, (0, first), (array.shape[0], count))

    def add(first, count, sums):
        margin, energy = sums
        return margin + bpr.margins(part(final, first, count)), energy + (part(own, first, count) ** 2).sum()

    sums = over_strips(table, layout, add, (jnp.zeros_like(triples.weight), jnp.float32(0)))
    value, (by_margin, by_energy) = jax.value_and_grad(bpr.loss, (0, 1))(*sums, item_bias, triples, l2)

    def absorb(first, count, side, moments):
        (by_final,) = jax.vjp(bpr.margins, part(final, first, count))[1](by_margin)
        by_own = 2 * by_energy * part(own, first, count)
        gradient = jnp.zeros((table.nodes, count)).at[rows].add(by_final, wrap_negative_indices=False)
        gradient = smooth_to_side(graph, gradient, layers, table.users, side)
        gradient = gradient.at[rows].add(by_own, wrap_negative_indices=False)
        columns = take(table.pull(gradient, layout), table.order(layout)).T
        return table.update(moments, layout, first, columns, _absorb)

    mean, square = over_sided_strips(table, layout, absorb, (moments.mean, moments.square))
    moments = Moments(moments.count + 1, mean, square)
    return value, buffer - rate(moments.count - 1) * _direction(moments), moments, scratch


def _absorb(moments, gradient):
    mean, square = moments
    return _B1 * mean + (1 - _B1) * gradient, _B2 * square + (1 - _B2) * gradient**2


def _direction(moments: Moments) -> jax.Array:
    count = moments.count.astype(jnp.float32)
    mean, square = moments.mean / (1 - _B1**count), moments.square / (1 - _B2**count)
    return mean / (jnp.sqrt(square) + _EPS)
