"""Keeping a run folder up with its stream: rows are added, and segments that are complete are run, in one commit."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from scall_jax.methods.phases import Method
from scall_jax.run import manifest
from scall_jax.run.choices import choices_path
from scall_jax.run.lock import locked
from scall_jax.run.loop import NO_HOOKS, Hooks
from scall_jax.run.open_auto import open_auto, open_method
from scall_jax.run.open_run import Added, OpenRun

__all__ = ["Added", "OpenRun", "opened"]


@contextlib.contextmanager
def opened(folder: str | Path, *, method: Method | None = None, hooks: Hooks = NO_HOOKS) -> Iterator[OpenRun]:
    """Open a run folder to add rows to it; until the end no other process can write to it.

    Programs are compiled when the first segment is complete, and are kept for the next ones.

    Args:
      folder: of a finished run; of one of auto, the candidates that still run go on.
      method: a method that `METHODS` does not list, as in `run_segments`.
      hooks: functions that are called while segments are run.

    Yields:
      The run; `OpenRun.add` adds rows.

    Raises:
      ValueError: the folder holds no finished run, is being written by another process, or its method or its stream
        cannot go on; the message says why.

    >>> import tempfile, jax, polars as pl
    >>> from scall_jax import Config, run_segments, streams
    >>> rows = streams.synthetic(jax.random.key(0), users=100, items=50, interactions=1000)
    >>> stream = streams.cut(rows, rows=300)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = run_segments(Config("popularity-all"), stream, jax.random.key(0), folder=folder)
    ...     with opened(folder) as run:
    ...         later = pl.DataFrame({"user": [1] * 250, "item": list(range(250)), "time": run.growing.clock + 10**9})
    ...         before, added = len(run.growing.waiting), run.add(later, offset={"line": 250})
    ...         before, added.rows, [line["segment"] for line in added.lines], added.waiting, run.offset
    (100, 250, [3], 50, {'line': 250})
    """
    path = Path(folder)
    if not (path / manifest.NAME).exists():
        raise ValueError(f"{path} is no run folder: give one that has a {manifest.NAME}, such as runs/demo/uniform")
    with locked(path):
        yield open_method(path, method, hooks) if choices_path(path) is None else open_auto(path, hooks)
