"""Several devices of one run: what they hold in parts, how they read each other's parts, and sums in a fixed order.

A program that is spread over devices runs the same code on each of them. An array that grows with the entities lies on
them in equal parts, one after another. What a device needs of the others it asks for, a block of bounded size at a
time: everybody answers with what lies in their own part and zeros elsewhere, and the sum of the answers is exact, since
no place lies in two parts. Sums over all entities are added up in one order whatever the number of devices, so that
every number of them gives the same bits as one. Only gathers and sums are used, which all backends have.

ALX (Mehta et al., 2021, arXiv 2112.02194) spreads alternating least squares like this. There rows stay where their
vectors are; here batches of equal work are dealt out or divided, because vectors have sizes of their own.

With one device each function here is what a program without devices would do, and no collective is compiled.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from scall_jax.ops.backend import by_backend
from scall_jax.ops.indexing import take

ROWS = "rows"
"""The axis of the mesh along which entities, of both sides, are spread."""
IN_PARTS = PartitionSpec(ROWS)
"""Of an array of which each device has an equal part of the first axis."""
WHOLE = PartitionSpec()
"""Of an array that each device has all of."""

_SUMMED_AT_ONCE = (2**18, 2**24)
"""Numbers that one exchange sums, at most, where they answer several devices, on a CPU and on an accelerator."""

T = TypeVar("T")
A = TypeVar("A", bound=jax.Array | np.ndarray)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Over how many devices a run is spread.

    Raises:
      ValueError: less than one device.
    """

    devices: int = 1
    """Devices that a run is spread over, of this process or of all that share the run: training vectors, interactions,
    products, solves and the ranking are in as many parts; sizes, and what else is a number for each entity, are whole
    on every device, and so are the table while it is prepared or read by a search, and codes in few bits. More than 1
    needs recommender ials, lightgcn or mf, a packed table, and a method that chooses sizes by rule or by SCALL's
    search."""

    def __post_init__(self) -> None:
        if self.devices < 1:
            raise ValueError(f"mesh devices={self.devices}: must be at least 1, which is a run on one device")


ONE = MeshConfig()
"""A single device."""


def devices_of(mesh: MeshConfig) -> Mesh:
    """The devices along the axis `ROWS`: the first ones of this process, or all of several processes."""
    return jax.make_mesh((mesh.devices,), (ROWS,), axis_types=(AxisType.Auto,), devices=jax.devices()[: mesh.devices])


def sharding(mesh: MeshConfig, spec: PartitionSpec) -> NamedSharding:
    """Where an array lies that a program takes or returns."""
    return NamedSharding(devices_of(mesh), spec)


def on_devices(
    mesh: MeshConfig, function: Callable[..., T], arguments: tuple[Any, ...], in_specs: Any, out_specs: Any
) -> T:
    """Call a function on every device, with its parts of what is spread.

    Args:
      mesh: the devices; static.
      function: a pure function.
      arguments: whole, as the caller sees them.
      in_specs, out_specs: `IN_PARTS` or `WHOLE` for each array of the arguments and of the result, or for whole
        pytrees. The first axis of what is in parts must be a multiple of the number of devices.

    Returns:
      The result, whole.
    """
    if mesh.devices == 1:
        return function(*arguments)
    # What is the same on all devices is known from how it is computed, which the check cannot see in loops.
    spread = jax.shard_map(function, mesh=devices_of(mesh), in_specs=in_specs, out_specs=out_specs, check_vma=False)
    return spread(*arguments)


def gathered(mesh: MeshConfig, tree: T) -> T:
    """Arrays that lie in parts, whole on every device: in a program, but outside of `on_devices`.

    Args:
      mesh: static.
      tree: arrays, the first axis of each a multiple of the number of devices.
    """
    if mesh.devices == 1:
        return tree
    return on_devices(mesh, lambda parts: everyone(mesh, parts), (tree,), (IN_PARTS,), WHOLE)


