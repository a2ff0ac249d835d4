"""Files to Interactions: published formats and any table with named columns, checked row by row.

Recognised by content: MovieLens `ratings.dat` (`user::item::rating::timestamp`, also MovieTweetings), `u.data`,
`ratings.csv`; Amazon reviews and Yelp `review.json` as JSON lines; Gowalla check-ins; any CSV, TSV, JSON-lines or
Parquet file with named columns. All text formats may be gzipped.
"""

import functools
from pathlib import Path

import numpy as np
import polars as pl

from scall_jax.streams.columns import Origin, check_dtype, find_column
from scall_jax.streams.ids import encode, missing, tidy
from scall_jax.streams.interactions import Interactions
from scall_jax.streams.parsing import parse
from scall_jax.streams.times import milliseconds


def read(
    path: str | Path,
    *,
    format: str = "auto",
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    min_rating: float | None = None,
    time_unit: str = "auto",
) -> Interactions:
    """Read a file of interactions.

    Args:
      path: the file, gzipped or not.
      format: one of `FORMATS`; `auto` looks at the content.
      user: name of the column of user ids; None, here and for the other columns, looks for the names that published
        formats use. Files without a header other than the published ones have columns `column_1`, `column_2`, ...; a
        first line is data if it has a number or a date and none of these names.
      item: name of the column of item ids.
      timestamp: name of the column of timestamps.
      rating: name of the column of ratings.
      min_rating: keep only rows rated at least this; needs a rating column.
      time_unit: `s`, `ms`, `us` for numeric timestamps; `auto` judges by size. Text is read as ISO-8601 or
        `YYYY-MM-DD[ HH:MM:SS]`, UTC unless it says otherwise.

    Returns:
      Interactions in source order.

    Raises:
      ValueError: naming file, row and column: missing file or column, null id, timestamp that does not parse or is
        negative, rating that does not parse, a column of lists or bytes, empty or truncated file, mixed delimiters.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "clicks.csv")
    ...     _ = path.write_text("user,item,timestamp\\nann,tea,2024-01-01\\nbob,tea,2024-01-02\\n")
    ...     rows = read(path)
    >>> len(rows), rows.user_ids.to_list(), rows.item.tolist()
    (2, ['ann', 'bob'], [0, 0])
    """
    path = Path(path)
    names = {"user": user, "item": item, "timestamp": timestamp}
    if min_rating is not None:
        names["rating"] = rating
    content = parse(path, format, [name for name in names.values() if name is not None])
    columns = {role: find_column(content, role, name, path) for role, name in names.items()}
    frame = content.frame.select(pl.col(name).alias(role) for role, name in columns.items())
    origin = Origin(path, content.first_row, columns)
    del content  # Free the columns that have no role.
    for role in columns:
        check_dtype(frame[role], role, origin)
    for role in ("user", "item", "timestamp"):
        origin.refuse(missing(frame[role]), "is missing (null or empty)", role, frame[role])
    refuse = functools.partial(origin.refuse, role="timestamp", values=frame["timestamp"])
    time = milliseconds(frame["timestamp"], time_unit, refuse)
    del refuse
    if min_rating is not None:
        frame, time = _rated_at_least(frame, time, min_rating, origin)
    users, items = frame["user"], frame["item"]
    del frame  # Free timestamps and ratings while ids are encoded.
    user_codes, user_ids = encode(tidy(users))
    item_codes, item_ids = encode(tidy(items))
    return Interactions(user_codes, item_codes, time, user_ids, item_ids, str(path))


def _rated_at_least(
    frame: pl.DataFrame, time: np.ndarray, min_rating: float, origin: Origin
) -> tuple[pl.DataFrame, np.ndarray]:
    """The rows, and their times, whose rating reaches the minimum."""
    rating = frame["rating"].cast(pl.Float64, strict=False)
    origin.refuse(rating.is_null() | rating.is_nan(), "is not a number", "rating", frame["rating"])
    keep = (rating >= min_rating).to_numpy()
    if not keep.any():
        raise ValueError(
            f"{origin.path}, column {origin.columns['rating']!r}: no rating reaches min_rating={min_rating:g}"
        )
    return frame.filter(keep), time[np.flatnonzero(keep)]
