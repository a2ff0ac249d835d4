"""Vectors that are the signs of each layer of a propagation, as BiGeaR serves them (arXiv 2206.02115).

An entity has one vector of d signs, and a scale, for each of L + 1 layers: its own vector and what 1 to L propagations
make of it, before they are rounded. The vectors of layer l are weighed (l + 1) / (L + 1). What answers requests is
these signs alone, so that no graph is needed; training works on the vectors of layer 0 in float32. A segment starts
from the signs of layer 0, which is all that is left of them.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.indexing import div, rem
from scall_jax.ops.keys import Purpose, by_side, derive
from scall_jax.ops.sums import sum_over_columns
from scall_jax.tables.compressed.few_bits import PER_OCTAVE, TOP_CODE, limit_of
from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory, WarmStartOptions

_OCTET = 8
_TOP_BYTES = 4
_COLUMNS_BYTES = 4


class BinaryPlan(NamedTuple):
    """Plan and layout of the storage."""

    columns: jax.Array
    """i32[], d: signs of a layer."""
    known: jax.Array
    """i32[2], users and items that exist."""


class BinaryParams(NamedTuple):
    """Parameters of the storage, for N nodes, W columns and L + 1 layers."""

    latent: jax.Array
    """f32[N, W], vectors before propagation, which training changes."""
    layers: jax.Array
    """f32[N, (L + 1) W], what ranks: each layer, one after the other, rounded and weighed. It follows from `latent` and
    the graph, and is brought up to date by who trains them."""


class Signs(NamedTuple):
    """What is stored."""

    codes: jax.Array
    """u8[N, L + 1, W / 8], eight signs to a byte, the first one in the lowest place; 1 for not negative."""
    scales: jax.Array
    """u8[N, L + 1], the scale is top x 2^((code - 255) / 16); 0 for a vector of zeros."""
    top: jax.Array
    """f32[L + 1], powers of two that no scale of a layer is above."""


def layer_weights(layers: int) -> np.ndarray:
    """What each of L + 1 layers counts, f32[L + 1].

    >>> layer_weights(1).tolist()
    [0.5, 1.0]
    """
    return (np.arange(1, layers + 2) / (layers + 1)).astype(np.float32)


Whole = TypeVar("Whole", int, jax.Array)


def columns_within(units: Whole, entities: Whole, layers: int) -> Whole:
    """The most signs of a layer that bytes pay for.

    Args:
      units: bytes; an int, or i32[].
      entities: users and items, as `units`.
      layers: L; static.

    Returns:
      d; less than 1 where the bytes do not suffice.

    >>> columns_within(3 * (4 + 10 + 15), 10, layers=2), int(columns_within(jnp.int32(87), jnp.int32(10), layers=2))
    (12, 12)
    """
    left = units // (layers + 1) - _TOP_BYTES - entities
    # 8 x left may be more than an integer of 32 bits holds.
    return _OCTET * (left // entities) + _OCTET * (left % entities) // entities


def scales_of(vectors: jax.Array, columns: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Codes of the mean absolute coordinate of vectors, on a logarithmic grid.

    Args:
      vectors: f32[N, W], 0 from column d on.
      columns: i32[], d.

    Returns:
      u8[N] and the top f32[] that they are counted from.
    """
    chex.assert_rank([vectors, columns], [2, 0])
    mean = sum_over_columns(jnp.abs(vectors)) / jnp.maximum(columns, 1).astype(vectors.dtype)
    most = mean.max()
    top = jnp.where(most > 0, jnp.exp2(jnp.ceil(jnp.log2(jnp.where(most > 0, most, 1.0)))), 0.0)
    ratio = jnp.where(mean > 0, mean, 1.0) / jnp.where(top > 0, top, 1.0)
    code = TOP_CODE + jnp.round(PER_OCTAVE * jnp.log2(ratio)).astype(jnp.int32)
    return jnp.where(mean > 0, jnp.clip(code, 1, TOP_CODE), 0).astype(jnp.uint8), top


class _Shape(NamedTuple):
    """Of the storage; static."""

    layers: int  # L
    width: int  # W
    users: int  # capacities of the sides
    items: int

    @property
    def nodes(self) -> int:
        return self.users + self.items

    @property
    def count(self) -> int:
        return self.layers + 1