def worked_out_whole(mesh: MeshConfig, tree: T) -> T:
    """Arrays that each device works out whole, though they are read in parts: in a program, outside of `on_devices`.

    Without it XLA spreads what they are worked out from, too, with exchanges of its own in the middle of loops.

    Args:
      mesh: static.
      tree: arrays.
    """
    return tree if mesh.devices == 1 else jax.lax.with_sharding_constraint(tree, sharding(mesh, WHOLE))


def with_length(mesh: MeshConfig, x: jax.Array, length: int) -> jax.Array:
    """An array cut at its end, or with zeros there, that lies in parts before and after: outside of `on_devices`.

    Args:
      mesh: static.
      x: [n, ...].
      length: of the result; both lengths are multiples of the number of devices.

    Returns:
      [length, ...]. No more than a part of it is exchanged at once.
    """
    if mesh.devices == 1 or length == x.shape[0]:
        return jnp.pad(x[:length], [(0, max(length - x.shape[0], 0)), *[(0, 0)] * (x.ndim - 1)])
    count = length // mesh.devices

    def on_one(part: jax.Array) -> jax.Array:
        places_of = jnp.arange(count, dtype=jnp.int32)
        return ask(mesh, number(mesh) * jnp.int32(count), lambda first: part_of(mesh, part, first + places_of))

    return on_devices(mesh, on_one, (x,), IN_PARTS, IN_PARTS)


def agreed(mesh: MeshConfig, x: jax.Array) -> jax.Array:
    """The first device's value of what every device has worked out for itself: in a program, outside of `on_devices`.

    Sums of floats that a backend adds up in any order may differ between devices in a last bit. What lays arrays out
    must not.

    Args:
      mesh: static.
      x: numbers.
    """
    if mesh.devices == 1:
        return x

    def of_first(x: jax.Array) -> jax.Array:
        return together(mesh, jnp.where(number(mesh) == 0, x, jnp.zeros_like(x)))

    return on_devices(mesh, of_first, (x,), (WHOLE,), WHOLE)


def whole_parts(mesh: MeshConfig, x: A, multiple: int = 1) -> A:
    """An array, of numpy too, with zeros at its end: each device gets a part of equal length, a multiple of a number.

    >>> whole_parts(MeshConfig(2), jnp.ones(5), multiple=2).tolist()
    [1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    """
    missing = -x.shape[0] % (multiple * mesh.devices) if mesh.devices > 1 else 0
    if not missing:
        return x
    pad: Any = np.pad if isinstance(x, np.ndarray) else jnp.pad
    return pad(x, [(0, missing)] + [(0, 0)] * (x.ndim - 1))


def number(mesh: MeshConfig) -> jax.Array | int:
    """Which device this is: i32[] from 0 to `devices` - 1; 0 for a single one."""
    return 0 if mesh.devices == 1 else jax.lax.axis_index(ROWS)


def places(mesh: MeshConfig, count: int) -> jax.Array:
    """Places i32[count] in the whole array of what lies in this device's part of `count` places."""
    return number(mesh) * count + jnp.arange(count, dtype=jnp.int32)


def most(mesh: MeshConfig, x: jax.Array) -> jax.Array:
    """The largest value of all devices."""
    return x if mesh.devices == 1 else jax.lax.pmax(x, ROWS)


def together(mesh: MeshConfig, parts: T) -> T:
    """Sums over the devices of a pytree, exact where all but one have 0."""
    return parts if mesh.devices == 1 else jax.lax.psum(parts, ROWS)


def everyone(mesh: MeshConfig, own: T) -> T:
    """The arrays of all devices one after another along their first axis."""
    if mesh.devices == 1:
        return own
    return jax.tree.map(lambda x: jax.lax.all_gather(x, ROWS, tiled=True), own)


