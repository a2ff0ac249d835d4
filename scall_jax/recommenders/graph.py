"""Propagation over the normalised interaction graph: the sparse product that training spends its time in."""

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax.experimental import sparse

from scall_jax.ops.backend import by_backend
from scall_jax.ops.devices import ONE, MeshConfig, ask, most, number, part_of, together
from scall_jax.ops.indexing import ceil_div, dynamic_update_slice, take
from scall_jax.streams import Graph

_CHUNK = 8  # entries of a row, or sums of them, that are added up at once

_ASKED = 2**16
"""Entries that a device asks the others for at once."""

Chunks = tuple[tuple[jax.Array, jax.Array], ...]
"""Of each level, (first i32[R], end i32[R]): the ranges that its R sums add up."""


def propagate(graph: Graph, x: jax.Array, method: str = "auto", mesh: MeshConfig = ONE) -> jax.Array:
    """One product A x with the symmetric normalised adjacency.

    Args:
      graph: of N nodes; entries outside indptr[0] to indptr[N] count for no row.
      x: f32[N, C]. Under `vmap` over x the mapped axis is folded into the columns.
      method: `csr` is the compressed-row kernel of the CPU backend, whose cost follows the entries in use and not the
        padding. `chunks` runs everywhere: it adds up a few entries of a row, then a few such sums, until each row is
        one sum; no two additions race for a row, so that results do not change from run to run. `auto` takes the
        former on a CPU and the latter elsewhere.
      mesh: devices that have some of the rows each, as `own_rows` gives them; static. Then there is no derivative.

    Returns:
      f32[N, C]. The derivative is the same product, because A is symmetric.

    Raises:
      ValueError: unknown method, or one for another backend.

    A user and an item that are each other's only neighbour:

    >>> graph = Graph(jnp.array([0, 1, 2]), jnp.array([1, 0]), jnp.ones(2))
    >>> propagate(graph, jnp.array([[4.0], [2.0]])).tolist()
    [[2.0], [4.0]]
    """
    chex.assert_rank([graph.indptr, graph.indices, graph.values, x], [1, 1, 1, 2])
    chex.assert_type([graph.values, x], float)
    chex.assert_axis_dimension(x, 0, graph.indptr.shape[0] - 1)
    on_cpu = by_backend(True, False)
    if method == "auto":
        method = "csr" if on_cpu else "chunks"
    if method not in _PRODUCTS:
        raise ValueError(f"method={method!r}: choose auto, {', '.join(_PRODUCTS)}")
    # The kernels of other backends assume that the first row begins at the first entry.
    if method == "csr" and not on_cpu:
        raise ValueError("method='csr': runs on a CPU only; choose auto or chunks")
    if mesh.devices > 1:
        # A row lies on one device, so that the sum is exact.
        return together(mesh, _PRODUCTS[method](graph, x))
    return _symmetric_product(method, graph, x)


