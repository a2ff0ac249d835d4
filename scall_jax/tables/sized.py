"""Storage over tables that are read and written a block of columns at a time: packed and masked."""

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.devices import MeshConfig
from scall_jax.tables import size_codes
from scall_jax.tables.column_blocks import used_columns
from scall_jax.tables.masked import masked
from scall_jax.tables.packed import packed
from scall_jax.tables.resize import ResizeScales, init, principal_axes, resize
from scall_jax.tables.storage import (
    Exported,
    HasBudget,
    Previous,
    Sides,
    Storage,
    StorageFactory,
    WarmStartOptions,
    most_spent,
    size_bytes,
    with_room,
)
from scall_jax.tables.table import Table


def sized(table: Table, users: int, maximum: int) -> Storage:
    """Storage whose plan is the size of every vector, i32[N + 2].

    Args:
      table: the table; its parameters are what is stored, f32.
      users: capacity of the users' side.
      maximum: the largest size of an entity.

    Returns:
      Storage; a budget unit is a parameter.

    >>> storage = sized(packed(6, users=2, items=1, maximum=3), users=2, maximum=3)
    >>> plan = jnp.array([3, 0, 2, 1, 0])
    >>> layout = storage.layout(plan)
    >>> int(storage.allocated(plan)), storage.vectors(jnp.ones(6), layout).tolist()
    (6, [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
    >>> {name: array.nbytes for name, array in storage.export(jnp.ones(6), plan, (2, 1)).items()}
    {'parameters': 24, 'metadata_sizes': 5}
    """
    return Storage(
        plan=lambda: jnp.zeros(table.nodes + 2, jnp.int32),
        empty=table.zeros,
        layout=table.layout,
        fresh=lambda key, layout, std: init(table, key, layout, std),
        warm_start=functools.partial(_warm_start, table),
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
        affords=functools.partial(_affords, users, maximum),
    )


def saved_bytes(users: int, maximum: int, sizes: jax.Array, known: jax.Array) -> jax.Array:
    """Bytes that sizes take less on disk than one number each.

    Args:
      users: capacity of the users' side.
      maximum: the largest size.
      sizes: i32[N + 2], coordinates of each vector.
      known: i32[2], users and items whose sizes are kept.

    Returns:
      i32[].
    """
    index = jnp.arange(sizes.shape[0] - 2, dtype=jnp.int32)
    counted = jnp.where(index < users, index < known[0], index - users < known[1])
    plain = size_bytes(maximum) * (known.sum() + 2)
    return plain - size_codes.written_bytes(sizes[:-2], counted, maximum)


def _affords(users, maximum, plan, total, known, metadata):
    return total + saved_bytes(users, maximum, plan, known) // 4 if metadata else total


def _warm_start(table: Table, key, previous: Previous, plan, options: WarmStartOptions):
    old, new = table.layout(previous.plan), table.layout(plan)
    axes = None
    if options.rotation != "none":
        axes = principal_axes(table, previous.stored, old, previous.weight, options.rotation)
    scales = ResizeScales(options.shrink, options.init_std, options.grow_std)
    return resize(table, key, previous.stored, old, new, previous.known, axes=axes, scales=scales)


def sizes_in_use(sizes: jax.Array | np.ndarray, users: int, maximum: int, known: Sides) -> np.ndarray:
    """Sizes of the known entities and of the two shared vectors, as they go to disk.

    Args:
      sizes: i32[N + 2], coordinates of each vector.
      users: capacity of the users' side.
      maximum: the largest size, which the smallest sufficient unsigned integers are chosen for.
      known: users and items whose sizes are kept, the first of each side.

    Returns:
      u8, u16 or u32 [known users + known items + 2].

    >>> sizes_in_use(np.array([3, 0, 7, 2, 0, 1, 0]), users=3, maximum=8, known=(2, 1))
    array([3, 0, 2, 1, 0], dtype=uint8)
    """
    every = np.asarray(sizes)
    in_use = np.concatenate([every[: known[0]], every[users : users + known[1]], every[-2:]])
    return in_use.astype(f"uint{8 * size_bytes(maximum)}")


