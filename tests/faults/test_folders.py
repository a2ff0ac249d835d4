"""Whatever is done to the files of a run, what is read of them is right, or they are refused by name."""

import collections
import contextlib
import shutil

import pytest

import scall_jax
from scall_jax.run import config_file, loop, manifest, removal
from scall_jax.run import folder as run_folder
from scall_jax.serving import reader
from tests.faults import damage, kills, places
from tests.faults.outcomes import EXACT, FAILURE, REFUSED, contents, observe
from tests.faults.server import Server


def _judged(outcomes):
    """How many outcomes of each kind; none may be a failure."""
    found = list(outcomes)
    assert [outcome for outcome in found if outcome.kind == FAILURE] == []
    return collections.Counter(outcome.kind for outcome in found)


def _changed(uses, work, numbers):
    return [damage.change_bytes(use, change, k, work) for use in uses for change in damage.CHANGES for k in numbers]


def test_changed_bytes_are_refused_in_every_kind_of_file(popularity, exported, tmp_path):
    kinds = {damage.kind_of(path) for path in damage.files(popularity[0].folder)}
    assert len(kinds) >= 13 and {"metrics.jsonl", "checkpoints/data", "interactions.parquet", "replay.parquet"} <= kinds
    outcomes = _changed([*popularity, exported], tmp_path / "copy", range(len(kinds)))
    assert _judged(outcomes)[REFUSED] > 0.8 * len(outcomes)
    assert {damage.kind_of(places.Path(outcome.case.split(" ")[1])) for outcome in outcomes} >= kinds


def test_missing_exchanged_and_older_files_and_links_are_refused(popularity, tmp_path):
    outcomes = list(damage.misplaced(popularity[0], tmp_path / "copy"))
    assert _judged(outcomes) == {REFUSED: len(outcomes)}
    assert {outcome.situation.split(":")[0] for outcome in outcomes} == {"missing", "exchanged", "older", "link"}


def test_contents_that_lack_something_are_refused_although_their_hashes_are_right(popularity, tmp_path):
    outcomes = []
    for name in ("stream.json", "config.json", "manifest.json"):
        outcomes += damage.without_keys(popularity[1], name, tmp_path / "copy")
    # The first key of a line is the segment's number, which the rest depends on.
    outcomes.append(next(damage.without_keys(popularity[1], "metrics.jsonl", tmp_path / "copy")))
    assert _judged(outcomes)[REFUSED] >= 6 + 3 + 4 + 1


def test_candidates_of_auto_under_each_others_names_are_refused(root, tmp_path):
    for use in places.auto_run(root, "popularity-all"):
        assert damage.renamed_candidates(use, tmp_path / "copy").kind == REFUSED


def test_a_second_writer_is_refused(popularity, tmp_path):
    assert damage.second_writer(popularity[0], tmp_path / "copy").kind == REFUSED


@pytest.mark.parametrize("wait", [2, *(pytest.param(k, marks=pytest.mark.slow) for k in (0, 3, 4))])
def test_a_full_disk_is_named_and_the_run_goes_on_when_there_is_room(popularity, tmp_path, wait):
    assert damage.full_disk(popularity[0], wait, tmp_path / "copy").kind == REFUSED


