"""Several processes of one run, on one machine or on many: joined at the start, and of one mind about what is on disk.

Each process runs the same program on the same stream and has some of the devices. The first one alone writes files and
prints; what it reads or refuses it tells the others, so that all go on alike or all stop.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

T = TypeVar("T")

_HEARTBEAT_SECONDS = 20
"""A process that has not been heard of for so long counts as ended, and the others stop."""
_LEAVE_SECONDS = 5
"""How long a process that ends waits for the others to end, too."""
_START_SECONDS = 120
"""How long the processes wait for each other at the start."""


@dataclasses.dataclass(frozen=True)
class ProcessesConfig:
    """The processes that share a run.

    Raises:
      ValueError: numbers that do not fit each other, or no address.
    """

    coordinator: str = ""
    """Address host:port at which the first process is found by the others, the same for all; auto: the address, the
    count and the number are those of the cluster (Slurm, Open MPI, TPU pods and others that JAX knows)."""
    count: int = 1
    """How many processes there are."""
    number: int = 0
    """Which of them this is, from 0."""

    def __post_init__(self) -> None:
        if self.count < 1 or not 0 <= self.number < self.count:
            raise ValueError(
                f"processes number={self.number} of count={self.count}: numbers are from 0 to count - 1, and a run has "
                "at least one process"
            )
        if self.count > 1 and ":" not in self.coordinator:
            raise ValueError(
                f"processes coordinator={self.coordinator!r}: give host:port of the first process, such as "
                "localhost:9911, the same for all"
            )
        if self.count == 1 and self.coordinator not in ("", "auto"):
            raise ValueError(
                f"processes coordinator={self.coordinator!r} with count=1: give the number of processes, or auto"
            )


ALONE = ProcessesConfig()
"""A single process."""


def join(config: ProcessesConfig) -> None:
    """Meet the other processes. It must be called before anything else of JAX is; for a single process it does nothing.

    Args:
      config: of this process.

    Raises:
      ValueError: the others have not come in time, or there is no cluster.
    """
    if config == ALONE:
        return
    named = config.coordinator != "auto"
    try:
        jax.distributed.initialize(
            coordinator_address=config.coordinator if named else None,
            num_processes=config.count if named else None,
            process_id=config.number if named else None,
            initialization_timeout=_START_SECONDS,
            heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=_LEAVE_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        if "must be called before" in reason:
            raise ValueError(f"processes have to be joined before anything else is done with JAX: {reason}") from error
        raise ValueError(
            f"processes coordinator={config.coordinator!r}: the processes have not met ({reason}): start all of them "
            "within two minutes of each other, with the same coordinator and count and a number each"
        ) from error


def several() -> bool:
    """Whether this process shares its run with others."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0


def leave(error: Exception) -> NoReturn:
    """End this process where work that it shares with others has failed, in general because another one has ended.

    It does not wait for the others.

    Args:
      error: of the work.
    """
    print(
        "error: another process of this run has ended or cannot be reached, or this one has failed; start all of them "
        f"again with --resume\n{error}",
        file=sys.stderr,
        flush=True,
    )
    # The usual way out waits for the other processes.
    os._exit(3)


def told_by_first(function: Callable[[], T]) -> T:
    """What a function of the first process returns, in all processes; the others wait for it and do not call it.

    Args:
      function: returns what JSON can hold. What reads or writes files for all of them is called like this, so that no
        process goes on, or ends, before it is done.

    Returns:
      Its result; in the other processes after a way through JSON.

    Raises:
      ValueError: the function has raised one, or an `OSError`, which the first process raises as it is. All processes
        raise in the same words.
    """
    if not several():
        return function()
    if not is_first():
        found, refused = json.loads(_broadcast(""))
        if refused is not None:
            raise ValueError(refused)
        return found
    try:
        found = function()
    except (ValueError, OSError) as error:
        _broadcast(json.dumps([None, str(error)]))
        raise
    _broadcast(json.dumps([found, None]))
    return found


def require_same(what: str, text: str) -> None:
    """Check that all processes have the same; all of them refuse where they have not.

    Args:
      what: it is, in words.
      text: that says all of it.

    Raises:
      ValueError: one has another text.
    """
    if not several():
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.int32)
    found = np.asarray(multihost_utils.process_allgather(digest)).reshape(jax.process_count(), -1)
    if (found != found[0]).any():
        raise ValueError(
            f"the processes differ in {what}: start all of them with the same flags but their number, the same data, "
            "and the same versions"
        )


def _broadcast(text: str) -> str:
    """The first process's text, in all processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    room = np.zeros(length, np.uint8)
    if is_first():
        room[:] = data
    return np.asarray(multihost_utils.broadcast_one_to_all(room)).tobytes().decode()


def to_all(array: Any, place: jax.sharding.Sharding) -> jax.Array:
    """An array that every process has on its host, on the devices of all of them.

    Args:
      array: of numpy or JAX, the same in all processes; keys of random numbers are none.
      place: where it is to lie. A process sends its own devices what they are to have, and no more.
    """
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, place, lambda index: host[index])


def whole(array: jax.Array) -> np.ndarray:
    """All of an array that lies in parts on the devices of all processes, on the host of each.

    Args:
      array: in parts, or whole on every device.
    """
    if array.is_fully_replicated or array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
