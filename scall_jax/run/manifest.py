"""The manifest of a run folder: what the run has written, with a hash for every file, and what it is about to write.

A file counts once the manifest lists it. The manifest is replaced as a whole, after the files are on disk, so that a
run that was killed is found as it was after its last finished segment; `metrics.jsonl`, which grows, is listed with the
length that counts. Files are deleted only if the manifest says that they are the run's own: it lists them, or lists
them as obsolete, or names the segment that was being written.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

NAME = "manifest.json"
FORMAT = 1
"""Version of the manifest; a folder of another version is refused."""

STREAM = ("stream.json", "users.parquet", "items.parquet", "interactions.parquet", "replay.parquet")
"""Files of the stream, written once; `stream_files` says what they hold. The last one is not there in every run."""

DERIVED = (
    *("quality.png", "sizes.png", "memory.png", "histories.png"),
    *("about.json", "report.html", "tensorboard"),
)
"""Files and folders of a run that follow from its data: nothing is computed from them, and they may be moved away."""

STREAM_NAME = "stream"
"""What `Manifest.writing` says while these are being written."""

_BLOCK = 2**20

T = TypeVar("T")


class Entry(NamedTuple):
    """A file as it was when it was listed."""

    nbytes: int
    """Bytes from its beginning that count."""
    sha256: str
    """Hash of these, in hexadecimal digits."""


class Manifest(NamedTuple):
    """What a run folder contains; paths are relative, with slashes."""

    files: dict[str, Entry]
    """Files that count."""
    obsolete: dict[str, Entry]
    """Files that have been replaced and may be deleted."""
    writing: str | None
    """What is being written, and left over if the run was killed: `segment-0007`, a segment; `STREAM_NAME`, the stream;
    or `update-0002-0007-0009` (`Update`), new rows and the segments that they complete."""


EMPTY = Manifest({}, {}, None)


class Update(NamedTuple):
    """New rows of a run that goes on, and the segments that they complete."""

    number: int
    """How many updates were before it, and one."""
    first: int
    """The first of its segments."""
    end: int
    """The segment after the last of them."""

    @property
    def name(self) -> str:
        """What `Manifest.writing` says while its files are being written."""
        return f"{_UPDATE}-{self.number:04d}-{self.first:04d}-{self.end:04d}"

    @property
    def folder(self) -> str:
        """Where its rows are."""
        return f"{UPDATES}/{self.number:06d}"


UPDATES = "updates"
"""Folder of the rows that have come since the run; `update_files` says what is in it."""

_UPDATE = "update"


def parsed(writing: str) -> Update | None:
    """The update that `Manifest.writing` names, None if it is something else.

    >>> parsed(Update(2, 7, 9).name), parsed("segment-0007")
    (Update(number=2, first=7, end=9), None)
    """
    kind, _, numbers = writing.partition("-")
    return Update(*map(int, numbers.split("-"))) if kind == _UPDATE else None


def read(folder: Path) -> Manifest:
    """Read the manifest of a run folder.

    Args:
      folder: of a run.

    Raises:
      ValueError: there is none, or it is not one of this version.
    """
    path = folder / NAME
    try:
        refuse_links(folder, [NAME])
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["format"] != FORMAT:
            raise ValueError(f"{path}: format {found['format']}, this version reads {FORMAT}: choose another folder")
        if found.pop("sha256") != _digest(found):
            raise KeyError("sha256")
        files, obsolete = (
            {str(name): Entry(int(nbytes), str(sha256)) for name, (nbytes, sha256) in found[kind].items()}
            for kind in ("files", "obsolete")
        )
        return Manifest(files, obsolete, found["writing"])
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: the folder is no run of this version; choose another folder") from None
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is damaged ({error!r}): make the run anew in another folder") from None


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Args:
      path: of the file.

    Raises:
      ValueError: it is not UTF-8 or not JSON; the message names it.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or make the run anew in another folder") from None


def write(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest of a run folder; when this returns, the new one is on disk."""
    content = {"format": FORMAT, **manifest._asdict()}
    write_durably(folder / NAME, json.dumps(content | {"sha256": _digest(content)}, indent=1) + "\n")


