"""Half a sweep: every vector of one side solved for exactly, given the other side's.

The system of entity n with d coordinates is A x = b with

    A = a0 G + sum_e w_e v_e v_e' + lambda_n I,   b = sum_e w_e t_e v_e + c,

where e runs over its interactions, G is the Gram matrix of the other side, t_e = 1 - beta, and c comes from the biases;
all of it the leading d coordinates, since the entity has no others. It is solved in one of two ways:

* In the space of the d coordinates, by a Cholesky factor of A: m d^2 operations for m interactions' sum, and d^3 / 3.
* In the space of the m interactions, where they are fewer (half of all users have less than seven). With eigenvectors Q
  of G's leading block, A = Q D Q' + V'WV where D is diagonal, and Woodbury's identity leaves an m x m system. Q depends
  on d, so that this serves sides whose vectors have at most two sizes, as those of one size for all have.

Entities of equal work are solved in batches: a gather of whole vectors, a batched product, a batched factorisation.
What is gathered from is laid out, and turned by Q, once for all of a width: a vector is read by many entities.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.recommenders.ials.problem import (
    Order,
    Problem,
    class_number,
    dual_degrees,
    width_classes,
)
from scall_jax.recommenders.ials.rows import RowLayout, windows, write_windows

_EXACT = jax.lax.Precision.HIGHEST
_CHUNK = 32
"""Interactions of an entity that are added to its matrix at once."""
_BLOCK = 1024
"""Vectors that are added to a Gram matrix at once: a fixed number, for the same order of sums."""
_SMALL = 8
"""Systems up to this size are solved for all at once, step by step; larger ones by Cholesky factors, one by one."""


def batch_numbers() -> int:
    """Float32 numbers of a batch's largest array: half of a core's cache on a CPU, enough to fill an accelerator."""
    return by_backend(2**18, 2**24)


def _most() -> int:
    """Entities of a batch, at most."""
    return batch_numbers() // 128


def _most_uneven() -> int:
    """Entities of a batch, at most, if their numbers of interactions have no common bound.

    All of a batch wait for the one with the most, so that on a CPU large batches cost more than they save.
    """
    return by_backend(64, 4096)


class _Side(NamedTuple):
    """What a half sweep reads."""

    problem: Problem
    rows: RowLayout
    order: Order
    entities: "_Entities"
    """All nodes in their order, and some places without an entity."""
    users: int
    number: jax.Array
    """i32[], 0 to solve for users, 1 for items."""


class _Entities(NamedTuple):
    """Entities that are solved for; B of them."""

    place: jax.Array  # i32[B], of the vector in the pool
    sizes: jax.Array  # i32[B], 0 for a place without an entity
    first: jax.Array  # i32[B], first entry in the graph
    degree: jax.Array  # i32[B], entries in the graph
    regularisation: jax.Array  # f32[B]
    bias: jax.Array  # f32[B]


class _Progress(NamedTuple):
    """What has been solved for."""

    pool: jax.Array  # f32[P + width]
    outcomes: jax.Array  # f32[4, N + some], b'x, lambda_n |x|^2, |A x - b|, |b|, by place in the order; else 0


class Solved(NamedTuple):
    """Result of half a sweep."""

    pool: jax.Array
    """f32[P + width], coordinates by vector."""
    gain: jax.Array
    """f32[], what the loss of zero vectors is lowered by, b'x summed over the side."""
    penalty: jax.Array
    """f32[], the side's weighted squares, lambda_n |x|^2 summed over it."""
    residual: jax.Array
    """f32[], the largest |A x - b| / |b| of the side's systems, largest component by largest component."""


