"""An advisory lock on a run folder, held by the operating system, so that a process that is killed frees it."""

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

NAME = "lock"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from writing to a run folder.

    Args:
      folder: of a run; created where it does not exist.

    Raises:
      ValueError: another process holds the lock; the message has its number and host.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    # A link is not followed: it could lead to a file that is not the run's.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o644)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}): choose another folder") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
            raise ValueError(f"{folder} is being written by {holder}: wait for it, or choose another folder") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
