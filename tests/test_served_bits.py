"""LightGCN ranking by final vectors in few bits, against codes that numpy makes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from scall_jax import Budget, Config, FitConfig, make_run
from scall_jax.methods.context import segment_context
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.lightgcn import LightGcn, embed
from scall_jax.tables.compressed.few_bits import round_rows
from tests.helpers import small_config, small_stream


def _coded(vectors, bits):
    """Codes u8[R, D], and the vectors that they give back with the best limit of the grid, float64."""
    half, x = 2 ** (bits - 1), np.asarray(vectors, np.float64)
    top = 2 ** np.ceil(np.log2(2 * np.abs(x).max()))
    step = (top * np.exp2((np.arange(1, 256) - 255) / 16) / half)[:, None, None]
    codes = np.clip(np.floor(x / step), -half, half - 1)
    best = ((x - (codes + 0.5) * step) ** 2).sum(2).argmin(0)
    rows = np.arange(len(x))
    return (codes[best, rows] + half).astype(np.uint8), (codes[best, rows] + 0.5) * step[best, 0]


@pytest.mark.parametrize("bits", [1, 4])
def test_rows_are_given_back_by_the_limit_of_the_least_squared_error(bits):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(20, 24)) * np.exp2(rng.uniform(-6, 2, (20, 1)))
    padded = jnp.asarray(np.pad(vectors, ((0, 0), (0, 8))), jnp.float32)
    back = np.asarray(jax.jit(round_rows, static_argnums=2)(padded, jnp.int32(24), bits))
    np.testing.assert_allclose(back[:, :24], _coded(vectors, bits)[1], rtol=1e-5)
    assert (back[:, 24:] == 0).all()


def test_recall_and_bytes_of_serving_are_those_of_the_coded_final_vectors():
    stream = small_stream(segments=2)
    config = small_config("uniform", budget=Budget.mean_size(6))
    config = dataclasses.replace(config, fit=dataclasses.replace(config.fit, served_bits=2, steps=10))
    run = make_run(config)
    state = run.init(jax.random.key(0), stream)
    segment = jax.tree.map(jnp.asarray, stream.segment(0))
    state, record = jax.jit(run.step)(state, segment)
    context = segment_context(config, state, segment)
    layout = context.storage.layout(state.plan)
    params = to_buffer(context.storage, context.storage.load(state.params, layout))
    everyone = jnp.arange(stream.capacity.nodes, dtype=jnp.int32)
    final = embed(LightGcn(context.storage, config.fit.layers), params, layout, segment.graph, everyone).final
    (users, items), capacity = state.known.tolist(), stream.capacity.users
    known = np.concatenate([np.arange(users), capacity + np.arange(items)])
    codes, vectors = _coded(np.asarray(final)[known, :6], 2)

    recalls, graph, test = [], segment.graph, segment.test
    for row in range(int(test.count)):
        user = int(test.users[row])
        scores = vectors[users:] @ vectors[user]
        scores[np.asarray(graph.indices[graph.indptr[user] : graph.indptr[user + 1]]) - capacity] = -np.inf
        relevant = np.asarray(test.items[test.indptr[row] : test.indptr[row + 1]])
        recalls.append(np.isin(np.argsort(-scores.round(6), kind="stable")[:20], relevant).sum() / len(relevant))
    np.testing.assert_allclose(record.test.recall[0, 2], np.mean(recalls), rtol=1e-5)

    planes = np.packbits((codes.ravel()[:, None] >> np.arange(2)) & 1)
    ways = run.method.bookkeeping(state, stream).serves_by(state.plan, (users, items), 10**9)
    assert ways["final_vectors"] == planes.nbytes + (users + items) + 4


def test_bits_of_final_vectors_need_a_propagation():
    with pytest.raises(ValueError, match=r"served_bits=5 at layers=3: choose one of 8, 4, 3, 2, 1"):
        FitConfig(served_bits=5)
    with pytest.raises(ValueError, match="served_bits=4 at layers=0"):
        FitConfig(served_bits=4, layers=0)
    with pytest.raises(ValueError, match="recommender='ials' serves from its table"):
        Config(recommender="ials", fit=FitConfig(served_bits=4))
