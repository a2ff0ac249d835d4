"""Sums over entities whose rounding does not depend on how many places are kept free for entities to come.

A sum of floats depends on the order of its terms, and a compiler chooses the order by the length of the array. Arrays
here have room for the entities of the whole stream, so that a plain sum over them would change in its last bits with
what comes later. These sums add up blocks of fixed length, and the blocks one after another: zeros beyond the last
entity then change nothing.
"""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig, added, in_turn

BLOCK = 1024
"""Rows that are added up at once."""


def padded_sum(values: jax.Array, mesh: MeshConfig = ONE) -> jax.Array:
    """Sum over the leading axis, the same for any number of zeros at its end.

    Args:
      values: f32[n, ...]; 0 at places without an entity, which come last.
      mesh: devices that have a part of the values each, one after another, whole blocks of `BLOCK`; static.

    Returns:
      f32[...].

    >>> float(padded_sum(jnp.arange(4.0)))
    6.0
    """
    chex.assert_type(values, float)

    def add(first, total):
        return total + jax.lax.dynamic_slice_in_dim(padded, first, BLOCK).sum(0)

    padded = _whole_blocks(values)
    start = jnp.zeros(values.shape[1:])
    return in_turn(mesh, lambda total: _over_blocks(padded.shape[0], add, total), start)


def padded_sum_by_side(values: jax.Array, users: int) -> jax.Array:
    """Sum over nodes, the same for any number of zeros at the end of each side.

    Args:
      values: f32[N, ...], users first; 0 at places without an entity, which come last within each side.
      users: capacity of the users' side; static.

    Returns:
      f32[...].

    >>> float(padded_sum_by_side(jnp.arange(4.0), users=1))
    6.0
    """
    return padded_sum(values[:users]) + padded_sum(values[users:])


def padded_product(left: jax.Array, right: jax.Array, mesh: MeshConfig = ONE) -> jax.Array:
    """left.T @ right in full float32 precision, the same for any number of zero rows at the end of `left`.

    Args:
      left: f32[n, A]; 0 in rows without an entity, which come last.
      right: f32[n, B], finite.
      mesh: devices that blocks of `BLOCK` rows are dealt out to, in turn, device 0 having the first; each then gives
        its own rows. Static.

    Returns:
      f32[A, B].

    >>> padded_product(jnp.array([[1.0], [2.0]]), jnp.array([[3.0, 4.0], [5.0, 6.0]])).tolist()
    [[13.0, 16.0]]
    """
    chex.assert_rank([left, right], 2)
    chex.assert_equal_shape_prefix([left, right], 1)

    def add(first, total):
        rows = (jax.lax.dynamic_slice_in_dim(side, first, BLOCK) for side in padded)
        return added(mesh, total, _product(*rows))

    padded = _whole_blocks(left), _whole_blocks(right)
    return _over_blocks(padded[0].shape[0], add, jnp.zeros((left.shape[1], right.shape[1])))


def sum_over_columns(values: jax.Array) -> jax.Array:
    """Sums of rows, the same for any number of rows and of zero columns at the end.

    A compiler chooses the order of a sum by the shape of the array, but not that of single additions.

    Args:
      values: f32[n, c], of few columns: each is an addition of its own.

    Returns:
      f32[n].

    >>> sum_over_columns(jnp.array([[1.0, 2.0, 3.0]])).tolist()
    [6.0]
    """
    chex.assert_rank(values, 2)
    return functools.reduce(jnp.add, jnp.split(values, values.shape[1], axis=1))[:, 0]


def by_rows(apply: Callable[[Any, Any], jax.Array], params: Any, rows: Any) -> jax.Array:
    """A function of each row by itself, whose gradient in the parameters is the same for any number of rows at the end
    whose results do not count.

    Args:
      apply: (parameters, rows) -> [n, ...], of which row i follows from row i alone; static.
      params: pytree of float arrays.
      rows: pytree of arrays [n, ...]; nothing is differentiated by them.

    Returns:
      [n, ...]. It and the gradient are made block by block.

    >>> at = jnp.arange(3.0)
    >>> by_rows(lambda w, x: w * x, jnp.float32(2), at).tolist()
    [0.0, 2.0, 4.0]
    >>> float(jax.grad(lambda w: by_rows(lambda w, x: w * x, w, at).sum())(jnp.float32(2)))
    3.0
    """
    return _by_rows(apply, params, rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by_rows(apply, params, rows):
    length = jax.tree.leaves(rows)[0].shape[0]
    padded = jax.tree.map(_whole_blocks, rows)
    shape = jax.eval_shape(apply, params, padded)

    def write(first, made):
        return jax.lax.dynamic_update_slice_in_dim(made, apply(params, _block_of(padded, first)), first, 0)

    return _over_blocks(shape.shape[0], write, jnp.zeros(shape.shape, shape.dtype))[:length]


def _by_rows_fwd(apply, params, rows):
    return _by_rows(apply, params, rows), (params, rows)


def _by_rows_bwd(apply, kept, cotangent):
    params, rows = kept
    padded, by_result = jax.tree.map(_whole_blocks, rows), _whole_blocks(cotangent)

    def add(first, total):
        block = _block_of(padded, first)
        (by_params,) = jax.vjp(lambda p: apply(p, block), params)[1](_block_of(by_result, first))
        return jax.tree.map(jnp.add, total, by_params)

    return _over_blocks(by_result.shape[0], add, jax.tree.map(jnp.zeros_like, params)), None


_by_rows.defvjp(_by_rows_fwd, _by_rows_bwd)


def _block_of(values: Any, first: jax.Array) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, BLOCK), values)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    # Without the highest precision an accelerator rounds the factors to fewer bits than float32 has.
    return jnp.matmul(left.T, right, precision=jax.lax.Precision.HIGHEST)


def _whole_blocks(values: jax.Array) -> jax.Array:
    """Values with zeros up to a whole number of blocks."""
    return jnp.pad(values, [(0, -values.shape[0] % BLOCK)] + [(0, 0)] * (values.ndim - 1))


def _over_blocks(length: int, add: Callable[[jax.Array, Any], Any], start: Any) -> Any:
    # The barrier hides the number of blocks from the compiler. Otherwise it unrolls a loop over one block and merges it
    # with its surroundings. This sum would then have another order than the same block has among several.
    blocks = jax.lax.optimization_barrier(jnp.int32(length // BLOCK))
    return jax.lax.fori_loop(0, blocks, lambda i, total: add(i * BLOCK, total), start)
