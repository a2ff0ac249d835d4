"""Read a model from a run folder: the same state, segment and bias that the run's last evaluation had."""

from pathlib import Path
from typing import Any, NamedTuple

import jax

from scall_jax.config import Config
from scall_jax.methods.phases import Method
from scall_jax.run import checkpoint, choices, config_file, manifest, race, text_files
from scall_jax.run import folder as run_folder
from scall_jax.run.choices import check_leader, leader_folder
from scall_jax.run.programs import Programs
from scall_jax.run.step import make_run
from scall_jax.run.stream_files import read_stream
from scall_jax.run.update_files import read_growing, read_kept
from scall_jax.serving import build
from scall_jax.serving.data import AutoGoingOn, Candidate, GoingOn
from scall_jax.serving.model import Model
from scall_jax.streams import Growing, Stream, growing


def load(path: str | Path, *, method: Method | None = None) -> Model:
    """Read the model that a run has left after its last finished segment.

    Args:
      path: a run folder, such as `runs/demo/uniform`; it is not written to. Of a run of auto the leader is read.
      method: a method that `METHODS` does not list, as in `run_segments`.

    Returns:
      Model. Its recommendations are those that the run's last test metrics are of; where rows have come since that are
      in no segment yet, they count as `Model.update` says. It holds the stream, 16 bytes a row and the ids, and what
      the run's planner remembers, for `Model.update`.

    Raises:
      ValueError: the folder holds no finished segment, a file of it is not what the run wrote, or its method has no way
        to answer requests; the message names the file.
    """
    folder = Path(path)
    if not (folder / manifest.NAME).exists():
        raise ValueError(f"{folder} is no run folder: give one that has a {manifest.NAME}, such as runs/demo/uniform")
    if (folder / "model.safetensors").exists():
        raise ValueError(f"{folder} is an exported model: read it as its README.md shows, or load the run's own folder")
    stored = manifest.settled(folder, lambda: _read_files(folder))
    identity, config, line, kept = stored.identity, stored.config, stored.line, stored.kept
    stream, grown = stored.stream, stored.grown
    phases = make_run(config, method=method).method
    if phases.serve is None:
        raise ValueError(f"method {config.method} has no way to answer requests: write its `MethodPhases.serve`")
    key = jax.random.key(0)  # Nothing here is random: the key of a template says which kind of key there is.
    shapes = jax.eval_shape(lambda key: phases.init(key, stream), key)._replace(key=key)
    books = phases.bookkeeping(shapes, stream)
    state = checkpoint.revive(kept, shapes, books.exporter, str(folder / "checkpoints"))
    serve = jax.jit(phases.serve, static_argnums=3)
    fitted = build.Fitted(config, phases, serve, state, books, stream, line, _origin(identity))
    if isinstance(grown, str):
        return Model(**build.fields(fitted, None, grown))
    # Rows that a run leaves out, by its largest number of segments, count once it goes on.
    live = stored.updated or (stream.waits and len(grown.waiting) > 0)
    waiting = grown.waiting if live else None
    return Model(**build.fields(fitted, waiting, _going_on(stored, method, grown)))


def _origin(identity: dict[str, Any]) -> dict[str, Any]:
    """`ModelData.origin`, as far as the run says."""
    origin = {"jax": identity.get("jax"), "device": identity.get("device"), "method": identity["config"]["method"]}
    return origin | {"config": identity["config"], "key": identity["key"]}


_OF_A_LINE = (
    *("segment", "popularity", "test_recall@20"),
    *("budget_bytes", "bytes_table", "bytes_at_rest", "bytes_serving"),
)
"""What a model takes from the last line of metrics."""


class _Stored(NamedTuple):
    """What the files of a run folder hold."""

    identity: dict[str, Any]
    config: Config
    line: dict[str, Any]
    stream: Stream
    grown: Growing | str
    kept: checkpoint.Snapshot
    others: "dict[str, _Other] | str"
    """Candidates of a run of auto that go on, the leader among them, or what is wrong with one of them; else none."""
    began: int = 0
    """Their number at the beginning."""
    updated: bool = False
    """Whether the run has had an update: then it goes on, and what its last segment held out has come to pass."""


