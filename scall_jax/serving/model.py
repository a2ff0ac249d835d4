"""Model: what a run has learned, by the caller's own ids; immutable."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from scall_jax.serving import answers, export_folder, scoring
from scall_jax.serving.build import update
from scall_jax.serving.data import ModelData
from scall_jax.serving.groups import Group, by_width
from scall_jax.streams import Interactions
from scall_jax.streams.growing import Late


class Model(ModelData):
    """A recommender as a run has left it after its last finished segment; `scall_jax.load` reads one.

    Vectors are decoded from what the run stores, and all known users' and items' are held in float32. Nothing changes a
    model: every method is a function of its fields.
    """

    def __repr__(self) -> str:
        return (
            f"Model({self.config.method}, segment {self.segment}: {len(self.users):,} users, "
            f"{len(self.items):,} items, {self.budget.table:,} bytes of table)"
        )

    def recommend(
        self,
        users: Any = None,
        k: int = 10,
        exclude_seen: bool = True,
        items_of: Any = None,
    ) -> pl.DataFrame:
        """Recommend items.

        Args:
          users: ids, or one id; None for all known users.
          k: items of each user.
          exclude_seen: leave out what a user has met, in the run or in `items_of`.
          items_of: items of some users, as a dictionary from id to ids or a frame with the columns `user` and `item`.
            A user whom the run does not know is folded in from them; of a known one they count as seen. Items that the
            run does not know are left out.

        Returns:
          A row per recommendation with the columns `user`, `rank` (from 1), `item`, `score` and `source`: `known`, the
          user's own vector; `folded in` from `items_of`; `popularity` where neither is there, and for methods that rank
          by nothing else. Users are in the order given. A user has fewer than k rows where no more items are left.

        Raises:
          ValueError: k below 1, no users, or `items_of` in another form.
        """
        return answers.recommend(self, users, k, exclude_seen, items_of)

    def similar_items(self, items: Any, k: int = 10) -> pl.DataFrame:
        """Items whose vectors have the largest cosine with an item's.

        Args:
          items: ids, or one id.
          k: similar items of each.

        Returns:
          A row each with the columns `item`, `rank` (from 1), `similar` and `score`, the cosine.

        Raises:
          ValueError: k below 1, an unknown item, or a method without vectors.
        """
        return answers.similar_items(self, items, k)

    def sizes(self) -> pl.DataFrame:
        """Sizes of all known entities.

        Returns:
          A row each with the columns `id` (text where users and items have ids of different types), `side` (`users` or
          `items`), `size` (coordinates of the entity's own vector; 0 for one that reads its side's shared vector),
          `bits` (of a coordinate as it is stored) and `frequency` (rows of the entity before the segment's cut).
        """
        return self.table

    def vectors(self, side: str) -> np.ndarray:
        """Vectors whose inner products, plus the items' bias, are the scores.

        Args:
          side: `users` or `items`.

        Returns:
          f32[n, D] in the order of `self.users.ids` or `self.items.ids`. Methods without users' vectors have n = 0
          there.

        Raises:
          ValueError: another side.
        """
        if side not in ("users", "items"):
            raise ValueError(f"side={side!r}: choose users or items")
        return np.asarray(getattr(self.served, side))

    def update(self, rows: Interactions | pl.DataFrame, late: Late = "refuse") -> "Model":
        """The model that new rows lead to; this one stays as it is, and no folder is written.

        Segments that are complete are cut by the run's rule, sizes are planned within the budget, and vectors are
        trained or solved for, as the run does it: `scall_jax.run.update` on the folder ends in the same model. Until a
        segment is complete, rows count in what users have met, in popularity, and for users without a vector, who are
        folded in from them.

        Args:
          rows: in any number, by the caller's ids: interactions, or a frame with the columns `user`, `item` and `time`
            (dates, or integers in milliseconds since 1970).
          late: what becomes of rows that are earlier than the last row of a segment: refuse, or clamp, which places
            them at the time of that row.

        Returns:
          Model.

        Raises:
          ValueError: a model that cannot go on, and why; rows that cannot be placed; a budget that does not suffice any
            longer; a non-finite loss.
        """
        return update(self, rows, late)

    def groups(self, side: str, widths: Sequence[int] | None = None) -> list[Group]:
        """Vectors by their width, for search engines that index each width apart.

        A score needs no more columns than the narrower one of its two vectors has. The best items of a user are among
        the best of each group, by the user's leading columns, so that indexes of all groups together find what one
        index of `vectors` finds, and hold fewer numbers. Vectors of LightGCN are propagated: all have the full width.

        Args:
          side: `users` or `items`.
          widths: that there are to be, such as (16, 32, 64): each vector goes to the narrowest one that holds it, with
            zeros behind it. None for one group of each width that occurs.

        Returns:
          Groups by ascending width, each with its rows of `self.users.ids` or `self.items.ids`.

        Raises:
          ValueError: another side, a width below 1, or none that holds the longest vector.
        """
        return by_width(self.vectors(side), widths)

    def export(self, path: str | Path) -> Path:
        """Write the model to a folder that can be read without this library.

        Args:
          path: of a folder that does not exist or is empty.

        Returns:
          The path.

        Raises:
          ValueError: the folder has files, or cannot be written.
        """
        return export_folder.write(self, Path(path))

    def export_scoring(self, path: str | Path) -> Path:
        """Write the scores as one file: StableHLO for CPU, CUDA and TPU, with the vectors inside (`jax.export`).

        `jax.export.deserialize(content).call(rows)` takes rows i32[b] of `self.users.ids`, of any number b, and returns
        f32[b, items], the scores of `recommend(exclude_seen=False)` in the order of `self.items.ids`. A row that is
        none of these, -1 for example, has the scores of popularity. The vectors are float32, which the budget does not
        bind.

        Args:
          path: of a file that does not exist.

        Returns:
          The path.

        Raises:
          ValueError: the file exists or cannot be written, flatbuffers is not installed (the extra `stablehlo`), or the
            method has no vectors of users (ease).
        """
        return scoring.write(self, Path(path))
