"""Systems solved a block of columns at a time, each block's own system exactly, from the solution of the sweep before.

With the coordinates outside a block held, its k coordinates solve a k x k system, of which the right side is what the
coordinates as they are leave unexplained: 2 m k operations for m interactions' residuals and m k^2 for their squares,
where a whole system takes m d^2, and k^2 d instead of d^3 for the solutions. One pass over all blocks is one step.
Every block lowers the loss, so that sweeps never raise it; one block of the whole width is the exact solve.

Rendle, Krichene, Zhang, Koren, iALS++: speeding up matrix factorization with subspace optimization, arXiv 2110.14044.
There predictions are kept from pass to pass; here entities are solved for in batches, given the other side's vectors,
so that those of a batch are made once and kept for its passes.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, loop
from scall_jax.ops.indexing import ceil_div, dynamic_slice
from scall_jax.recommenders.ials.batches import CHUNK, Entities, Others, Outcome, Side, factors, most_degree, neighbours
from scall_jax.recommenders.ials.gradients import Steps
from scall_jax.recommenders.ials.primal import squares
from scall_jax.recommenders.ials.systems import EXACT, solve, times


class _Met(NamedTuple):
    """Interactions of a batch's entities, and what their predictions miss."""

    vectors: jax.Array  # f32[B, K, width], times the root of the weight
    missing: jax.Array  # f32[B, K], target less prediction, times the root of the weight


class _State(NamedTuple):
    x: jax.Array  # f32[B, width]
    missing: jax.Array  # f32[B, K]; K is 0 where interactions have no bound
    residual: jax.Array  # f32[B, width], b - A x
    step: jax.Array  # i32[]


class _Batch(NamedTuple):
    """What the blocks of a batch share."""

    side: Side
    others: Others
    batch: Entities
    met: jax.Array | None  # f32[B, K, width], as in `_Met`; None where interactions have no bound
    has: jax.Array  # bool[B, width]


def by_blocks(
    side: Side, others: Others, steps: Steps, columns: int, degree: int | None, start: jax.Array, batch: Entities
) -> Outcome:
    """Approximate the solutions of a batch.

    Args:
      side: has the entries.
      others: has the vectors.
      steps: how many passes.
      columns: of a block; static.
      degree: no entity of the batch has more interactions, which are read once and kept for all passes; None where
        there is no bound, for which they are read again for each block; static.
      start: f32[B, width], 0 beyond an entity's size.
      batch: B entities.

    Returns:
      Outcome; its gain is what the loss of zero vectors is lowered by at x, 2 b'x - x'Ax.
    """
    width = others.vectors.shape[1]
    columns = min(columns, width)
    has = jnp.arange(width)[None, :] < batch.sizes[:, None]
    if degree is None:
        of_batch, targets = _Batch(side, others, batch, None, has), jnp.zeros((start.shape[0], 0))
    else:
        found = neighbours(side, others, batch, 0, degree)
        of_batch = _Batch(side, others, batch, found.vectors * found.roots[..., None], has)
        targets = found.targets
    right = _gradient(of_batch, jnp.zeros_like(start), targets)
    start = jnp.where(has, start, 0.0)
    missing = targets if of_batch.met is None else targets - times(of_batch.met, start)
    residual = _gradient(of_batch, start, missing)
    # The vector of a user whose interactions have faded since may be worse than zero.
    worse = ((start * (right + residual)).sum(1) < 0)[:, None]
    first = _State(
        jnp.where(worse, 0.0, start),
        jnp.where(worse, targets, missing),
        jnp.where(worse, right, residual),
        jnp.int32(0),
    )
    scale = jnp.abs(right).max(1)

    def goes_on(state: _State) -> jax.Array:
        return (state.step < steps.most) & (jnp.abs(state.residual).max(1) > steps.tolerance * scale).any()

    def one_pass(state: _State) -> _State:
        def block(number, carry):
            # The last block begins so early that it ends at the width.
            return _solve_block(of_batch, jnp.minimum(number * columns, width - columns), columns, *carry)

        x, missing = jax.lax.fori_loop(0, -(-width // columns), block, (state.x, state.missing))
        return _State(x, missing, _gradient(of_batch, x, missing), state.step + 1)

    # Where there is no bound, devices have parts of one batch, which is finished on all of them at once.
    x, _, residual, _ = loop(side.mesh if degree is None else ONE, goes_on, one_pass, first)
    return Outcome(x, (x * (right + residual)).sum(1), jnp.abs(residual).max(1), scale)


def _over_met(of_batch: _Batch, x: jax.Array, missing: jax.Array, add: Callable, start):
    """Add up over a batch's interactions: all at once, or a chunk after another; `add` is (sum, _Met) -> sum."""
    if of_batch.met is not None:
        return add(start, _Met(of_batch.met, missing))

    def chunk(index, total):
        found = neighbours(of_batch.side, of_batch.others, of_batch.batch, index * CHUNK, CHUNK)
        vectors = found.vectors * found.roots[..., None]
        return add(total, _Met(vectors, found.targets - times(vectors, x)))

    return jax.lax.fori_loop(0, ceil_div(most_degree(of_batch.side, of_batch.batch), CHUNK), chunk, start)


def _gradient(of_batch: _Batch, x: jax.Array, missing: jax.Array) -> jax.Array:
    """b - A x, f32[B, width]; b where x is 0 and nothing is predicted."""

    def add(total: jax.Array, met: _Met) -> jax.Array:
        return total + jnp.einsum("bki,bk->bi", met.vectors, met.missing, precision=EXACT)

    total = _over_met(of_batch, x, missing, add, jnp.zeros_like(x))
    total += factors(of_batch.side, of_batch.batch)[:, None] * of_batch.others.constant[None, :]
    total -= jnp.matmul(x, of_batch.others.gram, precision=EXACT) + of_batch.batch.regularisation[:, None] * x
    return jnp.where(of_batch.has, total, 0.0)


def _solve_block(
    of_batch: _Batch, at: jax.Array, columns: int, x: jax.Array, missing: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Solve for the coordinates at, ..., at + columns - 1, given the others; x and what predictions then miss."""
    others, batch, count = of_batch.others, of_batch.batch, x.shape[0]

    def own(array: jax.Array) -> jax.Array:
        """The block's part of the last axis."""
        begin = (jnp.int32(0),) * (array.ndim - 1)
        return dynamic_slice(array, (*begin, at), (*array.shape[:-1], columns))

    def add(total, met: _Met):
        right, matrix = total
        vectors = own(met.vectors)
        return right + jnp.einsum("bki,bk->bi", vectors, met.missing, precision=EXACT), matrix + squares(vectors)

    gram, has, regularisation = own(others.gram), own(of_batch.has), batch.regularisation
    common = own(gram.T).T[None] + regularisation[:, None, None] * jnp.eye(columns)[None]
    right, matrix = _over_met(of_batch, x, missing, add, (jnp.zeros((count, columns)), common))
    right += factors(of_batch.side, batch)[:, None] * own(others.constant)[None, :]
    right -= jnp.matmul(x, gram, precision=EXACT) + regularisation[:, None] * own(x)
    matrix = jnp.where(has[:, :, None] & has[:, None, :], matrix, jnp.eye(columns)[None])
    change = solve(matrix, jnp.where(has, right, 0.0))
    if of_batch.met is not None:
        missing -= times(own(of_batch.met), change)
    return jax.lax.dynamic_update_slice_in_dim(x, own(x) + change, at, 1), missing
