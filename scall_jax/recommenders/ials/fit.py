"""A whole fit by implicit alternating least squares: sweeps until what it explains settles, then users given items."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.devices import IN_PARTS, ONE, WHOLE, MeshConfig, most, on_devices, places
from scall_jax.recommenders.ials.batches import make_side
from scall_jax.recommenders.ials.config import SOLVERS, IalsConfig
from scall_jax.recommenders.ials.gradients import Steps
from scall_jax.recommenders.ials.half_sweep import Approximation, half_sweep
from scall_jax.recommenders.ials.problem import (
    PLAIN,
    Hyper,
    Order,
    Problem,
    Weighting,
    make_order,
    make_problem,
    served_problem,
    width_classes,
)
from scall_jax.recommenders.ials.rows import RowLayout, changed, from_rows, row_layout, to_rows
from scall_jax.recommenders.parts import params_parts, segment_parts, segment_specs
from scall_jax.streams import Segment, sides
from scall_jax.tables.layout import Layout
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params, Table

_LAST_STEPS = 64
"""Steps of approximations in the last half sweep, at most."""


class Sweeps(NamedTuple):
    """How long a fit lasts; static."""

    most: int
    """Sweeps, at most."""
    tolerance: float
    """A sweep that lowers the loss by less than this part of what the fit explains is the last."""
    inexact_from: float = math.inf
    """Padded width (`width_classes`) from which systems are solved to an approximation; inf for none."""
    inexact_steps: int = 3
    """Conjugate gradients, or passes over blocks, in a half sweep; the last one goes on until systems are solved."""
    narrowest: int = 16
    """Narrowest width that systems are padded to."""
    last_tolerance: float = 1e-4
    """Relative residual to which approximations go in the last half sweep, whose users are what a request gets."""
    block: int = 0
    """Columns of a block, where these systems are solved in blocks of columns; 0: by conjugate gradients."""


def sweeps_of(config: IalsConfig, most: int) -> Sweeps:
    """How long the fits of a config last that make so many sweeps at most."""
    in_blocks = config.solver == "blocks"
    return Sweeps(
        most=most,
        tolerance=config.tolerance,
        inexact_from=SOLVERS[config.solver],
        inexact_steps=1 if in_blocks else config.cg_steps,
        narrowest=config.narrowest,
        block=config.block if in_blocks else 0,
    )


class Solution(NamedTuple):
    """Result of `solve`."""

    params: Params
    """Buffer of the table."""
    losses: jax.Array
    """f32[2 sweeps + 1], the loss after each half sweep: users, items, ..., users. nan after the first, for which the
    items' squares are not at hand, and for those that were not made. The last one made has the users' own half-life."""
    sweeps: jax.Array
    """i32[], sweeps made."""
    residual: jax.Array
    """f32[], the largest relative residual of all systems; where they are approximated, of the last half sweep's."""


class _Setting(NamedTuple):
    """What the half sweeps of a fit share."""

    storage: Storage
    table: Table
    layout: Layout
    problem: Problem
    served: Callable[[], Problem]  # Of the last half sweep.
    rows: RowLayout
    order: Order
    widths: tuple[int, ...]
    sweeps: Sweeps
    mesh: MeshConfig


class _State(NamedTuple):
    pool: jax.Array  # f32[P + width], or this device's part
    losses: jax.Array  # f32[2 sweeps + 1]
    explained: jax.Array  # f32[2 sweeps + 1], the loss of zero vectors less these
    penalty: jax.Array  # f32[2], of each side's latest solution; nan before the first
    half: jax.Array  # i32[], half sweeps made
    last: jax.Array  # bool[], the next half sweep is the last
    done: jax.Array  # bool[]
    residual: jax.Array  # f32[]


def solve(
    storage: Storage,
    sweeps: Sweeps,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    item_bias: jax.Array,
    hyper: Hyper,
    weighting: Weighting = PLAIN,
    *,
    users_only: jax.Array | bool = False,
    mesh: MeshConfig = ONE,
) -> Solution:
    """Fit the vectors of a table to all interactions before the cut.

    Args:
      storage: has the table; static.
      sweeps: how long; static.
      params: buffer of the table; only the items' vectors matter.
      layout: of the table.
      segment: the data.
      item_bias: f32[V], added to scores.
      hyper: what the run chose.
      weighting: static.
      users_only: bool[], make the last half sweep alone: users given the items that there are.
      mesh: devices that vectors, interactions and work are spread over; the table must then be a packed one. Static.

    Returns:
      Solution. Where the storage rounds what it stores, its items are those that will be stored, and its users are the
      solution given these.

    Raises:
      ValueError: a storage without a table, whose vectors cannot be solved for one by one.
    """
    require_table(storage)
    chex.assert_shape(item_bias, (sides(segment)[1],))
    given = params_parts(mesh, params), layout, segment_parts(mesh, segment), item_bias, hyper, jnp.asarray(users_only)
    solution = on_devices(
        mesh,
        functools.partial(_solve, storage, sweeps, weighting, mesh),
        given,
        (IN_PARTS, WHOLE, segment_specs(segment), WHOLE, WHOLE, WHOLE),
        (IN_PARTS, WHOLE, WHOLE, WHOLE),
    )
    return Solution(solution[0][: params.shape[0]], *solution[1:])


