"""Systems in the space of an entity's interactions, where they are fewer than its coordinates.

Half of all users have less than seven. With eigenvectors Q of the leading block of the Gram matrix G,
A = Q D Q' + V'WV where D is diagonal, and Woodbury's identity leaves an m x m system for m interactions. Q depends on
an entity's size, so that this serves sides whose vectors have at most two sizes, as those of one size for all have.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.recommenders.ials.batches import Entities, Others, Outcome, Side, factors, neighbours
from scall_jax.recommenders.ials.systems import EXACT, errors, solve, times


class Turned(NamedTuple):
    """The other side along the principal axes of the leading block of its Gram matrix."""

    others: Others
    """Its Gram matrix is diagonal."""
    values: jax.Array
    """f32[width], the diagonal, not negative; inf beyond the block."""
    axes: jax.Array
    """f32[width, width], 0 beyond the block."""


def turn(others: Others, size: jax.Array) -> Turned:
    """Turn the other side to principal axes, once for all entities of a size.

    Args:
      others: as laid out.
      size: i32[], coordinates of the block.

    Returns:
      Turned.
    """
    width = others.vectors.shape[1]
    inside = jnp.arange(width) < size
    block = jnp.where(inside[:, None] & inside[None, :], others.gram, 0.0)
    # Coordinates beyond the block get values below all others, so that no axis mixes them with those within.
    values, axes = jnp.linalg.eigh(block - jnp.diag(jnp.where(inside, 0.0, jnp.trace(block))))
    axes = jnp.where(inside[:, None] & inside[None, :], axes[:, ::-1], 0.0)
    turned = others._replace(
        vectors=jnp.matmul(others.vectors, axes, precision=EXACT),
        constant=jnp.matmul(others.constant, axes, precision=EXACT),
    )
    return Turned(turned, jnp.where(inside, jnp.maximum(values[::-1], 0.0), jnp.inf), axes)


def dual(side: Side, turned: Turned, degree: int, batch: Entities) -> Outcome:
    """Solve in the space of interactions.

    With S = W^1/2 V Q E for E = (a0 D + lambda_n)^-1/2, and t the weighted targets, x = Q E y for y = S's + E Q'c and

        (I + S S') s = t - S E Q'c,

    from which also S y = t - s.

    Args:
      side: has the entries.
      turned: has the vectors.
      degree: no entity of the batch has more interactions; static.
      batch: B entities.

    Returns:
      Outcome; error and scale are those of the systems of interactions.
    """
    # A place without an entity has a system like any other, of zeros.
    scale = jax.lax.rsqrt(turned.values[None, :] + batch.regularisation[:, None])
    scale = jnp.where(batch.sizes[:, None] > 0, scale, 0.0)
    found = neighbours(side, turned.others, batch, 0, degree)
    vectors = found.vectors * found.roots[..., None] * scale[:, None, :]
    constant = scale * factors(side, batch)[:, None] * turned.others.constant[None, :]
    kernel = jnp.einsum("bmi,bni->bmn", vectors, vectors, precision=EXACT) + jnp.eye(degree)[None]
    right = found.targets - times(vectors, constant)
    solution = solve(kernel, right)
    y = jnp.einsum("bmi,bm->bi", vectors, solution, precision=EXACT) + constant
    # t - s, where s is nearly t, would be lost in rounding.
    gain = (found.targets * times(vectors, y)).sum(1) + (constant * y).sum(1)
    x = jnp.matmul(scale * y, turned.axes.T, precision=EXACT)
    return Outcome(x, gain, *errors(kernel, solution, right))
