"""Files as they are published and as they break are read as they should be, or refused for the right reason."""

import pytest

from tests.faults import cases, inputs
from tests.faults.outcomes import EXACT, FAILURE, REFUSED

CORPUS = inputs.corpus()
PART = 8
"""Every so many cases are read by the quick test."""


def _outcomes(corpus, folder):
    found = []
    for number, case in enumerate(corpus):
        (folder / str(number)).mkdir()
        found.append(cases.check(case, folder / str(number)))
    return found


def test_the_corpus_is_large_and_has_both_kinds():
    assert len(CORPUS) > 1000
    assert sum(case.rows is None for case in CORPUS) > 400 and sum(case.rows is not None for case in CORPUS) > 400


@pytest.mark.parametrize("first", [0, *(pytest.param(k, marks=pytest.mark.slow) for k in range(1, PART))])
def test_every_case_comes_out_right(tmp_path, first):
    found = _outcomes(CORPUS[first::PART], tmp_path)
    assert [outcome for outcome in found if outcome.kind == FAILURE] == []
    assert {outcome.kind for outcome in found} == {EXACT, REFUSED}


def test_names_in_a_damaged_directory_of_a_zip_are_refused(tmp_path):
    found = _outcomes([case for case in CORPUS if case.name.startswith("zip with a name")], tmp_path)
    assert [outcome.kind for outcome in found] == [REFUSED] * 2


def test_a_wrong_answer_and_a_wrong_reason_are_reported(tmp_path):
    wrong = [
        case._replace(rows=list(case.rows)[1:] or [("another", 1, 0)]) if case.rows else case._replace(words="zzz")
        for case in CORPUS[:: 4 * PART]
    ]
    assert {outcome.kind for outcome in _outcomes(wrong, tmp_path)} == {FAILURE}
