"""Records of small runs stay as they are kept in `golden.json`."""

import json

import pytest

from tests import golden

KEPT = json.loads(golden.PATH.read_text())


@pytest.fixture(scope="module")
def data():
    return golden.stream()


def _assert_close(found, kept, where):
    if isinstance(kept, list):
        assert len(found) == len(kept), where
        for number, pair in enumerate(zip(found, kept, strict=True)):
            _assert_close(*pair, f"{where}[{number}]")
    elif isinstance(kept, float):
        assert found == pytest.approx(kept, abs=1e-5), where
    else:
        assert found == kept, where


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in golden.QUICK else pytest.mark.slow) for name in golden.CASES]
)
def test_records_are_those_that_were_kept(name, data):
    found = golden.lines(name, data)
    assert [set(line) for line in found] == [set(line) for line in KEPT[name]]
    for line, kept in zip(found, KEPT[name], strict=True):
        for key, value in kept.items():
            _assert_close(line[key], value, f"{name}, segment {kept['segment']}, {key}")
