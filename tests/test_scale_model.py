"""The model of a segment's cost: its counts against independent ones, and its fit against known rates."""

import dataclasses
import itertools
import math
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments import scale, scale_memory, scale_model
from experiments.scale_model import Machine, Observation, fitted, held, observations, seconds
from experiments.scale_work import ACCELERATOR, CPU, Job, Work, phases, ranked_users

from experiments.scale_work import _half_sweep, _ranked, _sides  # isort: skip
from scall_jax.cli.cli import cli
from scall_jax.evaluation.top import at_once
from scall_jax.recommenders.ials.batches import batch_numbers, batch_size, most_entities

RESULTS = Path(__file__).parent.parent / "experiments" / "results"


@pytest.fixture(scope="module")
def measured():
    return pl.read_parquet(RESULTS / "scale.parquet")


def test_a_cpu_works_on_as_much_at_once_as_the_package_does():
    assert (CPU.numbers, CPU.entities, CPU.few) == (batch_numbers(), batch_size(16), most_entities())
    assert (CPU.users, CPU.scores, CPU.edges) == tuple(at_once())


@pytest.mark.parametrize("recommender", ["ials", "mf"])
@pytest.mark.parametrize("devices", [1, 2, 4])
def test_counts_are_near_those_of_a_trace_of_the_programs(measured, recommender, devices):
    (row,) = measured.filter(measured=f"shared {recommender}", count=devices).to_dicts()
    found = phases(Job(recommender, row["entities"], devices, row["sweeps"] or 2, row["steps"] or 5, 8192))
    for phase in ("fit", "evaluate"):
        assert found[phase].products == pytest.approx(row[f"{phase} products"], rel=0.1)
        assert found[phase].summed == pytest.approx(row[f"{phase} summed"], rel=0.25)
        assert found[phase].exchanges == pytest.approx(row[f"{phase} exchanges"], rel=0.25)
    assert found["prepare"].products == 0 and found["prepare"].exchanges == 0


def test_a_ranking_is_counted_as_by_hand():
    # 1,000 items are 1,024 in whole chunks; 1,024 users at once, so that 1,500 take two blocks.
    work = _ranked(Job("mf", 11_000), 1500)
    assert work.products == 2 * 2 * 1024 * 1024 * 17
    assert work.moved == 2 * 1024 * 17 * 4 + 2 * 2 * 1024 * 1024 * 4
    assert work.summed == work.exchanges == 0


def test_the_stream_has_as_many_users_and_few_interactions_as_expected():
    job, stream = Job("ials", 20_000), scale._stream_of(20_000)
    segment = stream.segment(0)
    degrees = np.diff(segment.graph.indptr)
    for side, own in zip(_sides(job), (degrees[: job.users], degrees[job.users :]), strict=True):
        assert side.few() == pytest.approx((own <= 8).sum(), rel=0.1)
        assert side.degree(np.arange(side.count)).sum() == pytest.approx(own.sum(), rel=0.03)
    assert ranked_users(job) == pytest.approx(int(segment.valid.count), rel=0.02)


def test_rates_are_recovered_from_seconds_that_they_make():
    known = Machine(products=3e10, moved=7e9, sorted=5e7)
    made = []
    for name in ("ials", "mf"):
        for count in (10**5, 10**6):
            job = Job(name, count)
            made += [Observation(job, p, w, sum(seconds(w, known).values())) for p, w in phases(job).items()]
    found = fitted(made)
    for name in ("products", "moved", "sorted"):
        assert getattr(found, name) == pytest.approx(getattr(known, name), rel=1e-6)


def test_what_takes_no_time_has_a_rate_without_bound():
    made = [Observation(Job("mf", 1000), "", Work(1.0, n, 2.0), n) for n in (1.0, 2.0, 5.0)]
    found = fitted(made)
    assert found.moved == pytest.approx(1) and math.inf in (found.products, found.sorted)
    with pytest.raises(ValueError, match="2 measurements are too few"):
        fitted(made[:2])


def test_units_of_a_machine():
    work, machine = Work(6, 8, 10, 20, 3, 4, 5), Machine(2, 4, 5, link=8, exchange=7, round=0.5)
    alone, shared = seconds(work, machine), seconds(work, machine, 4)
    assert alone == {"products": 3, "bytes": 2, "links": 0, "exchanges": 21, "rounds": 2, "host": 1}
    # Three quarters are sent: twice what is summed, and once what is gathered.
    assert shared == alone | {"links": 0.75 * (2 * 10 + 20) / 8}
    halved = seconds(work, machine.at(0.5))
    assert halved["products"] == 6 and halved["bytes"] == 4 and halved["host"] == 1 and halved["exchanges"] == 21