def all_sizes(in_use: np.ndarray, users: int, nodes: int, known: Sides) -> np.ndarray:
    """The inverse of `sizes_in_use`.

    Args:
      in_use: integers [known users + known items + 2].
      users: capacity of the users' side.
      nodes: N, capacity of both sides.
      known: users and items whose sizes these are.

    Returns:
      i32[N + 2]; entities that are not known have size 0.

    Raises:
      ValueError: there are not as many sizes as known entities, or more entities than capacity.

    >>> all_sizes(np.array([3, 0, 2, 1, 0], np.uint8), users=3, nodes=5, known=(2, 1))
    array([3, 0, 0, 2, 0, 1, 0], dtype=int32)
    """
    if len(in_use) != sum(known) + 2 or known[0] > users or known[1] > nodes - users:
        raise ValueError(
            f"{len(in_use)} sizes for {known[0]} users and {known[1]} items of {users} and {nodes - users}:"
            " restore with the stream that the run was started with"
        )
    sizes = np.zeros(nodes + 2, np.int32)
    sizes[: known[0]] = in_use[: known[0]]
    sizes[users : users + known[1]] = in_use[known[0] : -2]
    sizes[-2:] = in_use[-2:]
    return sizes


def _export(users, maximum, stored, plan, known) -> Exported:
    params = np.asarray(stored)
    # A packed pool is written as far as it is in use; a masked table has rows and is written whole.
    params = params[: np.asarray(plan).sum()] if params.ndim == 1 else params
    return {"parameters": params, **size_codes.write(sizes_in_use(plan, users, maximum, known))}


def _restore(table, users, exported, known):
    template = jax.eval_shape(table.zeros)
    written = exported.get("parameters", np.zeros(0, np.float32))
    if written.shape[0] > template.shape[0] or written.shape[1:] not in (template.shape[1:], ()):
        raise ValueError(
            f"parameters of shape {written.shape} do not fit {template.shape}:"
            " restore with the budget that the run was started with"
        )
    params = np.zeros(template.shape, np.float32)
    params[: len(written)] = written
    sizes = all_sizes(size_codes.read(exported, sum(known) + 2), users, table.nodes, known)
    return jnp.asarray(params), jnp.asarray(sizes)


def sized_units(nbytes: int, entities: Sides, maximum: int, metadata: bool) -> int:
    """Float32 parameters that bytes pay for: `StorageFactory.budget_units` of tables in float32.

    Args:
      nbytes: bytes of the budget.
      entities: known users and items.
      maximum: the largest size of an entity.
      metadata: whether the sizes of all entities and of the two shared vectors are paid for too.

    >>> sized_units(1000, (30, 18), 64, metadata=False), sized_units(1000, (30, 18), 64, metadata=True)
    (250, 237)
    """
    spent = size_bytes(maximum) * (sum(entities) + 2) if metadata else 0
    return (nbytes - spent) // 4


def _sized_factory(make_table: Callable[[int, int, int, int], Table]) -> StorageFactory:
    def build(capacity, users, items, maximum):
        return sized(make_table(capacity, users, items, maximum), users, maximum)

    return with_room(StorageFactory(sized_units, most_spent, build), 4.0, scaled=False)


def in_equal_parts(
    factory: StorageFactory, build_parts: Callable[[int, int, int, int, int], Storage]
) -> StorageFactory:
    """A factory of packed storages whose coordinates several devices can have in equal parts.

    Args:
      factory: of storages on one device.
      build_parts: (devices, then the arguments of `StorageFactory.build`) -> storage, whose buffers are a multiple of
        the devices long, as its capacity is.
    """
    assert factory.configure is not None
    on_one_device = factory.configure

    def configure(config: HasMesh) -> StorageFactory:
        found, devices = on_one_device(config), config.mesh.devices
        if devices == 1:
            return found

        def build(capacity: int, users: int, items: int, maximum: int) -> Storage:
            # Here and not in the capacity, from which a run works out more than the length of its arrays.
            return build_parts(devices, -(-capacity // devices) * devices, users, items, maximum)

        return found._replace(build=build)

    return factory._replace(configure=configure)


def _packed_parts(devices: int, capacity: int, users: int, items: int, maximum: int) -> Storage:
    return sized(packed(capacity, users, items, maximum, devices), users, maximum)


class HasMesh(HasBudget, Protocol):
    """What of a run's configuration says how many devices it has."""

    @property
    def mesh(self) -> MeshConfig:
        """The devices."""
        ...


PACKED = in_equal_parts(_sized_factory(packed), _packed_parts)
"""One pool of as many float32 parameters as the budget has."""

MASKED = _sized_factory(masked)
"""A full table under a mask; the reference for `PACKED`."""
