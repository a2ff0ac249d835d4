"""Storage: what a run asks of embeddings, however they are kept. Read this page to add a storage.

Five things are told apart. A *plan* says how the budget is spent (for `packed`: one size per vector). A *layout*
follows from it and says where coordinates lie. *Parameters* are what training changes: a pytree of f32 arrays. What is
*stored* between segments is what serves and what the budget pays for; it may be smaller or coarser than the parameters.
*Exported* arrays are the stored ones as they go to disk, trimmed to what is in use: their bytes are the account.

A run calls a storage in this order:

1. Once, on the host: `StorageFactory.budget_units` for the bytes of each segment, `capacity` for all of them, and
   `build`. Then `empty` and `plan` for the state before the first segment.
2. At each segment, traced: a planner (`scall_jax.methods.planner`) makes the segment's plan within its budget units,
   and `layout` its layout. `warm_start` makes parameters from what is stored, `fresh` where nothing is stored yet.
3. Training, traced, at each step: through `table`, or through the gradient of `vectors` (and `penalty`) without one.
4. After training, traced: `store`; what is evaluated is `load` of it, so that metrics are those of what serves.
5. Between segments, on the host: `export` to a checkpoint, `restore` from it.

To add one, write a function of (capacity, users, items, maximum) that returns a `Storage`, wrap it in a
`StorageFactory`, and enter that in `scall_jax.tables.STORAGES` under its name. All shapes follow from these four
numbers and the factory's options; plans change from segment to segment, shapes do not. N is users + items, the
capacities of both sides; nodes are numbered users first, and the known entities of a side are the first of its nodes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np

from scall_jax.tables.table import Params, Table

Plan = Any
"""How the budget is spent: a pytree of arrays whose shapes and dtypes are the same for all segments of a run."""

StorageLayout = Any
"""Where coordinates lie: a pytree of arrays that follows from the plan alone. Tables have a `Layout`."""

Stored = Any
"""What is kept between segments: a pytree of arrays whose shapes and dtypes are the same for all segments of a run."""

Sides = tuple[int, int]
"""A number for the users and one for the items."""

Exported = dict[str, np.ndarray]
"""Arrays by name; the part of a name before the first "_" is what its bytes are charged as: one of `CHARGES`."""

CHARGES = ("parameters", "codes", "metadata")
"""What bytes are for: `parameters`, floating-point numbers; `codes`, integers in place of them, and what they are read
by (steps, positions, signatures); `metadata`, which says how large each vector is (sizes, groups). Parameters and codes
are the table, which every budget pays for."""


class WarmStartOptions(Protocol):
    """What a storage may ask of the run's `WarmStartConfig`; Python numbers, static."""

    @property
    def shrink(self) -> float:
        """Factor on the embeddings that are carried over."""
        ...

    @property
    def rotation(self) -> str:
        """Whether to turn embeddings to principal axes first, one of `resize.ROTATIONS`; for storages that keep leading
        coordinates."""
        ...

    @property
    def init_std(self) -> float:
        """Standard deviation of the embeddings of new nodes."""
        ...

    @property
    def grow_std(self) -> float:
        """Standard deviation of coordinates that a known node did not have before."""
        ...


class Previous(NamedTuple):
    """What a segment hands over to the next one."""

    stored: Stored
    """What `Storage.store` or `Storage.restore` returned."""
    plan: Plan
    """The plan that it was stored under."""
    known: jax.Array
    """bool[N], nodes that had a vector under that plan."""
    weight: jax.Array
    """f32[N], interactions of each node so far; 0 for nodes that are not known."""