def _digest(content: dict[str, Any]) -> str:
    """Hash of the manifest's own content, so that a change of a name or a hash is found in the file where it is."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_durably(path: Path, text: str) -> None:
    """Write a text file so that a reader, and a machine after a crash, finds all of the new text or the old file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on disk."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def entries(folder: Path, names: Iterable[str]) -> dict[str, Entry]:
    """Hash files, those of folders one by one, and wait until they are on disk, so that a manifest may list them.

    Args:
      folder: of a run.
      names: paths of files or folders in it.

    Returns:
      An entry for each file.
    """
    found, parents = {}, set()
    for name in names:
        path = folder / name
        inside = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in inside:
            found[file.relative_to(folder).as_posix()] = _entry(file, None, durable=True)
        parents |= {file.parent for file in inside}
    for parent in parents:
        sync_folder(parent)
    return found


def _entry(path: Path, nbytes: int | None, durable: bool = False) -> Entry:
    digest, read_bytes = hashlib.sha256(), 0
    with path.open("rb") as file:
        while nbytes is None or read_bytes < nbytes:
            block = file.read(_BLOCK if nbytes is None else min(_BLOCK, nbytes - read_bytes))
            if not block:
                break
            digest.update(block)
            read_bytes += len(block)
        if durable:
            os.fsync(file.fileno())
    return Entry(read_bytes, digest.hexdigest())


def check(folder: Path) -> Manifest:
    """Check every file that a manifest lists.

    Args:
      folder: of a run.

    Returns:
      The manifest, without what is derived (`DERIVED`) and has been moved away.

    Raises:
      ValueError: another file is missing, or a file is a link or has other bytes than the run wrote; the message names
        it.
    """
    manifest = read(folder)
    refuse_links(folder, manifest.files)
    present = {}
    for name, entry in manifest.files.items():
        path, derived = folder / name, is_derived(name)
        if derived and not path.exists():
            continue
        if not path.is_file():
            raise ValueError(f"{path} is missing: {_WAY_OUT}")
        longer = path.stat().st_size > entry.nbytes and name != GROWING
        if longer or _entry(path, entry.nbytes) != entry:
            raise ValueError(f"{path} is not what the run wrote: {_DERIVED_WAY_OUT if derived else _WAY_OUT}")
        present[name] = entry
    return manifest._replace(files=present)


def is_derived(name: str) -> bool:
    """Whether a file of a run may be missing, since it follows from the others.

    Args:
      name: its path in the folder.

    >>> is_derived("report.html"), is_derived("tensorboard/events.1"), is_derived("sizes/report.html")
    (True, True, False)
    """
    return Path(name).parts[0] in DERIVED


def listed(folder: Path, within: str) -> list[Path]:
    """Files that count in a folder of a run, such as `sizes`, without those of a segment that is being written.

    Args:
      folder: of a run.
      within: name of the folder in it.
    """
    return [folder / name for name in sorted(read(folder).files) if name.startswith(f"{within}/")]


def settled(folder: Path, read_files: Callable[[], T]) -> T:
    """Read files of a folder that another process may write to, all of them as one commit left them.

    A file that is listed never changes, and is deleted only after a new manifest is in place. What was read counts if
    everything that was listed is there still, and an error counts if nothing was committed meanwhile; else the files
    are read again.

    Args:
      folder: of a run.
      read_files: reads what the manifest lists.

    Returns:
      What it returned.

    Raises:
      ValueError: the folder is written faster than it can be read; and what `read_files` raises.
    """
    for _ in range(_TRIES):
        found = read(folder)
        try:
            result = read_files()
        except Exception:
            if read(folder).files == found.files:
                raise
            continue
        if all((folder / name).exists() for name in found.files if not is_derived(name)):
            return result
    raise ValueError(f"{folder} is written faster than it can be read: try again")


_TRIES = 100

