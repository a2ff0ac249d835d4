"""What each coordinate of each entity is worth: a wide closed-form fit, turned to its principal axes.

With A x = b the system of an entity (`half_sweep`) and A = L L', L y = b, the least of its own loss over the vectors of
its first k coordinates is constant - y_1^2 - ... - y_k^2: the k-th coordinate lowers it by y_k^2, given those before.
Which coordinates come first is up to the basis, as U V' is the same in any. Balanced principal axes, in which the
Gramians of both sides are one diagonal matrix of the singular values of U V', put the most of every prediction into the
first ones.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.devices import (
    IN_PARTS,
    ONE,
    WHOLE,
    MeshConfig,
    everyone,
    in_turn,
    on_devices,
    places,
    together,
    worked_out_whole,
)
from scall_jax.ops.indexing import dynamic_slice
from scall_jax.ops.sums import padded_product, padded_sum
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.ials.batches import (
    Entities,
    Side,
    batch_size,
    make_others,
    make_side,
    most_entities,
    over_batches,
)
from scall_jax.recommenders.ials.fit import Sweeps, require_table, solve
from scall_jax.recommenders.ials.primal import primal_system
from scall_jax.recommenders.ials.problem import (
    PLAIN,
    Hyper,
    Order,
    Problem,
    Weighting,
    class_number,
    make_order,
    make_problem,
    served_problem,
)
from scall_jax.recommenders.ials.rows import (
    RowLayout,
    from_rows,
    pool_part,
    row_layout,
    to_rows,
    windows,
    write_windows,
)
from scall_jax.recommenders.ials.systems import EXACT, cholesky, forward
from scall_jax.recommenders.parts import params_parts, segment_parts, segment_specs
from scall_jax.recommenders.recommender import WideFit
from scall_jax.streams import Segment, active_mask, sides
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params

_INIT_STD = 0.1
_LEAST_EIGENVALUE = 1e-6
"""Directions with less than this part of a Gramian's largest eigenvalue have no share in the turned vectors."""


def wide_fit(
    key: jax.Array,
    segment: Segment,
    item_bias: jax.Array,
    hyper: Hyper,
    length: Sweeps,
    width: int,
    weighting: Weighting = PLAIN,
    mesh: MeshConfig = ONE,
) -> WideFit:
    """Fit vectors of one size to a segment, and see what each of their coordinates is worth.

    It holds two arrays f32[N, width] beside the fit's table, on every device.

    Args:
      key: typed PRNG key, for the vectors that the fit starts from.
      segment: the data.
      item_bias: f32[V], added to scores.
      hyper: what the run chose.
      length: of the fit; static.
      width: D; static.
      weighting: static.
      mesh: devices that the work is spread over; static.

    Returns:
      WideFit.
    """
    users, items = sides(segment)
    exists = active_mask(segment)
    storage = sized(packed(width * (users + items), users, items, width, mesh.devices), users, width)
    sizes = jnp.concatenate([jnp.where(exists, width, 0), jnp.zeros(2, jnp.int32)])
    layout = storage.layout(sizes)
    start = to_buffer(storage, storage.fresh(key, layout, _INIT_STD), mesh)
    # All have one size, so that only its width need be compiled.
    length = length._replace(narrowest=width)
    params = solve(storage, length, start, layout, segment, item_bias, hyper, weighting, mesh=mesh).params
    table = require_table(storage)
    rows, room = row_layout(layout, users), table.zeros().size
    own = rows._replace(first=rows.first[:-2], sizes=rows.sizes[:-2])
    pool = on_devices(
        mesh,
        lambda params, layout: everyone(mesh, to_rows(table, params, layout, room, mesh)),
        (params_parts(mesh, params), layout),
        (IN_PARTS, WHOLE),
        WHOLE,
    )
    vectors, spectrum = balanced(windows(pool, own.first, own.sizes, width), users)

    def worth(segment: Segment, item_bias: jax.Array, hyper: Hyper, rows: RowLayout, vectors: jax.Array):
        # A user's vector is worth what it is worth when it is served.
        problem = make_problem(segment, item_bias, hyper, weighting, mesh)
        problem = served_problem(problem, segment, hyper, weighting, mesh)
        order = make_order(problem, rows.sizes[:-2], users, (width,), dual=False)
        part = jnp.zeros(pool_part(table, room, mesh))
        part = write_windows(part, rows.first[:-2], rows.sizes[:-2], vectors, mesh)
        found = coordinate_gains(problem, rows, order, part, users, width, mesh)
        return *found, _at_zero(problem, users, segment.users, mesh)

    given = segment_parts(mesh, segment), item_bias, hyper, rows, vectors
    specs = segment_specs(segment), WHOLE, WHOLE, WHOLE, WHOLE
    gains, curvature, at_zero = on_devices(mesh, worth, given, specs, WHOLE)
    whole = padded_sum(at_zero[:users])
    residual = jnp.clip(1 - padded_sum(gains[:users].sum(1)) / jnp.where(whole > 0, whole, 1.0), 0.0, 1.0)
    return WideFit(vectors, gains, at_zero, spectrum, residual, curvature)


