"""Files to Interactions: published formats and any table with named columns, checked row by row.

Recognised by content: MovieLens `ratings.dat` (`user::item::rating::timestamp`, also MovieTweetings), `u.data`,
`ratings.csv`; Amazon reviews and Yelp `review.json` as JSON lines; Gowalla check-ins; RecBole's files; any separated
text, JSON-lines or Parquet file with named columns. All text formats may be compressed.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from scall_jax.streams.columns import find_column
from scall_jax.streams.gather import Gather
from scall_jax.streams.ids import MISSING
from scall_jax.streams.interactions import Interactions
from scall_jax.streams.memory import Account, limit_bytes
from scall_jax.streams.options import ReadOptions
from scall_jax.streams.parsing import Reading, Table, open_table
from scall_jax.streams.progress import ReadProgress
from scall_jax.streams.sources import files_of


def read(
    path: str | Path | Sequence[str | Path],
    *,
    format: str = "auto",
    separator: str | None = None,
    encoding: str | None = None,
    folder: bool = False,
    user: str | None = None,
    item: str | None = None,
    timestamp: str | None = None,
    rating: str | None = None,
    min_rating: float | None = None,
    time_unit: str = "auto",
    time_format: str | None = None,
    missing: Sequence[str] = MISSING,
    skip_incomplete: bool = False,
    max_memory: float | None = None,
) -> Interactions:
    """Read a file of interactions, or several files with parts of one table.

    Numbers of rows in errors are those of lines: with a header the first row of data is row 2.

    Args:
      path: the file, taken literally (`*` and `[` are characters like any other); or files with parts of one table, in
        their order.
      format: one of `FORMATS`; `auto` looks at the content, and checks what it takes it for against the values.
      separator: between the fields of text, `;` or `::` for example; None looks at the first lines.
      encoding: of text, as Python names it; None for UTF-8.
      folder: whether the path is a folder, all files of which are parts of one table, in the order of their names.
      user: name of the column of user ids; None, here and for the other columns, looks for the names that published
        formats use. Files without a header other than the published ones have columns `column_1`, `column_2`, ...; a
        first line is data if it has a number or a date and none of these names.
      item: name of the column of item ids.
      timestamp: name of the column of timestamps.
      rating: name of the column of ratings.
      min_rating: keep only rows rated at least this; needs a rating column.
      time_unit: `s`, `ms`, `us` or `ns` for numeric timestamps; `auto` judges by size and refuses rows that disagree.
        Text is read as ISO-8601 or `YYYY-MM-DD[ HH:MM:SS]`, also with `/`, UTC unless it says otherwise.
      time_format: form of dates as `datetime.strptime` takes it, `%m/%d/%Y %H:%M` for example; zone names are those of
        RFC 2822.
      missing: texts that stand for a missing value, besides the empty one.
      skip_incomplete: leave rows out in which a value is missing, and warn how many; without it they are an error.
      max_memory: megabytes of 10^6 bytes that reading may take, by estimate; None for half of what the machine has.

    Returns:
      Interactions in source order; their `notes` say what was guessed.

    Raises:
      ValueError: naming file, row and column: missing file or column, null id, timestamp that does not parse, is of
        another unit than others or before 1970, rating that does not parse, lists or bytes as values, text in another
        encoding, empty or truncated file, mixed delimiters; or more memory than may be taken.

    Warns:
      DataWarning: rows that were left out because a value is missing, rows whose time is far from all others, and ids
        that differ but may be one.

    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder, "clicks.csv")
    ...     _ = path.write_text("user,item,timestamp\\nann,tea,2024-01-01\\nbob,tea,2024-01-02\\n")
    ...     rows = read(path)
    >>> len(rows), rows.user_ids.to_list(), rows.item.tolist()
    (2, ['ann', 'bob'], [0, 0])
    """
    options = ReadOptions(
        format=format,
        separator={r"\t": "\t"}.get(separator or "", separator),  # as a shell passes it on
        encoding=encoding,
        user=user,
        item=item,
        timestamp=timestamp,
        rating=rating,
        min_rating=min_rating,
        time_unit=time_unit,
        time_format=time_format,
        missing=missing,
        skip_incomplete=skip_incomplete,
    )
    files = files_of(path, folder)
    source = str(path) if isinstance(path, (str, Path)) else str(files[0])
    more = f" and {len(files) - 1} more" if len(files) > 1 and not folder else ""
    return _read_parts(files, options, Account(limit_bytes(max_memory)), f"{source}{more}")


def _read_parts(files: list[Path], options: ReadOptions, account: Account, source: str) -> Interactions:
    gather = Gather(options, account, source)
    notes: dict[str, None] = {}
    with ReadProgress(sum(file.stat().st_size for file in files), source) as progress:
        for file in files:
            table = open_table(file, Reading(options, account.block, progress.update))
            columns = _columns(table, options, file)
            account.expect(table.rows or 0, str(file))
            gather.places.add(file, gather.rows, table.first_row, columns)
            for frame in table.frames(columns):
                gather.add(frame, table.bare_quotes, progress.part)
            progress.finish_file(file.stat().st_size)
            notes |= dict.fromkeys(f"{source}: {note}" for note in table.notes)
        progress.finish()
        return dataclasses.replace(gather.finish(tuple(notes)), read_options=options)


def _columns(table: Table, options: ReadOptions, file: Path) -> dict[str, str]:
    """Name of the column by role."""
    return {role: find_column(table, role, name, file) for role, name in options.requested.items()}
