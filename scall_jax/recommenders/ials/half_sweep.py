"""Half a sweep: every vector of one side solved for exactly, given the other side's.

The system of entity n with d coordinates is A x = b with

    A = a0 G + sum_e w_e v_e v_e' + lambda_n I,   b = sum_e w_e t_e v_e + c,

where e runs over its interactions, G is the Gram matrix of the other side, t_e = 1 - beta, and c comes from the biases;
all of it the leading d coordinates, since the entity has no others. It is solved in one of these ways:

* In the space of the d coordinates (`primal`), by a Cholesky factor of A: m d^2 operations for m interactions' sum, and
  d^3 / 3.
* In the space of the m interactions (`dual`), where they are fewer and vectors have at most two sizes.
* To an approximation from the vector of the sweep before, where vectors are wide: by a few conjugate gradients
  (`gradients`), or a block of columns after another (`blocks`).

Entities of equal work are solved in batches (`batches`), which several devices share.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops import devices
from scall_jax.ops.indexing import dynamic_update_slice, take
from scall_jax.ops.sums import padded_sum
from scall_jax.recommenders.ials.batches import (
    Entities,
    Others,
    Outcome,
    Side,
    batch_numbers,
    batch_size,
    make_others,
    over_batches,
    range_of,
)
from scall_jax.recommenders.ials.blocks import by_blocks
from scall_jax.recommenders.ials.dual import Turned, dual, turn
from scall_jax.recommenders.ials.gradients import Steps, by_gradients, preconditioner
from scall_jax.recommenders.ials.primal import primal, shared_system
from scall_jax.recommenders.ials.problem import DUAL_DEGREES, class_number, dual_degrees
from scall_jax.recommenders.ials.rows import own_windows, write_windows
from scall_jax.recommenders.ials.systems import errors, relative, solve


class Solved(NamedTuple):
    """Result of half a sweep."""

    pool: jax.Array
    """f32[P + width], coordinates by vector; on several devices this one's part."""
    gain: jax.Array
    """f32[], what the loss of zero vectors is lowered by, b'x summed over the side."""
    penalty: jax.Array
    """f32[], the side's weighted squares, lambda_n |x|^2 summed over it."""
    residual: jax.Array
    """f32[], the largest |A x - b| / |b| of the side's systems, largest component by largest component."""


class _Progress(NamedTuple):
    """What has been solved for."""

    pool: jax.Array  # f32[P + width], or this device's part
    outcomes: jax.Array  # f32[4, N + some], b'x, lambda_n |x|^2, |A x - b|, |b|, by place in the order; else 0


class Approximation(NamedTuple):
    """Where systems are solved to an approximation, and to which."""

    width: float
    """Padded width from which systems are approximated; inf for none; static."""
    steps: Steps
    """How far."""
    block: int
    """Columns of a block; 0 for conjugate gradients; static."""


def half_sweep(side: Side, pool: jax.Array, widths: tuple[int, ...], approximation: Approximation) -> Solved:
    """Solve for all vectors of one side.

    Args:
      side: to solve for; its order was made for the width of the approximation.
      pool: f32[P + width], coordinates by vector; on several devices this one's part.
      widths: of `width_classes`, as its order has them; static.
      approximation: for wide vectors.

    Returns:
      Solved.
    """
    chex.assert_rank(pool, 1)
    # Classes by ascending place in the order: a batch puts zeros behind its class, where the next class writes.
    progress = _Progress(pool, jnp.zeros((4, side.entities.sizes.shape[0])))
    for place, width in enumerate(widths):
        exact = width < approximation.width
        solve_all = (
            functools.partial(_exactly, side, place, width)
            if exact
            else functools.partial(_approximately, side, place, width, approximation)
        )
        at = class_number(place, 0, 0)
        first, end = range_of(side, at, class_number(place + 1, 0, 0) - at)
        progress = jax.lax.cond(first < end, solve_all, lambda p: p, progress)
    # Each place is that of one device's batch.
    gain, penalty, error, scale = devices.together(side.mesh, progress.outcomes)
    solved = Solved(progress.pool, padded_sum(gain), padded_sum(penalty), relative(error, scale).max())
    return _solve_shared(side, widths[-1], solved)


_SolveBatch = Callable[[jax.Array, Entities], Outcome]
"""(pool, batch) -> its solutions."""