def ask(mesh: MeshConfig, request: Any, answer: Callable[[Any], T]) -> T:
    """What the devices together have of what this one asks for.

    Args:
      mesh: static.
      request: pytree of arrays, of the same shapes on all devices.
      answer: from a request to a pytree of arrays that holds what lies in this device's own part, and zeros elsewhere.

    Returns:
      The answer to this device's request, from all parts. Answers to all requests are summed at once where they are
      short together, and otherwise one after another, so that one answer is all that is held, besides the requests.
    """
    if mesh.devices == 1:
        return answer(request)
    requests = jax.tree.map(lambda x: jax.lax.all_gather(x, ROWS), request)
    me, shapes = number(mesh), jax.eval_shape(answer, request)
    if mesh.devices * sum(x.size for x in jax.tree.leaves(shapes)) <= by_backend(*_SUMMED_AT_ONCE):
        # Devices wait for each other once, and not once for each of them.
        found = together(mesh, jax.lax.map(answer, requests))
        return jax.tree.map(lambda x: x[me], found)

    def one(asking: jax.Array, kept: T) -> T:
        found = together(mesh, answer(jax.tree.map(lambda x: x[asking], requests)))
        return jax.tree.map(lambda new, old: jnp.where(asking == me, new, old), found, kept)

    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.fori_loop(0, mesh.devices, one, nothing)


def part_of(mesh: MeshConfig, part: jax.Array, at: jax.Array) -> jax.Array:
    """What this device has of the places of an array that lies in parts; zeros for what the others have.

    Args:
      mesh: static.
      part: this device's, [n, ...].
      at: i32[...], places in the whole array; zeros are found beyond it.

    Returns:
      [*at.shape, ...].
    """
    if mesh.devices == 1:
        return take(part, at)
    within = at - number(mesh) * part.shape[0]
    here = (within >= 0) & (within < part.shape[0])
    found = take(part, jnp.where(here, within, 0))
    return jnp.where(here.reshape(*here.shape, *[1] * (part.ndim - 1)), found, jnp.zeros((), part.dtype))


def added(mesh: MeshConfig, total: T, term: T) -> T:
    """A sum to which every device adds a term, one device after another.

    Args:
      mesh: static.
      total: the same on all devices.
      term: this device's.

    Returns:
      total + term of device 0 + term of device 1 ...: the same bits as one device gets that has all terms.
    """
    if mesh.devices == 1:
        return jax.tree.map(jnp.add, total, term)
    terms = jax.tree.map(lambda x: jax.lax.all_gather(x, ROWS), term)
    return jax.lax.fori_loop(0, mesh.devices, lambda d, sums: jax.tree.map(lambda s, x: s + x[d], sums, terms), total)


def in_turn(mesh: MeshConfig, step: Callable[[T], T], carry: T) -> T:
    """Change a value on one device after another, each with its own part.

    Args:
      mesh: static.
      step: from the value to the next one.
      carry: arrays, the same on all devices.

    Returns:
      What a single device with all parts would get.
    """
    if mesh.devices == 1:
        return step(carry)

    def one(turn: jax.Array, carry: T) -> T:
        mine = turn == number(mesh)
        made = jax.tree.map(lambda x: jnp.where(mine, x, jnp.zeros((), x.dtype)), step(carry))
        return together(mesh, made)

    return jax.lax.fori_loop(0, mesh.devices, one, carry)


def loop(mesh: MeshConfig, goes_on: Callable[[T], jax.Array], step: Callable[[T], T], start: T) -> T:
    """`jax.lax.while_loop` that all devices leave at once, as soon as none of them has to go on.

    Args:
      mesh: static.
      goes_on: from a state to bool[], whether this device has to go on.
      step: from a state to the next one; it may ask other devices.
      start: state.

    Returns:
      The first state from which no device goes on.
    """
    if mesh.devices == 1:
        return jax.lax.while_loop(goes_on, step, start)

    def any_goes_on(state: T) -> jax.Array:
        return most(mesh, goes_on(state).astype(jnp.int32)) > 0

    def one(carry: tuple[T, jax.Array]) -> tuple[T, jax.Array]:
        state = step(carry[0])
        return state, any_goes_on(state)

    return jax.lax.while_loop(lambda carry: carry[1], one, (start, any_goes_on(start)))[0]
