"""Fits of a few coordinates, by which a run chooses the parameters of its fits: follow the leader on valid."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from scall_jax.ops.devices import MeshConfig
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.ials.choice import Chosen, Grid, bias_of, hyper_of
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.fit import solve, sweeps_of
from scall_jax.recommenders.ials.judged_fit import evaluate
from scall_jax.recommenders.ials.problem import Hyper, Weighting
from scall_jax.recommenders.judge import Judging, first_users
from scall_jax.streams import Segment, active_mask, sides
from scall_jax.tables.packed import packed
from scall_jax.tables.sized import sized
from scall_jax.tables.storage import Storage, StorageLayout
from scall_jax.tables.table import Params


class _Narrow(NamedTuple):
    """What the narrow fits of a segment share."""

    config: IalsConfig
    storage: Storage
    layout: StorageLayout
    start: Params
    segment: Segment
    judging: Judging
    mesh: MeshConfig


def choose(
    config: IalsConfig,
    among: Grid,
    biases: bool,
    judging: Judging,
    mesh: MeshConfig,
    key: jax.Array,
    chosen: Chosen,
    segment: Segment,
    mean: float,
) -> Chosen:
    """Follow the leader: narrow fits with each candidate, judged on all validation parts so far.

    Args:
      config: of the fits; static.
      among: the candidates; static.
      biases: choose a bias too; static.
      judging: on whom; static.
      mesh: devices that fits and ranking are spread over; static.
      key: typed PRNG key.
      chosen: what is remembered.
      segment: the data.
      mean: coordinates that an entity of the first segment has on average, which the width follows; static.

    Returns:
      Chosen. The users' half-life is not chosen here, but by fits of the run's own sizes: at a narrow width one would
      lead that is not the best at a wide one.
    """
    narrow = _narrow(config, config.width_of_choice(mean), judging, mesh, key, segment)
    chosen = _choose_weights(narrow, among, chosen)
    if not biases:
        return chosen
    fading, unobserved, regularisation, _ = hyper_of(among, chosen)
    params = _fitted(narrow, fading, unobserved, regularisation)
    numbers = jnp.arange(chosen.biases.shape[0], dtype=jnp.int32)
    found = jax.lax.map(lambda number: _fitness(narrow, params, bias_of(segment, number)[0]), numbers)
    totals = chosen.biases + found
    return chosen._replace(biases=totals, bias=jnp.argmax(totals).astype(jnp.int32))


def _choose_weights(narrow: _Narrow, among: Grid, chosen: Chosen) -> Chosen:
    """Choose the pair of a half-life and an a0, then the regularisation."""
    pairs, regularisations = jnp.asarray(among.weights), jnp.asarray(among.regularisations)
    count = (len(pairs) if len(pairs) > 1 else 0, len(regularisations) if len(regularisations) > 1 else 0)
    no_bias = jnp.zeros(sides(narrow.segment)[1])

    # All fits are calls of one function in one loop, since each call of it would be compiled by itself.
    def attempt(number: jax.Array, chosen: Chosen) -> Chosen:
        of_pair = number < count[0]
        pair = jnp.where(of_pair, number, chosen.weight)
        other = jnp.where(of_pair, chosen.regularisation, number - count[0])
        fading, unobserved = pairs[pair]
        found = _fitness(narrow, _fitted(narrow, fading, unobserved, regularisations[other]), no_bias)
        chosen = chosen._replace(
            weights=chosen.weights.at[pair].add(jnp.where(of_pair, found, 0.0)),
            regularisations=chosen.regularisations.at[other].add(jnp.where(of_pair, 0.0, found)),
        )
        # The regularisations are compared with the pair that leads once all pairs are judged.
        leads = jnp.argmax(chosen.weights).astype(jnp.int32)
        return chosen._replace(weight=jnp.where(number == count[0] - 1, leads, chosen.weight))

    if sum(count):
        chosen = jax.lax.fori_loop(0, sum(count), attempt, chosen)
    if count[1]:
        chosen = chosen._replace(regularisation=jnp.argmax(chosen.regularisations).astype(jnp.int32))
    return chosen


def _narrow(
    config: IalsConfig, width: int, judging: Judging, mesh: MeshConfig, key: jax.Array, segment: Segment
) -> _Narrow:
    users, items = sides(segment)
    storage = sized(packed(width * (users + items), users, items, width, mesh.devices), users, width)
    sizes = jnp.concatenate([jnp.where(active_mask(segment), width, 0), jnp.zeros(2, jnp.int32)])
    layout = storage.layout(sizes)
    start = to_buffer(storage, storage.fresh(derive(key, Purpose.TABLE), layout, 0.1), mesh)
    return _Narrow(config, storage, layout, start, segment, judging, mesh)


def _fitted(narrow: _Narrow, fading: jax.Array, unobserved: jax.Array, regularisation: jax.Array) -> Params:
    """Fit, with one half-life for all half sweeps; each argument is an f32[] of `Hyper`."""
    config, segment = narrow.config, narrow.segment
    weighting, length = Weighting(config.exponent, config.counts), sweeps_of(config, config.choice_sweeps)
    hyper, no_bias = Hyper(fading, unobserved, regularisation, users_fading=fading), jnp.zeros(sides(segment)[1])
    given = narrow.start, narrow.layout, segment, no_bias, hyper, weighting
    return solve(narrow.storage, length, *given, mesh=narrow.mesh).params


def _fitness(narrow: _Narrow, params: Params, item_bias: jax.Array) -> jax.Array:
    """Sum over the users that are looked at, f32[]."""
    segment, judging = narrow.segment, narrow.judging
    sampled = first_users(segment.valid, judging.valid_users)
    (metrics,) = evaluate(
        narrow.mesh, narrow.storage, params, narrow.layout, segment, [sampled], item_bias, candidates=judging.candidates
    )
    return metrics.fitness() * sampled.count.astype(jnp.float32)
