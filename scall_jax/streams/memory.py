"""How much memory reading may take."""

import os
from pathlib import Path

from scall_jax.streams.wording import option

_SHARE = 0.5
_CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_ROW_BYTES = 56
"""Bytes for each row: ids and a time, and as much again while they are numbered."""
_ID_BYTES = 150
"""Bytes for each distinct id besides its text: in the tables that give ids their codes, and in the vocabulary."""
_BLOCKS = 12
"""Blocks of text that parsing one takes."""


def machine_bytes() -> int | None:
    """Memory that this process may use: that of the machine, or of its control group if that is less.

    Returns:
      Bytes; None where the system does not say.
    """
    try:
        sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    except (AttributeError, OSError, ValueError):
        return None
    for name in _CONTROL_GROUPS:
        try:
            sizes.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # There is no such group, or it has no limit, which is written as `max`.
            continue
    return min(size for size in sizes if size > 0)


def limit_bytes(megabytes: float | None) -> float:
    """Bytes that reading may take.

    Args:
      megabytes: of 10^6 bytes; None for half of what the machine has.

    Raises:
      ValueError: not above 0.
    """
    if megabytes is None:
        return _SHARE * (machine_bytes() or float("inf"))
    if not megabytes > 0:
        raise ValueError(f"{option('max_memory')}: {megabytes} MB, must be above 0")
    return 1e6 * megabytes


class Account:
    """The memory that reading takes, estimated from what it holds."""

    def __init__(self, limit: float):
        """Start with nothing.

        Args:
          limit: bytes that may be held.
        """
        self._limit, self._rows, self._ids = limit, 0, 0.0

    @property
    def block(self) -> int:
        """Bytes of text to read at once: at most a fortieth of the limit, and 16 MiB."""
        return int(min(max(self._limit / 40, 2**16), 2**24))

    def expect(self, number: int, source: str) -> None:
        """Check that there is room for rows before they are read.

        Args:
          number: how many.
          source: named in errors.

        Raises:
          ValueError: there is not.
        """
        needed = _ROW_BYTES * (self._rows + number) + self._ids
        if needed > self._limit:
            raise ValueError(f"{source}: {number:,} rows take {needed / 1e6:,.0f} MB to read, {self._advice}")

    @property
    def _advice(self) -> str:
        return (
            f"more than the {self._limit / 1e6:,.0f} MB that reading may take: "
            f"raise {option('max_memory')}, or read a part of the table"
        )

    def rows(self, number: int, source: str, read: float | None = None) -> None:
        """Count rows.

        Args:
          number: how many more.
          source: named in errors.
          read: which part of the source has been read, if it is known.

        Raises:
          ValueError: the limit is passed.
        """
        self._rows += number
        self._check(source, read)

    def ids(self, number: int, text: float, source: str, read: float | None = None) -> None:
        """Count distinct ids.

        Args:
          number: how many more.
          text: mean bytes of their text.
          source: named in errors.
          read: which part of the source has been read, if it is known.

        Raises:
          ValueError: the limit is passed.
        """
        self._ids += number * (_ID_BYTES + text)
        self._check(source, read)

    def _check(self, source: str, read: float | None) -> None:
        held = _ROW_BYTES * self._rows + self._ids
        if held + _BLOCKS * self.block > self._limit:
            whole = f" after {read:.0%} of it" if read is not None else ""
            raise ValueError(
                f"{source}: {self._rows:,} rows take {(held + _BLOCKS * self.block) / 1e6:,.0f} MB to read{whole}, "
                f"{self._advice}"
            )
