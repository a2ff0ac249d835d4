"""A model of a run folder recommends what the run evaluated, by own ids, and so does its exported copy in NumPy."""

import ast
import dataclasses
import errno
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
import pytest
from safetensors import SafetensorError, numpy

import scall_jax
from scall_jax import Budget, evaluation, run_segments, streams
from scall_jax.cli.main import main
from scall_jax.methods.recommender import RECOMMENDERS
from scall_jax.methods.registry import METHODS
from scall_jax.recommenders import to_buffer
from scall_jax.recommenders.ials.config import IalsConfig
from scall_jax.recommenders.ials.fold_in import make_fold_in, solving
from scall_jax.recommenders.ials.problem import Hyper
from scall_jax.recommenders.ials.recommender import ials_recommender
from scall_jax.recommenders.served import Served
from scall_jax.run import manifest
from scall_jax.serving import answers
from scall_jax.serving.build import fallback
from scall_jax.serving.ids import Ids
from scall_jax.serving.scoring import scoring_program
from scall_jax.streams.statistics import popularity
from scall_jax.tables import SIZED, STORAGES
from tests import golden
from tests.helpers import small_stream

pytest.importorskip("safetensors")

# Codes, a bias, and entities that read the vector that they share.
_CODED = golden._config("fixed", table="packed_int4", bias="decayed", budget=Budget.mean_size(0.3))
_QUICK = ("method-frequency", "method-popularity-decayed", "tiny-packed_int4-bias")
_CASES = golden.CASES | {
    "tiny-packed_int4-bias": _CODED,
    **{
        f"{recommender}-{table}": golden._config("frequency", table=table, recommender=recommender, bias="decayed")
        for recommender in RECOMMENDERS
        for table in SIZED
    },
    "tiny-packed_int1": golden._config("uniform", table="packed_int1", budget=Budget.mean_size(0.1)),
}
GUIDE = Path(__file__).parent.parent / "docs" / "guides" / "taking_a_model_away.md"


@pytest.fixture(scope="module")
def stream():
    """Users are text, items numbers."""
    rows = small_stream(segments=3)
    users = pl.Series([f"ann {code}" for code in range(len(rows.user_ids))])
    return dataclasses.replace(rows, user_ids=users, item_ids=7 * pl.Series(np.arange(len(rows.item_ids))) + 1)


@pytest.fixture(scope="module")
def made(stream, tmp_path_factory):
    """Folder and lines of a case, run once; beside it the folder as it was after its first segment."""
    found, root = {}, tmp_path_factory.mktemp("made")

    def run(name):
        def look(line):
            if line["segment"] == 0:
                shutil.copytree(root / name, root / f"{name}-stopped")

        if name not in found:
            lines = run_segments(_CASES[name], stream, jax.random.key(3), folder=root / name, on_segment=look)
            found[name] = root / name, lines
        return found[name]

    return run


@pytest.fixture(scope="module")
def model(made):
    return scall_jax.load(made("method-frequency")[0])


def _recall(items_of, stream, t, k=20):
    """Recall@k by a loop over the rows of the test part."""
    bounds = stream.bounds[t]
    before = set(zip(stream.user[: bounds.train].tolist(), stream.item[: bounds.train].tolist(), strict=True))
    users, items = stream.known(bounds.train)
    relevant = {}
    for row in range(bounds.valid, bounds.end):
        user, item = int(stream.user[row]), int(stream.item[row])
        if user < users and item < items and (user, item) not in before:
            relevant.setdefault(stream.user_ids[user], set()).add(stream.item_ids[item])
    return np.mean([len(wanted & set(items_of(user)[:k])) / len(wanted) for user, wanted in relevant.items()])


def _by_user(frame):
    return dict(frame.group_by("user", maintain_order=True).agg("item").iter_rows())


_EVERY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in _CASES]
)


