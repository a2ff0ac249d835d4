"""Full ranking on several devices: each ranks its own users, by the items' vectors a block of items at a time.

Neither the vectors of all items nor a score of all items is ever held. Each block's best items are merged with the best
so far, so that the result is that of all items at once: items of a block come after those of the blocks before it, and
ties go to the lower item there as here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp

from scall_jax.evaluation import top
from scall_jax.evaluation.ranking import DEPTH, Metrics, RankingOptions, evaluate_best
from scall_jax.evaluation.top import CHUNK, KnownGraph
from scall_jax.ops.devices import IN_PARTS, WHOLE, MeshConfig, ask, everyone, number, on_devices, together
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.streams import RaggedItems


class VectorsInParts(NamedTuple):
    """Vectors of all nodes, of which devices hold parts."""

    held: Any
    """Pytree of arrays."""
    specs: Any
    """How they lie, as `on_devices` takes it."""
    own: Callable[[Any, jax.Array], jax.Array]
    """(what this device holds, nodes i32[R]) -> f32[R, width], zeros for coordinates that lie in other parts."""
    width: int
    """Columns; static."""


class _Plan(NamedTuple):
    """How much a device works on at once; static."""

    items: int
    """Of a block."""
    users: int
    """Of a block."""
    rows: int
    """Users of a device, in whole blocks."""


def evaluate_in_parts(
    mesh: MeshConfig,
    vectors: VectorsInParts,
    item_bias: jax.Array,
    relevant: RaggedItems,
    known: KnownGraph,
    *,
    used_width: jax.Array,
    **options: Unpack[RankingOptions],
) -> Metrics:
    """Rank items by inner products for the users of `relevant` and compare, on several devices.

    Args:
      mesh: the devices; static.
      vectors: of users and items.
      item_bias: f32[V], added to inner products.
      relevant: items to be found, by user.
      known: interactions that are not recommended to their users again, and the items known so far. The entries of its
        graph can be cut into equal parts.
      used_width: i32[], columns beyond it are zero; saves work.
      **options: as in `RankingOptions`.

    Returns:
      Metrics, those of `evaluate`. Ties go to the lower item id.

    Raises:
      ValueError: unknown candidates.
    """
    chex.assert_rank([item_bias, used_width], [1, 0])
    relevant, known = jax.tree.map(jnp.asarray, (relevant, known))
    specs = jax.tree.map(lambda _: WHOLE, known)
    specs = dataclasses.replace(specs, graph=specs.graph._replace(indices=IN_PARTS, values=IN_PARTS))

    def best_of(offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        plan = _plan(mesh, vectors.width, offset.shape[0], relevant.users.shape[0])
        padded = jnp.pad(offset, (0, -offset.shape[0] % plan.items), constant_values=-jnp.inf)
        given = vectors.held, relevant.users, relevant.count, padded, known, used_width
        function = functools.partial(_best_of_own_users, mesh, vectors, item_bias.shape[0], plan)
        return on_devices(mesh, function, given, (vectors.specs, WHOLE, WHOLE, WHOLE, specs, WHOLE), WHOLE)

    return evaluate_best(best_of, item_bias, relevant, known.items, **options)


def _plan(mesh: MeshConfig, width: int, items: int, queries: int) -> _Plan:
    most = top.at_once()
    block_items = min(items, max(DEPTH * CHUNK, most.scores // 4 // width // CHUNK * CHUNK))
    rows = -(-queries // mesh.devices)
    block_users = max(1, min(most.users, rows, most.scores // block_items))
    return _Plan(block_items, block_users, -(-rows // block_users) * block_users)


_Best = tuple[jax.Array, jax.Array]
"""Scores f32[rows, 20], descending, and items i32[rows, 20] of this device's users."""


def _best_of_own_users(
    mesh: MeshConfig,
    vectors: VectorsInParts,
    items: int,
    plan: _Plan,
    held: Any,
    users: jax.Array,
    count: jax.Array,
    offset: jax.Array,
    known: KnownGraph,
    used_width: jax.Array,
) -> _Best:
    """The best items of all users, of whom each device ranks a part."""
    row = number(mesh) * plan.rows + jnp.arange(plan.rows, dtype=jnp.int32)
    user = take(users, jnp.minimum(row, users.shape[0] - 1))
    own = functools.partial(vectors.own, held)
    of_users = _asked(mesh, own, user, plan.users, vectors.width)
    # The first device has as many users as any.
    blocks = ceil_div(jnp.minimum(count, plan.rows), plan.users)

    def rank_items(block: jax.Array, best: _Best) -> _Best:
        first_item = block * plan.items
        item = jnp.minimum(first_item + jnp.arange(plan.items, dtype=jnp.int32), items - 1)
        of_items = together(mesh, own(known.users + item))
        score = top.scorers(of_items, dynamic_slice(offset, (first_item,), (plan.items,)))

        def rank_users(block: jax.Array, best: _Best) -> _Best:
            first = block * plan.users
            made = score(dynamic_slice(of_users, (first, 0), (plan.users, vectors.width)), used_width)
            of_block, there = (dynamic_slice(x, (first,), (plan.users,)) for x in (user, row < count))
            # Behind the last user the list has user 0, whose items would be asked for once for each of these places.
            made = top.mask_seen_items(made, known, of_block, -jnp.inf, counted=there, first_item=first_item, mesh=mesh)
            values, at = top.top_k(made, DEPTH)
            before = tuple(dynamic_slice(x, (first, 0), (plan.users, DEPTH)) for x in best)
            merged = _merged((before[0], before[1]), (values, at + first_item))
            best_values, best_items = (
                dynamic_update_slice(x, new, (first, 0)) for x, new in zip(best, merged, strict=True)
            )
            return best_values, best_items

        return jax.lax.fori_loop(0, blocks, rank_users, best)

    start = jnp.full((plan.rows, DEPTH), -jnp.inf), jnp.zeros((plan.rows, DEPTH), jnp.int32)
    return everyone(mesh, jax.lax.fori_loop(0, offset.shape[0] // plan.items, rank_items, start))


def _asked(
    mesh: MeshConfig, own: Callable[[jax.Array], jax.Array], node: jax.Array, count: int, width: int
) -> jax.Array:
    """Vectors f32[R, width] of nodes i32[R], `count` at a time."""

    def block(index: jax.Array, found: jax.Array) -> jax.Array:
        asked = ask(mesh, dynamic_slice(node, (index * count,), (count,)), own)
        return dynamic_update_slice(found, asked, (index * count, 0))

    return jax.lax.fori_loop(0, node.shape[0] // count, block, jnp.zeros((node.shape[0], width)))


def _merged(before: _Best, after: _Best) -> _Best:
    """The best of both; ties go to `before`, and within each to the one that stands first."""
    values, place = jax.lax.top_k(jnp.concatenate([before[0], after[0]], axis=1), DEPTH)
    return values, jnp.take_along_axis(jnp.concatenate([before[1], after[1]], axis=1), place, axis=1)