def binary_layers(layers: int, width: int, users: int, items: int) -> Storage:
    """Build the storage.

    Args:
      layers: L, propagations.
      width: W, a multiple of 8 and the largest d of the run.
      users, items: capacities of the sides.

    Returns:
      Storage. Its plan and its layout are `BinaryPlan`, its parameters `BinaryParams`. A budget unit is a byte.
    """
    shape = _Shape(layers, width, users, items)
    nodes, count = shape.nodes, shape.count
    return Storage(
        plan=lambda: BinaryPlan(jnp.int32(0), jnp.zeros(2, jnp.int32)),
        empty=lambda: Signs(
            jnp.zeros((nodes, count, width // _OCTET), jnp.uint8),
            jnp.zeros((nodes, count), jnp.uint8),
            jnp.zeros(count),
        ),
        layout=lambda plan: plan,
        fresh=functools.partial(_fresh, shape),
        warm_start=functools.partial(_warm_start, shape),
        vectors=lambda params, plan: params.layers,
        store=functools.partial(_store, shape),
        load=functools.partial(_load, shape),
        sizes=functools.partial(_sizes, shape),
        allocated=functools.partial(_allocated, shape),
        used=lambda plan: jnp.int32(count * width),
        export=functools.partial(_export, users, width),
        restore=functools.partial(_restore, (nodes, count, width), users),
        nodes=nodes,
        width=count * width,
        rounds=True,
        bits=lambda plan: 1,
    )


def _in_use(shape: _Shape, plan: BinaryPlan) -> jax.Array:
    """bool[N, W], coordinates of a layer that exist."""
    number = jnp.arange(shape.nodes)
    of_item = number - shape.users
    exists = jnp.where(of_item < 0, number < plan.known[0], of_item < plan.known[1])
    return exists[:, None] & (jnp.arange(shape.width) < plan.columns)[None, :]


def _drawn(shape: _Shape, key: jax.Array) -> jax.Array:
    # By column, so that what an entity draws does not depend on how many columns there are.
    def column(number: jax.Array) -> jax.Array:
        return by_side(jax.random.normal, derive(key, Purpose.COLUMN, number), shape.users, shape.items)

    return jax.vmap(column)(jnp.arange(shape.width, dtype=jnp.int32)).T


def _params_of(shape: _Shape, plan: BinaryPlan, latent: jax.Array) -> BinaryParams:
    latent = jnp.where(_in_use(shape, plan), latent, 0.0)
    return BinaryParams(latent, jnp.zeros((shape.nodes, shape.count * shape.width)))


def _fresh(shape: _Shape, key: jax.Array, plan: BinaryPlan, std: float) -> BinaryParams:
    return _params_of(shape, plan, std * _drawn(shape, key))


def _warm_start(
    shape: _Shape, key: jax.Array, previous: Previous, plan: BinaryPlan, options: WarmStartOptions
) -> BinaryParams:
    old, noise = _decoded(shape, previous.stored, previous.plan)[:, 0], _drawn(shape, key)
    grown = jnp.arange(shape.width) >= previous.plan.columns
    known = jnp.where(grown[None, :], options.grow_std * noise, options.shrink * old)
    return _params_of(shape, plan, jnp.where(previous.known[:, None], known, options.init_std * noise))


def _store(shape: _Shape, params: BinaryParams, plan: BinaryPlan) -> Signs:
    nodes, _, width = dims = shape.nodes, shape.count, shape.width
    by_layer = params.layers.reshape(dims) / layer_weights(shape.layers)[None, :, None]
    # Layer 0 is kept for the next segment too: its scale is that of the vectors that training has changed.
    by_layer = by_layer.at[:, 0].set(params.latent)
    used = _in_use(shape, plan)[:, None, :]
    by_layer = jnp.where(used, by_layer, 0.0)
    signs = ((by_layer >= 0) & used).reshape(nodes, shape.count, width // _OCTET, _OCTET)
    places = jnp.arange(_OCTET, dtype=jnp.uint8)
    codes = (signs.astype(jnp.uint8) << places[None, None, None, :]).sum(-1, dtype=jnp.uint8)
    scales, tops = jax.vmap(scales_of, (1, None), (1, 0))(by_layer, plan.columns)
    return Signs(codes, scales, tops)


def _decoded(shape: _Shape, stored: Signs, plan: BinaryPlan) -> jax.Array:
    """f32[N, L + 1, W], signs times scales."""
    places = jnp.arange(_OCTET, dtype=jnp.uint8)
    signs = (stored.codes[..., None] >> places[None, None, None, :]) & 1
    signs = 2.0 * signs.reshape(shape.nodes, shape.count, shape.width).astype(jnp.float32) - 1.0
    values = signs * limit_of(stored.scales, stored.top[None, :])[..., None]
    return jnp.where(_in_use(shape, plan)[:, None, :], values, 0.0)


def _load(shape: _Shape, stored: Signs, plan: BinaryPlan) -> BinaryParams:
    values = _decoded(shape, stored, plan)
    weighed = values * layer_weights(shape.layers)[None, :, None]
    return BinaryParams(values[:, 0], weighed.reshape(shape.nodes, shape.count * shape.width))


def _sizes(shape: _Shape, plan: BinaryPlan) -> jax.Array:
    own = jnp.where(_in_use(shape, plan)[:, 0], shape.count * plan.columns, 0)
    return jnp.concatenate([own, jnp.zeros(2, jnp.int32)]).astype(jnp.int32)


def _allocated(shape: _Shape, plan: BinaryPlan) -> jax.Array:
    entities = plan.known.sum()
    octets = div(entities, _OCTET) * plan.columns + div(rem(entities, _OCTET) * plan.columns + 7, _OCTET)
    return shape.count * (octets + entities + _TOP_BYTES)


def _known_rows(array: np.ndarray, users: int, known: Sides) -> np.ndarray:
    return np.concatenate([array[: known[0]], array[users : users + known[1]]])


def _export(users: int, width: int, stored: Signs, plan: BinaryPlan, known: Sides) -> Exported:
    codes, scales = (_known_rows(np.asarray(x), users, known) for x in (stored.codes, stored.scales))
    signs = np.unpackbits(codes, axis=-1, bitorder="little")[..., : int(plan.columns)]
    by_layer = signs.transpose(1, 0, 2).reshape(scales.shape[1], -1)
    return {
        "codes": np.packbits(by_layer, axis=-1, bitorder="little"),
        "codes_scales": scales,
        "codes_top": np.asarray(stored.top),
        "metadata_columns": np.array([int(plan.columns)], np.int32),
    }


def _restore(shape: tuple[int, int, int], users: int, exported: Exported, known: Sides) -> tuple[Signs, BinaryPlan]:
    nodes, count, width = shape
    entities = sum(known)
    written = exported.get("codes", np.zeros((count, 0), np.uint8))
    scales = exported.get("codes_scales", np.zeros((entities, count), np.uint8))
    columns = int(exported["metadata_columns"][0])
    octets = -(-entities * columns // _OCTET)
    if scales.shape != (entities, count) or written.shape != (count, octets) or columns > width:
        raise ValueError(
            f"codes of shape {written.shape} and codes_scales of shape {scales.shape} do not fit {entities} entities "
            f"of {count} layers and at most {width} columns: restore with the stream, the budget and the layers that "
            "the run was started with"
        )
    signs = np.unpackbits(written, axis=-1, bitorder="little")[:, : entities * columns]
    signs = signs.reshape(count, entities, columns).transpose(1, 0, 2)
    whole = np.zeros((nodes, count, width), np.uint8)
    of_scales = np.zeros((nodes, count), np.uint8)
    for first, rows in ((0, slice(0, known[0])), (users, slice(known[0], entities))):
        number = rows.stop - rows.start
        whole[first : first + number, :, :columns], of_scales[first : first + number] = signs[rows], scales[rows]
    packed = np.packbits(whole, axis=-1, bitorder="little")
    stored = Signs(jnp.asarray(packed), jnp.asarray(of_scales), jnp.asarray(exported["codes_top"]))
    return stored, BinaryPlan(jnp.int32(columns), jnp.array(known, jnp.int32))


def _factory(layers: int) -> StorageFactory:
    def capacity(units: Sequence[int], entities: Sequence[Sides], maximum: int) -> int:
        found = [columns_within(u, sum(n), layers) for u, n in zip(units, entities, strict=True)]
        if min(found) < 1:
            need = (layers + 1) * 9 / _OCTET
            raise ValueError(
                f"bigear: a sign and a scale for each of {layers + 1} layers take {need:.3g} bytes an entity, and "
                f"{4 * (layers + 1)} bytes in all: raise the budget, or lower fit.layers"
            )
        most = min(max(found), maximum)
        return most + -most % _OCTET

    return StorageFactory(
        budget_units=lambda nbytes, entities, maximum, metadata: nbytes - (_COLUMNS_BYTES if metadata else 0),
        capacity=capacity,
        build=lambda width, users, items, maximum: binary_layers(layers, width, users, items),
        configure=lambda run: _factory(run.fit.layers),
    )


BINARY_LAYERS = _factory(2)
"""Signs of all layers; the run's `Config.fit.layers` says how many."""
