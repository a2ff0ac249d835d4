"""What a run prints before it begins: the stream, how it was cut, and what the budget is in bytes."""

from scall_jax import streams
from scall_jax.sizes.budget import Budget

_NEIGHBOURS = (0.25, 0.5, 1, 2, 4)


def first_line(stream: streams.Stream, budget: Budget) -> str:
    """Rows, users, items, time range and segments of a stream, and the budget, in one line.

    Args:
      stream: of a run.
      budget: of the run.
    """
    return (
        f"{stream.source}: {len(stream.user):,} interactions, {len(stream.user_ids):,} users, "
        f"{len(stream.item_ids):,} items, {stream.span}, {len(stream)} segments; budget {budget}"
    )


def ruler(stream: streams.Stream, budget: Budget) -> str:
    """What a budget is in bytes at the last segment, and what its neighbours would be.

    Args:
      stream: of a run.
      budget: of the run.

    Returns:
      Four lines; the budget's own column is in brackets.

    >>> import jax
    >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> print(ruler(streams.cut(rows, segments=4), Budget.mean_size(8)))
    in the last segment the budget is 32 bytes for each of 83 users and items; neighbours:
      bytes an entity             8        16      [32]        64       128
      mean size (float32)         2         4       [8]        16        32
      MB                   0.000664   0.00133 [0.00266]   0.00531    0.0106
    """
    last = len(stream) - 1
    entities = sum(stream.known(stream.bounds[last].train))
    size = budget.parameters(last, entities) / entities
    rows = {
        "bytes an entity": [f"{4 * size * x:.4g}" for x in _NEIGHBOURS],
        "mean size (float32)": [f"{size * x:.3g}" for x in _NEIGHBOURS],
        "MB": [f"{4e-6 * size * x * entities:.3g}" for x in _NEIGHBOURS],
    }
    own = _NEIGHBOURS.index(1)
    for cells in rows.values():
        cells[own] = f"[{cells[own]}]"
    head = (
        f"in the last segment the budget is {4 * size:.4g} bytes for each of {entities:,} users and items; neighbours:"
    )
    return "\n".join([head, *(f"  {name:19s} " + " ".join(f"{x:>9s}" for x in cells) for name, cells in rows.items())])
