"""Damage to the files of a folder: bits, lengths, places, links, and contents that miss something."""

import errno
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np

from scall_jax.run import lock, manifest
from tests.faults.outcomes import EXACT, FAILURE, REFUSED, Outcome, observe


class Use(NamedTuple):
    """A way in which a folder is read, or a run continued in it."""

    name: str
    """In words."""
    folder: Path
    """As it should be; copies of it are damaged."""
    answer: Callable[[Path], Any]
    """answer(folder): what comes of it, comparable by ==."""
    older: Path | None = None
    """The same folder at an earlier moment."""


def files(folder: Path) -> list[Path]:
    """Files of a folder, relative to it, without its lock."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file() and path.name != lock.NAME)
    return sorted(found)


def kind_of(path: Path) -> str:
    """What kind of file a file of a folder is: its name without what numbers and random names differ in.

    >>> kind_of(Path("candidates/x/checkpoints/segment-0001/table/d/0a1b")), kind_of(Path("sizes/segment-0000.npz"))
    ('candidates/checkpoints/data', 'sizes')
    """
    front = ("candidates/",) if path.parts[0] == "candidates" else ()
    parts = path.parts[2:] if front else path.parts
    if parts[0] == "checkpoints":
        name = parts[-1] if parts[-1].startswith("_") or "manifest" in parts[-1] else "data"
        return "".join([*front, "checkpoints/", name])
    return "".join([*front, parts[0]])


def flipped(data: bytes, rng: np.random.Generator) -> bytes:
    """One bit of some bytes the other way round."""
    at = int(rng.integers(len(data)))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :]


def truncated(data: bytes, rng: np.random.Generator) -> bytes:
    """The beginning of some bytes."""
    return data[: int(rng.integers(len(data)))]


def zeroed(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes with zeros in a part of them, as a block that was never written has."""
    start, end = sorted(rng.integers(len(data) + 1, size=2).tolist())
    return data[:start] + bytes(end - start) + data[end:]


