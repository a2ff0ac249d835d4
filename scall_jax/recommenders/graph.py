"""Propagation over the normalised interaction graph: the sparse product that training spends its time in."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import sparse

from scall_jax.streams import Graph


def propagate(graph: Graph, x: jax.Array, method: str = "auto") -> jax.Array:
    """One product A x with the symmetric normalised adjacency.

    Args:
      graph: of N nodes; entries outside indptr[0] to indptr[N] count for no row.
      x: f32[N, C].
      method: `segment_sum`, the reference, which runs everywhere; `csr`, the compressed-row kernel of the CPU
        backend, whose cost follows the entries in use and not the padding; `auto` takes the latter on CPU. Under
        `vmap` over x the mapped axis is folded into the columns, so that the fast kernel still runs.

    Returns:
      f32[N, C]. The derivative is the same product, A being symmetric.
    """
    if method == "auto":
        method = "csr" if jax.default_backend() == "cpu" else "segment_sum"
    if method not in _PRODUCTS:
        raise ValueError(f"method={method!r}: choose auto, {', '.join(_PRODUCTS)}")
    return _symmetric_product(method, graph, x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _symmetric_product(method, graph, x):
    return _PRODUCTS[method](graph, x)


def _product_fwd(method, graph, x):
    return _PRODUCTS[method](graph, x), graph


def _product_bwd(method, graph, g):
    return None, _symmetric_product(method, graph, g)


_symmetric_product.defvjp(_product_fwd, _product_bwd)


def _segment_sum(graph: Graph, x):
    nodes, edges = x.shape[0], graph.indices.shape[0]
    # entries before the first row and behind the last one, of rows left out, go to rows of their own
    counts = jnp.concatenate([graph.indptr[:1], jnp.diff(graph.indptr), edges - graph.indptr[-1:]])
    row = jnp.repeat(jnp.arange(nodes + 2), counts, total_repeat_length=edges)
    products = graph.values[:, None] * x[graph.indices]
    return jax.ops.segment_sum(products, row, nodes + 2, indices_are_sorted=True)[1:-1]


@jax.custom_batching.custom_vmap
def _csr(graph: Graph, x):
    nodes = x.shape[0]
    return sparse.BCSR((graph.values, graph.indices, graph.indptr), shape=(nodes, nodes)) @ x


@_csr.def_vmap
def _csr_folded(axis_size, in_batched, graph, x):
    graph_batched = any(jax.tree.leaves(in_batched[0]))
    if graph_batched or not in_batched[1]:
        graph = jax.tree.map(lambda g, b: g if b else jnp.broadcast_to(g, (axis_size, *g.shape)), graph, in_batched[0])
        x = x if in_batched[1] else jnp.broadcast_to(x, (axis_size, *x.shape))
        return jax.lax.map(lambda args: _csr(*args), (graph, x)), True
    k, nodes, columns = x.shape
    folded = _csr(graph, x.transpose(1, 0, 2).reshape(nodes, k * columns))
    return folded.reshape(nodes, k, columns).transpose(1, 0, 2), True


_PRODUCTS = {"csr": _csr, "segment_sum": _segment_sum}
