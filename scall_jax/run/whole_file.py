"""A file that is there as a whole or not at all, whatever comes between."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from scall_jax.run.manifest import sync_folder


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of another one at the end of this context, when it is on disk.

    It is written beside it under another name. Until the end, and after an error, the other one is as it was. What is
    no file, such as a pipe or a device, is written to as it is.

    Args:
      path: of the file, whose folder exists; where it is a link, what it leads to is replaced.

    Yields:
      The file, open for bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replaced(Path(folder, "rows.csv")) as file:
    ...         count = file.write(b"user,item")
    ...         before = Path(folder, "rows.csv").exists()
    ...     before, [path.name for path in Path(folder).iterdir()]
    (False, ['rows.csv'])
    """
    target = path.resolve()
    if target.exists() and not target.is_file():
        with target.open("wb") as file:
            yield file
        return
    pending = target.with_name(f".{target.name}.pending")
    try:
        with pending.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(pending, target)
    except BaseException:
        pending.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)
