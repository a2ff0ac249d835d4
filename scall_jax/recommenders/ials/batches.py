"""Entities of equal work in batches, and what each batch's systems are made of.

A batch is a gather of whole vectors of the other side. What is gathered from is laid out once for all of a width, since
a vector is read by many entities. On several devices each lays a part of the other side out, and reads what its
entities need from all parts (`ops.devices.ask`), a batch's vectors at a time. Batches whose entities have a common
bound on their interactions are dealt out. Others differ in work a hundredfold, the most popular items' from the rest's,
so that each of those is divided among the devices.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from scall_jax.ops import devices
from scall_jax.ops.backend import by_backend
from scall_jax.ops.devices import ONE, MeshConfig
from scall_jax.ops.indexing import ceil_div, dynamic_slice, dynamic_update_slice, take
from scall_jax.ops.sums import BLOCK, padded_product
from scall_jax.recommenders.ials.problem import Order, Problem
from scall_jax.recommenders.ials.rows import RowLayout, own_windows

CHUNK = 32
"""Interactions of an entity that are added to its matrix at once."""

_Carry = TypeVar("_Carry")


def batch_numbers() -> int:
    """Float32 numbers of a batch's largest array: half of a core's cache on a CPU, enough to fill an accelerator.

    On several devices it is also the most that a batch reads of the others at once.
    """
    return by_backend(2**18, 2**24)


def most_entities() -> int:
    """Entities of a batch, at most."""
    return batch_numbers() // 128


def batch_size(width: int) -> int:
    """Entities of a batch whose matrices have a width and whose numbers of interactions have no common bound.

    All of a batch wait for the one with the most, so that on a CPU large batches cost more than they save.
    """
    return min(batch_numbers() // (max(width, CHUNK) * width), by_backend(64, 4096))


class Entities(NamedTuple):
    """Entities that are solved for; B of them."""

    place: jax.Array
    """i32[B], of the vector in the pool."""
    sizes: jax.Array
    """i32[B], 0 for a place without an entity."""
    first: jax.Array
    """i32[B], first entry in the graph."""
    degree: jax.Array
    """i32[B], entries in the graph."""
    regularisation: jax.Array
    """f32[B]."""
    bias: jax.Array
    """f32[B]."""


class Side(NamedTuple):
    """What a half sweep reads."""

    problem: Problem
    rows: RowLayout
    order: Order
    entities: Entities
    """All nodes in their order, and some places without an entity."""
    users: int
    """Capacity of the users' side; static."""
    number: jax.Array
    """i32[], 0 to solve for users, 1 for items."""
    mesh: MeshConfig = ONE
    """Devices that share the work and have a part of the problem's entries and of the pool each; static."""


def make_side(
    problem: Problem, rows: RowLayout, order: Order, users: int, number: jax.Array, mesh: MeshConfig = ONE
) -> Side:
    """What a half sweep of a side reads; the arguments are its fields."""
    nodes = order.nodes

    def in_order(x):
        return jnp.pad(take(x, nodes), (0, most_entities()))

    entities = Entities(
        place=in_order(rows.first),
        sizes=in_order(rows.sizes),
        first=in_order(problem.indptr),
        degree=in_order(jnp.diff(problem.indptr)),
        regularisation=in_order(problem.regularisation),
        bias=in_order(problem.bias),
    )
    return Side(problem, rows, order, entities, users, number, mesh)


