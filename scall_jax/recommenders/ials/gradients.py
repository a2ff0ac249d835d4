"""Systems solved to an approximation, by a few steps of conjugate gradients from the solution of the sweep before.

A step costs 4 m d operations for m interactions, and 4 d^2 for preconditioning, 2 d^2 where all of a batch have the
largest size. Every step lowers the loss, so that sweeps still never raise it. Without preconditioning the few steps of
a sweep are spent on the Gram matrix's large eigenvalues, which all systems of a side have in common: steps are
preconditioned by a factor of a0 G + lambda I, lambda the side's mean. As it is lower triangular, its leading block
belongs to the leading block of the Gram matrix, so that one factor serves vectors of all sizes. The product of the
Gram matrix and a direction comes of the preconditioner for nothing: a direction is M^-1 r and a part of the one
before, so that M times it is r and that part.

Hu, Koren, Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008, have the systems; Takács,
Pilászy, Tikk, Applications of the conjugate gradient method for implicit feedback collaborative filtering, RecSys 2011,
solve them by a few steps from the sweep before.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig, loop
from scall_jax.ops.indexing import ceil_div
from scall_jax.ops.sums import padded_sum_by_side
from scall_jax.recommenders.ials.batches import CHUNK, Entities, Others, Outcome, Side, factors, most_degree, neighbours
from scall_jax.recommenders.ials.primal import primal_system
from scall_jax.recommenders.ials.systems import EXACT, times

MATRICES_TO = 32
"""Padded width up to which entities without a bound on their interactions get matrices."""


class Steps(NamedTuple):
    """How far conjugate gradients go."""

    most: jax.Array
    """i32[], steps, at most."""
    tolerance: jax.Array
    """f32[], a batch is finished where no |A x - b| / |b| is above it, largest component by largest component."""


class Preconditioner(NamedTuple):
    """What all systems of a side have in common, M = a0 G + lambda I = L L'."""

    regularisation: jax.Array
    """f32[], lambda."""
    inverse: jax.Array
    """f32[width, width], lower triangular, L^-1."""
    largest: jax.Array
    """i32[], the largest size of the side's vectors."""
    whole: jax.Array
    """f32[width, width], the inverse of M's leading block of that size; 0 beyond it."""


def preconditioner(side: Side, others: Others) -> Preconditioner:
    """Factor what all systems of a side have in common, once for all of a width.

    Args:
      side: that is solved for.
      others: has the Gram matrix.

    Returns:
      Preconditioner.
    """
    problem = side.problem
    of_side = problem.active & ((jnp.arange(problem.active.shape[0]) >= side.users) == (side.number == 1))
    total = padded_sum_by_side(jnp.where(of_side, problem.regularisation, 0.0), side.users)
    regularisation = total / jnp.maximum(of_side.sum(), 1).astype(jnp.float32)
    width = others.gram.shape[0]
    # Coordinates that no vector has, and a side without vectors, leave a matrix that has no factor.
    least = jnp.finfo(jnp.float32).eps * jnp.trace(others.gram) + jnp.finfo(jnp.float32).tiny
    regularisation = jnp.maximum(regularisation, least)
    factor = jnp.linalg.cholesky(others.gram + regularisation * jnp.eye(width))
    inverse = jax.scipy.linalg.solve_triangular(factor, jnp.eye(width), lower=True)
    largest = jnp.where(of_side, side.rows.sizes[:-2], 0).max()
    block = jnp.where(jnp.arange(width)[:, None] < largest, inverse, 0.0)
    return Preconditioner(regularisation, inverse, largest, jnp.matmul(block.T, block, precision=EXACT))


def by_gradients(
    side: Side,
    others: Others,
    common: Preconditioner,
    steps: Steps,
    degree: int | None,
    start: jax.Array,
    batch: Entities,
) -> Outcome:
    """Approximate the solutions of a batch.

    Args:
      side: has the entries.
      others: has the vectors.
      common: of `preconditioner`.
      steps: how far.
      degree: no entity of the batch has more interactions, which are read once and kept for all steps; None where
        there is no bound: then narrow ones get their matrices, and for wide ones, whose matrices would cost more than
        all steps, interactions are read again in each step; static.
      start: f32[B, width], 0 beyond an entity's size.
      batch: B entities.

    Returns:
      Outcome; its gain is what the loss of zero vectors is lowered by at x, 2 b'x - x'Ax.
    """
    has = jnp.arange(others.vectors.shape[1])[None, :] < batch.sizes[:, None]
    # Where there is no bound, devices have parts of one batch, which is finished on all of them at once.
    waits_for = side.mesh if degree is None else ONE
    if degree is None and others.vectors.shape[1] <= MATRICES_TO:
        matrix, right = primal_system(side, others, batch)

        def apply(x: jax.Array, image: jax.Array) -> jax.Array:
            del image
            return times(matrix, x)

    else:
        over_met = _over_met(side, others, batch, degree)
        right = over_met(lambda vectors, targets: jnp.einsum("bki,bk->bi", vectors, targets, precision=EXACT))
        right += factors(side, batch)[:, None] * others.constant[None, :]
        right = jnp.where(has, right, 0.0)

        def apply(x: jax.Array, image: jax.Array) -> jax.Array:
            def products(vectors: jax.Array, targets: jax.Array) -> jax.Array:
                del targets
                return jnp.einsum("bki,bk->bi", vectors, times(vectors, x), precision=EXACT)

            more = (batch.regularisation - common.regularisation)[:, None] * x
            return jnp.where(has, image + over_met(products) + more, 0.0)

    def in_halves(x: jax.Array) -> jax.Array:
        half = jnp.where(has, jnp.matmul(x, common.inverse.T, precision=EXACT), 0.0)
        return jnp.matmul(half, common.inverse, precision=EXACT)

    all_largest = ((batch.sizes == common.largest) | (batch.sizes == 0)).all()

    def precondition(x: jax.Array) -> jax.Array:
        return jax.lax.cond(all_largest, lambda x: jnp.matmul(x, common.whole, precision=EXACT), in_halves, x)

    def multiply(x: jax.Array) -> jax.Array:
        everyone = jnp.matmul(x, others.gram, precision=EXACT)
        return jnp.where(has, everyone + common.regularisation * x, 0.0)

    start = jnp.where(has, start, 0.0)
    x, residual = conjugate_gradients(apply, precondition, right, start, multiply(start), steps, waits_for)
    gain = (x * (right + residual)).sum(1)
    return Outcome(x, gain, jnp.abs(residual).max(1), jnp.abs(right).max(1))


