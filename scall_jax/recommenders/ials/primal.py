"""Systems in the space of an entity's coordinates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import added, number
from scall_jax.ops.indexing import ceil_div, take
from scall_jax.ops.sums import BLOCK, padded_sum_by_side
from scall_jax.recommenders.ials.batches import (
    CHUNK,
    Entities,
    Others,
    Outcome,
    Side,
    entries_at,
    factors,
    most_degree,
    neighbours,
    vectors_at,
)
from scall_jax.recommenders.ials.systems import EXACT, errors, solve


class System(NamedTuple):
    """A x = b of each entity of a batch."""

    matrix: jax.Array
    """f32[B, width, width], A; the unit matrix in the rows and columns of coordinates that an entity does not have."""
    right: jax.Array
    """f32[B, width], b; 0 for coordinates that an entity does not have."""


def primal_system(side: Side, others: Others, batch: Entities) -> System:
    """The systems of a batch.

    Args:
      side: has the entries.
      others: has the vectors.
      batch: B entities.

    Returns:
      System.
    """
    width = others.vectors.shape[1]
    has = jnp.arange(width)[None, :] < batch.sizes[:, None]

    def add(index, carry):
        matrix, right = carry
        found = neighbours(side, others, batch, index * CHUNK, CHUNK)
        vectors = found.vectors * found.roots[..., None]
        right += jnp.einsum("bki,bk->bi", vectors, found.targets, precision=EXACT)
        return matrix + squares(vectors), right

    start = (
        others.gram[None] + batch.regularisation[:, None, None] * jnp.eye(width)[None],
        factors(side, batch)[:, None] * others.constant[None, :],
    )
    matrix, right = jax.lax.fori_loop(0, ceil_div(most_degree(side, batch), CHUNK), add, start)
    # Coordinates that an entity does not have are solved for by themselves, and are 0.
    matrix = jnp.where(has[:, :, None] & has[:, None, :], matrix, jnp.eye(width)[None])
    return System(matrix, jnp.where(has, right, 0.0))


def primal(side: Side, others: Others, batch: Entities) -> Outcome:
    """Solve in the space of coordinates, by Cholesky factors.

    Args:
      side: has the entries.
      others: has the vectors.
      batch: B entities.

    Returns:
      Outcome.
    """
    matrix, right = primal_system(side, others, batch)
    x = solve(matrix, right)
    return Outcome(x, (right * x).sum(1), *errors(matrix, x, right))


def squares(vectors: jax.Array) -> jax.Array:
    """Sums of v v' over the second axis of f32[B, K, width]; f32[B, width, width]."""
    if vectors.shape[2] > 16:
        return jnp.einsum("bki,bkj->bij", vectors, vectors, precision=EXACT)
    # Twice as fast on a CPU for small matrices, if the transposed vectors are laid out first.
    turned = jax.lax.optimization_barrier(jnp.swapaxes(vectors, 1, 2))
    return jnp.einsum("bik,bjk->bij", turned, turned, precision=EXACT)


def shared_system(side: Side, others: Others, members: jax.Array, size: jax.Array) -> tuple[System, jax.Array]:
    """The system of the vector that some entities share: the sum of theirs.

    Args:
      side: has the entries.
      others: has the vectors.
      members: bool[N], nodes of the side that share the vector.
      size: i32[], its coordinates.

    Returns:
      System of one entity, and the sum f32[] of the members' regularisations.
    """
    problem, width = side.problem, others.vectors.shape[1]
    matrix, right = _sums_over_entries(side, others, members)
    weight = padded_sum_by_side(jnp.where(members, problem.regularisation, 0.0), side.users)
    of_member = jnp.where(side.number == 0, 1.0, problem.bias)
    factor = padded_sum_by_side(jnp.where(members, of_member, 0.0), side.users)
    has = jnp.arange(width) < jnp.where(members.any(), size, 0)
    matrix += members.sum().astype(jnp.float32) * others.gram + weight * jnp.eye(width)
    matrix = jnp.where(has[:, None] & has[None, :], matrix, jnp.eye(width))[None]
    return System(matrix, jnp.where(has, right + factor * others.constant, 0.0)[None]), weight


def _sums_over_entries(side: Side, others: Others, members: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of w v v' and w t v over all entries of some of the side's nodes; `members` is bool[N]."""
    problem, width, mesh = side.problem, others.vectors.shape[1], side.mesh
    entries = problem.neighbours.shape[0] * mesh.devices

    def add(index, carry):
        at = (index * mesh.devices + number(mesh)) * BLOCK + jnp.arange(BLOCK, dtype=jnp.int32)
        entry = jnp.minimum(at, entries - 1)
        # All of `indptr` is searched: a part of it would be copied for each block.
        owner = jnp.minimum(jnp.searchsorted(problem.indptr, entry, side="right") - 1, members.shape[0] - 1)
        live = (at < problem.indptr[-1]) & take(members, owner)
        node, roots, targets = entries_at(side, entry)
        roots = jnp.where(live, roots, 0.0)
        vectors = vectors_at(side, others, jnp.where(live, node - others.begin, 0)) * roots[:, None]
        targets -= take(problem.bias, owner) * roots
        squared = jnp.matmul(vectors.T, vectors, precision=EXACT)
        return added(mesh, carry, (squared, jnp.matmul(targets, vectors, precision=EXACT)))

    start = jnp.zeros((width, width)), jnp.zeros(width)
    blocks = ceil_div(ceil_div(problem.indptr[-1], BLOCK), mesh.devices)
    return jax.lax.fori_loop(0, jnp.where(members.any(), blocks, 0), add, start)