def half_sweep(
    problem: Problem, rows: RowLayout, order: Order, pool: jax.Array, users: int, maximum: int, number: jax.Array
) -> Solved:
    """Solve for all vectors of one side.

    Args:
      problem: of the segment.
      rows: where vectors lie.
      order: of the nodes.
      pool: f32[P + width], coordinates by vector.
      users: capacity of the users' side; static.
      maximum: the largest size; static.
      number: i32[], 0 to solve for users, 1 for items.

    Returns:
      Solved.
    """
    chex.assert_rank([pool, number], [1, 0])
    entities = _entities(problem, rows, order)
    side = _Side(problem, rows, order, entities, users, number)
    # Classes by ascending place in the order: a batch puts zeros behind its class, where the next class writes.
    progress = _Progress(pool, jnp.zeros((4, entities.sizes.shape[0])))
    for place, width in enumerate(width_classes(maximum)):
        progress = _solve_width(side, place, width, progress)
    gain, penalty, error, scale = progress.outcomes
    solved = Solved(progress.pool, gain.sum(), penalty.sum(), _relative(error, scale).max())
    return _solve_shared(side, maximum, solved)


def _entities(problem: Problem, rows: RowLayout, order: Order) -> _Entities:
    nodes = order.nodes

    def in_order(x):
        return jnp.pad(take(x, nodes), (0, _most()))

    return _Entities(
        place=in_order(rows.first),
        sizes=in_order(rows.sizes),
        first=in_order(problem.indptr),
        degree=in_order(jnp.diff(problem.indptr)),
        regularisation=in_order(problem.regularisation),
        bias=in_order(problem.bias),
    )