GROWING = "metrics.jsonl"
"""The one file that is appended to; bytes beyond the listed ones are of a segment that was not finished."""

_WAY_OUT = "restore the file, or make the run anew in another folder"
_DERIVED_WAY_OUT = "restore or delete the file, which nothing else needs"

FINISHED_IS_KEPT = "finished segments are kept, and --resume goes on from there once the folder can be written"
"""What an error of writing ends with."""


def refuse_links(folder: Path, names: Iterable[str]) -> None:
    """Check that no symbolic link leads out of a run folder.

    Args:
      folder: of a run.
      names: paths in it, which need not exist.

    Raises:
      ValueError: a path, or a folder on the way to it, is a link, or a path leaves the folder.
    """
    for name in names:
        parts = Path(name).parts
        if Path(name).is_absolute() or ".." in parts:
            raise ValueError(f"{folder / NAME}: {name} lies outside of the folder: choose another folder")
        for path in _ways(folder, parts):
            if path.is_symlink():
                raise ValueError(f"{path} is a symbolic link: a run reads and writes only files of its own folder")


def _ways(folder: Path, parts: tuple[str, ...]) -> Iterator[Path]:
    for part in parts:
        folder = folder / part
        yield folder


def delete(folder: Path, names: Iterable[str]) -> None:
    """Delete files of a run, and folders that are empty then; files that are gone already do not matter.

    Args:
      folder: of a run.
      names: paths in it.

    Raises:
      ValueError: as `refuse_links`; nothing has been deleted then.
    """
    names = list(names)
    refuse_links(folder, names)
    for name in names:
        path = folder / name
        path.unlink(missing_ok=True)
        _remove_empty(folder, path.parent)


def _remove_empty(folder: Path, inner: Path) -> None:
    """Remove a folder within a run folder, and those around it, as far as they are empty."""
    while inner != folder:
        with contextlib.suppress(FileNotFoundError):
            if any(inner.iterdir()):
                return
            inner.rmdir()
        inner = inner.parent


def left_over(folder: Path, writing: str) -> list[str]:
    """Paths of the files of a segment, of the stream, or of an update, that was being written.

    Args:
      folder: of a run.
      writing: `Manifest.writing`.
    """
    if writing == STREAM_NAME:
        temporary = f"{STREAM[0]}.tmp"
        return _existing(folder, [*STREAM, temporary])
    places = [f"{kind}/{segment}.npz" for segment in _segments(writing) for kind in ("sizes", "users")]
    for tree in _trees(writing):
        refuse_links(folder, [tree])
        inside = (folder / tree).rglob("*")
        places += [path.relative_to(folder).as_posix() for path in inside if path.is_symlink() or not path.is_dir()]
    return _existing(folder, places)


def delete_left_over(folder: Path, writing: str) -> None:
    """Delete the files of something that was being written, and folders of it that have none.

    Args:
      folder: of a run, which this process has locked.
      writing: `Manifest.writing`.

    Raises:
      ValueError: as `refuse_links`; nothing has been deleted then.
    """
    delete(folder, left_over(folder, writing))
    for tree in _trees(writing):
        # A process that was killed between making a folder and a file in it has left a folder without files.
        for inner, _, _ in os.walk(folder / tree, topdown=False):
            _remove_empty(folder, Path(inner))


def _segments(writing: str) -> list[str]:
    """Names of the segments that were being written."""
    update = parsed(writing)
    return [f"segment-{t:04d}" for t in range(update.first, update.end)] if update else [writing]


def _trees(writing: str) -> list[str]:
    """Folders that belong as a whole to what was being written."""
    if writing == STREAM_NAME:
        return []
    update, pendings = parsed(writing), (".pending/", "")
    trees = [f"checkpoints/{pending}{segment}" for segment in _segments(writing) for pending in pendings]
    return [*trees, *([update.folder] if update else [])]


def _existing(folder: Path, places: Iterable[str]) -> list[str]:
    return [place for place in places if (folder / place).exists() or (folder / place).is_symlink()]