def _read_files(folder: Path) -> _Stored:
    """Read the files of a run folder; of a run of auto those of the leader, and the rows that wait."""
    found = manifest.check(folder)
    leader = leader_folder(folder, found)
    if leader is not None:
        stored = _read_files(leader)
        check_leader(folder, leader)
        if manifest.STREAM[0] not in found.files:
            return stored._replace(grown=f"{folder}: an earlier version made the run: --resume it, and it can go on")
        stream, grown = _stream(folder, found, len(run_folder.finished_lines(folder, found)))
        path = choices.choices_path(folder, found)
        assert path is not None
        content = choices.read_choices(path)
        parts = {name: choices.candidate_folder(path.parent, name) for name in race.running(content)}
        others = _read_candidates(folder, parts)
        updated = read_kept(folder, found) is not None
        return stored._replace(stream=stream, grown=grown, others=others, began=content["began"], updated=updated)
    identity = config_file.read_identity(folder / config_file.CONFIG)
    config = config_file.config_of(identity["config"], folder / config_file.CONFIG)
    lines = run_folder.finished_lines(folder, found)
    if not lines:
        raise ValueError(f"{folder} has no finished segment yet: wait for the run, or --resume it")
    line = text_files.require(lines[-1], _OF_A_LINE, folder / manifest.GROWING)
    text_files.require(identity["stream"], ("source", "segments", "fingerprint"), folder / config_file.CONFIG)
    stream, grown = _stream(folder, found, len(lines))
    if stream.fingerprint != identity["stream"]["fingerprint"]:
        raise ValueError(f"{folder / manifest.STREAM[0]} is not the stream of the run: make the run anew")
    kept = checkpoint.read(folder / "checkpoints", line["segment"])
    return _Stored(identity, config, line, stream, grown, kept, {}, updated=read_kept(folder, found) is not None)


def _stream(folder: Path, found: manifest.Manifest, segments: int) -> tuple[Stream, Growing | str]:
    """The stream of a run, and as what can go on, or why it cannot."""
    if read_kept(folder, found) is not None:
        grown = read_growing(folder, found)
        return grown.stream, grown
    stream = read_stream(folder, found)
    if segments < len(stream):
        return stream, f"{folder} has {segments} of {len(stream)} segments: finish the run first, with --resume"
    try:
        grown = growing(stream)
    except ValueError as error:
        return stream, str(error)
    return stream, grown


class _Other(NamedTuple):
    """What the files of a candidate of auto hold that a model needs to go on."""

    identity: dict[str, Any]
    config: Config
    score: float
    kept: checkpoint.Snapshot


def _read_candidates(folder: Path, parts: dict[str, Path]) -> dict[str, _Other] | str:
    try:
        return {name: _read_candidate(part) for name, part in parts.items()}
    except (ValueError, OSError) as error:
        # The leader answers requests without the others; only what comes next cannot be chosen among them.
        return f"{folder} cannot go on: {error}"


def _read_candidate(folder: Path) -> _Other:
    found = manifest.check(folder)
    identity = config_file.read_identity(folder / config_file.CONFIG)
    config = config_file.config_of(identity["config"], folder / config_file.CONFIG)
    lines = run_folder.finished_lines(folder, found)
    total = race.faded(map(race.score, lines))
    return _Other(identity, config, total, checkpoint.read(folder / "checkpoints", len(lines) - 1))


def _going_on(stored: _Stored, method: Method | None, grown: Growing) -> GoingOn | AutoGoingOn | str:
    if isinstance(stored.others, str):
        return stored.others
    try:
        if stored.others:
            found = {
                name: Candidate(other.kept, other.score, Programs(other.config), _origin(other.identity))
                for name, other in stored.others.items()
            }
            return AutoGoingOn(build.slim(grown), found, stored.began)
        return GoingOn(build.slim(grown), stored.kept, stored.line, Programs(stored.config, method))
    except ValueError as error:
        return str(error)