def lengthened(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes with others behind them."""
    return data + rng.bytes(int(rng.integers(1, 100)))


CHANGES = {"flip": flipped, "truncation": truncated, "zeros": zeroed, "more bytes": lengthened}
"""Ways to change the bytes of a file; a change that leaves them as they are is made again."""


def changed_file(use: Use, change: str, number: int, rng: np.random.Generator) -> tuple[Path, bytes]:
    """Choose a file, whose kind takes turns, and change its bytes: its path in the folder, and the bytes.

    Args:
      use: of the folder.
      change: one of `CHANGES`.
      number: of the case.
      rng: draws which file of its kind, and where it is changed.
    """
    by_kind: dict[str, list[Path]] = {}
    for path in files(use.folder):
        by_kind.setdefault(kind_of(path), []).append(path)
    # In turn, so that no kind is left out however few cases there are.
    kind = sorted(by_kind)[number % len(by_kind)]
    path = by_kind[kind][int(rng.integers(len(by_kind[kind])))]
    whole = (use.folder / path).read_bytes()
    data = whole
    for _ in range(20):
        if data == whole and whole:
            data = CHANGES[change](whole, rng)
    return path, data


def change_bytes(use: Use, change: str, number: int, work: Path) -> Outcome:
    """Change the bytes of a file whose kind is drawn first, then which one, then where.

    Args:
      use: of the folder.
      change: one of `CHANGES`.
      number: of the case, which determines all that is drawn.
      work: a folder for the copy.
    """
    path, data = changed_file(use, change, number, np.random.default_rng([number, len(change)]))
    with copy_of(use.folder, work) as folder:
        (folder / path).write_bytes(data)
        # What is behind the listed length of the growing file belongs to no segment.
        right = _answer(use)
        return observe(f"{change}: {use.name}", f"{number} {path}", lambda: use.answer(folder), right, [path.name])


_ANSWERS: dict[tuple[str, Path], Any] = {}


def _answer(use: Use) -> Any:
    """The right answer, worked out once in a copy of the folder."""
    key = use.name, use.folder
    if key not in _ANSWERS:
        with copy_of(use.folder, use.folder.parent / f"{use.folder.name}-asked") as folder:
            _ANSWERS[key] = use.answer(folder)
    return _ANSWERS[key]


class copy_of:
    """Within this context, a copy of a folder, which is removed afterwards."""

    def __init__(self, folder: Path, to: Path):
        self.folder, self.to = folder, to

    def __enter__(self) -> Path:
        shutil.rmtree(self.to, ignore_errors=True)
        return Path(shutil.copytree(self.folder, self.to))

    def __exit__(self, *error: object) -> None:
        shutil.rmtree(self.to, ignore_errors=True)


def misplaced(use: Use, work: Path) -> Iterator[Outcome]:
    """Files that are missing, exchanged, older than they should be, or links; each file in turn."""
    listed = files(use.folder)
    for path in listed:
        others = [other for other in listed if kind_of(other) == kind_of(path) and other != path]
        for what in ("missing", "exchanged", "older", "link"):
            old = use.older and use.older / path
            if (what == "exchanged" and not others) or (what == "older" and not (old and _differs(old, use, path))):
                continue
            with copy_of(use.folder, work) as folder:
                names = [path.name]
                if what == "missing":
                    (folder / path).unlink()
                elif what == "exchanged":
                    one, other = (folder / path).read_bytes(), (folder / others[0]).read_bytes()
                    (folder / path).write_bytes(other)
                    (folder / others[0]).write_bytes(one)
                    # A manifest that is valid in itself blames the files that it does not fit.
                    names = [path.name, others[0].name] if path.name != manifest.NAME else [x.name for x in listed]
                elif what == "older":
                    shutil.copyfile(str(old), folder / path)
                    # An older manifest is right about itself, and names what is no longer there.
                    names = [path.name, *(x.name for x in listed)] if path.name == manifest.NAME else names
                else:
                    outside = folder.parent / "outside"
                    (folder / path).rename(outside)
                    os.symlink(outside, folder / path)
                case = f"{what} {path}"
                yield observe(
                    f"{what}: {use.name}", case, lambda folder=folder: use.answer(folder), _answer(use), names
                )


def renamed_candidates(use: Use, work: Path) -> Outcome:
    """The folders of two candidates of auto under each other's names, each of them valid in itself."""
    with copy_of(use.folder, work) as folder:
        one, other = sorted(path for path in (folder / "candidates").iterdir())[:2]
        one.rename(folder / "aside")
        other.rename(one)
        (folder / "aside").rename(other)
        names = [one.name, other.name]
        return observe(f"renamed: {use.name}", "candidates", lambda: use.answer(folder), _answer(use), names)


def second_writer(use: Use, work: Path) -> Outcome:
    """Continue a run whose folder is locked by someone else; it must be refused, whatever it would write."""
    with copy_of(use.folder, work) as folder, lock.locked(folder):
        found = observe("locked", use.name, lambda: use.answer(folder), _answer(use), ["is being written by process"])
    return found if found.kind == REFUSED else found._replace(kind=FAILURE, detail="a second process wrote, too")


def full_disk(use: Use, at: int, work: Path) -> Outcome:
    """Continue a run that finds the disk full when it waits for its bytes to be written, and again when it is not.

    Args:
      use: of the folder.
      at: number of the wait from which on the disk is full, from 0.
      work: a folder for the copy.
    """
    waits, real = itertools.count(), os.fsync

    def full(descriptor: int) -> None:
        if next(waits) >= at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    # Asked for before the disk is full, since the answer is found out once, when it is first asked for.
    right = _answer(use)
    with copy_of(use.folder, work) as folder:
        with mock.patch.object(os, "fsync", full):
            found = observe("full disk", f"wait {at}", lambda: use.answer(folder), right, [str(folder)])
        after = observe("full disk", f"after wait {at}", lambda: use.answer(folder), right, ["-"])
    return found if after.kind == EXACT else after._replace(kind=FAILURE)


def _differs(old: Path, use: Use, path: Path) -> bool:
    return old.exists() and old.read_bytes() != (use.folder / path).read_bytes()


def without_keys(use: Use, name: str, work: Path, nested: tuple[str, ...] = ()) -> Iterator[Outcome]:
    """Take each key out of a JSON file in turn, and list the file as it is then, as another version might.

    Args:
      use: of the folder.
      name: of the file; of JSON lines the last line is changed.
      work: a folder for the copy.
      nested: keys that lead to the object whose keys are taken; none: the outermost one.
    """
    lines = (use.folder / name).read_text().splitlines()
    whole = json.loads(lines[-1] if name.endswith(".jsonl") else "".join(lines))
    inner = whole
    for key in nested:
        inner = inner[key]
    for key in list(inner):
        kept = inner.pop(key)
        text = json.dumps(whole)
        inner[key] = kept
        with copy_of(use.folder, work) as folder:
            if name == manifest.NAME:
                (folder / name).write_text(text)
            else:
                (folder / name).write_text("\n".join([*lines[:-1], text]) + "\n" if name.endswith("jsonl") else text)
                found = manifest.read(folder)
                manifest.write(folder, found._replace(files=found.files | manifest.entries(folder, [name])))
            case = f"{name} without {'.'.join([*nested, key])}"
            yield observe(f"missing key: {use.name}", case, lambda folder=folder: use.answer(folder), _answer(use))
