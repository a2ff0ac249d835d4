"""How messages about data spell the parameters that help: as in Python, or as the flags of a command line."""

import contextlib
import contextvars
import shlex
from collections.abc import Iterator, Mapping

_FLAGS: contextvars.ContextVar[Mapping[str, str] | None] = contextvars.ContextVar("flags", default=None)


WAITS = "wait for more"
"""The end of the note on rows that are too few for a segment."""


class DataWarning(UserWarning):
    """Something about the data that may well be a mistake, although it can be used as it is."""


def option(name: str, value: str | None = None) -> str:
    """A parameter of `read` or `cut`, spelled as the caller gives it.

    Args:
      name: of the parameter.
      value: to give it, if the message proposes one.

    >>> option("time_unit"), option("time_unit", "ms")
    ('time_unit', "time_unit='ms'")
    >>> with spelled_as_flags({"time_unit": "--columns.time-unit"}):
    ...     option("time_unit", "ms")
    '--columns.time-unit ms'
    """
    flags = _FLAGS.get()
    if flags is None or name not in flags:
        return name if value is None else f"{name}={value!r}"
    return flags[name] if value is None else f"{flags[name]} {shlex.quote(value)}"


@contextlib.contextmanager
def spelled_as_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Within this context, messages name flags.

    Args:
      flags: flag by name of the parameter.
    """
    token = _FLAGS.set(flags)
    try:
        yield
    finally:
        _FLAGS.reset(token)
