"""The persistent cache of compiled programs: in a folder of the user's, bounded, and mended after a kill."""

import contextlib
import hashlib
import importlib.metadata
import os
import platform
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from jax.experimental.compilation_cache import compilation_cache

MOST_BYTES = 10**9
"""Bytes that the cache holds after a command; the programs that were used longest ago go first."""


def cache_folder() -> Path:
    """Where compiled programs are kept: below the user's cache folder, by version of the compiler and processor.

    That folder is `$XDG_CACHE_HOME`, or the platform's own (`~/.cache`, on macOS `~/Library/Caches`).
    """
    own = Path.home() / ("Library/Caches" if sys.platform == "darwin" else ".cache")
    root = Path(os.environ.get("XDG_CACHE_HOME") or own) / "scall_jax" / "compiled"
    # A program for one processor may use instructions that another one, with the same home, does not have.
    return root / f"jaxlib-{importlib.metadata.version('jaxlib')}-{_processor()}"


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text(errors="replace").splitlines() if path.exists() else [platform.processor()]
    kept = sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    return hashlib.sha256("\n".join(kept or lines).encode()).hexdigest()[:12]


@contextlib.contextmanager
def persistent_cache(enabled: bool = True) -> Iterator[Callable[[], None]]:
    """Within this context, programs that take over a second to compile are kept for later processes.

    A cache that is configured already (`JAX_COMPILATION_CACHE_DIR`) is left as it is, and so is a folder that cannot be
    written. JAX's own bound on the size, `jax_compilation_cache_max_size`, is not used: it needs the package filelock,
    and evicts nothing any more once a process was killed while it wrote an entry. A file `running-HOST-PROCESS` says
    how far the entries are complete; where its process is gone, later ones are removed, since JAX would neither read
    half an entry nor replace it.

    Args:
      enabled: False does nothing.

    Yields:
      A function to call after each compilation: what has been written is complete.
    """
    folder = cache_folder()
    if not enabled or jax.config.values["jax_compilation_cache_dir"] or not _writable(folder):
        yield lambda: None
        return
    _mend(folder)
    trim(folder.parent, MOST_BYTES)
    mark = folder / f"running-{socket.gethostname()}-{os.getpid()}"
    mark.touch()
    _use(str(folder))
    try:
        yield mark.touch
    finally:
        _use(None)
        _remove_unsettled(mark)
        trim(folder.parent, MOST_BYTES)


def _use(folder: str | None) -> None:
    jax.config.update("jax_compilation_cache_dir", folder)
    # JAX looks at the setting once, when it compiles for the first time.
    compilation_cache.reset_cache()


def _mend(folder: Path) -> None:
    """Remove what processes that are gone left behind."""
    for mark in folder.glob(f"running-{socket.gethostname()}-*"):
        try:
            os.kill(int(mark.name.rsplit("-", 1)[1]), 0)
        except ProcessLookupError:
            _remove_unsettled(mark)
        except PermissionError:  # The process is another user's.
            continue


def _remove_unsettled(mark: Path) -> None:
    """Remove entries that are younger than a mark, and the mark; those of other processes are only compiled again."""
    with contextlib.suppress(FileNotFoundError):
        settled = mark.stat().st_mtime_ns
        for path in list(mark.parent.glob("*-cache")):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns > settled:
                    path.unlink()
        mark.unlink()


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def trim(root: Path, most: int) -> None:
    """Delete the files that were used longest ago, until no more than so many bytes are left.

    Args:
      root: folder, with those below it.
      most: bytes.
    """
    found: list[tuple[float, int, Path]] = []
    for path in root.rglob("*"):
        # Another process may delete it at the same time.
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.is_file() and not path.name.startswith("running-"):
                found.append((max(status.st_atime, status.st_mtime), status.st_size, path))
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= most:
            break
        path.unlink(missing_ok=True)
        total -= size