def balanced(vectors: jax.Array, users: int) -> tuple[jax.Array, jax.Array]:
    """Turn the vectors of both sides so that U V' is what it was and U'U = V'V is diagonal and descends.

    Args:
      vectors: f32[N, D], users' U, then items' V.
      users: capacity of the users' side; static.

    Returns:
      f32[N, D], and the diagonal f32[D], the singular values of U V'.

    >>> turned, values = balanced(jnp.array([[0.0, 2.0], [1.0, 0.0], [0.0, 8.0], [1.0, 0.0]]), users=2)
    >>> values.round(3).tolist(), abs(turned).round(3).tolist()
    ([16.0, 1.0], [[4.0, 0.0], [0.0, 1.0], [4.0, 0.0], [0.0, 1.0]])
    """
    chex.assert_rank(vectors, 2)
    of_users, of_items = vectors[:users], vectors[users:]
    (root_u, inverse_u), (root_v, inverse_v) = _roots(of_users), _roots(of_items)
    left, values, right = jnp.linalg.svd(_product(root_u, root_v.T))
    scale = jnp.sqrt(values)[None, :]
    turned_users = _product(of_users, _product(inverse_u, left * scale))
    return jnp.concatenate([turned_users, _product(of_items, _product(inverse_v, right.T * scale))]), values


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=EXACT)


def _roots(vectors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """R with R'R the Gram matrix, and its pseudo-inverse."""
    values, axes = jnp.linalg.eigh(padded_product(vectors, vectors))
    kept = values > _LEAST_EIGENVALUE * values.max()
    root = jnp.where(kept, jnp.sqrt(jnp.where(kept, values, 1.0)), 0.0)
    inverse = jnp.where(kept, 1 / jnp.where(kept, root, 1.0), 0.0)
    return root[:, None] * axes.T, axes * inverse[None, :]


def coordinate_gains(
    problem: Problem,
    rows: RowLayout,
    order: Order,
    pool: jax.Array,
    users: int,
    width: int,
    mesh: MeshConfig = ONE,
) -> tuple[jax.Array, jax.Array]:
    """What each coordinate of each node lowers its own loss by, given the ones before and the other side's vectors.

    Args:
      problem: of the segment.
      rows: where vectors lie; all of size `width`.
      order: of the nodes, with all systems in the space of coordinates.
      pool: f32[P + width], coordinates by vector; on several devices this one's part.
      users: capacity of the users' side; static.
      width: D; static.
      mesh: devices that share the work; static.

    Returns:
      f32[N, D], and what an error of 1 in each coordinate alone raises the loss by, f32[N, D]; zeros for nodes that do
      not exist.
    """
    nodes = problem.active.shape[0]
    place, in_order = class_number(0, 0, 0), jnp.pad(order.nodes, (0, most_entities()))

    def one_side(number: jax.Array, found: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        side: Side = make_side(problem, rows, order, users, number, mesh)
        others = make_others(side, pool, width)

        def visit(batch: Entities, at: jax.Array, exists: jax.Array, found):
            matrix, right = primal_system(side, others, batch)
            own = forward(cholesky(matrix), right) ** 2, jnp.diagonal(matrix, axis1=-2, axis2=-1)
            node = dynamic_slice(in_order, (at,), exists.shape)
            rows = jnp.where(exists, node, nodes)
            return jax.tree.map(lambda whole, new: whole.at[rows].set(new, mode="drop"), found, own)

        return over_batches(side, place, batch_size(width), visit, found, divided=True)

    found = jax.lax.fori_loop(0, 2, one_side, (jnp.zeros((nodes, width)), jnp.zeros((nodes, width))))
    # Each node is in one device's batches.
    return together(mesh, found)


def _at_zero(problem: Problem, users: int, known_users: jax.Array, mesh: MeshConfig) -> jax.Array:
    """What each node's own loss is where its vector is 0, f32[N].

    Without an item bias it is the sum of the weights of its interactions. With one, the zeros of pairs that were not
    met count, too, which do not fade.
    """
    nodes, entry = problem.active.shape[0], places(mesh, problem.neighbours.shape[0])
    owner = jnp.minimum(jnp.searchsorted(problem.indptr[1:], entry, side="right"), nodes - 1)
    met = in_turn(mesh, lambda sums: sums.at[owner].add(problem.targets**2), jnp.zeros(nodes))
    # Entries of an item have the bias of their users, which is none.
    met = met * (1 - problem.bias) ** 2
    of_user = problem.unobserved * padded_sum(problem.bias[users:] ** 2)
    of_item = problem.unobserved * known_users.astype(jnp.float32) * problem.bias**2
    return jnp.where(problem.active, met + jnp.where(jnp.arange(nodes) < users, of_user, of_item), 0.0)


def truncated(storage: Storage, vectors: jax.Array, layout: StorageLayout, mesh: MeshConfig = ONE) -> Params:
    """A buffer of a table whose vectors are the leading coordinates of given ones.

    Args:
      storage: has a table; static.
      vectors: f32[N, D]. Coordinates beyond D are 0, and so are the shared vectors.
      layout: of the table.
      mesh: devices; each of them works out the whole buffer.

    Returns:
      Buffer of the table.
    """
    table = require_table(storage)
    rows = row_layout(layout, table.users)
    pool = jnp.zeros(table.zeros().size + table.width)
    sizes = jnp.minimum(rows.sizes[:-2], vectors.shape[1])
    return worked_out_whole(mesh, from_rows(table, write_windows(pool, rows.first[:-2], sizes, vectors), layout))