def range_of(side: Side, first: jax.Array | int, count: int) -> tuple[jax.Array, jax.Array]:
    """Where classes first, ..., first + count - 1 of the side lie in the order: i32[] begin and end."""
    at = side.number * ((side.order.starts.shape[0] - 1) // 2) + first
    return take(side.order.starts, at), take(side.order.starts, at + count)


def over_batches(
    side: Side,
    number: jax.Array | int,
    size: int,
    visit: Callable[[Entities, jax.Array, jax.Array, _Carry], _Carry],
    carry: _Carry,
    divided: bool = False,
) -> _Carry:
    """Visit the entities of a class in batches.

    Args:
      side: has the entities.
      number: of the class within the side.
      size: entities of a batch; static. At least 8 are taken, and no more than `most_entities`.
      visit: from B entities, the place i32[] of the first of them in the order, bool[B] of those that exist, and the
        carry, to the carry. An entity that does not exist has size and degree 0. All devices visit as often, the last
        time perhaps no entity.
      carry: what visits start from.
      divided: on several devices, whether they visit each batch together, and have an equal part of it each, of at
        least 8 entities. Otherwise each visits every so many batches; static.

    Returns:
      The last carry.
    """
    (first, end), mesh = range_of(side, number, 1), side.mesh
    size = min(max(8, size), most_entities())
    own = max(8, -(-size // mesh.devices)) if divided else size
    together = size if divided else size * mesh.devices

    def one(index, carry: _Carry) -> _Carry:
        begin = first + index * together
        at = begin + devices.number(mesh) * own
        batch = Entities(*(dynamic_slice(x, (at,), (own,)) for x in side.entities))
        exists = at + jnp.arange(own, dtype=jnp.int32) < jnp.minimum(begin + together, end)
        batch = batch._replace(sizes=jnp.where(exists, batch.sizes, 0), degree=jnp.where(exists, batch.degree, 0))
        return visit(batch, at, exists, carry)

    return jax.lax.fori_loop(0, ceil_div(end - first, together), one, carry)


class Others(NamedTuple):
    """Vectors of the other side, padded to a width, and their moments; R of them, at least as many as nodes.

    On several devices, blocks of `BLOCK` vectors are dealt out, device 0 having the first; R are a device's.
    """

    begin: jax.Array
    """i32[], the node of the first one."""
    vectors: jax.Array
    """f32[R, width], 0 beyond a vector's size and for nodes that do not exist."""
    gram: jax.Array
    """f32[width, width], sum of v v', times a0."""
    constant: jax.Array
    """f32[width], what pairs that were not met add to b, for an entity whose factor (`factors`) is 1."""


def make_others(side: Side, pool: jax.Array, width: int) -> Others:
    """Lay the other side's vectors out.

    Args:
      side: that is solved for.
      pool: f32[P + width], coordinates by vector; on several devices this one's part.
      width: coordinates to keep of each; static.

    Returns:
      Others.
    """
    problem, nodes, mesh = side.problem, side.problem.active.shape[0], side.mesh
    begin = jnp.where(side.number == 0, side.users, 0)
    end = jnp.where(side.number == 0, nodes, side.users)
    at = begin + _own_rows(max(side.users, nodes - side.users), mesh)
    node = jnp.minimum(at, nodes - 1)
    vector = take(side.rows.source, node)
    sizes = jnp.where((at < end) & take(problem.active, node), take(side.rows.sizes, vector), 0)
    vectors = _lay_out(mesh, pool, take(side.rows.first, vector), sizes, width)
    # For users the sum has the items' biases in it; for items it is the plain sum, times the item's own bias.
    weight = jnp.where(side.number == 0, take(problem.bias, node), 1.0)
    gram, total = padded_product(vectors, vectors, mesh), padded_product(vectors, weight[:, None], mesh)[:, 0]
    return Others(begin, vectors, problem.unobserved * gram, -problem.unobserved * total)


def _own_rows(count: int, mesh: MeshConfig) -> jax.Array:
    """Numbers i32[R] within a side of at most `count` nodes of those that this device lays out; some are beyond it."""
    # Whole blocks, as many on each device.
    blocks = -(-count // (BLOCK * mesh.devices))
    row = jnp.arange(blocks * BLOCK, dtype=jnp.int32)
    if mesh.devices == 1:
        return row
    return row + (row // BLOCK * (mesh.devices - 1) + devices.number(mesh)) * BLOCK


def _lay_out(mesh: MeshConfig, pool: jax.Array, first: jax.Array, sizes: jax.Array, width: int) -> jax.Array:
    """Vectors f32[R, width] at places i32[R] of a pool, of which other devices have parts, a block at a time."""
    if mesh.devices == 1:
        return own_windows(mesh, pool, first, sizes, width)

    def block(index: jax.Array, vectors: jax.Array) -> jax.Array:
        request = tuple(dynamic_slice(x, (index * BLOCK,), (BLOCK,)) for x in (first, sizes))
        found = devices.ask(mesh, request, lambda asked: own_windows(mesh, pool, asked[0], asked[1], width))
        return dynamic_update_slice(vectors, found, (index * BLOCK, 0))

    return jax.lax.fori_loop(0, first.shape[0] // BLOCK, block, jnp.zeros((first.shape[0], width)))


def entries_at(side: Side, entry: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Entries of the problem.

    Args:
      side: has the problem.
      entry: i32[...], numbers of entries.

    Returns:
      Neighbours i32[...], roots f32[...] and targets f32[...].
    """
    problem, mesh = side.problem, side.mesh

    def own(at: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        node = devices.part_of(mesh, problem.neighbours, at)
        return node, devices.part_of(mesh, problem.roots, at), devices.part_of(mesh, problem.targets, at)

    return devices.ask(mesh, entry, own)


def vectors_at(side: Side, others: Others, row: jax.Array) -> jax.Array:
    """Vectors of the other side.

    Args:
      side: that is solved for.
      others: as laid out.
      row: i32[...], numbers of nodes within the other side.

    Returns:
      f32[..., width].
    """
    mesh = side.mesh
    if mesh.devices == 1:
        return take(others.vectors, row)

    def own(row: jax.Array) -> jax.Array:
        block = row // BLOCK
        here = block % mesh.devices == devices.number(mesh)
        at = jnp.where(here, block // mesh.devices * BLOCK + row % BLOCK, 0)
        return jnp.where(here[..., None], take(others.vectors, at), 0.0)

    return devices.ask(mesh, row, own)


class Neighbours(NamedTuple):
    """Neighbours of a batch's entities, K of each; zeros beyond an entity's last."""

    vectors: jax.Array
    """f32[B, K, width]."""
    roots: jax.Array
    """f32[B, K], of the weights."""
    targets: jax.Array
    """f32[B, K], times the root."""


def neighbours(side: Side, others: Others, batch: Entities, begin: jax.Array | int, count: int) -> Neighbours:
    """Entries begin, ..., begin + count - 1 of each entity.

    Args:
      side: has the entries.
      others: has the vectors.
      batch: B entities.
      begin: i32[], of an entity's entries.
      count: K; static.

    Returns:
      Neighbours.
    """
    within = begin + jnp.arange(count, dtype=jnp.int32)
    live = within[None, :] < batch.degree[:, None]
    entry = jnp.where(live, batch.first[:, None] + within[None, :], 0)
    node, roots, targets = entries_at(side, entry)
    row = jnp.where(live, node - others.begin, 0)
    return Neighbours(
        vectors=vectors_at(side, others, row),
        roots=jnp.where(live, roots, 0.0),
        targets=jnp.where(live, targets - batch.bias[:, None] * roots, 0.0),
    )


def most_degree(side: Side, batch: Entities) -> jax.Array:
    """The most interactions i32[] of an entity of the batches that are solved for at once, on all devices."""
    return devices.most(side.mesh, batch.degree.max())


def factors(side: Side, batch: Entities) -> jax.Array:
    """Of the constant, f32[B]: 1 for users, whose sum has the items' biases in it, and an item's own bias."""
    return jnp.where(side.number == 0, 1.0, batch.bias)


class Outcome(NamedTuple):
    """A batch's solutions."""

    x: jax.Array
    """f32[B, width]."""
    gain: jax.Array
    """f32[B], b'x."""
    error: jax.Array
    """f32[B], the largest component of |A x - b|."""
    scale: jax.Array
    """f32[B], the largest component of |b|."""
