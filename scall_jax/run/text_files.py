"""Files of text and of JSON lines, of which a reader takes nothing that is written by half."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_DAMAGED = "restore the file, or make the run anew in another folder"


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Append a dictionary as one JSON line and wait until it is on disk.

    Args:
      path: of the file, which is created where it does not exist.
      line: what JSON can hold.

    Raises:
      ValueError: a number is not finite, which JSON cannot hold; nothing is written then.
    """
    text = json.dumps(line, allow_nan=False) + "\n"
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path, nbytes: int | None = None) -> list[dict[str, Any]]:
    """Read a JSON-lines file.

    Args:
      path: of the file; a missing file has no lines.
      nbytes: bytes from its beginning that count; None for all of them.

    Returns:
      The complete lines; a last line that was cut off while it was written is left out.

    Raises:
      ValueError: another line is no JSON, or a byte is not UTF-8; the message names the file and the place.
    """
    try:
        text = path.read_bytes()[:nbytes].decode("utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8: {_DAMAGED}") from None
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            if not text.endswith("\n") and number == text.count("\n") + 1:
                break
            raise ValueError(f"{path}: line {number} is no JSON: {_DAMAGED}") from None
    return lines


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader finds either all of the new text or the old file."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text)
    os.replace(temporary, path)


def require(found: Any, names: Iterable[str], path: Path) -> dict[str, Any]:
    """Check that the content of a JSON file has what a reader needs of it.

    Args:
      found: what was parsed.
      names: keys that it must have.
      path: of the file, for messages.

    Returns:
      The content.

    Raises:
      ValueError: it is no object, or lacks a key.
    """
    missing = [name for name in names if name not in found] if isinstance(found, dict) else ["an object"]
    if missing:
        raise ValueError(f"{path} lacks {missing[0]}: it is of another version; make the run anew in another folder")
    return found
