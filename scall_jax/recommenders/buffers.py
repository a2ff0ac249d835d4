"""Parameters as training holds them, and as they rank once they are stored."""

import jax

from scall_jax.ops.devices import (
    IN_PARTS,
    ONE,
    WHOLE,
    MeshConfig,
    number,
    on_devices,
    with_length,
    worked_out_whole,
)
from scall_jax.tables.storage import Storage, StorageLayout, Stored
from scall_jax.tables.table import Params


def to_buffer(storage: Storage, params: Params, mesh: MeshConfig = ONE) -> Params:
    """Parameters as training and `embed` take them: a table's with room for reading past their end.

    Args:
      storage: of the parameters.
      params: of the storage.
      mesh: devices; each of them works out all parameters, and keeps its part.
    """
    return params if storage.table is None else worked_out_whole(mesh, storage.table.to_buffer(params))


def from_buffer(storage: Storage, params: Params) -> Params:
    """The inverse of `to_buffer`."""
    return params if storage.table is None else storage.table.from_buffer(params)


def to_stored(storage: Storage, params: Params, layout: StorageLayout, mesh: MeshConfig = ONE) -> Stored:
    """What a storage keeps of parameters as training holds them.

    Args:
      storage: of the parameters.
      params: from `to_buffer`.
      layout: of the storage.
      mesh: devices that parameters lie on in parts.
    """
    if mesh.devices == 1:
        return storage.store(from_buffer(storage, params), layout)
    length = jax.eval_shape(lambda: from_buffer(storage, params)).shape[0]
    params = with_length(mesh, params, length)
    if storage.scaled:
        # Coordinates of a vector lie on several devices, which ask each other for them.
        return on_devices(mesh, storage.store, (params, layout), (IN_PARTS, WHOLE), WHOLE)
    return storage.store(params, layout)


def as_served(
    storage: Storage, stored: Stored, layout: StorageLayout, mesh: MeshConfig = ONE
) -> tuple[Storage, Params]:
    """What ranks: a storage whose table reads what is stored, where it has one, and parameters for `embed`.

    Args:
      storage: of the parameters.
      stored: what it stores.
      layout: of the storage.
      mesh: devices; on several of them what is stored is loaded in parts, and codes in few bits are on every device.

    Returns:
      (storage, parameters): what is stored itself, or what the storage loads of it.
    """
    if storage.served is not None and mesh.devices == 1:
        return storage._replace(table=storage.served), storage.served.to_buffer(stored)
    if mesh.devices == 1:
        return storage, to_buffer(storage, storage.load(stored, layout))
    table, load_part = storage.table, storage.load_part
    assert table is not None, "runs on several devices have a packed table"
    length = jax.eval_shape(lambda: table.to_buffer(table.zeros())).shape[0]
    if load_part is None:
        return storage, with_length(mesh, storage.load(stored, layout), length)
    part = length // mesh.devices

    def on_one(stored: Stored, layout: StorageLayout) -> Params:
        return load_part(stored, layout, number(mesh) * part, part)

    return storage, on_devices(mesh, on_one, (stored, layout), WHOLE, IN_PARTS)


def as_would_be_served(
    storage: Storage, params: Params, layout: StorageLayout, mesh: MeshConfig = ONE
) -> tuple[Storage, Params]:
    """What ranks once trained parameters are stored, so that a fit is judged by what will serve.

    Args:
      storage: of the parameters.
      params: from `to_buffer`.
      layout: of the storage.
      mesh: devices.

    Returns:
      (storage, parameters), as `as_served` does; those given where the storage keeps them as they are.
    """
    if not storage.rounds:
        return storage, params
    return as_served(storage, to_stored(storage, params, layout, mesh), layout, mesh)


def trained_as_served(
    storage: Storage, params: Params, stored: Stored, layout: StorageLayout, mesh: MeshConfig = ONE
) -> tuple[Storage, Params]:
    """What ranks of trained parameters: what is stored of them, or on several devices, where that is all of them,
    themselves, so that no part is moved.

    Args:
      storage: of the parameters.
      params: from `to_buffer`.
      stored: by `to_stored` of these parameters.
      layout: of the storage.
      mesh: devices.

    Returns:
      (storage, parameters), as `as_served` does.
    """
    if storage.rounds or mesh.devices == 1:
        return as_served(storage, stored, layout, mesh)
    return storage, params


def held_by_training(storage: Storage, params: Params, keeps_best: bool = True) -> tuple[Params, ...]:
    """What training holds from step to step, as copies of the parameters.

    Args:
      storage: of the parameters.
      params: from `to_buffer`.
      keeps_best: the best parameters so far are kept.

    Returns:
      The parameters, their best so far, the two moments of Adam, and, where there is no table, a gradient: as many
      times the parameters. What lives within a step alone, as embeddings do, is not among them.
    """
    return (params,) * (3 + keeps_best + (storage.table is None))
