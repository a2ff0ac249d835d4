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

from scall_jax.ops.indexing import dynamic_slice, dynamic_update_slice
from scall_jax.recommenders import bpr
from scall_jax.recommenders.lightgcn import embed_block, smooth_to_side
from scall_jax.streams import Graph
from scall_jax.tables.column_blocks import over_sided_column_blocks
from scall_jax.tables.table import Table

_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class OptState(NamedTuple):
    """Of Adam (Kingma and Ba, ICLR 2015), in buffers of a table."""

    count: jax.Array  # i32[], steps made
    mean: jax.Array  # of gradients
    square: jax.Array  # of their squares


def empty_opt_state(buffer: jax.Array) -> OptState:
    """Before the first step."""
    return OptState(jnp.int32(0), jnp.zeros_like(buffer), jnp.zeros_like(buffer))


def train_step(
    table: Table,
    rate: Callable[[jax.Array], jax.Array],
    layers: int,
    l2: float,
    buffer: jax.Array,
    opt_state: OptState,
    layout,
    graph: Graph,
    rows: jax.Array,
    triples: bpr.Triples,
    item_bias: jax.Array,
    scratch: jax.Array,
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
      scratch: f32[3 B, width], overwritten; reused from step to step.

    Returns:
      (loss f32[], buffer, moments, scratch).
    """

    def forward(first, count, side, carry):
        margin, energy, scratch = carry
        final, own = embed_block(table, layers, buffer, layout, graph, rows, first, count, side)
        scratch = dynamic_update_slice(scratch, final, (0, first))
        return margin + bpr.margins(final), energy + (own * own).sum(), scratch

    carry = jnp.zeros_like(triples.weight), jnp.float32(0), scratch
    *sums, scratch = over_sided_column_blocks(table, layout, forward, carry)
    value, (by_margin, by_energy) = jax.value_and_grad(bpr.loss, (0, 1))(*sums, item_bias, triples, l2)

    # a vector that the batch reads k times is k times in the squared norm
    times = jnp.zeros((table.nodes, 1)).at[rows].add(1.0, wrap_negative_indices=False)
    by_norm = 2 * by_energy * table.pull(times, layout)[:, 0]

    def absorb(first, count, side, opt_state):
        final = dynamic_slice(scratch, (0, first), (rows.shape[0], count))
        (by_final,) = jax.vjp(bpr.margins, final)[1](by_margin)
        gradient = table.pull(smooth_to_side(graph, rows, by_final, layers, table.users, side), layout)
        return table.update(opt_state, layout, first, gradient, _absorb, (by_norm, buffer))

    mean, square = over_sided_column_blocks(table, layout, absorb, (opt_state.mean, opt_state.square))
    opt_state = OptState(opt_state.count + 1, mean, square)
    return value, buffer - rate(opt_state.count - 1) * _direction(opt_state), opt_state, scratch


def _absorb(opt_state, gradient):
    mean, square = opt_state
    return _B1 * mean + (1 - _B1) * gradient, _B2 * square + (1 - _B2) * gradient**2


def _direction(opt_state: OptState) -> jax.Array:
    count = opt_state.count.astype(jnp.float32)
    # in the order that the end of the paper's section 2 advises: one division a parameter instead of three
    scale = jnp.sqrt(1 - _B2**count)
    return scale / (1 - _B1**count) * opt_state.mean / (jnp.sqrt(opt_state.square) + _EPS * scale)