@pytest.mark.parametrize("recommender", ["ials", "mf"])
def test_more_entities_are_more_work_and_more_devices_less_products_but_not_less_sums(recommender):
    machine = Machine(1e10, 1e9, 1e7)
    took = [
        sum(sum(seconds(w, machine).values()) for w in phases(Job(recommender, n)).values()) for n in (10**5, 10**6)
    ]
    assert took[1] > 5 * took[0]
    jobs = [Job(recommender, 10**7, d, at_once=ACCELERATOR) for d in (1, 2, 8, 64)]
    fits = [phases(job)["fit"] for job in jobs]
    assert all(a.products > b.products for a, b in itertools.pairwise(fits))
    assert fits[0].summed == 0 < fits[1].summed <= 1.01 * min(fit.summed for fit in fits[2:])
    longer = phases(dataclasses.replace(jobs[1], sweeps=3, steps=40))["fit"]
    assert longer.products >= fits[1].products and longer.moved > fits[1].moved


def test_one_more_sweep_is_a_half_sweep_of_each_side():
    job = Job("ials", 10**6, 4)
    more = phases(dataclasses.replace(job, sweeps=3))["fit"].products - phases(job)["fit"].products
    assert more == pytest.approx(sum(_half_sweep(job, side).products for side in _sides(job)))


def test_what_is_held_back_is_not_in_the_fit(measured, tmp_path, capsys):
    shutil.copy(RESULTS / "scale_memory.parquet", tmp_path)
    late = pl.when(pl.col("count") == 10**7)
    changed = measured.with_columns(
        late.then(9 * pl.col("segment s")).otherwise(pl.col("segment s")).alias("segment s")
    )
    pages = []
    for frame in (measured, changed):
        frame.write_parquet(tmp_path / "scale.parquet")
        arguments = ["--measured", str(tmp_path / "scale.parquet"), "--memory", str(tmp_path / "scale_memory.parquet")]
        cli(scale_model.ScaleModel, scale_model.main, arguments=[*arguments, "--devices", "8", "64"])
        pages.append(capsys.readouterr().out)
    first, second = (page.split("## Against the measurements") for page in pages)
    assert first[0] == second[0] and first[1] != second[1] and first[1].count("| held back |") == 6
    assert (tmp_path / "scale_model.md").read_text() in pages[1]


def test_the_page_is_that_of_this_tree(measured, tmp_path, capsys):
    del measured
    for name in ("scale.parquet", "scale_memory.parquet"):
        shutil.copy(RESULTS / name, tmp_path)
    flags = scale_model.ScaleModel(measured=tmp_path / "scale.parquet", memory=tmp_path / "scale_memory.parquet")
    assert scale_model.main(flags) == (RESULTS / "scale_model.md").read_text()
    capsys.readouterr()


def test_memory_is_split_into_what_is_whole_and_what_is_in_parts():
    def row(devices, phase, beside):
        return {
            "recommender": "mf",
            "devices": devices,
            "entities": 10,
            "phase": phase,
            "made": 0,
            "beside": beside,
        } | {"segment": 0}

    frame = pl.DataFrame([row(1, "fit", 900), row(4, "fit", 300), row(1, "prepare", 250), row(4, "prepare", 250)])
    found = held(frame, "mf", 2)
    assert (found.phase, found.whole, found.parts) == ("fit", pytest.approx(10), pytest.approx(80))
    assert held(frame, "mf", 64).phase == "prepare"
    assert found.most(found.bytes(1e9, 8), 8) == pytest.approx(1e9)
    with pytest.raises(ValueError, match=r"run python -m experiments\.scale_memory first"):
        held(frame.filter(devices=1), "mf", 2)


def test_jobs_that_are_not_counted_are_refused_by_name(measured):
    with pytest.raises(ValueError, match="recommender='lightgcn': choose ials or mf"):
        Job("lightgcn", 1000)
    with pytest.raises(ValueError, match="entities=5, devices=1"):
        Job("mf", 5)
    with pytest.raises(ValueError, match=r"run python -m experiments\.scale --entities"):
        observations(measured.filter(measured="rows"))


@pytest.mark.slow
def test_a_fit_on_one_device_holds_what_its_programs_are_compiled_with():
    rows = scale_memory.held("mf", 1, 3000)
    assert [row["phase"] for row in rows] == ["prepare", "fit", "evaluate"]
    assert all(row["beside"] > 0 and row["segment"] > 4 * 6 * 3000 for row in rows)
