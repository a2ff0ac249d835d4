"""Storage over tables that are read and written in strips of columns: packed and masked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.tables.column_blocks import used_columns
from scall_jax.tables.masked import masked
from scall_jax.tables.packed import packed
from scall_jax.tables.resize import init, principal_axes, resize
from scall_jax.tables.storage import Exported, Storage, StorageFactory, size_bytes
from scall_jax.tables.table import Table


def sized(table: Table, users: int, maximum: int) -> Storage:
    """Storage whose plan is the size of every vector, i32[N + 2], and whose parameters are the table's own, f32."""

    def resized(key, stored, old, new, known, weight, carry):
        old, new = table.layout(old), table.layout(new)
        axes = principal_axes(table, stored, old, weight) if carry.rotate else None
        options = {"shrink": carry.shrink, "axes": axes, "std": carry.init_std, "grow_std": carry.grow_std}
        return resize(table, key, stored, old, new, known, **options)

    return Storage(
        plan=lambda: jnp.zeros(table.nodes + 2, jnp.int32),
        empty=table.zeros,
        layout=table.layout,
        fresh=lambda key, layout, std: init(table, key, layout, std),
        resize=resized,
        vectors=lambda params, layout: table.lookup(params, layout, jnp.arange(table.nodes)),
        store=lambda params, layout: params,
        load=lambda stored, layout: stored,
        sizes=lambda plan: plan,
        allocated=lambda plan: plan.sum(),
        used=functools.partial(used_columns, table),
        export=functools.partial(_export, users, maximum),
        restore=functools.partial(_restore, table, users),
        nodes=table.nodes,
        width=table.width,
        table=table,
    )


def sizes_in_use(sizes: jax.Array, users: int, maximum: int, known: tuple[int, int]) -> np.ndarray:
    """Sizes of the known users and items and of the two shared vectors, in the smallest integers for `maximum`."""
    sizes = np.asarray(sizes)
    in_use = np.concatenate([sizes[: known[0]], sizes[users : users + known[1]], sizes[-2:]])
    return in_use.astype(f"uint{8 * size_bytes(maximum)}")


def all_sizes(in_use: np.ndarray, users: int, nodes: int, known: tuple[int, int]) -> np.ndarray:
    """The inverse of `sizes_in_use`; i32[nodes + 2].

    Raises:
      ValueError: not as many sizes as known entities.
    """
    if len(in_use) != sum(known) + 2 or known[0] > users or known[1] > nodes - users:
        raise ValueError(f"{len(in_use)} sizes for {known[0]} users and {known[1]} items: another stream's?")
    sizes = np.zeros(nodes + 2, np.int32)
    sizes[: known[0]] = in_use[: known[0]]
    sizes[users : users + known[1]] = in_use[known[0] : -2]
    sizes[-2:] = in_use[-2:]
    return sizes


def _export(users, maximum, stored, plan, known) -> Exported:
    params = np.asarray(stored)
    # a packed pool is written as far as it is in use; a masked table has rows and is written whole
    params = params[: np.asarray(plan).sum()] if params.ndim == 1 else params
    return {"parameters": params, "metadata_sizes": sizes_in_use(plan, users, maximum, known)}


def _restore(table, users, exported, known):
    template = jax.eval_shape(table.zeros)
    written = exported.get("parameters", np.zeros(0, np.float32))
    if written.shape[0] > template.shape[0] or written.shape[1:] not in (template.shape[1:], ()):
        raise ValueError(f"parameters of shape {written.shape} do not fit {template.shape}: another budget's?")
    params = np.zeros(template.shape, np.float32)
    params[: len(written)] = written
    sizes = all_sizes(exported["metadata_sizes"], users, table.nodes, known)
    return jnp.asarray(params), jnp.asarray(sizes)


def _budget_units(nbytes, entities, maximum, metadata):
    spent = size_bytes(maximum) * (sum(entities) + 2) if metadata else 0
    return (nbytes - spent) // 4


def _capacity(budget_units, entities, maximum):
    return max(min(u, sum(n) * maximum) for u, n in zip(budget_units, entities, strict=True))


def _kind(make):
    return StorageFactory(
        budget_units=_budget_units,
        capacity=_capacity,
        build=lambda capacity, users, items, maximum: sized(make(capacity, users, items, maximum), users, maximum),
    )


PACKED, MASKED = _kind(packed), _kind(masked)
