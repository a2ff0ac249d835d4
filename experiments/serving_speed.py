"""How long a request takes: the best items of many users, by their ids, beside the matrix product in it.

    taskset -c 0 env OPENBLAS_NUM_THREADS=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false \\
        python -m experiments.serving_speed

A model of random vectors, of users who have met --seen items each, answers `Model.recommend` for --users users at
--items items of --width columns, and NumPy multiplies the same vectors into blocks that stay in the cache, which is the
least that an exact ranking does. They take turns, --repeats of each; medians and the least are printed, on the wall and
of the process, which other work on the core does not lengthen as much. The first request compiles, and stands apart.
Cost: some seconds. Expect a request to take less than twice as long as the product.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from scall_jax import Budget, Config, Model
from scall_jax.cli.cli import cli
from scall_jax.recommenders.served import Neighbours, Served, fold_neighbours
from scall_jax.serving.build import NOTHING
from scall_jax.serving.data import ModelBudget, Seen
from scall_jax.serving.ids import Ids

_BLOCK = 20  # users whose scores NumPy makes at once: 4 MB at 50,000 items


@dataclasses.dataclass(frozen=True)
class ServingSpeed:
    """Flags of the measurement."""

    users: int = 1000
    """Users of a request."""
    items: int = 50_000
    """Items of the model."""
    width: int = 16
    """Columns of the vectors."""
    k: int = 10
    """Items that each user gets."""
    seen: int = 20
    """Items that each user has met."""
    known: int = 100_000
    """Users of the model."""
    repeats: int = 10
    """Requests that are measured in turn."""
    rounds: int = 4
    """Turns of requests and of products."""


def random_model(flags: ServingSpeed) -> Model:
    """A model of random vectors; users' ids are text, items' are numbers."""
    rng = np.random.default_rng(0)
    users, items = (rng.normal(size=(n, flags.width)).astype(np.float32) for n in (flags.known, flags.items))
    seen = np.sort(rng.integers(0, flags.items, (flags.known, flags.seen)), axis=1).astype(np.uint32)
    served = Served(jnp.asarray(users), jnp.asarray(items), jnp.zeros(flags.items), Neighbours(jnp.asarray(items)))
    nbytes = users.nbytes + items.nbytes
    return Model(
        config=Config("uniform", Budget.mean_size(flags.width)),
        segment=0,
        budget=ModelBudget(Budget.mean_size(flags.width), "table", nbytes, nbytes, nbytes, nbytes),
        users=Ids(pl.Series([f"user {row}" for row in range(flags.known)])),
        items=Ids(pl.Series(np.arange(flags.items))),
        served=served,
        fold_in=fold_neighbours,
        popularity=np.ones(flags.items, np.float32),
        popularity_name="all",
        seen=Seen(np.arange(flags.known + 1, dtype=np.uint32) * np.uint32(flags.seen), seen.ravel()),
        table=pl.DataFrame(),
        stored={},
        origin={},
        waiting=NOTHING,
        going_on="a model of random vectors has no run to go on with",
    )


def _milliseconds(work: Callable[[], Any]) -> tuple[float, float]:
    """On the wall, and of the process."""
    wall, process = time.perf_counter(), time.process_time()
    work()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - process)


def main(flags: ServingSpeed) -> dict[str, float]:
    """Measure and print.

    Args:
      flags: of the measurement.

    Returns:
      Milliseconds of requests and products, and of the first request.
    """
    model = random_model(flags)
    ids = model.users.ids.sample(flags.users, seed=1)
    vectors = model.vectors("users")[model.users.rows(ids)]
    columns, scores = np.ascontiguousarray(model.vectors("items").T), np.empty((_BLOCK, flags.items), np.float32)

    def product() -> None:
        for first in range(0, flags.users, _BLOCK):
            part = vectors[first : first + _BLOCK]
            np.matmul(part, columns, out=scores[: len(part)])

    def request() -> None:
        model.recommend(ids, flags.k)

    result = {"first request": _milliseconds(request)[0]}
    product()
    taken: dict[str, list[tuple[float, float]]] = {"request": [], "product": []}
    for _ in range(flags.rounds):
        for name, work in (("request", request), ("product", product)):
            taken[name] += [_milliseconds(work) for _ in range(flags.repeats)]
    for name, pairs in taken.items():
        for clock, times in zip(("wall", "process"), np.array(pairs).T, strict=True):
            result |= {f"{name}, {clock}": float(np.median(times)), f"{name}, {clock}, least": float(times.min())}
    print(
        f"{flags.users:,} users, {flags.items:,} items, width {flags.width}, k {flags.k}, on {jax.devices()[0]}:\n"
        + "\n".join(f"{name} {value:.1f} ms" for name, value in result.items())
        + f"\nrequest / product, of the process: {result['request, process'] / result['product, process']:.2f}"
    )
    return result


if __name__ == "__main__":
    cli(ServingSpeed, main, __doc__)