@_EVERY
def test_recommendations_of_model_and_export_have_the_recall_of_the_record(stream, made, tmp_path, name):
    folder, lines = made(name)
    model, line = scall_jax.load(folder), lines[-1]
    assert model.segment == line["segment"] == len(stream) - 1
    frame = model.recommend(k=20)
    found = _by_user(frame)
    by = "popularity" if name.startswith("method-popularity") else "known"
    assert line["test_users"] > 20 and set(frame["source"]) == {by}
    for k in evaluation.CUTOFFS:
        assert abs(_recall(found.get, stream, line["segment"], k) - line[f"test_recall@{k}"]) < 1e-6

    reader = _reader()
    exported = reader["load"](model.export(tmp_path / "out"))
    alike = [
        _equal_up_to_ties(model, user, items, reader["recommend"](exported, user, 20)) for user, items in found.items()
    ]
    by_reader = _recall(lambda user: reader["recommend"](exported, user, 20), stream, line["segment"])
    assert not all(alike) or abs(by_reader - line["test_recall@20"]) < 1e-6
    _check_bytes(tmp_path / "out", line)


@pytest.mark.parametrize("name", ["method-popularity-decayed", "method-frequency", "method-ease"])
def test_an_export_leaves_out_what_users_have_met_since_the_last_cut(made, tmp_path, name):
    model = scall_jax.load(made(name)[0])
    user, item = model.users.ids[3], model.recommend(model.users.ids[3], k=1)["item"][0]
    assert not isinstance(model.going_on, str)
    clock = model.going_on.growing.clock
    model = model.update(pl.DataFrame({"user": [user, "ann of later"], "item": [item] * 2, "time": [clock] * 2}))
    # The held-out rows of the last segment have been met, too.
    found = _by_user(model.recommend(k=12))
    assert item not in found[user]
    reader = _reader()
    exported = reader["load"](model.export(tmp_path / "out"))
    for one, items in found.items():
        _equal_up_to_ties(model, one, items, reader["recommend"](exported, one, 12))
    # LightGCN's graph is that of the cut.
    np.testing.assert_array_equal(exported[2]["seen_items"], model.seen.items)
    sums = json.loads((tmp_path / "out" / "manifest.json").read_text())["bytes"]
    assert sums["interactions"] > model.seen.items.nbytes + model.seen.offsets.nbytes