def _solve(
    storage: Storage,
    sweeps: Sweeps,
    weighting: Weighting,
    mesh: MeshConfig,
    params: Params,
    layout: StorageLayout,
    segment: Segment,
    item_bias: jax.Array,
    hyper: Hyper,
    users_only: jax.Array,
) -> tuple[Params, jax.Array, jax.Array, jax.Array]:
    """`solve` on one of the devices, which has its parts of the parameters and of the segment's entries."""
    table = require_table(storage)
    problem = make_problem(segment, item_bias, hyper, weighting, mesh)
    served = functools.partial(served_problem, problem, segment, hyper, weighting, mesh)
    widths, rows = width_classes(table.width, sweeps.narrowest), row_layout(layout, table.users)
    order = make_order(problem, layout.sizes[:-2], table.users, widths, sweeps.inexact_from)
    setting = _Setting(storage, table, layout, problem, served, rows, order, widths, sweeps, mesh)
    start = _State(
        pool=to_rows(table, params, layout, table.zeros().size, mesh),
        losses=jnp.full(2 * sweeps.most + 1, jnp.nan),
        explained=jnp.full(2 * sweeps.most + 1, jnp.nan),
        penalty=jnp.full(2, jnp.nan),
        half=jnp.int32(0),
        last=users_only,
        done=jnp.bool_(False),
        residual=jnp.float32(0),
    )
    end = jax.lax.while_loop(lambda state: ~state.done, functools.partial(_next, setting), start)
    solved = from_rows(table, end.pool, layout, mesh, params.shape[0])
    return solved, end.losses, end.half // 2, end.residual


def require_table(storage: Storage) -> Table:
    """The table of a storage.

    Args:
      storage: any.

    Returns:
      Table.

    Raises:
      ValueError: it has none.
    """
    if storage.table is None:
        raise ValueError(
            "recommender=ials solves for each vector by itself, but in this storage vectors share parameters: choose "
            "lightgcn or mf, or a method that chooses sizes"
        )
    return storage.table


def _next(setting: _Setting, state: _State) -> _State:
    """The next half sweep, and whether another one follows.

    It is one body for the half sweeps of both sides and the last one, since each would be compiled by itself.
    """
    if setting.storage.rounds:
        items_as_stored = functools.partial(_items_as_stored, setting)
        state = state._replace(pool=jax.lax.cond(state.last, items_as_stored, lambda pool: pool, state.pool))
    problem = jax.lax.cond(state.last, setting.served, lambda: setting.problem)
    state = _half(setting._replace(problem=problem), state)
    # Nearly all of a loss may be a constant: beside it a fit seems to make no progress from the start, and float32
    # rounds the progress away. Vectors that only shrink explain less than nothing, which rises for as long as they do.
    before, after = (state.explained[jnp.maximum(state.half - n, 0)] for n in (3, 1))
    settled = (state.half > 3) & ~(after - before > setting.sweeps.tolerance * after)
    whole_sweep = state.half % 2 == 0
    return state._replace(
        last=whole_sweep & (settled | (state.half == 2 * setting.sweeps.most)),
        done=state.last,
    )


def _half(setting: _Setting, state: _State) -> _State:
    """The next half sweep: users, then items, and so on."""
    number, sweeps = state.half % 2, setting.sweeps
    steps = Steps(
        most=jnp.where(state.last, _LAST_STEPS, sweeps.inexact_steps),
        tolerance=jnp.where(state.last, sweeps.last_tolerance, 0.0),
    )
    side = make_side(setting.problem, setting.rows, setting.order, setting.table.users, number, setting.mesh)
    approximation = Approximation(sweeps.inexact_from, steps, sweeps.block)
    solved = half_sweep(side, state.pool, setting.widths, approximation)
    explained = solved.gain - state.penalty[1 - number]
    residual = jnp.maximum(state.residual, solved.residual)
    if setting.widths[-1] >= sweeps.inexact_from:
        residual = solved.residual
    return state._replace(
        pool=solved.pool,
        losses=state.losses.at[state.half].set(setting.problem.constant - explained),
        explained=state.explained.at[state.half].set(explained),
        penalty=state.penalty.at[number].set(solved.penalty),
        half=state.half + 1,
        residual=residual,
    )


def _items_as_stored(setting: _Setting, pool: jax.Array) -> jax.Array:
    """The pool, or this device's part of it, with every item's vector as the storage will give it back."""
    storage, table, layout, mesh = setting.storage, setting.table, setting.layout, setting.mesh
    if mesh.devices > 1 and storage.round_rows is not None:
        largest = most(mesh, jnp.abs(pool).max())
        vector = jnp.arange(layout.sizes.shape[0], dtype=jnp.int32)
        of_items = (vector >= table.users) & (vector != layout.sizes.shape[0] - 2)
        round_rows = storage.round_rows
        return changed(mesh, pool, setting.rows, of_items, lambda x, sizes: round_rows(x, sizes, largest), table.width)
    if mesh.devices > 1:
        # Each coordinate is rounded by itself.
        stored = storage.store(pool, layout)
    else:
        stored = storage.store(table.from_buffer(from_rows(table, pool, layout)), layout)
    rounded = storage.load(stored, layout)
    if mesh.devices == 1:
        rounded = to_rows(table, table.to_buffer(rounded), layout, table.zeros().size)
    return jnp.where(_of_user(table, layout, places(mesh, pool.shape[0])), pool, rounded)


def _of_user(table: Table, layout: Layout, place: jax.Array) -> jax.Array:
    """Whether places of a pool by vector are those of a user, or of the users' shared vector."""
    sizes = layout.sizes
    # Rows lie in the order of nodes: users, items, then the two shared vectors.
    items_begin, shared_begin = sizes[: table.users].sum(), sizes[:-2].sum()
    return (place < items_begin) | ((place >= shared_begin) & (place < shared_begin + sizes[-2]))
