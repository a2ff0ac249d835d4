"""Frames as files of Parquet, with the errors that other files have."""

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl


def write_durably(path: Path, frame: pl.DataFrame) -> None:
    """Write a frame, and wait until it is on disk.

    Args:
      path: of the file, whose folder exists.
      frame: to write.

    Raises:
      OSError: the file cannot be written, because the disk is full, for example; it names the file.
    """
    with path.open("wb") as file:
        with as_system_errors(path):
            frame.write_parquet(file)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def as_system_errors(path: Path, *kinds: type[Exception]) -> Iterator[None]:
    """Within this context, errors of a library that writes a file are those of the operating system.

    Args:
      path: of the file.
      kinds: errors of other libraries than Polars.

    Raises:
      OSError: instead of such an error; the system's own is in its text alone.
    """
    try:
        yield
    except (pl.exceptions.PolarsError, *kinds) as error:
        raise OSError(errno.EIO, " ".join(str(error).split()), str(path)) from error
