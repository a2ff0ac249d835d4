"""SAROS on rows that say what was clicked: their non-clicks against sampled exposures, by prequential metrics.

    python -m experiments.explicit_clicks --data movietweetings --click-rating 8 --budget.mean-size 8
    python -m experiments.explicit_clicks --data ratings.csv --click-rating 4 --cut.segments 6 --saros.momentum .9

A row is a click where its rating reaches `--click-rating`, and a non-click elsewhere (the published code: ratings from
4 of 5). Goes once through the blocks of all segments in the order of time, with vectors of one size for all, and ranks
the clicks of each block among all items that its user has not met before it learns from them. Prints the prequential
Recall@20 and NDCG@20 of the blocks after the first segment, with explicit non-clicks and with as many clicks and
sampled exposures (`--saros.exposures`), a step for each block and for each click. No row is held out. Cost: minutes on
a core. Expect sampled exposures ahead: what users rate low is still what they chose to see, and tells less of what they
will choose than items that they were never near. A part of it is that sampled exposures leave out what a user clicks
later in the segment, which explicit non-clicks cannot know.
"""

import dataclasses
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import streams, tables
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import stream_flags
from scall_jax.cli.cli import cli, command
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.saros import learning
from scall_jax.recommenders.saros.blocks import NOBODY, Blocks, explicit_blocks, thresholds, with_exposures
from scall_jax.recommenders.saros.config import UPDATES, SarosConfig
from scall_jax.run.text_files import write_atomically
from scall_jax.streams import Segment


@dataclasses.dataclass(frozen=True)
class ExplicitClicks(run_flags.Main):
    """Flags; of those of `experiments.run` the data, columns, cut, budget, saros and the seed matter."""

    data: str = "movietweetings"
    """Stream with ratings."""
    click_rating: float = 8.0
    """Least rating of a click."""
    out: Path = Path("runs/explicit-clicks")
    """Folder of the table."""


class Variant(NamedTuple):
    """A way of learning from the same clicks; static."""

    exposures: str  # explicit or sampled
    config: SarosConfig


def clicked(flags: ExplicitClicks, stream: streams.Stream) -> np.ndarray:
    """Which rows of a stream are clicks.

    Args:
      flags: say what a click is.
      stream: all rows, whatever their rating.

    Returns:
      bool[rows].

    Raises:
      ValueError: all rows are clicks, or the data has no ratings.
    """
    columns = dataclasses.replace(flags.columns, min_rating=flags.click_rating)
    clicks = stream_flags.load_stream(dataclasses.replace(flags, columns=columns))

    def rows(of: streams.Stream) -> list[tuple[object, object, int]]:
        ids = of.user_ids.gather(of.user).to_list(), of.item_ids.gather(of.item).to_list()
        return list(zip(*ids, of.time.tolist(), strict=True))

    chosen = set(rows(clicks))
    found = np.array([row in chosen for row in rows(stream)])
    if found.all():
        raise ValueError(f"--click-rating {flags.click_rating:g}: every row is a click, so that there is no non-click")
    return found


def blocks_of(stream: streams.Stream, click: np.ndarray, config: SarosConfig) -> list[Blocks]:
    """Explicit blocks of each segment, of the rows since the cut before, of users between the thresholds.

    Args:
      stream: all rows.
      click: bool[rows].
      config: has the thresholds.

    Returns:
      Blocks by segment, of equal shapes.
    """
    found, before = [], 0
    for bounds in stream.bounds:
        rows = np.arange(before, bounds.train)
        blocks = explicit_blocks(stream.user[rows], stream.item[rows], click[rows], bounds.train - rows)
        found.append(_between_thresholds(blocks, config))
        before = bounds.train
    shapes = [np.max([getattr(b, name).shape for b in found], axis=0) for name in Blocks._fields[:3]]

    def padded(values: jax.Array, shape: np.ndarray, fill: int) -> jax.Array:
        room = [(0, int(length) - size) for length, size in zip(shape, values.shape, strict=True)]
        return jnp.pad(values, room, constant_values=fill)

    return [
        Blocks(
            user=padded(b.user, shapes[0], 0),
            clicks=padded(b.clicks, shapes[1], NOBODY),
            exposures=padded(b.exposures, shapes[2], NOBODY),
            age=padded(b.age, shapes[0], 0),
            count=b.count,
        )
        for b in found
    ]


