"""Symmetric positive definite systems of one size, many at once."""

import jax
import jax.numpy as jnp

EXACT = jax.lax.Precision.HIGHEST
_SMALL = 8
"""Systems up to this size are solved for all at once, step by step; larger ones by Cholesky factors, one by one."""


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Solutions of systems.

    Args:
      matrix: f32[B, n, n], symmetric and positive definite.
      right: f32[B, n].

    Returns:
      f32[B, n].
    """
    if matrix.shape[-1] <= _SMALL:
        return _eliminate(matrix, right)
    factor = cholesky(matrix)
    return backward(factor, forward(factor, right))


def cholesky(matrix: jax.Array) -> jax.Array:
    """Lower triangular factors L of A = L L'.

    Args:
      matrix: f32[B, n, n], symmetric and positive definite.

    Returns:
      f32[B, n, n].
    """
    return jax.lax.linalg.cholesky(jnp.swapaxes(matrix, 1, 2), symmetrize_input=False)


def forward(factor: jax.Array, right: jax.Array) -> jax.Array:
    """y of L y = b.

    Args:
      factor: f32[B, n, n], L of `cholesky`.
      right: f32[B, n], b.

    Returns:
      f32[B, n]. Coordinate k lowers x'Ax - 2 b'x by y_k^2, given those before it.
    """
    return jax.lax.linalg.triangular_solve(factor, right[..., None], left_side=True, lower=True)[..., 0]


def backward(factor: jax.Array, right: jax.Array) -> jax.Array:
    """x of L' x = y.

    Args:
      factor: f32[B, n, n], L of `cholesky`.
      right: f32[B, n], y.

    Returns:
      f32[B, n].
    """
    solution = jax.lax.linalg.triangular_solve(factor, right[..., None], left_side=True, lower=True, transpose_a=True)
    return solution[..., 0]


def _eliminate(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """`solve` by Gauss-Jordan elimination, each step of it for the whole batch, which is the last axis.

    It needs no pivoting where matrices are positive definite.
    """
    place = jnp.arange(matrix.shape[-1])[:, None, None]

    def step(at, system):
        row = (system[at] / system[at, at][None, :])[None]
        return jnp.where(place == at, row, system - system[:, at, None] * row)

    system = jnp.concatenate([matrix, right[..., None]], 2).transpose(1, 2, 0)
    return jax.lax.fori_loop(0, matrix.shape[-1], step, system)[:, -1].T


def times(matrix: jax.Array, x: jax.Array) -> jax.Array:
    """Products f32[B, m] of f32[B, m, n] and f32[B, n]."""
    return jnp.einsum("bij,bj->bi", matrix, x, precision=EXACT)


def errors(matrix: jax.Array, x: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest components f32[B] of |A x - b| and of |b|."""
    return jnp.abs(times(matrix, x) - right).max(1), jnp.abs(right).max(1)


def relative(error: jax.Array, scale: jax.Array) -> jax.Array:
    """error / scale; 0 where the scale is so near the least float32 that rounding is no longer relative.

    It is for an entity whose interactions have faded to nothing, whose vector is 0 as far as float32 can tell.
    """
    info = jnp.finfo(jnp.float32)
    counts = scale > info.tiny / info.eps
    return jnp.where(counts, error / jnp.where(counts, scale, 1.0), 0.0)
