"""A step of training on a table, one column block at a time: forward, loss, backward and Adam.

LightGCN acts on each column by itself, and only the loss joins columns, through one number a triple. So the forward
pass adds up margins over column blocks, and the backward pass adds a block's gradient to the state of the optimiser as
soon as it is known: neither a gradient of the whole table nor an array of nodes x width exists. That is why Adam is
written out here; the tests hold its arithmetic to `optax.adam`.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from scall_jax.ops.indexing import dynamic_slice, dynamic_update_slice
from scall_jax.recommenders import bpr
from scall_jax.recommenders.lightgcn import ColumnBlock, LightGcn, embed_block, smooth_to_side
from scall_jax.streams import Graph
from scall_jax.tables.column_blocks import over_sided_column_blocks
from scall_jax.tables.layout import Layout
from scall_jax.tables.table import Params

_B1, _B2, _EPS = 0.9, 0.999, 1e-8


class OptState(NamedTuple):
    """State of Adam (Kingma and Ba, ICLR 2015, arXiv 1412.6980) for the parameters of a table."""

    count: jax.Array  # i32[], steps made
    mean: jax.Array  # buffer of the table, of gradients
    square: jax.Array  # buffer of the table, of squared gradients


class TrainState(NamedTuple):
    """What a step of training changes."""

    params: Params  # a buffer for a storage with a table
    opt_state: Any  # `OptState` for a storage with a table, else that of `fit.optimiser`


class StepSettings(NamedTuple):
    """What is the same for all steps; static."""

    model: LightGcn  # with a table
    rate: optax.Schedule  # learning rate by the number of steps made
    l2: float  # weight of half the mean squared norm of a batch's own embeddings


class StepResult(NamedTuple):
    """Result of a step of training."""

    state: TrainState
    loss: jax.Array  # f32[], before the step
    scratch: jax.Array | tuple[()]  # f32[3 B, width] for a storage with a table


def empty_opt_state(buffer: jax.Array) -> OptState:
    """The state of Adam before the first step, for a buffer of a table.

    >>> empty_opt_state(jnp.ones(2)).mean.tolist()
    [0.0, 0.0]
    """
    return OptState(jnp.int32(0), jnp.zeros_like(buffer), jnp.zeros_like(buffer))


def train_step(
    settings: StepSettings,
    state: TrainState,
    layout: Layout,
    graph: Graph,
    triples: bpr.Triples,
    item_bias: jax.Array,
    scratch: jax.Array,
) -> StepResult:
    """One step of Adam on the parameters of a table.

    Args:
      settings: static.
      state: a buffer of the table, and `OptState`.
      layout: of the table.
      graph: of N nodes.
      triples: the batch, of B triples.
      item_bias: f32[V], added to scores.
      scratch: f32[3 B, width], overwritten; pass it on from step to step, so that its memory is reused.

    Returns:
      StepResult.
    """
    (model, rate, l2), (buffer, opt_state) = settings, state
    table = model.table
    chex.assert_rank(item_bias, 1)
    chex.assert_shape(scratch, (3 * triples.user.shape[0], table.width))
    chex.assert_equal_shape([buffer, opt_state.mean, opt_state.square])
    rows = bpr.nodes(triples, table.users)

    def forward(first, count, side, carry):
        margin, energy, scratch = carry
        final, own = embed_block(model, buffer, layout, graph, rows, ColumnBlock(first, count, side))
        scratch = dynamic_update_slice(scratch, final, (0, first))
        return margin + bpr.margins(final), energy + (own * own).sum(), scratch

    carry = jnp.zeros_like(triples.weight), jnp.float32(0), scratch
    margin, energy, scratch = over_sided_column_blocks(table, layout, forward, carry)
    loss, (by_margin, by_energy) = jax.value_and_grad(bpr.loss, (0, 1))(margin, energy, item_bias, triples, l2)

    # A vector that the batch reads k times counts k times in the squared norm.
    times = jnp.zeros((table.nodes, 1)).at[rows].add(1.0, wrap_negative_indices=False)
    by_norm = 2 * by_energy * table.pull(times, layout)[:, 0]

    def backward(first, count, side, moments):
        final = dynamic_slice(scratch, (0, first), (rows.shape[0], count))
        (by_final,) = jax.vjp(bpr.margins, final)[1](by_margin)
        smoothed = smooth_to_side(graph, rows, by_final, model.layers, table.users, side, model.mesh)
        gradient = table.pull(smoothed, layout)
        return table.update(moments, layout, first, gradient, _update_moments, (by_norm, buffer))

    mean, square = over_sided_column_blocks(table, layout, backward, (opt_state.mean, opt_state.square))
    opt_state = OptState(opt_state.count + 1, mean, square)
    buffer = buffer - rate(opt_state.count - 1) * _direction(opt_state)
    return StepResult(TrainState(buffer, opt_state), loss, scratch)


def _update_moments(moments, gradient):
    mean, square = moments
    return _B1 * mean + (1 - _B1) * gradient, _B2 * square + (1 - _B2) * gradient**2


def _direction(opt_state: OptState) -> jax.Array:
    count = opt_state.count.astype(jnp.float32)
    # The order of operations advised at the end of the paper's section 2 takes one division a parameter, not three.
    scale = jnp.sqrt(1 - _B2**count)
    return scale / (1 - _B1**count) * opt_state.mean / (jnp.sqrt(opt_state.square) + _EPS * scale)
