"""Storage: what a run asks of embeddings, however they are kept.

Five things are told apart. A *plan* says how the budget is spent (for `packed`: one size per vector). A *layout*
follows from it and says where coordinates lie. *Parameters* are what training changes: a pytree of f32 arrays. What is
*stored* between segments is what serves and what the budget pays for; it may be smaller or coarser than the parameters.
*Exported* arrays are the stored ones as they go to disk, trimmed to what is in use: their bytes are the account.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from scall_jax.tables.table import Params, Table

Plan = Any
Layout = Any
Stored = Any
Exported = dict[str, np.ndarray]
"""Arrays by name; the part of a name before the first "_" is what its bytes are charged as: one of `CHARGES`."""

CHARGES = ("parameters", "codes", "metadata")


class Storage(NamedTuple):
    """Embeddings of N nodes (users, then items), as pure functions; `export` and `restore` run on the host."""

    plan: Callable[[], Plan]  # before the first segment
    empty: Callable[[], Stored]  # stored parameters before the first segment
    layout: Callable[[Plan], Layout]
    fresh: Callable[[jax.Array, Layout, float], Params]  # key, layout, standard deviation of embeddings
    resize: Callable[..., Params]  # key, stored, old plan, new plan, known bool[N], weight f32[N], CarryConfig
    vectors: Callable[[Params, Layout], jax.Array]  # f32[N, width], differentiable in the parameters
    store: Callable[[Params, Layout], Stored]  # trained parameters to what is kept
    load: Callable[[Stored, Layout], Params]  # and back
    sizes: Callable[[Plan], jax.Array]  # i32[N + 2]: coordinates of each node's own and of the two shared vectors
    allocated: Callable[[Plan], jax.Array]  # i32[]: units of the budget that the plan spends
    used: Callable[[Layout], jax.Array]  # i32[]: coordinates beyond it are 0 everywhere
    export: Callable[[Stored, Plan, tuple[int, int]], Exported]  # with known users and items
    restore: Callable[[Exported, tuple[int, int]], tuple[Stored, Plan]]
    nodes: int  # N
    width: int  # columns of `vectors`
    table: Table | None = None  # reads and writes in strips of columns, where the storage can
    penalty: Callable[[Params, Layout], jax.Array] | None = None  # f32[], added to the loss where there is no table


class StorageFactory(NamedTuple):
    """A way of storing, before its capacity is known; functions of Python numbers.

    A *unit* is what totals count: a float32 parameter for `packed`. `held` is the static capacity of the stored arrays,
    the same for all segments of a run.
    """

    budget_units: Callable[
        [int, tuple[int, int], int, bool], int
    ]  # bytes, (users, items), maximum, metadata charged -> units
    capacity: Callable[[list[int], list[tuple[int, int]], int], int]  # units, entities by segment, maximum -> capacity
    build: Callable[[int, int, int, int], Storage]  # capacity, users, items (capacities), maximum
    configure: Callable[[Any], "StorageFactory"] | None = (
        None  # the kind with the options that a run's config has for it
    )


def charged(exported: Exported) -> dict[str, int]:
    """Bytes by charge of `CHARGES`, the sum of the arrays' own."""
    bytes_of = dict.fromkeys(CHARGES, 0)
    for name, array in exported.items():
        bytes_of[name.split("_")[0]] += array.nbytes
    return bytes_of


def size_bytes(maximum: int) -> int:
    """Bytes of one entity's size on disk."""
    return 1 if maximum < 2**8 else 2 if maximum < 2**16 else 4