class Storage(NamedTuple):
    """Embeddings of N nodes as functions. All are pure and traced, but for `export` and `restore`, on the host."""

    plan: Callable[[], Plan]
    """The plan before the first segment, which spends nothing. A planner of the storage fills in its structure."""
    empty: Callable[[], Stored]
    """What is stored before the first segment: zeros in the shapes and dtypes that `store` returns."""
    layout: Callable[[Plan], StorageLayout]
    """The layout of a plan. It is computed anew wherever it is needed, never kept."""
    fresh: Callable[[jax.Array, StorageLayout, float], Params]
    """(key, layout, std) -> random parameters whose embeddings have the standard deviation `std`. Called where nothing
    is stored yet, and at every segment of a run that does not start warm."""
    warm_start: Callable[[jax.Array, Previous, Plan, WarmStartOptions], Params]
    """(key, previous, new plan, options) -> parameters of the new plan that carry over what is stored. Called at each
    segment but the first. It must give the structure, shapes and dtypes of `fresh`, because one `cond` has both."""
    vectors: Callable[[Params, StorageLayout], jax.Array]
    """(parameters, layout) -> f32[N, width], the embeddings of all nodes, differentiable in the parameters. Called at
    each step of training where there is no table. A node without coordinates has its side's shared vector, or zeros."""
    store: Callable[[Params, StorageLayout], Stored]
    """(trained parameters, layout) -> what is kept of them. Called once a segment; the place to round or to pack. Of a
    storage that is `scaled` and built for several devices it is called by all of them, in `ops.devices.on_devices`,
    each with its part of the parameters."""
    load: Callable[[Stored, StorageLayout], Params]
    """(stored, layout) -> parameters that serve, the inverse of `store` but for what that rounds off."""
    sizes: Callable[[Plan], jax.Array]
    """plan -> i32[N + 2], coordinates of each node's own vector and of the two shared vectors; for records."""
    allocated: Callable[[Plan], jax.Array]
    """plan -> i32[], budget units that the plan spends. A run checks that they are within the segment's budget."""
    used: Callable[[StorageLayout], jax.Array]
    """layout -> i32[], a bound on the coordinates in use: embeddings are 0 from there on, and ranking skips these."""
    export: Callable[[Stored, Plan, Sides], Exported]
    """(stored, plan, known users and items) -> numpy arrays for the checkpoint, trimmed to what is in use. Host. Their
    bytes must be within the budget's for whatever is charged."""
    restore: Callable[[Exported, Sides], tuple[Stored, Plan]]
    """(exported, known users and items) -> (stored, plan): bit for bit what was exported, and a plan of the same layout
    in what serving reads. Host. An array of no bytes may be missing. No jax array may be in both, because a run donates
    them. Raises ValueError if shapes do not fit, naming them and the way out."""
    nodes: int
    """N, capacity of both sides."""
    width: int
    """Columns of `vectors`."""
    table: Table | None = None
    """Reads and writes parameters a block of columns at a time; training goes through it. None: through `vectors`."""
    penalty: Callable[[Params, StorageLayout], jax.Array] | None = None
    """(parameters, layout) -> f32[], added to the training loss. Only for storages without a table."""
    auxiliary: Callable[[StorageLayout], tuple[jax.Array, jax.Array]] | None = None
    """layout -> (f32[width], f32[]): columns that a second loss of the same form, on the scores of these columns alone,
    is made of, 1 or 0 each, and its weight. Only for storages without a table, trained by gradients of BPR."""
    rounds: bool = False
    """What `load` gives back is not exactly what `store` was given."""
    rounding: Callable[[Params, StorageLayout], Table] | None = None
    """(parameters, layout) -> a table like `table` whose `read` gives coordinates as they would be stored, with the
    scales of these parameters: what a training reads that is to learn coordinates that bear rounding. Traced. None:
    there is no such table."""
    bits: Callable[[Plan], Any] = lambda plan: 32
    """plan -> bits of a stored coordinate, int or i32[N]; for records."""
    affords: Callable[[Plan, jax.Array, jax.Array, bool], jax.Array] | None = None
    """(plan of sizes, coordinates that some bytes pay for whatever the sizes, known users and items i32[2], whether
    sizes are paid for) -> i32[], coordinates that the same bytes pay for with sizes like the plan's: a vector without
    coordinates needs no scale, and sizes that are few need few bits. None: always the second argument."""
    scaled: bool = False
    """Each vector with coordinates has a scale that the budget pays for."""
    round_rows: Callable[[jax.Array, jax.Array, jax.Array], jax.Array] | None = None
    """(vectors f32[R, D], sizes i32[R], the largest absolute coordinate f32[] of the whole table) -> the vectors as
    `load` gives back what `store` keeps of them. None where it is no matter of one vector by itself."""
    load_part: Callable[[Stored, StorageLayout, Any, int], jax.Array] | None = None
    """(what is stored, layout, first place i32[], number of places) -> what `load` gives there, f32; zeros beyond its
    end. None where several devices cannot share what is `scaled`."""
    served: Table | None = None
    """Reads columns of what is stored as it is, so that ranking does not load it as a whole; its buffers are made of
    what is stored, and it is never trained. None: ranking reads what `load` gives."""


class StorageFactory(NamedTuple):
    """A way of storing, before its capacity is known; functions of Python numbers, called on the host.

    A *budget unit* is what totals count: a float32 parameter for `packed`, a byte for `mixed_precision`.
    """

    budget_units: Callable[[int, Sides, int, bool], int]
    """(bytes, known users and items, maximum size, whether metadata is charged) -> units that the bytes pay for, after
    what is always paid for. Called for each segment; below 1 the run is refused."""
    capacity: Callable[[Sequence[int], Sequence[Sides], int], int]
    """(units of each segment, known users and items of each, maximum size) -> static capacity of the stored arrays, the
    same for all segments of a run. Raises ValueError if the budget can not be spent, with the way out."""
    build: Callable[[int, int, int, int], Storage]
    """(capacity, users, items, maximum size) -> Storage; users and items are capacities. It may be called inside a
    traced function, as often as needed, so that it must be cheap."""
    configure: Callable[[Any], "StorageFactory"] | None = None
    """(the run's Config) -> the factory with the options that the config has for it. None: it has none."""
    coordinates_of_unit: int = 1
    """Coordinates that a budget unit is about worth."""