def _range(side: _Side, first: jax.Array | int, count: int) -> tuple[jax.Array, jax.Array]:
    """Where classes first, ..., first + count - 1 of the side lie in the order."""
    at = side.number * ((side.order.starts.shape[0] - 1) // 2) + first
    return take(side.order.starts, at), take(side.order.starts, at + count)


class _Others(NamedTuple):
    """Vectors of the other side, padded to a width, and their moments; R of them, at least as many as nodes."""

    begin: jax.Array  # i32[], the node of the first one
    vectors: jax.Array  # f32[R, width], 0 beyond a vector's size and for nodes that do not exist
    gram: jax.Array  # f32[width, width], sum of v v', times a0
    constant: jax.Array  # f32[width], what pairs that were not met add to b, for an entity whose factor is 1


def _others(side: _Side, pool: jax.Array, width: int) -> _Others:
    problem, nodes = side.problem, side.problem.active.shape[0]
    begin = jnp.where(side.number == 0, side.users, 0)
    end = jnp.where(side.number == 0, nodes, side.users)
    at = begin + jnp.arange(-(-max(side.users, nodes - side.users) // _BLOCK) * _BLOCK, dtype=jnp.int32)
    node = jnp.minimum(at, nodes - 1)
    vector = take(side.rows.source, node)
    sizes = jnp.where((at < end) & take(problem.active, node), take(side.rows.sizes, vector), 0)
    vectors = windows(pool, take(side.rows.first, vector), sizes, width)
    # For users the sum has the items' biases in it; for items it is the plain sum, times the item's own bias.
    weight = jnp.where(side.number == 0, take(problem.bias, node), 1.0)
    blocks = vectors.reshape(-1, _BLOCK, width)
    gram = jnp.einsum("bki,bkj->bij", blocks, blocks, precision=_EXACT).sum(0)
    total = jnp.einsum("bk,bki->bi", weight.reshape(-1, _BLOCK), blocks, precision=_EXACT).sum(0)
    return _Others(begin, vectors, problem.unobserved * gram, -problem.unobserved * total)


def _solve_width(side: _Side, place: int, width: int, progress: _Progress) -> _Progress:
    """Solve for the vectors that are padded to a width."""
    at = class_number(place, 0, 0)
    first, end = _range(side, at, class_number(place + 1, 0, 0) - at)

    def solve(progress: _Progress) -> _Progress:
        # Read before anything is written, which changes this side's vectors only.
        others = _others(side, progress.pool, width)
        primal = functools.partial(_primal, side, others)
        size = min(batch_numbers() // (max(width, _CHUNK) * width), _most_uneven())
        progress = _over_batches(side, at, size, primal, progress)
        if not dual_degrees(width):
            return progress
        return jax.lax.fori_loop(0, 2, functools.partial(_solve_dual, side, others, place), progress)

    return jax.lax.cond(first < end, solve, lambda p: p, progress)


def _solve_dual(side: _Side, others: _Others, place: int, common: jax.Array, progress: _Progress) -> _Progress:
    """Solve for those of one of the two common sizes in the space of interactions."""
    width = others.vectors.shape[1]
    degrees = dual_degrees(width)
    begin, end = _range(side, class_number(place, common, 1), len(degrees))

    def solve(progress: _Progress) -> _Progress:
        turned = _turned(others, side.order.common[side.number, common])
        for number, degree in enumerate(degrees, 1):
            dual = functools.partial(_dual, side, turned, degree)
            size = batch_numbers() // (degree * width)
            progress = _over_batches(side, class_number(place, common, number), size, dual, progress)
        return progress

    return jax.lax.cond(begin < end, solve, lambda p: p, progress)


class _Outcome(NamedTuple):
    """A batch's solutions."""

    x: jax.Array  # f32[B, width]
    gain: jax.Array  # f32[B], b'x
    error: jax.Array  # f32[B], the largest component of A x - b
    scale: jax.Array  # f32[B], the largest component of b


def _over_batches(
    side: _Side, number: jax.Array | int, size: int, solve: Callable[[_Entities], _Outcome], progress: _Progress
) -> _Progress:
    """Solve for the entities of a class in batches of a size."""
    first, end = _range(side, number, 1)
    size = min(max(8, size), _most())

    def one(index, progress: _Progress) -> _Progress:
        at = first + index * size
        batch = _Entities(*(dynamic_slice(x, (at,), (size,)) for x in side.entities))
        exists = at + jnp.arange(size, dtype=jnp.int32) < end
        batch = batch._replace(sizes=jnp.where(exists, batch.sizes, 0), degree=jnp.where(exists, batch.degree, 0))
        x, gain, error, scale = solve(batch)
        outcomes = jnp.stack([gain, batch.regularisation * (x * x).sum(1), error, scale])
        return _Progress(
            write_windows(progress.pool, batch.place, batch.sizes, x),
            dynamic_update_slice(progress.outcomes, jnp.where(exists[None, :], outcomes, 0.0), (0, at)),
        )

    return jax.lax.fori_loop(0, ceil_div(end - first, size), one, progress)


class _Neighbours(NamedTuple):
    """Neighbours of a batch's entities, K of each; zeros beyond an entity's last."""

    vectors: jax.Array  # f32[B, K, width]
    roots: jax.Array  # f32[B, K], of the weights
    targets: jax.Array  # f32[B, K], times the root


def _neighbours(side: _Side, others: _Others, batch: _Entities, begin, count: int) -> _Neighbours:
    """Entries begin, ..., begin + count - 1 of each entity."""
    problem = side.problem
    within = begin + jnp.arange(count, dtype=jnp.int32)
    live = within[None, :] < batch.degree[:, None]
    entry = jnp.where(live, batch.first[:, None] + within[None, :], 0)
    row = jnp.where(live, take(problem.neighbours, entry) - others.begin, 0)
    return _Neighbours(
        vectors=take(others.vectors, row),
        roots=jnp.where(live, take(problem.roots, entry), 0.0),
        targets=jnp.where(live, take(problem.targets, entry) - batch.bias[:, None] * take(problem.roots, entry), 0.0),
    )


def _factors(side: _Side, batch: _Entities) -> jax.Array:
    """Of the constant: 1 for users, whose sum has the items' biases in it, and an item's own bias."""
    return jnp.where(side.number == 0, 1.0, batch.bias)


def _primal(side: _Side, others: _Others, batch: _Entities) -> _Outcome:
    """Solve in the space of coordinates."""
    width = others.vectors.shape[1]
    has = jnp.arange(width)[None, :] < batch.sizes[:, None]

    def add(index, carry):
        matrix, right = carry
        found = _neighbours(side, others, batch, index * _CHUNK, _CHUNK)
        vectors = found.vectors * found.roots[..., None]
        right += jnp.einsum("bki,bk->bi", vectors, found.targets, precision=_EXACT)
        return matrix + _squares(vectors), right

    start = (
        others.gram[None] + batch.regularisation[:, None, None] * jnp.eye(width)[None],
        _factors(side, batch)[:, None] * others.constant[None, :],
    )
    matrix, right = jax.lax.fori_loop(0, ceil_div(batch.degree.max(), _CHUNK), add, start)
    # Coordinates that an entity does not have are solved for by themselves, and are 0.
    matrix = jnp.where(has[:, :, None] & has[:, None, :], matrix, jnp.eye(width)[None])
    right = jnp.where(has, right, 0.0)
    x = _solve(matrix, right)
    return _Outcome(x, (right * x).sum(1), *_errors(matrix, x, right))


def _squares(vectors: jax.Array) -> jax.Array:
    """Sums of v v' over the second axis of f32[B, K, width]; f32[B, width, width]."""
    if vectors.shape[2] > 16:
        return jnp.einsum("bki,bkj->bij", vectors, vectors, precision=_EXACT)
    # Twice as fast on a CPU for small matrices, if the transposed vectors are laid out first.
    turned = jax.lax.optimization_barrier(jnp.swapaxes(vectors, 1, 2))
    return jnp.einsum("bik,bjk->bij", turned, turned, precision=_EXACT)


class _Turned(NamedTuple):
    """The other side along the principal axes of the leading block of its Gram matrix."""

    others: _Others  # its Gram matrix is diagonal
    values: jax.Array  # f32[width], the diagonal, not negative; inf beyond the block
    axes: jax.Array  # f32[width, width], 0 beyond the block


def _turned(others: _Others, size: jax.Array) -> _Turned:
    width = others.vectors.shape[1]
    inside = jnp.arange(width) < size
    block = jnp.where(inside[:, None] & inside[None, :], others.gram, 0.0)
    # Coordinates beyond the block get values below all others, so that no axis mixes them with those within.
    values, axes = jnp.linalg.eigh(block - jnp.diag(jnp.where(inside, 0.0, jnp.trace(block))))
    axes = jnp.where(inside[:, None] & inside[None, :], axes[:, ::-1], 0.0)
    turned = others._replace(
        vectors=jnp.matmul(others.vectors, axes, precision=_EXACT),
        constant=jnp.matmul(others.constant, axes, precision=_EXACT),
    )
    return _Turned(turned, jnp.where(inside, jnp.maximum(values[::-1], 0.0), jnp.inf), axes)


def _dual(side: _Side, turned: _Turned, degree: int, batch: _Entities) -> _Outcome:
    """Solve in the space of interactions.

    With S = W^1/2 V Q E for E = (a0 D + lambda_n)^-1/2, and t the weighted targets, x = Q E y for y = S's + E Q'c and

        (I + S S') s = t - S E Q'c,

    from which also S y = t - s.
    """
    # A place without an entity has a system like any other, of zeros.
    scale = jax.lax.rsqrt(turned.values[None, :] + batch.regularisation[:, None])
    scale = jnp.where(batch.sizes[:, None] > 0, scale, 0.0)
    found = _neighbours(side, turned.others, batch, 0, degree)
    vectors = found.vectors * found.roots[..., None] * scale[:, None, :]
    constant = scale * _factors(side, batch)[:, None] * turned.others.constant[None, :]
    kernel = jnp.einsum("bmi,bni->bmn", vectors, vectors, precision=_EXACT) + jnp.eye(degree)[None]
    right = found.targets - _times(vectors, constant)
    solution = _solve(kernel, right)
    y = jnp.einsum("bmi,bm->bi", vectors, solution, precision=_EXACT) + constant
    gain = (found.targets * (found.targets - solution)).sum(1) + (constant * y).sum(1)
    x = jnp.matmul(scale * y, turned.axes.T, precision=_EXACT)
    return _Outcome(x, gain, *_errors(kernel, solution, right))


def _solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """Solutions f32[B, n] of symmetric positive definite systems."""
    if matrix.shape[-1] <= _SMALL:
        return _eliminate(matrix, right)
    factor = jax.lax.linalg.cholesky(jnp.swapaxes(matrix, 1, 2), symmetrize_input=False)
    half = jax.lax.linalg.triangular_solve(factor, right[..., None], left_side=True, lower=True)
    return jax.lax.linalg.triangular_solve(factor, half, left_side=True, lower=True, transpose_a=True)[..., 0]


def _eliminate(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """`_solve` by Gauss-Jordan elimination, each step of it for the whole batch, which is the last axis.

    It needs no pivoting where matrices are positive definite.
    """
    place = jnp.arange(matrix.shape[-1])[:, None, None]

    def step(at, system):
        row = (system[at] / system[at, at][None, :])[None]
        return jnp.where(place == at, row, system - system[:, at, None] * row)

    system = jnp.concatenate([matrix, right[..., None]], 2).transpose(1, 2, 0)
    return jax.lax.fori_loop(0, matrix.shape[-1], step, system)[:, -1].T


def _times(matrix: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.einsum("bij,bj->bi", matrix, x, precision=_EXACT)


def _errors(matrix: jax.Array, x: jax.Array, right: jax.Array) -> tuple[jax.Array, jax.Array]:
    return jnp.abs(_times(matrix, x) - right).max(1), jnp.abs(right).max(1)


def _relative(error: jax.Array, scale: jax.Array) -> jax.Array:
    return jnp.where(scale > 0, error / jnp.where(scale > 0, scale, 1.0), 0.0)


def _solve_shared(side: _Side, maximum: int, solved: Solved) -> Solved:
    """Solve for the vector that the side's entities without own coordinates share: the sum of their systems."""
    problem, nodes = side.problem, side.problem.active.shape[0]
    shared = nodes + side.number
    size = take(side.rows.sizes, shared)
    of_side = (jnp.arange(nodes) >= side.users) == (side.number == 1)
    members = problem.active & of_side & (side.rows.sizes[:nodes] == 0)

    def solve(solved: Solved) -> Solved:
        others = _others(side, solved.pool, maximum)
        matrix, right = _sums_over_entries(side, others, members)
        weight = jnp.where(members, problem.regularisation, 0.0).sum()
        factor = jnp.where(members, jnp.where(side.number == 0, 1.0, problem.bias), 0.0).sum()
        has = jnp.arange(maximum) < jnp.where(members.any(), size, 0)
        matrix += members.sum() * others.gram + weight * jnp.eye(maximum)
        matrix = jnp.where(has[:, None] & has[None, :], matrix, jnp.eye(maximum))[None]
        right = jnp.where(has, right + factor * others.constant, 0.0)[None]
        x = _solve(matrix, right)
        return Solved(
            write_windows(solved.pool, take(side.rows.first, shared)[None], size[None], x),
            solved.gain + (right * x).sum(),
            solved.penalty + weight * (x * x).sum(),
            jnp.maximum(solved.residual, _relative(*_errors(matrix, x, right))[0]),
        )

    return jax.lax.cond(size > 0, solve, lambda s: s, solved)


def _sums_over_entries(side: _Side, others: _Others, members: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sums of w v v' and w t v over all entries of some of the side's nodes; `members` is bool[N]."""
    problem, width = side.problem, others.vectors.shape[1]

    def add(index, carry):
        matrix, right = carry
        at = index * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
        entry = jnp.minimum(at, problem.neighbours.shape[0] - 1)
        owner = jnp.minimum(jnp.searchsorted(problem.indptr[1:], entry, side="right"), members.shape[0] - 1)
        live = (at < problem.indptr[-1]) & take(members, owner)
        roots = jnp.where(live, take(problem.roots, entry), 0.0)
        vectors = take(others.vectors, jnp.where(live, take(problem.neighbours, entry) - others.begin, 0))
        vectors *= roots[:, None]
        targets = take(problem.targets, entry) - take(problem.bias, owner) * roots
        matrix += jnp.matmul(vectors.T, vectors, precision=_EXACT)
        return matrix, right + jnp.matmul(targets, vectors, precision=_EXACT)

    start = jnp.zeros((width, width)), jnp.zeros(width)
    return jax.lax.fori_loop(0, ceil_div(problem.indptr[-1], _BLOCK), add, start)
