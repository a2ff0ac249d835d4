"""The tiny runs that the tests of faults damage, made once."""

import pytest

from tests.faults import places


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="session")
def popularity(root):
    """A run that was stopped: continued, and loaded."""
    return places.stopped_run(root, "popularity")


@pytest.fixture(scope="session")
def exported(root, popularity):
    """The exported model of the same run when it was finished."""
    return places.exported_model(root, "popularity")