def own_rows(mesh: MeshConfig, graph: Graph, longest: int) -> Graph:
    """The rows of a graph whose first entry lies in this device's part of the entries; the others are empty.

    Args:
      mesh: the devices; static.
      graph: of N nodes, whose entries lie in equal parts.
      longest: entries of a row, at most; static.

    Returns:
      Graph with this device's entries, and as many behind them as its last row may have there. With its chunks where
      products need them, as `with_chunks` gives them.
    """
    if mesh.devices == 1:
        return with_chunks(graph)
    (length,) = graph.indices.shape
    begin, last = number(mesh) * length, mesh.devices * length - 1
    bounds = jnp.searchsorted(graph.indptr, jnp.stack([begin, begin + length]))
    low, high = take(graph.indptr, jnp.minimum(bounds, graph.indptr.shape[0] - 1))

    def block(index: jax.Array, tail: Graph) -> Graph:
        at = jnp.minimum(begin + length + index * count + jnp.arange(count, dtype=jnp.int32), last)
        found = ask(mesh, at, lambda at: [part_of(mesh, x, at) for x in (graph.indices, graph.values)])
        indices, values = (
            dynamic_update_slice(old, new, (index * count,))
            for old, new in zip((tail.indices, tail.values), found, strict=True)
        )
        return tail._replace(indices=indices, values=values)

    count = min(_ASKED, longest)
    blocks = -(-longest // count)
    indices, values = (jnp.zeros(blocks * count, x.dtype) for x in (graph.indices, graph.values))
    # Rows of other devices are empty, at the start where they would lie before it.
    tail = Graph(jnp.maximum(jnp.clip(graph.indptr, low, high) - begin, 0), indices, values)
    behind = most(mesh, jnp.maximum(high - begin - length, 0))
    tail = jax.lax.fori_loop(0, ceil_div(behind, count), block, tail)
    indices = jnp.concatenate([graph.indices, tail.indices])
    return with_chunks(tail._replace(indices=indices, values=jnp.concatenate([graph.values, tail.values])))


def with_chunks(graph: Graph) -> Graph:
    """The graph with its `chunks`, so that products inside loops do not compute them again and again.

    Args:
      graph: of N nodes.

    Returns:
      Graph; the same one on a CPU, which needs no chunks, and where it has them already.
    """
    chex.assert_rank([graph.indptr, graph.indices], 1)
    if by_backend(True, False) or graph.chunks:
        return graph
    return graph._replace(chunks=_chunks(graph))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _symmetric_product(method, graph, x):
    return _PRODUCTS[method](graph, x)


def _product_fwd(method, graph, x):
    return _PRODUCTS[method](graph, x), graph


def _product_bwd(method, graph, g):
    return None, _symmetric_product(method, graph, g)


_symmetric_product.defvjp(_product_fwd, _product_bwd)


def _folded(product):
    """The product with a rule for `vmap` over x that folds the mapped axis into the columns."""

    @jax.custom_batching.custom_vmap
    def folded(graph: Graph, x):
        return product(graph, x)

    @folded.def_vmap
    def rule(axis_size, in_batched, graph, x):
        graph_batched = any(jax.tree.leaves(in_batched[0]))
        if graph_batched or not in_batched[1]:

            def batched(a, is_batched):
                return a if is_batched else jnp.broadcast_to(a, (axis_size, *a.shape))

            return jax.lax.map(lambda args: folded(*args), jax.tree.map(batched, (graph, x), tuple(in_batched))), True
        k, nodes, columns = x.shape
        made = folded(graph, x.transpose(1, 0, 2).reshape(nodes, k * columns))
        return made.reshape(nodes, k, columns).transpose(1, 0, 2), True

    return folded


def _csr(graph: Graph, x):
    nodes = x.shape[0]
    return sparse.BCSR((graph.values, graph.indices, graph.indptr), shape=(nodes, nodes)) @ x


def _chunked(graph: Graph, x: jax.Array) -> jax.Array:
    chunks: Chunks = graph.chunks or _chunks(graph)
    # `indptr` may leave out rows that the chunks, made for all rows, still have.
    low, high = graph.indptr[0], graph.indptr[-1]

    def entry(at, valid):
        valid &= (low <= at) & (at < high)
        at = jnp.where(valid, at, 0)
        return jnp.where(valid[..., None], graph.values[at][..., None] * x[graph.indices[at]], 0.0)

    sums = _sums(*chunks[0], entry)
    for first, end in chunks[1:]:

        def partial_sum(at, valid, sums=sums):
            return jnp.where(valid[..., None], sums[jnp.where(valid, at, 0)], 0.0)

        sums = _sums(first, end, partial_sum)
    return sums


def _sums(first: jax.Array, end: jax.Array, term: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
    """Sums of terms first, ..., min(end, first + _CHUNK) - 1, by term(at i32[...], valid bool[...]) -> f32[..., C]."""
    return by_backend(_sums_in_turn, _sums_at_once)(first, end, term)


def _sums_in_turn(first, end, term):
    # A CPU would write all terms to memory before adding them up.
    return sum(term(first + k, first + k < end) for k in range(_CHUNK))


def _sums_at_once(first, end, term):
    at = first[:, None] + jnp.arange(_CHUNK, dtype=jnp.int32)[None, :]
    return term(at, at < end[:, None]).sum(1)


def _chunks(graph: Graph) -> Chunks:
    """Ranges (first i32[R], end i32[R]) that the R sums of each level add up.

    The first level adds up entries of the graph, each further one the sums of the level before. The last level has one
    sum for each row.
    """
    begin, end = graph.indptr[:-1], graph.indptr[1:]
    nodes, total = begin.shape[0], graph.indices.shape[0]
    most, levels = min(nodes, total), []  # Neighbours are distinct, so no row is longer.
    while most > _CHUNK:
        counts = -(-(end - begin) // _CHUNK)
        ends = jnp.cumsum(counts)
        total, most = total // _CHUNK + nodes, -(-most // _CHUNK)
        row = jnp.repeat(jnp.arange(nodes, dtype=jnp.int32), counts, total_repeat_length=total)
        number = jnp.arange(total, dtype=jnp.int32)
        first = begin[row] + _CHUNK * (number - (ends - counts)[row])
        levels.append((first, jnp.where(number < ends[-1], end[row], first)))
        begin, end = ends - counts, ends
    return (*levels, (begin, end))


_PRODUCTS = {"csr": _folded(_csr), "chunks": _folded(_chunked)}
