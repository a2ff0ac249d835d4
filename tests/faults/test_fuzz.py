"""Any bytes are read right or refused in one line: the targets of `tests.faults.fuzz` with inputs of hypothesis."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scall_jax import streams
from tests.faults import fuzz

_EDITS = st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 8), st.binary(max_size=8)), max_size=4)


def _edited(name: str) -> st.SearchStrategy[bytes]:
    """A seed of a target with some bytes replaced, or bytes of any kind."""

    def edit(seed: bytes, edits: list[tuple[int, int, bytes]]) -> bytes:
        for at, length, data in edits:
            at %= len(seed) + 1
            seed = seed[:at] + data + seed[at + length :]
        return seed

    seeds = st.deferred(lambda: st.sampled_from(fuzz.seeds(name)))
    return st.one_of(st.builds(edit, seeds, _EDITS), st.binary(max_size=300))


_LONG = pytest.param(2000, marks=pytest.mark.slow)


@pytest.mark.parametrize("examples", [60, _LONG])
@pytest.mark.parametrize("name", ["reader", "rows", "config"])
def test_bytes_of_any_kind(name, examples):
    target = fuzz.guarded(fuzz.TARGETS[name])

    @settings(max_examples=examples)
    @given(_edited(name))
    def run(data):
        target(data)

    run()


@pytest.mark.parametrize("examples", [40, _LONG])
def test_an_exported_model_with_other_bytes(exported, examples, monkeypatch):
    monkeypatch.setattr(fuzz, "_write_model", lambda folder: fuzz.shutil.copytree(exported.folder, folder))

    @settings(max_examples=examples)
    @given(st.binary(min_size=4, max_size=40))
    def run(data):
        fuzz.model_target(data)

    run()


_WORDS = st.sampled_from(
    [
        *("--method", "uniform", "scall@", "uniform@table=packed_int4", "--budget.mean-size", "4", "-1", "nan", "1e9"),
        *("--fit.steps", "--cut.at", "2020-01-01", "--no-report", "--seed", "x", "--table", "packed_int3", "=", "--"),
        *("@=,", "--fit.batch=0"),
    ]
)


@pytest.mark.parametrize("examples", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_flags_of_any_kind(examples):
    @settings(max_examples=examples)
    @given(st.lists(_WORDS, max_size=6))
    def run(words):
        fuzz.flags_target("\n".join(words).encode())

    run()


def test_wrong_rows_and_slow_readers_are_reported(monkeypatch):
    real = streams.read
    monkeypatch.setattr(streams, "read", lambda path, **options: real(path, **options).take(fuzz.np.arange(1)))
    with pytest.raises(fuzz.Wrong, match="written"):
        fuzz.rows_target(b"\0\0\0\0ab cd")
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    with pytest.raises(fuzz.Wrong, match="longer"):
        fuzz.guarded(lambda data: fuzz.signal.pause())(b"")
