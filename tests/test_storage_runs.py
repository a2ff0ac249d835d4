"""Whole runs of the methods that store embeddings in ways of their own: bytes, resumption, scan and learning."""

import dataclasses

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from scall_jax import Budget, FitConfig, records, run_segments, scan
from scall_jax.config import SearchConfig
from tests.helpers import small_config, small_stream

NAMES = ("shared_memory", "mixed_precision", "pep")
BUDGET = Budget.schedule([Budget.mean_size(x) for x in (5, 7.3, 3.1, 6)])


@pytest.fixture(scope="module")
def stream():
    return small_stream()


def _config(name, **options):
    fit = FitConfig(layers=1, batch=256, steps=60, eval_every=20, learning_rate=0.05, valid_users=64)
    search = SearchConfig(probes=2, probe_steps=30)
    return small_config(name, **({"fit": fit, "search": search, "budget": BUDGET, "charge": "all"} | options))


def _comparable(lines):
    left_out = {*records.VOLATILE, *records.ACCOUNT}
    return [{k: v for k, v in line.items() if k not in left_out} for line in lines]


def _bytes_of_arrays(folder, segment):
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        tree = checkpointer.restore(folder.absolute() / "checkpoints" / f"segment-{segment:04d}" / "table")
    return sum(np.asarray(x).nbytes for name, x in tree.items() if name not in ("format", "key", "known"))


class _Stop(Exception):
    pass


@pytest.mark.parametrize("name", NAMES)
def test_runs_hold_their_bytes_and_continue_and_scan(stream, tmp_path, name):
    config, key = _config(name), jax.random.key(0)
    on_disk = []
    whole = run_segments(
        config,
        stream,
        key,
        folder=tmp_path / "whole",
        on_segment=lambda line: on_disk.append(_bytes_of_arrays(tmp_path / "whole", line["segment"])),
    )
    for line, kept in zip(whole, on_disk, strict=True):
        assert kept == line["bytes_at_rest"] <= line["budget_bytes"]
        assert kept > 0.9 * line["budget_bytes"]
        assert line["allocated_parameters"] <= line["budget_parameters"]

    def stop(line):
        if line["segment"] == 1:
            raise _Stop

    with pytest.raises(_Stop):
        run_segments(config, stream, key, folder=tmp_path / "parts", on_segment=stop)
    assert _comparable(run_segments(config, stream, key, folder=tmp_path / "parts")) == _comparable(whole)

    _, record = scan(config, stream, key)
    assert record.allocated.tolist() == [line["allocated_parameters"] for line in whole]
    np.testing.assert_allclose(record.test.recall[:, 0, -1], [x["test_recall@20"] for x in whole], atol=0.05)

    still = dataclasses.replace(config.fit, steps=1, learning_rate=1e-9)
    untrained = run_segments(dataclasses.replace(config, fit=still), stream, key)
    # at first there are hardly more than 20 items to choose from
    ours, theirs = (np.mean([x["valid_recall@20"] for x in found[2:]]) for found in (whole, untrained))
    assert ours > 1.1 * theirs
