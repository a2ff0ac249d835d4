"""The caller's ids of one side, and their rows."""

import dataclasses
import functools
from typing import Any

import numpy as np
import polars as pl

from scall_jax.streams.ids import whole_numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Ids:
    """Ids by row: `ids[row]` is the id that the caller's file has."""

    ids: pl.Series
    """Distinct integers or text, [n]."""

    def __len__(self) -> int:
        return len(self.ids)

    def given(self, values: Any) -> pl.Series:
        """Ids as a caller gives them.

        Args:
          values: one id, or anything that makes a polars Series.

        Returns:
          [m] in the type of `ids`, or all of them as text where one cannot be of that type: ids are the same if they
          are written alike, as in data, and 7 is not "007". Floats that are whole numbers are integers.

        >>> Ids(pl.Series([7, 12])).given("7").to_list(), Ids(pl.Series([7, 12])).given([7, "b"]).to_list()
        ([7], ['7', 'b'])

        Raises:
          ValueError: a float that is no whole number.
        """
        values = [values] if isinstance(values, str | int | np.integer) else values
        if not isinstance(values, pl.Series):
            values = list(values)
            if any(isinstance(value, str) for value in values):
                values = [str(value) for value in values]
            values = pl.Series(values, dtype=None if values else self.ids.dtype)
        values = whole_numbers(values, "the request")
        same = values.cast(self.ids.dtype, strict=False)
        return same if bool(_written_alike(same, values).all()) else values.cast(pl.String)

    def rows(self, values: pl.Series) -> np.ndarray:
        """Rows of some ids.

        Args:
          values: [m], integers or text.

        Returns:
          i64[m], -1 for an id that is not among these.

        >>> Ids(pl.Series(["a", "b"])).rows(pl.Series(["b", "c"])).tolist()
        [1, -1]
        """
        if not len(self.ids):
            return np.full(len(values), -1)
        ordered, rows = self._ordered
        cast = values.cast(self.ids.dtype, strict=False)
        place = np.minimum(ordered.search_sorted(cast).to_numpy(), len(ordered) - 1)
        same = (ordered[place] == cast).fill_null(False).to_numpy() & _written_alike(cast, values).to_numpy()
        return np.where(same, rows[place], -1)

    @functools.cached_property
    def _ordered(self) -> tuple[pl.Series, np.ndarray]:
        """Ids in ascending order, and their rows."""
        order = self.ids.arg_sort().to_numpy().astype(np.int64)
        return self.ids[order], order


def _written_alike(one: pl.Series, other: pl.Series) -> pl.Series:
    """bool[m]: which ids are written in the same letters, whatever their types."""
    if one.dtype == other.dtype:
        return pl.Series([True]).new_from_index(0, len(one))
    return (one.cast(pl.String) == other.cast(pl.String)).fill_null(False)
