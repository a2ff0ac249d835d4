"""A storage without vectors of users: items' vectors, a network, and the last items of each user (S2PNM).

A user's vector is what the network makes of the items that the user met last (`sequence_network`). Items have one more
column, their bias, which users read with weight 1. What is stored is the items' vectors and biases, the network's
weights, and the last items of each user in 2 or 4 bytes each, which are codes in place of a vector and always paid for.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.ops.keys import Purpose, derive
from scall_jax.tables.sequence_network import dense_parameters, init_dense, outputs
from scall_jax.tables.storage import Exported, Previous, Sides, Storage, StorageFactory, WarmStartOptions

NOBODY = -1

_USERS_AT_ONCE = 256


@dataclasses.dataclass(frozen=True)
class SequenceConfig:
    """S2PNM.

    Raises:
      ValueError: a value out of its range.
    """

    length: int = 30
    """Items of a user that are kept and read."""
    batch: int = 64
    """Users of a step (published: 512)."""
    learning_rate: float = 0.002
    """Learning rate of Adam (published: .0001, for 100 passes)."""

    def __post_init__(self) -> None:
        for name in ("length", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"s2pnm {name}={getattr(self, name)}: must be at least 1")
        if not self.learning_rate > 0:
            raise ValueError(f"s2pnm learning_rate={self.learning_rate}: must be greater than 0")


class Histories(NamedTuple):
    """Plan and layout of the storage."""

    items: jax.Array
    """i32[U, length + 1], the last items of each user, the latest last, `NOBODY` in front of them. The first column is
    for training alone, which predicts each item from those before it; it is not stored."""
    known: jax.Array
    """i32[2], users and items that exist."""


class SequenceParams(NamedTuple):
    """Parameters of the storage, and what is stored."""

    items: jax.Array
    """f32[V, d]."""
    bias: jax.Array
    """f32[V]."""
    dense: jax.Array
    """f32[K], weights of the network."""


def id_bytes(items: int) -> int:
    """Bytes of a stored item; the largest number stands for none.

    >>> id_bytes(65535), id_bytes(65536)
    (2, 4)
    """
    return 2 if items < 2**16 else 4


def bytes_of(width: int, length: int, known: Sides) -> int:
    """Bytes of what is stored.

    Args:
      width: d.
      length: items of a user.
      known: users and items.

    >>> bytes_of(2, 30, (10, 5)) == 4 * (5 * 3 + 24 * 4 + 56 * 2) + 2 * 30 * 10
    True
    """
    users, items = known
    return 4 * (items * (width + 1) + dense_parameters(width, length)) + id_bytes(items) * length * users


def sequence(config: SequenceConfig, width: int, users: int, items: int) -> Storage:
    """Build the storage.

    Args:
      config: says how many items of a user are kept.
      width: d.
      users, items: capacities of the sides.

    Returns:
      Storage. Its plan and its layout are `Histories`, its parameters `SequenceParams`. A budget unit is a byte.
    """
    length = config.length
    dense = dense_parameters(width, length)

    def fresh(key: jax.Array, plan: Histories, std: float) -> SequenceParams:
        del plan
        drawn = std * jax.random.normal(derive(key, Purpose.ITEMS), (items, width))
        return SequenceParams(drawn, jnp.zeros(items), init_dense(derive(key, Purpose.SHARED), width, length))

    def warm_start(key: jax.Array, previous: Previous, plan: Histories, options: WarmStartOptions) -> SequenceParams:
        # A shorter vector is another input of the network, so that `shrink` does not apply.
        new, known = fresh(key, plan, options.init_std), previous.known[users:]
        old = previous.stored
        return SequenceParams(
            jnp.where(known[:, None], old.items, new.items), jnp.where(known, old.bias, new.bias), old.dense
        )

    def vectors(params: SequenceParams, plan: Histories) -> jax.Array:
        def of_user(history: jax.Array) -> jax.Array:
            return outputs(params.dense, params.items, history[None])[0, -1]

        of_users = jax.lax.map(of_user, plan.items[:, 1:], batch_size=min(_USERS_AT_ONCE, users))
        of_users = jnp.where((plan.items[:, -1] >= 0)[:, None], of_users, 0.0)
        own = jnp.concatenate([of_users, jnp.ones((users, 1))], axis=1)
        return jnp.concatenate([own, jnp.concatenate([params.items, params.bias[:, None]], axis=1)])

    def store(params: SequenceParams, plan: Histories) -> SequenceParams:
        exists = jnp.arange(items) < plan.known[1]
        return SequenceParams(
            jnp.where(exists[:, None], params.items, 0.0), jnp.where(exists, params.bias, 0.0), params.dense
        )

    def sizes(plan: Histories) -> jax.Array:
        of_items = jnp.where(jnp.arange(items) < plan.known[1], width, 0)
        return jnp.concatenate([jnp.zeros(users, jnp.int32), of_items, jnp.zeros(2, jnp.int32)]).astype(jnp.int32)

    def allocated(plan: Histories) -> jax.Array:
        each = jnp.where(plan.known[1] < 2**16, 2, 4) * length
        return 4 * (plan.known[1] * (width + 1) + dense) + each * plan.known[0]

    return Storage(
        plan=lambda: Histories(jnp.full((users, length + 1), NOBODY, jnp.int32), jnp.zeros(2, jnp.int32)),
        empty=lambda: SequenceParams(jnp.zeros((items, width)), jnp.zeros(items), jnp.zeros(dense)),
        layout=lambda plan: plan,
        fresh=fresh,
        warm_start=warm_start,
        vectors=vectors,
        store=store,
        load=lambda stored, plan: stored,
        sizes=sizes,
        allocated=allocated,
        used=lambda plan: jnp.int32(width + 1),
        export=_export,
        restore=functools.partial(_restore, config, width, (users, items)),
        nodes=users + items,
        width=width + 1,
    )


def _export(stored: SequenceParams, plan: Histories, known: Sides) -> Exported:
    dtype = np.uint16 if id_bytes(known[1]) == 2 else np.uint32
    history = np.asarray(plan.items)[: known[0], 1:]
    return {
        "parameters_items": np.asarray(stored.items)[: known[1]],
        "parameters_bias": np.asarray(stored.bias)[: known[1]],
        "parameters_dense": np.asarray(stored.dense),
        "codes_histories": np.where(history < 0, np.iinfo(dtype).max, history).astype(dtype),
    }


def _restore(
    config: SequenceConfig, width: int, capacities: Sides, exported: Exported, known: Sides
) -> tuple[Any, Histories]:
    users, items = capacities
    written, length = exported["parameters_items"], config.length
    history = exported["codes_histories"]
    if written.shape != (known[1], width) or history.shape != (known[0], length):
        raise ValueError(
            f"parameters_items of shape {written.shape} and codes_histories of shape {history.shape} do not fit "
            f"{(known[1], width)} and {(known[0], length)}: restore with the stream, the budget and the length that "
            "the run was started with"
        )
    vectors, bias = np.zeros((items, width), np.float32), np.zeros(items, np.float32)
    vectors[: known[1]], bias[: known[1]] = written, exported["parameters_bias"]
    histories = np.full((users, length + 1), NOBODY, np.int32)
    nobody = history == np.iinfo(history.dtype).max
    histories[: known[0], 1:] = np.where(nobody, NOBODY, history.astype(np.int64))
    stored = SequenceParams(jnp.asarray(vectors), jnp.asarray(bias), jnp.asarray(exported["parameters_dense"]))
    return stored, Histories(jnp.asarray(histories), jnp.array(known, jnp.int32))


def _factory(config: SequenceConfig) -> StorageFactory:
    def capacity(units: Sequence[int], entities: Sequence[Sides], maximum: int) -> int:
        """The largest d that fits at every segment."""

        def fits(width: int) -> bool:
            return all(bytes_of(width, config.length, n) <= u for u, n in zip(units, entities, strict=True))

        if not fits(1):
            need = max(bytes_of(1, config.length, n) / sum(n) for n in entities)
            raise ValueError(
                f"sequence: one column, the network and {config.length} items a user take up to {need:.1f} bytes an "
                "entity: raise the budget, give every segment the same (--budget.megabytes), or lower s2pnm.length"
            )
        return max(width for width in range(1, maximum + 1) if fits(width))

    return StorageFactory(
        budget_units=lambda nbytes, entities, maximum, metadata: nbytes,
        capacity=capacity,
        build=lambda width, users, items, maximum: sequence(config, width, users, items),
        configure=lambda run: _factory(run.s2pnm),
    )


SEQUENCE = _factory(SequenceConfig())
"""Items' vectors, a network and users' last items; the run's `Config.s2pnm` says how many."""