def charged(exported: Exported) -> dict[str, int]:
    """Bytes of exported arrays by charge.

    Args:
      exported: arrays by name.

    Returns:
      For each of `CHARGES`, the sum of the bytes of its arrays.

    >>> charged({"parameters": np.zeros(3, np.float32), "metadata_sizes": np.zeros(5, np.uint8)})
    {'parameters': 12, 'codes': 0, 'metadata': 5}
    """
    bytes_of: dict[str, int] = dict.fromkeys(CHARGES, 0)
    for name, array in exported.items():
        bytes_of[name.split("_")[0]] += array.nbytes
    return bytes_of


def size_bytes(maximum: int) -> int:
    """Bytes of one entity's size on disk, for sizes from 0 to `maximum`.

    >>> size_bytes(255), size_bytes(256)
    (1, 2)
    """
    return 1 if maximum < 2**8 else 2 if maximum < 2**16 else 4


class HasBudget(Protocol):
    """What of a run's configuration says whether scales and sizes may leave bytes over."""

    @property
    def charge(self) -> str:
        """What the budget pays for; sizes are part of it unless it is `table`."""
        ...

    @property
    def sizes(self) -> Any:
        """Has the bounds of sizes."""
        ...


def bytes_left_over(config: HasBudget, scaled: bool) -> int:
    """Bytes of a vector that sizes may leave over: its scale where it has no coordinates, and most of its own size.

    Args:
      config: of the run.
      scaled: as `Storage.scaled`.
    """
    own = size_bytes(config.sizes.maximum) if config.charge != "table" else 0
    return own + (scaled and config.sizes.minimum == 0)


def with_room(factory: StorageFactory, per_coordinate: float, scaled: bool) -> StorageFactory:
    """A factory of sized storages that has room for what scales and sizes leave over, where they may.

    Args:
      factory: without that room.
      per_coordinate: bytes of a coordinate.
      scaled: as `Storage.scaled`.
    """

    def configure(config: HasBudget) -> StorageFactory:
        spared = bytes_left_over(config, scaled)
        return factory._replace(capacity=most_afforded(spared, per_coordinate)) if spared else factory

    return factory._replace(configure=configure)


def most_afforded(per_vector: int, per_coordinate: float) -> Callable[[Sequence[int], Sequence[Sides], int], int]:
    """`StorageFactory.capacity` of storages that pay with what scales and sizes leave over for more coordinates.

    Args:
      per_vector: bytes that a vector may leave over.
      per_coordinate: bytes of a coordinate.

    Returns:
      Function of (units of each segment, known users and items of each, maximum size): the most coordinates that a
      segment of the run can have.

    >>> most_afforded(1, 0.5)([100], [(60, 38)], 8), most_spent([100], [(60, 38)], 8)
    (304, 100)
    """

    def capacity(budget_units: Sequence[int], entities: Sequence[Sides], maximum: int) -> int:
        def most(units: int, known: Sides) -> int:
            spared = per_vector * (sum(known) + 2)
            # Each group of 8 coordinates is paid for as a whole.
            return min(8 * -(-int(units + spared / per_coordinate) // 8), sum(known) * maximum)

        return max(map(most, budget_units, entities))

    return capacity


def widest(columns: Sequence[int], maximum: int) -> int:
    """The capacity of storages whose rows have one width: training and ranking take time for every column there is.

    Args:
      columns: that the rows of each segment may have at most.
      maximum: the largest size of a run.

    Returns:
      The most columns of any segment, rounded up to a multiple of 8, so that a later segment seldom changes the shapes
      of a run; no more than `maximum`.

    >>> widest([3, 9], 128), widest([300], 128)
    (16, 128)
    """
    return min(-(-max(columns) // 8) * 8, maximum)


def most_spent(budget_units: Sequence[int], entities: Sequence[Sides], units_per_entity: int) -> int:
    """The largest number of units that a segment of a run can spend: the capacity that most storages need.

    Args:
      budget_units: units allowed at each segment.
      entities: known users and items at each segment.
      units_per_entity: units that one entity can have at most.

    >>> most_spent([100, 100], [(2, 1), (5, 4)], 8)
    72
    """
    return max(min(u, sum(n) * units_per_entity) for u, n in zip(budget_units, entities, strict=True))