_Term = Callable[[jax.Array, jax.Array], jax.Array]
"""(vectors f32[B, K, width] and targets f32[B, K], both times the root of the weight) -> f32[B, width]."""


def _over_met(side: Side, others: Others, batch: Entities, degree: int | None) -> Callable[[_Term], jax.Array]:
    """A function that adds a term up over the interactions of a batch, which are kept where they have a bound."""
    if degree is not None:
        found = neighbours(side, others, batch, 0, degree)
        vectors = found.vectors * found.roots[..., None]
        return lambda term: term(vectors, found.targets)

    def over_chunks(term: _Term) -> jax.Array:
        def chunk(index: jax.Array, total: jax.Array) -> jax.Array:
            found = neighbours(side, others, batch, index * CHUNK, CHUNK)
            return total + term(found.vectors * found.roots[..., None], found.targets)

        start = jnp.zeros((batch.sizes.shape[0], others.vectors.shape[1]))
        return jax.lax.fori_loop(0, ceil_div(most_degree(side, batch), CHUNK), chunk, start)

    return over_chunks


class _State(NamedTuple):
    x: jax.Array  # f32[B, n]
    residual: jax.Array  # f32[B, n], b - A x
    direction: jax.Array  # f32[B, n], of the step before
    image: jax.Array  # f32[B, n], M times that direction
    energy: jax.Array  # f32[B], residual' M^-1 residual, before that step
    step: jax.Array  # i32[]


def conjugate_gradients(
    apply: Callable[[jax.Array, jax.Array], jax.Array],
    precondition: Callable[[jax.Array], jax.Array],
    right: jax.Array,
    start: jax.Array,
    image: jax.Array,
    steps: Steps,
    mesh: MeshConfig = ONE,
) -> tuple[jax.Array, jax.Array]:
    """Steps towards the solutions of symmetric positive definite systems.

    Args:
      apply: x f32[B, n] and M x f32[B, n] -> the products of the matrices and x.
      precondition: f32[B, n] -> the products with the inverse of an approximation M.
      right: f32[B, n].
      start: f32[B, n]; where x = 0 has a smaller error in the norm of the matrix, that is started from.
      image: f32[B, n], M times the start.
      steps: how far.
      mesh: devices that have a part of the batch each; static.

    Returns:
      x and b - A x, f32[B, n] each.

    >>> matrix, right = jnp.array([[[2.0, 1.0], [1.0, 3.0]]]), jnp.array([[1.0, 2.0]])
    >>> steps = Steps(jnp.int32(2), jnp.float32(0))
    >>> zero, product = jnp.zeros((1, 2)), lambda x, image: times(matrix, x)
    >>> x, residual = conjugate_gradients(product, lambda x: x, right, zero, zero, steps)
    >>> x.round(3).tolist()
    [[0.20000000298023224, 0.6000000238418579]]
    """

    def goes_on(state: _State) -> jax.Array:
        return (state.step < steps.most) & (jnp.abs(state.residual).max(1) > steps.tolerance * scale).any()

    def step(state: _State) -> _State:
        # Here and not at the end of the step before, since nothing reads what would be turned after the last one.
        turned = precondition(state.residual)
        energy = (state.residual * turned).sum(1)
        before = _ratio(energy, state.energy)[:, None]
        direction, image = turned + before * state.direction, state.residual + before * state.image
        product = apply(direction, image)
        length = _ratio(energy, (direction * product).sum(1))[:, None]
        x, residual = state.x + length * direction, state.residual - length * product
        return _State(x, residual, direction, image, energy, state.step + 1)

    residual = right - apply(start, image)
    # A start that is worse than zero, such as the vector of a user whose interactions have faded since, is so large
    # that what rounds off from its residual may be more than the whole right side.
    worse = ((start * (right + residual)).sum(1) < 0)[:, None]
    start, residual = jnp.where(worse, 0.0, start), jnp.where(worse, right, residual)
    # The right side of a user whose interactions have nearly faded is so short that its square is 0 in float32. By
    # powers of two nothing is rounded otherwise.
    largest = jnp.abs(right).max(1)
    octave = jnp.frexp(largest)[1][:, None]
    start, residual = jnp.ldexp(start, -octave), jnp.ldexp(residual, -octave)
    scale = jnp.ldexp(largest, -octave[:, 0])
    none = jnp.zeros_like(start)
    first = _State(start, residual, none, none, jnp.zeros(start.shape[0]), jnp.int32(0))
    end = loop(mesh, goes_on, step, first)
    return jnp.ldexp(end.x, octave), jnp.ldexp(end.residual, octave)


def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """a / b, 0 where b is not positive, which says that the system is solved."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1.0), 0.0)