def test_the_reader_takes_no_more_memory_than_a_few_times_the_vectors():
    users, items, size, bits = 20_000, 5_000, 32, 4
    rng, count = np.random.default_rng(0), 25_002
    arrays = {
        "values": rng.integers(0, 256, (-(-count * size // 8), bits), np.uint8),
        "size_values": np.array([size, size, size], np.uint8),
        "size_codes": np.zeros((0, -(-(count - 2) // 8)), np.uint8),
        "scales": np.full(count, 255, np.uint8),
        "top": np.float32(1),
        "popularity": np.zeros(items, np.float32),
    }
    stored = _reader()["stored"]
    tracemalloc.start()
    try:
        vectors = stored(arrays, users)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    code = np.unpackbits(arrays["values"], axis=1, bitorder="little").reshape(-1, bits, 8).astype(int)
    code = (code * (1 << np.arange(bits))[:, None]).sum(1).ravel()[: (count - 2) * size].reshape(count - 2, size)
    np.testing.assert_allclose(vectors, (2 * code + 1) / 2**bits - 1, rtol=1e-6)
    assert most < 7 * vectors.nbytes


def _equal_up_to_ties(model, user, items, others):
    """Whether two lists have the same items; asserts that each place has the same score.

    NumPy adds in another order, so that scores which are equal but for that may come in another order, also the last of
    the best and the first of the rest.
    """
    if items == others:
        return True
    scores = dict(model.recommend(user, k=len(model.items)).select("item", "score").iter_rows())
    assert len(items) == len(others) == len(set(others))
    one, other = (np.array([scores[item] for item in of]) for of in (items, others))
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * max(1.0, abs(one).max()))
    return set(items) == set(others)


@_EVERY
def test_a_run_that_stopped_recommends_as_it_stood_then(stream, made, name):
    """Users and items that only later segments bring have room in all arrays, and are unknown."""
    folder, lines = made(name)
    model = scall_jax.load(folder.with_name(f"{name}-stopped"))
    users, items = stream.known(stream.bounds[0].train)
    assert (len(model.users), len(model.items), model.segment) == (users, items, 0) and users < stream.capacity.users
    found = _by_user(model.recommend(k=20))
    for k in evaluation.CUTOFFS:
        assert abs(_recall(found.get, stream, 0, k) - lines[0][f"test_recall@{k}"]) < 1e-6
    later = stream.user_ids[stream.capacity.users - 1]
    assert model.recommend(later, k=1)["source"].to_list() == ["popularity"]


def _reader():
    named = {}
    exec((Path(scall_jax.__file__).parent / "serving" / "reader.py").read_text(), named)
    return named


def _check_bytes(folder, line):
    about = json.loads((folder / "manifest.json").read_text())
    on_disk = {file.name: file.stat().st_size for file in folder.iterdir()}
    del on_disk["manifest.json"]
    assert {name: entry["bytes"] for name, entry in about["files"].items()} == on_disk
    assert all(about["files"][name] == _entry(folder / name) for name in on_disk)
    assert set(on_disk) == {"model.safetensors", "users.parquet", "items.parquet", "README.md", "reader.py"}
    sums = dict.fromkeys(about["bytes"], 0)
    for entry in about["arrays"].values():
        sums[entry["for"]] += entry["bytes"]
    assert sums == about["bytes"]
    header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert on_disk["model.safetensors"] == 8 + header + sum(sums.values())
    if about["budget"]["is_kept_here"] and line["budget_bytes"]:
        assert sums["table"] == line["bytes_table"] and sums["final vectors"] == 0
        bound = line["budget_bytes"] if about["made"]["method"] != "full" else sums["table"]
        assert line["bytes_table"] <= bound
        # A bias of zeros, where least squares has chosen none, is not written; the account has its counts.
        missing = line["bytes_at_rest"] - sums["table"] - sums["sizes"] - sums["bias"]
        assert missing == 0 or (missing == 4 * line["items"] and sums["bias"] == 0)


def _entry(path):
    listed = manifest.entries(path.parent, [path.name])[path.name]
    return {"bytes": listed.nbytes, "sha256": listed.sha256}


def test_every_method_recommender_and_storage_of_sizes_is_among_the_cases():
    assert {config.method for config in _CASES.values()} == set(METHODS)
    pairs = {(config.recommender, config.table) for config in _CASES.values()}
    assert set(itertools.product(RECOMMENDERS, SIZED)) <= pairs


def test_the_reader_of_the_guide_is_short_and_needs_no_jax(model, tmp_path):
    code = GUIDE.read_text().split("```python\n")
    (block,) = [part.split("```")[0] for part in code[1:] if "def propagated" in part]
    assert block == (Path(scall_jax.__file__).parent / "serving" / "reader.py").read_text()
    tree = ast.parse(block)
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    texts = [ast.get_docstring(node) for node in (tree, *functions)]
    assert all(text and "\n" not in text for text in texts)
    lines = [line for line in block.splitlines() if line.strip()]
    assert len(lines) - len(texts) < 65
    path = model.export(tmp_path / "out")
    assert block == (path / "reader.py").read_text()
    user = model.users.ids[3]
    more = f"import sys\nprint(recommend(load({str(path)!r}), {user!r}))\n"
    more += "assert not {'jax', 'scall_jax'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", block + "\n" + more], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(model.recommend(user)["item"].to_list())


def test_an_index_of_the_guide_finds_the_same_items(made):
    pytest.importorskip("faiss", reason="an extra that most do not need")
    (block,) = [part for part in GUIDE.read_text().split("```python\n") if part.startswith("import faiss")]
    named = {}
    exec(block.split("```")[0], named)
    model = scall_jax.load(made("tiny-packed_int4-bias")[0])
    users = model.users.ids[[4, 0, 9]]
    found = _by_user(model.recommend(users, k=8, exclude_seen=False))
    assert np.asarray(model.served.bias).any()
    assert named["search"](named["make_index"](model), model, users, 8) == [found[user] for user in users]


def _example(beginning):
    """The block of the guide that begins so, executed."""
    (block,) = [part for part in GUIDE.read_text().split("```python\n") if part.startswith(beginning)]
    named = {}
    exec(block.split("```")[0], named)
    return named


@pytest.mark.parametrize("name", ["tiny-packed_int4-bias", "method-popularity-decayed"])
def test_the_program_of_scores_gives_the_scores_of_recommend(made, tmp_path, name):
    pytest.importorskip("flatbuffers")
    model = scall_jax.load(made(name)[0])
    path = model.export_scoring(tmp_path / "deep" / "scores.stablehlo")
    users = [*model.users.ids[[4, 0, 9, 4]], "who"]
    rows = model.users.rows(model.users.given(users))
    scores = _example("from pathlib import Path\n\nimport jax")["read_scoring"](path)
    for count in (5, 1):
        found = np.asarray(scores(rows[:count].astype(np.int32)))
        frame = model.recommend(users[:count], k=len(model.items), exclude_seen=False)
        assert found.shape == (count, len(model.items)) and len(frame) == found.size
        place = np.repeat(np.arange(count), len(model.items))
        np.testing.assert_allclose(found[place, model.items.rows(frame["item"])], frame["score"], rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match="is there already"):
        model.export_scoring(path)


def test_the_program_of_scores_is_made_for_all_platforms_and_needs_vectors(model):
    found = scoring_program(model)
    assert found.platforms == ("cpu", "cuda", "tpu")
    assert found.in_avals[0].shape[0] == found.out_avals[0].shape[0] != len(model.users)
    by_items = dataclasses.replace(model, served=model.served._replace(users=jnp.zeros((0, 3))))
    with pytest.raises(ValueError, match="scores by the items of a user"):
        scoring_program(by_items)


@pytest.fixture(scope="module")
def prefixes(model):
    """The model with drawn vectors of its sizes, as least squares would have them: zero beyond an entity's size."""
    rng, sizes = np.random.default_rng(0), model.sizes()["size"].to_numpy()
    drawn = rng.normal(size=(len(sizes), 128)).astype(np.float32) * (np.arange(128) < sizes[:, None])
    users, bias = len(model.users), rng.normal(size=len(model.items)).astype(np.float32)
    served = model.served._replace(users=jnp.array(drawn[:users]), items=jnp.array(drawn[users:]), bias=jnp.array(bias))
    return dataclasses.replace(model, served=served)


@pytest.mark.parametrize("widths", [None, (4, 16, 128), (4, 200)])
@pytest.mark.parametrize("name", [None, pytest.param("ials-packed", marks=pytest.mark.slow)])
def test_indexes_of_each_width_find_what_one_index_finds(made, prefixes, name, widths):
    model = prefixes if name is None else scall_jax.load(made(name)[0])
    groups = model.groups("items", widths)
    together = np.zeros_like(model.vectors("items"))
    for group in groups:
        assert group.vectors.shape == (len(group.rows), group.width)
        together[group.rows, : group.width] = group.vectors[:, : together.shape[1]]
    assert np.array_equal(together, model.vectors("items"))
    assert np.array_equal(np.sort(np.concatenate([group.rows for group in groups])), np.arange(len(model.items)))
    held = sum(group.vectors.size for group in groups)
    exact = model.sizes().filter(pl.col("side") == "items")["size"].sum()
    assert held == exact if widths is None else exact < held < len(model.items) * widths[-1]
    named = _example("import numpy as np\n\n\ndef search_widths")
    wanted = _by_user(model.recommend(k=8, exclude_seen=False))
    found = named["search_widths"](model, model.vectors("users"), groups, k=8)
    assert {user: model.items.ids[row].to_list() for user, row in zip(model.users.ids, found, strict=True)} == wanted
    for wrong in ((0, 128), (2,)):
        with pytest.raises(ValueError, match="widths"):
            model.groups("items", wrong)


def test_an_export_overwrites_nothing(model, tmp_path):
    (tmp_path / "mine").write_text("mine")
    for path in (tmp_path, tmp_path / "mine"):
        with pytest.raises(ValueError, match="is there already"):
            model.export(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    users = pl.read_parquet(model.export(tmp_path / "deep" / "out") / "users.parquet")
    assert users.equals(pl.DataFrame({"id": model.users.ids, "row": users["row"], "size": users["size"]}))
    assert users["size"].to_list() == model.sizes().filter(pl.col("side") == "users")["size"].to_list()


@pytest.mark.parametrize("name", ["users.parquet", "model.safetensors"])
def test_an_export_to_a_full_disk_is_refused_by_name(model, tmp_path, monkeypatch, name):
    def full(*arguments):
        raise (pl.exceptions.ComputeError if name == "users.parquet" else SafetensorError)("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(*((pl.DataFrame, "write_parquet") if name == "users.parquet" else (numpy, "save_file")), full)
        with pytest.raises(ValueError, match=rf"{name} cannot be written \(No space.*nothing was exported"):
            model.export(tmp_path / "out")
    assert not (tmp_path / "out").exists() and model.export(tmp_path / "out").exists()


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not say which files are open")
def test_all_files_of_an_export_are_on_disk_before_it_has_its_name(model, tmp_path, monkeypatch):
    synced, replace, sync = set(), os.replace, os.fsync

    def replaced(here, there):
        if Path(there) == tmp_path / "out":
            named = {Path(file).name.removesuffix(".tmp") for file in synced if Path(file).parent == Path(here)}
            assert named == {file.name for file in Path(here).iterdir()} and str(here) in synced
        replace(here, there)

    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.add(_opened(descriptor)), sync(descriptor)))
    monkeypatch.setattr(os, "replace", replaced)
    model.export(tmp_path / "out")
    assert str(tmp_path) in synced


def _opened(descriptor):
    """Path of an open file."""
    return os.readlink(f"/proc/self/fd/{descriptor}")


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_recommendations_take_the_place_of_others_as_a_whole(made, tmp_path, capsys, monkeypatch, name):
    kind, out = name.removeprefix("out."), tmp_path / name
    command = ["recommend", str(made("method-popularity-decayed")[0]), "--k", "3", "--out", str(out)]
    out.write_bytes(b"before")

    def full(frame, file):
        file.write(b"the first half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="2"):
        patched.setattr(pl.DataFrame, f"write_{kind}", full)
        main(command)
    error = capsys.readouterr().err
    assert f"{out} cannot be written (No space left" in error and "choose another --out" in error
    assert out.read_bytes() == b"before" and [file.name for file in tmp_path.iterdir()] == [name]
    main(command)
    assert len((pl.read_csv if kind == "csv" else pl.read_parquet)(out)) and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no file that is always full")
def test_recommendations_that_cannot_be_written_end_in_one_line(made, tmp_path, capsys):
    out = tmp_path / "out.parquet"
    out.symlink_to("/dev/full")
    with pytest.raises(SystemExit, match="2"):
        main(["recommend", str(made("method-frequency")[0]), "--k", "3", "--out", str(out)])
    error = capsys.readouterr().err
    assert "No space left" in error and str(out) in error


def test_scores_are_inner_products_and_seen_items_are_left_out(model, stream):
    users = model.users.ids[[5, 2, 5]]
    scores = model.vectors("users")[[5, 2, 5]] @ model.vectors("items").T
    for exclude in (False, True):
        frame = model.recommend(users, k=7, exclude_seen=exclude)
        wanted = scores.copy()
        if exclude:
            cut = stream.bounds[-1].train
            for place, row in enumerate((5, 2, 5)):
                wanted[place, stream.item[:cut][stream.user[:cut] == row]] = -np.inf
        best = np.argsort(-wanted, axis=1, kind="stable")[:, :7]
        assert frame["user"].to_list() == [user for user in users for _ in range(7)]
        assert frame["rank"].to_list() == list(range(1, 8)) * 3
        assert frame["item"].to_list() == model.items.ids[best.ravel()].to_list()
        np.testing.assert_allclose(frame["score"], np.take_along_axis(wanted, best, 1).ravel(), rtol=1e-5)
    assert set(frame["source"]) == {"known"}


def test_a_new_user_is_folded_in_by_propagation_with_the_graph_as_it_is(model, stream):
    """Against a dense graph in float64 that has one more user, whose links lead to the user alone."""
    liked = model.items.ids[[4, 9, 30]]
    frame = model.recommend(["nobody"], k=60, items_of={"nobody": liked.to_list()})
    assert set(frame["source"]) == {"folded in"} and not set(frame["item"]) & set(liked)
    cut, (users, items) = stream.bounds[-1].train, stream.known(stream.bounds[-1].train)
    met = np.zeros((users, items))
    met[stream.user[:cut], stream.item[:cut]] = 1
    degree = [np.maximum(met.sum(axis), 1) for axis in (1, 0)]
    link = met / np.sqrt(np.outer(*degree))
    own_users, own_items = _own_vectors(model, link)
    total, layer = np.zeros(own_items.shape[1]), own_items
    for x_items in (layer, link.T @ own_users):
        total += sum(x_items[i] / np.sqrt(3 * degree[1][i]) for i in (4, 9, 30))
    scores = model.vectors("items") @ (total / 3)
    scores[[4, 9, 30]] = -np.inf
    wanted = np.sort(scores)[::-1][:57]
    np.testing.assert_allclose(frame["score"].to_numpy()[:57], wanted[: len(frame)], rtol=1e-3, atol=1e-6)


def _own_vectors(model, link):
    """Vectors before two propagations, in float64."""
    users, items = (model.vectors(side).astype(np.float64) for side in ("users", "items"))
    n = len(users)
    adjacency = np.zeros((n + len(items),) * 2)
    adjacency[:n, n:], adjacency[n:, :n] = link, link.T
    smooth = (np.eye(len(adjacency)) + adjacency + adjacency @ adjacency) / 3
    own = np.linalg.lstsq(smooth, np.concatenate([users, items]), rcond=None)[0]
    return own[:n], own[n:]


def test_who_is_unknown_gets_what_is_popular(model, stream):
    cut = stream.bounds[-1].train
    period = cut - stream.bounds[-2].train
    name = model.popularity_name
    assert name == fallback(period)
    item = stream.item[:cut]
    counts = popularity(item, stream.bounds[-1].start, np.bincount(item, minlength=stream.capacity.items))
    wanted = np.argsort(-counts[streams.POPULARITY.index(name)], kind="stable")
    given = {"who": [], "some": [10**9], "met": [10**9, int(model.items.ids[0])], model.users.ids[0]: [8, 15]}
    frame = model.recommend(["who", "some", "met", model.users.ids[0]], k=5, items_of=given)
    sources = dict(frame.select("user", "source").unique().iter_rows())
    assert sources == {"who": "popularity", "some": "popularity", "met": "folded in", model.users.ids[0]: "known"}
    found = _by_user(frame)
    assert found["who"] == found["some"] == model.items.ids[wanted[:5]].to_list()
    assert not {8, 15} & set(found[model.users.ids[0]])


def test_known_users_keep_their_vectors_where_nobody_can_be_folded_in(model):
    other = dataclasses.replace(model, fold_in=None)
    assert other.recommend(k=5).equals(model.recommend(k=5))
    unknown = other.recommend(["somebody"], 3, items_of={"somebody": [8, 15]})
    assert set(unknown["source"]) == {"popularity"} and not set(unknown["item"]) & {8, 15}
    rows = np.arange(3, dtype=np.int32)
    scores = [np.asarray(scoring_program(of).call(rows)) for of in (model, other)]
    np.testing.assert_array_equal(*scores)


def test_a_fold_in_of_least_squares_solves_the_users_system():
    rng = np.random.default_rng(0)
    vectors, bias = rng.normal(size=(20, 4)).astype(np.float32), rng.normal(size=20).astype(np.float32)
    hyper = Hyper(*map(jnp.float32, (0.5, 0.1, 0.01, 0.5)))
    served = Served(jnp.zeros((0, 4)), jnp.asarray(vectors), jnp.asarray(bias), solving(vectors, bias, 20, hyper))
    found = answers._folded(make_fold_in(1.0), served, answers._Pairs(np.array([0, 2, 5]), np.array([3, 7, 1, 2, 19])))
    for items, vector in zip(([3, 7], [1, 2, 19]), found, strict=True):
        v, all_v = vectors[items].astype(float), vectors.astype(float)
        matrix = v.T @ v + 0.1 * all_v.T @ all_v + 0.01 * (len(items) + 0.1 * 20) * np.eye(4)
        right = v.T @ (1 - bias[items]) - 0.1 * all_v.T @ bias
        np.testing.assert_allclose(vector, np.linalg.solve(matrix, right), rtol=1e-4)


def test_a_fold_in_of_least_squares_is_beside_the_bias_of_the_fit_and_not_that_of_ranking(stream):
    (users, items, *_), segment = stream.capacity, stream.segment(2)
    table = STORAGES["packed"].build(4 * (users + items), users, items, 4)
    sizes = jnp.concatenate([jnp.full(users + items, 4, jnp.int32), jnp.zeros(2, jnp.int32)])
    vectors = jnp.asarray(np.random.default_rng(0).normal(size=4 * (users + items)), jnp.float32)
    found = ials_recommender(IalsConfig(1, half_life=1.0, unobserved=0.1, regularisation=0.01), 10, "all", "decayed")
    chosen = found.init()
    chosen = chosen._replace(bias=jnp.int32(len(chosen.biases) - 1), ranking=jnp.eye(5)[3])
    fitted = np.asarray(found.item_bias(chosen, segment)[0], float)
    ranking = found.ranking_bias(chosen, jnp.asarray(fitted, jnp.float32))
    served = found.serve(table, to_buffer(table, vectors), table.layout(sizes), segment, ranking, chosen, 4)
    np.testing.assert_allclose(served.bias, 10 * fitted, rtol=1e-6)
    assert fitted.max() > 0.01
    met, known = [3, 7, 1], int(segment.items)
    all_v = np.asarray(served.items, float)[:known]
    v, beta = all_v[met], fitted[:known]
    matrix = v.T @ v + 0.1 * all_v.T @ all_v + 0.01 * (len(met) + 0.1 * known) * np.eye(4)
    right = v.T @ (1 - beta[met]) - 0.1 * all_v.T @ beta
    vector = found.fold_in(served, jnp.array(met), 3)
    np.testing.assert_allclose(vector, np.linalg.solve(matrix, right), rtol=1e-3, atol=1e-5)


def test_similar_items_have_the_largest_cosines(model):
    frame = model.similar_items(model.items.ids[[6, 0]], k=4)
    unit = model.vectors("items") / np.linalg.norm(model.vectors("items"), axis=1, keepdims=True)
    cosine = unit[[6, 0]] @ unit.T
    cosine[[0, 1], [6, 0]] = -np.inf
    best = np.argsort(-cosine, axis=1)[:, :4]
    assert frame.columns == ["item", "rank", "similar", "score"]
    assert frame["similar"].to_list() == model.items.ids[best.ravel()].to_list()
    np.testing.assert_allclose(frame["score"], np.take_along_axis(cosine, best, 1).ravel(), rtol=1e-5)
    with pytest.raises(ValueError, match="not among"):
        model.similar_items([10**9])


def test_sizes_and_budget_are_those_of_the_run(model, made, stream):
    folder, lines = made("method-frequency")
    sizes = model.sizes()
    with np.load(folder / "sizes" / f"segment-{model.segment:04d}.npz") as stored:
        assert sizes["size"].to_list() == [*stored["users"], *stored["items"]]
    cut = stream.bounds[-1].train
    items = sizes.filter(pl.col("side") == "items")
    assert items["frequency"].to_list() == np.bincount(stream.item[:cut]).tolist()
    assert items["id"].to_list() == [str(x) for x in model.items.ids] and set(sizes["bits"]) == {32}
    budget = model.budget
    assert sizes["size"].sum() * 4 == budget.table == lines[-1]["bytes_table"] <= budget.allowed
    assert budget.rule == Budget.mean_size(8) and budget.serving == lines[-1]["bytes_serving"]


def test_ids_are_found_whatever_their_type(model, made):
    assert model.recommend("ann 3", k=2).equals(model.recommend(pl.Series(["ann 3"]), k=2))
    as_text = model.recommend(["x"], k=3, items_of={"x": [str(x) for x in model.items.ids[[3, 4]]]})
    assert as_text.equals(model.recommend(["x"], k=3, items_of=pl.DataFrame({"user": ["x"] * 2, "item": [22, 29]})))
    like = model.similar_items(str(model.items.ids[3]), k=2)
    assert like["item"].to_list() == [22, 22] and like["similar"].dtype == model.items.ids.dtype
    unknown = model.recommend([17, "y"], k=1)
    assert unknown["user"].to_list() == ["17", "y"] and set(unknown["source"]) == {"popularity"}
    assert len(model.recommend("ann 0", k=1000)) < len(model.items)
    item = int(model.items.ids[3])
    like = model.similar_items([float(item)], k=1)
    assert like["item"].to_list() == [item] and like.equals(model.similar_items(item, k=1))
    for other, message in ((f"0{item}", "not among"), (item + 0.5, "give integers or text")):
        with pytest.raises(ValueError, match=message):
            model.similar_items([other], k=1)


def test_text_beside_numbers_is_an_unknown_id_and_keeps_its_name(model):
    turned = dataclasses.replace(model, users=Ids(pl.Series(np.arange(len(model.users)))))
    frame = turned.recommend(["3", "new", "newer"], k=2, items_of={"new": [22], "3": [29]})
    assert frame["user"].to_list() == ["3", "3", "new", "new", "newer", "newer"]
    assert frame["source"].to_list()[::2] == ["known", "folded in", "popularity"]
    assert turned.recommend(["3"], k=2)["user"].to_list() == [3, 3]
    # Ids in requests are the same as in data if they are written alike.
    assert turned.recommend(["003", "3"], k=1)["source"].to_list() == ["popularity", "known"]
    assert turned.recommend([3, 4, 10**9], k=1, items_of={3: ["8"]})["source"].to_list() == ["known"] * 2 + [
        "popularity"
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"k": 0}, "at least 1"), ({"users": []}, "no users"), ({"items_of": ["a"]}, "items_of: give")],
)
def test_what_cannot_be_answered_is_refused(model, change, message):
    with pytest.raises(ValueError, match=message):
        model.recommend(**({"users": ["ann 0"]} | change))
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.segment = 3
    with pytest.raises(ValueError, match="side"):
        model.vectors("both")


def test_requests_of_many_lengths_compile_few_programs(model, monkeypatch):
    before = answers._best._cache_size()
    for count in range(1, 40):
        model.recommend(model.users.ids[:count], k=3, exclude_seen=False)
    assert answers._best._cache_size() - before <= 4
    whole = model.recommend(k=3)
    monkeypatch.setattr(answers, "_MOST", 16)
    assert model.recommend(k=3).equals(whole)


@pytest.mark.parametrize("k", [20_000_000, 10**9])
def test_as_many_as_there_are_are_recommended_where_more_are_asked_for(made, k):
    model = scall_jax.load(made("method-popularity-decayed")[0])
    users = model.users.ids[:2].to_list()
    every = model.recommend(users, k=len(model.items))
    assert model.recommend(users, k=k).equals(every) and len(every) < 2 * len(model.items)
    assert len(model.recommend("who", k=k)) == len(model.items)
    vectors = dataclasses.replace(model, served=model.served._replace(items=np.eye(len(model.items), 4, dtype="f")))
    assert len(vectors.similar_items(vectors.items.ids[1], k=k)) == len(model.items) - 1


def test_a_folder_that_is_no_whole_run_is_refused(made, tmp_path):
    with pytest.raises(ValueError, match="is no run folder"):
        scall_jax.load(tmp_path)
    path = shutil.copytree(made("method-popularity-decayed")[0], tmp_path / "run")
    file = path / "interactions.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"interactions\.parquet is not what the run wrote"):
        scall_jax.load(path)
    file.write_bytes(whole)
    with (path / "metrics.jsonl").open("a") as growing:
        growing.write('{"segment": 9, "torn')
    assert scall_jax.load(path).segment == 2
    found = manifest.read(path)
    manifest.write(path, found._replace(files={"config.json": found.files["config.json"]}))
    with pytest.raises(ValueError, match="no finished segment"):
        scall_jax.load(path)


def test_the_commands_recommend_and_export(made, model, tmp_path, capsys):
    folder, _ = made("method-frequency")
    users = model.users.ids[:2].to_list()
    main(["recommend", str(folder), "--users", *users, "--k", "3"])
    printed = pl.read_csv(io.StringIO(capsys.readouterr().out))
    assert printed.select("user", "item").equals(model.recommend(users, k=3).select("user", "item"))
    out = tmp_path / "new.parquet"
    main(["recommend", str(folder), "--users", "new", "--items", "8", "15", "--seen", "--out", str(out)])
    assert set(pl.read_parquet(out)["source"]) == {"folded in"}
    main(["export", str(folder), "--out", str(tmp_path / "out")])
    size = sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    assert f"{size:,} bytes" in capsys.readouterr().out
    for wrong in (
        ["export", str(folder), "--out", str(tmp_path / "out")],
        ["recommend", str(tmp_path)],
        ["export", str(folder)],
    ):
        with pytest.raises(SystemExit, match="2"):
            main(wrong)
    error = capsys.readouterr().err
    assert "is there already" in error and "is no run folder" in error and "--out FOLDER" in error