def _exactly(side: Side, place: int, width: int, progress: _Progress) -> _Progress:
    """Solve for the vectors that are padded to a width."""
    # Read before anything is written, which changes this side's vectors only.
    others = make_others(side, progress.pool, width)
    number = class_number(place, 0, 0)
    solve_batch = functools.partial(_primal_batch, side, others)
    progress = _solve_class(side, number, batch_size(width), solve_batch, progress, divided=True)
    if not dual_degrees(width):
        return progress
    return jax.lax.fori_loop(0, 2, functools.partial(_solve_dual, side, others, place), progress)


def _solve_dual(side: Side, others: Others, place: int, common: jax.Array, progress: _Progress) -> _Progress:
    """Solve for those of one of the two common sizes in the space of interactions."""
    width = others.vectors.shape[1]
    degrees = dual_degrees(width)
    begin, end = range_of(side, class_number(place, common, 1), len(degrees))

    def solve_all(progress: _Progress) -> _Progress:
        turned = turn(others, side.order.common[side.number, common])
        for number, degree in enumerate(degrees, 1):
            solve_batch = functools.partial(_dual_batch, side, turned, degree)
            size = batch_numbers() // (degree * width)
            progress = _solve_class(side, class_number(place, common, number), size, solve_batch, progress)
        return progress

    return jax.lax.cond(begin < end, solve_all, lambda p: p, progress)


def _primal_batch(side: Side, others: Others, pool: jax.Array, batch: Entities) -> Outcome:
    del pool
    return primal(side, others, batch)


def _dual_batch(side: Side, turned: Turned, degree: int, pool: jax.Array, batch: Entities) -> Outcome:
    del pool
    return dual(side, turned, degree, batch)


def _approximately(side: Side, place: int, width: int, approximation: Approximation, progress: _Progress) -> _Progress:
    """Approximate the vectors that are padded to a width, from those that there are."""
    others, steps, block = make_others(side, progress.pool, width), approximation.steps, approximation.block
    common = None if block else preconditioner(side, others)

    def solve_batch(degree: int | None, pool: jax.Array, batch: Entities) -> Outcome:
        request = batch.place, batch.sizes
        start = devices.ask(side.mesh, request, lambda at: own_windows(side.mesh, pool, at[0], at[1], width))
        if common is None:
            return by_blocks(side, others, steps, block, degree, start, batch)
        return by_gradients(side, others, common, steps, degree, start, batch)

    for number, degree in enumerate((None, *DUAL_DEGREES)):
        size = batch_size(width) if degree is None else batch_numbers() // (degree * width)
        solve = functools.partial(solve_batch, degree)
        progress = _solve_class(side, class_number(place, 0, number), size, solve, progress, divided=degree is None)
    return progress


def _solve_class(
    side: Side,
    number: jax.Array | int,
    size: int,
    solve_batch: _SolveBatch,
    progress: _Progress,
    divided: bool = False,
) -> _Progress:
    """Solve for the entities of a class in batches of a size; where they have no common bound, divided ones."""

    def visit(batch: Entities, at: jax.Array, exists: jax.Array, progress: _Progress) -> _Progress:
        x, gain, error, scale = solve_batch(progress.pool, batch)
        outcomes = jnp.stack([gain, batch.regularisation * (x * x).sum(1), error, scale])
        return _Progress(
            write_windows(progress.pool, *devices.everyone(side.mesh, (batch.place, batch.sizes, x)), side.mesh),
            dynamic_update_slice(progress.outcomes, jnp.where(exists[None, :], outcomes, 0.0), (0, at)),
        )

    return over_batches(side, number, size, visit, progress, divided)


def _solve_shared(side: Side, maximum: int, solved: Solved) -> Solved:
    """Solve for the vector that the side's entities without own coordinates share."""
    problem, nodes = side.problem, side.problem.active.shape[0]
    shared = nodes + side.number
    size = take(side.rows.sizes, shared)
    of_side = (jnp.arange(nodes) >= side.users) == (side.number == 1)
    members = problem.active & of_side & (side.rows.sizes[:nodes] == 0)

    def solve_one(solved: Solved) -> Solved:
        (matrix, right), weight = shared_system(side, make_others(side, solved.pool, maximum), members, size)
        x = solve(matrix, right)
        return Solved(
            write_windows(solved.pool, take(side.rows.first, shared)[None], size[None], x, side.mesh),
            solved.gain + (right * x).sum(),
            solved.penalty + weight * (x * x).sum(),
            jnp.maximum(solved.residual, relative(*errors(matrix, x, right))[0]),
        )

    return jax.lax.cond(size > 0, solve_one, lambda s: s, solved)