def test_the_storage_of_checkpoints_is_refused_in_one_line(popularity, tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise ValueError("RESOURCE_EXHAUSTED: Error\nwriting [os_error_code='28'] [source locations='a\nb']")

    monkeypatch.setattr("orbax.checkpoint.Checkpointer.save", full)
    with damage.copy_of(popularity[0].folder, tmp_path / "copy") as folder:
        found = observe(
            "full", "", lambda: popularity[0].answer(folder), None, ["segment-0002 cannot be written (No space"]
        )
    assert found.kind == REFUSED


def test_a_folder_that_cannot_be_written_to_is_refused_by_name(popularity, tmp_path):
    with damage.copy_of(popularity[0].folder, tmp_path / "copy") as folder:
        (folder / "lock").unlink(missing_ok=True)
        (folder / "lock").mkdir()
        assert (
            observe("no lock", "", lambda: popularity[0].answer(folder), None, ["lock cannot be opened"]).kind
            == REFUSED
        )


def test_a_run_that_was_killed_while_its_folder_was_made_starts_and_one_that_lost_its_config_does_not(
    popularity, tmp_path
):
    stream, config = places.tiny_stream(), places.CONFIGS["popularity"]
    identity = config_file.identity_of(config, stream, places.KEY)
    for left in (["manifest.json.tmp"], ["manifest.json"], ["manifest.json", "config.json.tmp"]):
        folder = tmp_path / "-".join(left)
        run_folder.start(folder, identity)
        for name in ("manifest.json", "config.json"):
            shutil.copyfile(folder / name, folder / f"{name}.tmp")
        for path in [path for path in folder.iterdir() if path.name not in left]:
            path.unlink()
        assert run_folder.open_folder(folder, config, stream, places.KEY) == []
        removal.remove_run(folder)
        assert not list(folder.iterdir())
    with damage.copy_of(popularity[0].folder, tmp_path / "copy") as folder:
        config_path = (folder / "config.json").rename(tmp_path / "config.json")
        found = observe("lost", "", lambda: popularity[0].answer(folder), None, ["config.json is missing"])
        assert found.kind == REFUSED
        # Nothing has been lost with it.
        config_path.rename(folder / "config.json")
        assert popularity[0].answer(folder) == contents(popularity[0].folder.parent / "whole")


def test_an_exported_model_is_no_run_folder(exported):
    with pytest.raises(ValueError, match="is an exported model"):
        scall_jax.load(exported.folder)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # Damaged checkpoints make Orbax say more.
def test_without_hashes_and_locks_faults_are_reported(popularity, exported, tmp_path, monkeypatch):
    """The harness tells: what these tests assert cannot be had by not looking."""
    damage._answer(popularity[1]), damage._answer(exported)
    with monkeypatch.context() as patch:
        patch.setattr(manifest, "check", manifest.read)
        found = [damage.change_bytes(popularity[1], "flip", number, tmp_path / "copy") for number in range(13)]
        assert sum(outcome.kind == FAILURE for outcome in found) > 0
    with monkeypatch.context() as patch:
        patch.setattr(reader, "checked", lambda folder: reader.json.loads((folder / "manifest.json").read_text()))
        found = _changed([exported], tmp_path / "copy", range(10))
        assert sum(outcome.kind == FAILURE for outcome in found) > 5
    with monkeypatch.context() as patch:
        patch.setattr(loop, "locked", lambda folder: contextlib.nullcontext())
        assert damage.second_writer(popularity[0], tmp_path / "copy").kind == FAILURE


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("cache")) as started:
        yield started


@pytest.mark.slow
def test_processes_that_are_killed_or_cannot_write_or_come_second_lose_nothing(server, tmp_path):
    tmp_path.chmod(0o755)
    job = kills.job(server, tmp_path, "popularity-decayed")
    out, marks = tmp_path / "out", tmp_path / "marks"
    outcomes = kills.kill_at_operation(job, range(4), out)
    outcomes += kills.kill_at_random(job, range(4), out, marks)
    # A disk of its own can be mounted by root alone.
    outcomes += [kills.full_disk(job, number, out) for number in (1, 2)]
    outcomes.append(kills.two_processes(job, 0, out, marks))
    assert _judged(outcomes)[EXACT] >= 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ials", "search"])
def test_other_runs_are_as_safe(root, tmp_path, name):
    uses = [*places.stopped_run(root, name), *places.auto_run(root)]
    _judged(_changed(uses, tmp_path / "copy", range(40)))
    _judged(outcome for use in uses for outcome in damage.misplaced(use, tmp_path / "copy"))
