"""A seeded stream of any size with what real streams have: Zipf popularity, arrivals, fading, drifting tastes."""

from typing import NamedTuple

import jax
import numpy as np

from scall_jax.streams.interactions import Interactions, from_arrays

_START = 1_577_836_800_000  # 2020-01-01 in milliseconds
_CHUNK = 2000  # rows that share one activity and one taste per user


class _Side(NamedTuple):
    """Users or items."""

    base: np.ndarray  # f64[n], activity at arrival
    arrival: np.ndarray  # f64[n], time of arrival as a part of the stream
    tastes: np.ndarray  # f64[n, K], unit vectors


def synthetic(
    key: jax.Array,
    *,
    users: int = 2000,
    items: int = 1000,
    interactions: int = 40000,
    tastes: int = 8,
    zipf: float = 0.8,
    lifetime: float = 0.4,
    drift: float = 0.5,
    strength: float = 4.0,
    days: float = 365.0,
) -> Interactions:
    """Draw a stream.

    Every entity arrives at a random time (a fifth of them at the start), and its activity decays exponentially from
    then on. Users and items have unit taste vectors; users' tastes turn towards a second vector in the course of the
    stream. A row is a user drawn by activity and an item drawn with probability proportional to activity x
    exp(strength x <taste, taste>).

    Args:
      key: typed PRNG key.
      users: number of users; entities that draw no row do not appear.
      items: number of items.
      interactions: number of rows.
      tastes: dimension of the taste vectors.
      zipf: exponent of base activity by rank, both sides.
      lifetime: mean lifetime of an entity as a part of the stream; infinity for no fading.
      drift: how far users' tastes turn, 0 none to 1 entirely.
      strength: weight of taste against popularity; 0 makes popularity all there is.
      days: length of the stream.

    Returns:
      Interactions sorted by time, from 2020-01-01, ids `u<number>` and `i<number>`.

    Raises:
      ValueError: sizes below 1 or negative parameters.

    >>> import jax
    >>> rows = synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> len(rows), bool((rows.time[1:] >= rows.time[:-1]).all())
    (1000, True)
    """
    if min(users, items, interactions, tastes) < 1 or min(zipf, lifetime, drift, strength, days) < 0:
        raise ValueError("sizes must be at least 1 and zipf, lifetime, drift, strength, days not negative")
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
    user_side = _side(rng, users, tastes, zipf)
    item_side = _side(rng, items, tastes, zipf)
    turned = _unit(rng.normal(size=(users, tastes)))
    times = np.sort(rng.uniform(size=interactions))
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for chunk in np.array_split(times, max(1, interactions // _CHUNK)):
        now = chunk.mean()
        activity = _activity(user_side, now, lifetime)
        user = rng.choice(users, size=len(chunk), p=activity / activity.sum())
        weight = drift * now
        taste = _unit((1 - weight) * user_side.tastes[user] + weight * turned[user])
        logits = strength * taste @ item_side.tastes.T + np.log(_activity(item_side, now, lifetime))
        gumbel = logits + rng.gumbel(size=logits.shape)
        parts.append((user, gumbel.argmax(1)))
    user, item = (np.concatenate(column) for column in zip(*parts, strict=True))
    time = _START + (times * days * 86_400_000).astype(np.int64)
    return from_arrays([f"u{u}" for u in user], [f"i{i}" for i in item], time, "synthetic")


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _side(rng: np.random.Generator, n: int, tastes: int, zipf: float) -> _Side:
    base = rng.permutation(np.arange(1, n + 1) ** -zipf)
    arrival = np.where(rng.uniform(size=n) < 0.2, 0.0, rng.uniform(size=n) * 0.95)
    return _Side(base, arrival, _unit(rng.normal(size=(n, tastes))))


def _activity(side: _Side, now: float, lifetime: float) -> np.ndarray:
    """Activity of each entity at a time; nearly 0 before its arrival."""
    age = now - side.arrival
    fading = np.exp(-np.maximum(age, 0) / lifetime) if lifetime > 0 else np.ones_like(age)
    return np.where(age >= 0, side.base * fading, 1e-12) + 1e-300