def _between_thresholds(blocks: Blocks, config: SarosConfig) -> Blocks:
    """The blocks of users with neither too few nor, from the first on, too many."""
    user = np.asarray(blocks.user)
    of_user = np.bincount(user)
    counts = of_user[of_user > 0]
    if not len(counts):
        return blocks
    least, most = (int(x) for x in thresholds(config, jnp.asarray(counts), jnp.int32(len(counts))))
    seen, kept = {}, []
    for place, who in enumerate(user.tolist()):
        seen[who] = seen.get(who, 0) + 1
        if of_user[who] >= least and seen[who] <= most:
            kept.append(place)
    chosen = jnp.array(kept, jnp.int32)
    user, clicks, exposures, age = (array[chosen] for array in blocks[:4])
    return Blocks(user, clicks, exposures, age, jnp.int32(len(kept)))


def learned(variant: Variant, size: int, key: jax.Array, state: learning.Learned, segment: Segment, blocks: Blocks):
    """Learn from a segment's blocks, each ranked before.

    Args:
      variant: static.
      size: coordinates of every vector; static.
      key: typed PRNG key of the segment's exposures.
      state: before the segment.
      segment: the data.
      blocks: explicit ones.

    Returns:
      Learned; `found` is of the segment alone.
    """
    storage, layout = storage_of(segment, size)
    if variant.exposures == "sampled":
        nobody = jnp.full((blocks.user.shape[0], variant.config.exposures), NOBODY, jnp.int32)
        blocks = with_exposures(key, blocks._replace(exposures=nobody), segment)
    met = learning.Met(segment.graph, segment.ages, segment.items)
    state = state._replace(found=jnp.zeros(3))
    bias = jnp.zeros(streams.sides(segment)[1])
    return learning.learn(storage, variant.config, state, layout, blocks, bias, met)


def storage_of(segment: Segment, size: int) -> tuple[tables.Storage, tables.Layout]:
    """Packed vectors of one size for all places of users and items.

    Args:
      segment: says how many.
      size: coordinates.
    """
    users, items = streams.sides(segment)
    storage = tables.sized(tables.packed(size * (users + items), users, items, size), users, size)
    sizes = jnp.concatenate([jnp.full(users + items, size), jnp.zeros(2)]).astype(jnp.int32)
    return storage, storage.layout(sizes)


def main(flags: ExplicitClicks) -> list[list[str]]:
    """Go through the stream in each way, and print the table; its lines."""
    stream = stream_flags.load_stream(flags)
    click = clicked(flags, stream)
    by_segment, size = blocks_of(stream, click, flags.saros), max(1, int(flags.budget.mean_size or 8))
    key, lines = jax.random.key(flags.seed), []
    for exposures in ("explicit", "sampled"):
        for update in UPDATES:
            variant = Variant(exposures, dataclasses.replace(flags.saros, update=update))
            program = jax.jit(functools.partial(learned, variant, size))
            storage, layout = storage_of(stream.segment(0), size)
            params = storage.fresh(derive(key, Purpose.TABLE), layout, flags.warm_start.init_std)
            state, found = learning.start(variant.config, params), []
            for t, blocks in enumerate(by_segment):
                segment = jax.tree.map(jnp.asarray, stream.segment(t))
                state = program(derive(key, Purpose.SEGMENT, t), state, segment, blocks)
                found.append(np.asarray(state.found))
            recall, ndcg, count = np.sum(found[1:], axis=0)
            lines.append([exposures, update, f"{recall / count:.4f}", f"{ndcg / count:.4f}", f"{int(count):,}"])
    text = report.markdown(["non-clicks", "a step for each", "Recall@20", "NDCG@20", "blocks"], lines)
    title = f"{stream.source}: {len(stream)} segments, {click.mean():.0%} of the rows are clicks, size {size}"
    flags.out.mkdir(parents=True, exist_ok=True)
    write_atomically(flags.out / "table.md", f"# {title}\n\n`{command()}`\n\n{text}\n")
    print(f"{title}\n\n{text}")
    return lines


if __name__ == "__main__":
    cli(ExplicitClicks, main, __doc__)
