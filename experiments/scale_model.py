"""What a segment costs by its work: a model of seconds, fitted on small ones, and what 10^9 entities would take.

    python -m experiments.scale_memory
    python -m experiments.scale_model --held 1e7

The work of a segment is counted from the algorithm (`experiments.scale_work`). Its seconds are sums: products over a
rate of products, bytes over a rate of bytes, comparisons of the host's sorts over a rate of these, and for several
devices bytes over a link and a time for each exchange. The three rates of a CPU are fitted to --measured, the rows of
`experiments.scale`, without those of --held entities, which are predicted and compared. The counts for several devices
stand beside those of the programs' traces. For accelerators the rates are assumptions, each with its source; memory on
each device is as compiled (`experiments.scale_memory`). Writes scale_model.md beside --measured. Cost: seconds. Expect
errors of a quarter at the point that was held back, and more devices to be no faster from some number on: every device
answers all requests, and an exchange has a least time.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import scipy.optimize

from experiments import cell_file
from experiments.scale_work import (
    ACCELERATOR,
    COORDINATES,
    Job,
    Work,
    of_the_longest_batch,
    phases,
)
from scall_jax.analysis import report
from scall_jax.cli.cli import cli

_SHARES = (0.04, 0.11, 1.0)
"""Of the rates of copies and of products of matrices: steps of training reached the first two on an H200, and none
reached the last."""
_BATCHES = 2e9
"""Bytes of batches on an accelerator, which do not grow with the entities: some arrays of 2^24 numbers."""
_COUNTED = 2**31 - 1
"""The largest number of 32 bits, by which places are counted."""


@dataclasses.dataclass(frozen=True)
class ScaleModel:
    """Flags."""

    held: float = 1e7
    """Entities of the measurements that are held back from the fit and predicted."""
    entities: float = 1e9
    """Entities to say the cost of."""
    devices: tuple[int, ...] = (1, 8, 64, 512)
    """Accelerators that share them; up to 8 are in one node."""
    measured: Path = Path("experiments/results/scale.parquet")
    """File of `experiments.scale`."""
    memory: Path = Path("experiments/results/scale_memory.parquet")
    """File of `experiments.scale_memory`."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """A device, its host and what links it to the others."""

    products: float
    """Multiplications and additions a second, of products and solves."""
    moved: float
    """Bytes a second that are read and written."""
    sorted: float
    """Comparisons a second of sorts on the host."""
    link: float = math.inf
    """Bytes a second from one device to another, in one direction."""
    exchange: float = 0.0
    """Seconds of the shortest exchange."""
    round: float = 0.0
    """Seconds of a loop's round that has next to nothing to do."""
    memory: float = math.inf
    """Bytes of a device."""

    def at(self, share: float) -> "Machine":
        """The machine where products and bytes reach a share of their rates."""
        return dataclasses.replace(self, products=share * self.products, moved=share * self.moved)


class Assumption(NamedTuple):
    """A number that nothing here measures."""

    name: str
    value: float
    unit: str
    source: str


H200 = (
    Assumption("products", 50e12, "/s", "measured, products of float32 matrices on one H200 (published: 67e12)"),
    Assumption("bytes", 2.3e12, "B/s", "measured, copies read and written on one H200 (published: 4.8e12)"),
    Assumption("memory", 141e9, "B", "published for the H200; an H100 has 80e9, and 3.35e12 B/s"),
    Assumption("a loop's round", 20e-6, "s", "assumed: four small kernels of 5 microseconds"),
)
"""One accelerator."""
NVLINK = (
    Assumption("NVLink", 450e9, "B/s", "published: 900 GB/s, of both directions; up to 8 devices"),
    Assumption("exchange by NVLink", 20e-6, "s", "assumed for the smallest all-reduce of 8 devices"),
)
"""Within a node."""
INFINIBAND = (
    Assumption(
        "InfiniBand", 50e9, "B/s", "published: NDR, 400 Gbit/s, an adapter for each device; more than 8 devices"
    ),
    Assumption("exchange by InfiniBand", 50e-6, "s", "assumed for the smallest all-reduce, whatever the devices"),
)
"""Between nodes."""


def accelerators(devices: int, host: Machine) -> Machine:
    """One of so many H200.

    Args:
      devices: by NVLink up to 8, by InfiniBand beyond.
      host: has the rate of sorts.

    Returns:
      Machine, at the whole of the rates that were measured.
    """
    (products, moved, memory, in_turn), (link, exchange) = H200, NVLINK if devices <= 8 else INFINIBAND
    return Machine(products.value, moved.value, host.sorted, link.value, exchange.value, in_turn.value, memory.value)


def seconds(work: Work, machine: Machine, devices: int = 1) -> dict[str, float]:
    """Seconds of work, of which no part goes on beside another.

    Args:
      work: of one of the devices.
      machine: the device.
      devices: that exchange.

    Returns:
      By part; their sum is the whole.

    >>> seconds(Work(products=6.0, moved=4.0), Machine(2.0, 4.0, 1.0))["products"]
    3.0
    """
    # In a ring each device sends all but its own part: twice for a sum, of terms and of the result.
    sent = (2 * work.summed + work.gathered) * (devices - 1) / devices
    return {
        "products": work.products / machine.products,
        "bytes": work.moved / machine.moved,
        "links": sent / machine.link,
        "exchanges": work.exchanges * machine.exchange,
        "rounds": work.rounds * machine.round,
        "host": work.sorted / machine.sorted,
    }


class Observation(NamedTuple):
    """A measurement of `experiments.scale`, or a part of one."""

    job: Job
    part: str
    """fit, or what is beside it: the host, `prepare` and `evaluate`."""
    work: Work
    seconds: float


def observations(frame: pl.DataFrame) -> list[Observation]:
    """The measurements of segments, each as its fit and what is beside it.

    Args:
      frame: of `experiments.scale`.

    Returns:
      Observations.

    Raises:
      ValueError: there are none.
    """
    found = []
    rows = frame.to_dicts() if "segment s" in frame.columns else []
    for row in rows:
        if row["measured"] not in ("ials", "mf") or row["segment s"] is None:
            continue
        flags = {name: row[name] for name in ("sweeps", "steps", "batch") if row.get(name) is not None}
        job = Job(row["measured"], row["count"], **flags)
        by_phase = phases(job)
        rest = by_phase["host"].plus(by_phase["prepare"]).plus(by_phase["evaluate"])
        found += [
            Observation(job, "fit", by_phase["fit"], row["fit s"]),
            Observation(job, "beside the fit", rest, row["segment s"] - row["fit s"]),
        ]
    if not found:
        raise ValueError("no segments have been measured: run python -m experiments.scale --entities 1e5 1e6 first")
    return found


def fitted(observed: Sequence[Observation]) -> Machine:
    """The rates by which the squares of relative errors of seconds are least.

    Args:
      observed: measurements on one device, at least three.

    Returns:
      Machine; a rate is inf where its work seems to take no time.

    Raises:
      ValueError: fewer measurements.
    """
    if len(observed) < 3:
        raise ValueError(f"{len(observed)} measurements are too few for three rates: measure more, or hold none back")
    work = np.array([[one.work.products, one.work.moved, one.work.sorted] for one in observed])
    a_second = work / np.array([[one.seconds] for one in observed])
    # The solver judges by absolute sizes: all columns are given that of 1.
    size = np.maximum(a_second.max(0), 1.0)
    inverse, _ = scipy.optimize.nnls(a_second / size, np.ones(len(observed)))
    return Machine(*(float(most / x) if x > 0 else math.inf for x, most in zip(inverse, size, strict=True)))


class Held(NamedTuple):
    """Bytes of a device an entity."""

    phase: str
    """That holds the most."""
    whole: float
    """Whatever the number of devices."""
    parts: float
    """Of which each device has an equal part."""

    def bytes(self, entities: float, devices: int) -> float:
        """On each of so many devices."""
        return _BATCHES + entities * (self.whole + self.parts / devices)

    def most(self, memory: float, devices: int) -> float:
        """Entities that a device's memory is enough for."""
        return (memory - _BATCHES) / (self.whole + self.parts / devices)


def held(frame: pl.DataFrame, recommender: str, devices: int) -> Held:
    """What a device holds at most, by the programs of two numbers of devices.

    Args:
      frame: of `experiments.scale_memory`.
      recommender: ials or mf.
      devices: for which a phase holds the most.

    Returns:
      Held.

    Raises:
      ValueError: fewer than two numbers of devices were compiled.
    """
    rows = frame.filter(pl.col("recommender") == recommender).to_dicts() if "recommender" in frame.columns else []
    numbers = sorted({row["devices"] for row in rows})
    if len(numbers) < 2:
        raise ValueError(
            f"{recommender} is compiled for {numbers} devices: run python -m experiments.scale_memory first"
        )
    few, many = numbers[0], numbers[-1]
    each = {(row["devices"], row["phase"]): row for row in rows}
    found = []
    for phase in {row["phase"] for row in rows}:
        # What `prepare` made stays while the others run.
        a, b = (
            _bytes_an_entity(each[n, phase], 0 if phase == "prepare" else each[n, "prepare"]["made"])
            for n in (few, many)
        )
        parts = max((a - b) / (1 / few - 1 / many), 0.0)
        found.append(Held(phase, max(b - parts / many, 0.0), parts))
    return max(found, key=lambda one: one.whole + one.parts / devices)


def _bytes_an_entity(row: Mapping[str, Any], kept: int) -> float:
    return (row["segment"] + kept + row["made"] + row["beside"]) / row["entities"]


def counters() -> dict[str, float]:
    """Entities by which what is counted in 32 bits comes to its end."""
    return {
        "entries of the graph, two for each row": _COUNTED / 6,
        "places of a table with room for reading past its end": _COUNTED / (COORDINATES + 1),
        "rows of the stream": _COUNTED / 3,
        "coordinates of the table": _COUNTED / COORDINATES,
    }


def _rates(machine: Machine, flags: ScaleModel) -> list[str]:
    rows = [
        ["products and solves", f"{machine.products:.3g}", "operations"],
        ["arrays read and written", f"{machine.moved:.3g}", "bytes"],
        ["sorts of the host", f"{machine.sorted:.3g}", "comparisons"],
    ]
    text = f"Fitted to the measurements on one CPU but those of {flags.held:,.0f} entities, by relative errors:"
    return ["## Rates of the CPU", "", text, "", report.markdown(["work", "a second", "of"], rows)]


def _checked(observed: Sequence[Observation], machine: Machine, flags: ScaleModel) -> list[str]:
    """Measured and modelled seconds, by part and for whole segments."""
    rows = []
    for at in range(0, len(observed), 2):
        pair = observed[at : at + 2]
        modelled = [sum(seconds(one.work, machine).values()) for one in pair]
        for name, took, found in [
            *((one.part, one.seconds, value) for one, value in zip(pair, modelled, strict=True)),
            ("segment", sum(one.seconds for one in pair), sum(modelled)),
        ]:
            job = pair[0].job
            state = "held back" if job.entities == int(flags.held) else "fitted"
            case = [job.recommender, f"{job.entities:,}", name, state]
            rows.append([*case, f"{took:.2f}", f"{found:.2f}", f"{found / took - 1:+.0%}"])
    names = ["recommender", "entities", "part", "", "measured s", "by the model s", "error"]
    # Two measurements of the same work say how much a measurement means.
    same = [one.seconds for one in observed if one.part != "fit" and one.job.entities == int(flags.held)]
    text = "What is beside the fit is the same work for both recommenders"
    if same:
        text += f"; at {flags.held:,.0f} entities its measurements are {max(same) / min(same) - 1:.0%} apart"
    return ["## Against the measurements", "", report.markdown(names, rows), "", text + "."]


_COUNTS = ("products", "summed", "gathered", "exchanges")


def _counted(frame: pl.DataFrame) -> list[str]:
    """The counts beside those of the programs' traces, as ratios."""
    rows = []
    for row in frame.sort("measured", "count").to_dicts():
        name = row["measured"].removeprefix("shared ")
        if name == row["measured"] or row.get("fit products") is None:
            continue
        flags = {key: row[key] for key in ("sweeps", "steps", "batch") if row.get(key) is not None}
        by_phase = phases(Job(name, row["entities"], row["count"], **flags))
        for phase in ("fit", "evaluate"):
            cells = [_ratio(getattr(by_phase[phase], count), row[f"{phase} {count}"]) for count in _COUNTS]
            rows.append([name, str(row["count"]), phase, *cells])
    text = "Work by the model over that of the busiest device in a trace of the programs, 10^5 entities:"
    return [
        "## Against counts of several devices",
        "",
        text,
        "",
        report.markdown(["", "devices", "phase", *_COUNTS], rows),
    ]


def _ratio(counted: float, traced: float) -> str:
    return f"{counted / traced:.2f}" if traced else "-"


def _predicted(host: Machine, flags: ScaleModel) -> list[str]:
    """Seconds of a segment on accelerators."""
    rows = []
    for recommender in ("ials", "mf"):
        for devices in flags.devices:
            job = Job(recommender, int(flags.entities), devices, at_once=ACCELERATOR)
            machine, by_phase = accelerators(devices, host), phases(job)
            on_devices = [by_phase[name] for name in ("prepare", "fit", "evaluate")]
            totals = [sum(_seconds_of(work, machine.at(share), devices) for work in on_devices) for share in _SHARES]
            parts = [_seconds_of(work, machine, devices) for work in on_devices]
            waits = seconds(by_phase["fit"], machine, devices)
            waiting = waits["exchanges"] + waits["links"] + waits["rounds"]
            of_host = _seconds_of(by_phase["host"], machine, devices)
            figures = [*totals, *parts, waiting, _more(job, machine), of_host]
            rows.append([recommender, str(devices), *(f"{x:,.0f}" if x >= 10 else f"{x:.1f}" for x in figures)])
    shares = [f"devices s at {share:.0%}" for share in _SHARES]
    of_whole = [f"{name} s at {_SHARES[-1]:.0%}" for name in ("prepare", "fit", "evaluate")]
    names = ["recommender", "devices", *shares, *of_whole, "of the fit waiting s", "one more s", "host s"]
    title = f"## {flags.entities:,.0f} entities on accelerators"
    return [title, "", report.markdown(names, rows), "", _waits(flags)]


def _waits(flags: ScaleModel) -> str:
    """What the waiting is made of."""
    job = Job("ials", int(flags.entities), flags.devices[0], at_once=ACCELERATOR)
    return (
        f"Of the chunks of an items' half sweep, which follow each other, {of_the_longest_batch(job):.0%} are those of "
        "one batch, that\nof the most popular item."
    )


def _seconds_of(work: Work, machine: Machine, devices: int) -> float:
    return sum(seconds(work, machine, devices).values())


def _more(job: Job, machine: Machine) -> float:
    """Seconds of one more sweep, or of a thousand more steps."""
    longer = dataclasses.replace(job, sweeps=job.sweeps + 1, steps=job.steps + 1000)
    two = [_seconds_of(phases(each)["fit"], machine, job.devices) for each in (job, longer)]
    return two[1] - two[0]


def _memory(frame: pl.DataFrame, flags: ScaleModel) -> list[str]:
    """Bytes of a device, and from how many entities they are too many."""
    rows = []
    memory = H200[2].value
    for recommender in ("ials", "mf"):
        for devices in flags.devices:
            found = held(frame, recommender, devices)
            total = found.bytes(flags.entities, devices)
            figures = [f"{found.whole:.0f}", f"{found.parts:.0f}", f"{1e-9 * total:,.0f}"]
            fits = "yes" if total <= memory else "no"
            rows.append([recommender, str(devices), found.phase, *figures, fits, f"{found.most(memory, devices):.2g}"])
    names = ["recommender", "devices", "phase", "whole, bytes an entity", "in parts, bytes an entity"]
    names += [f"GB for {flags.entities:.0e} entities", "fits", "entities that fit"]
    limits = [[name, f"{most:.2g}"] for name, most in counters().items()]
    text = "What is counted in 32 bits today, and the entities at which it ends, on any number of devices:"
    return [
        *["## Memory of a device", "", "In the phase that holds the most:", "", report.markdown(names, rows)],
        *["", "## What else ends", "", text, "", report.markdown(["counted", "entities"], limits)],
    ]


_NOTES = f"""## Assumptions

{{assumed}}

- Of the rates of products and bytes the shares {", ".join(f"{share:.0%}" for share in _SHARES)} are shown. The first
  two are what training steps reached of the rate of copies on an H200; the last is out of reach. Links, exchanges and
  rounds are not slowed.
- No part of the work goes on beside another, and no exchange beside work. A sum over devices sends twice its bytes, in
  a ring.
- Three rows an entity, ten users to an item, 2 coordinates of four bits, as in `experiments.scale`: 2 sweeps or 20
  steps of 65,536 triples, 20,000 rows to rank for. `one more` is a further sweep, or 1,000 further steps.
- The host is one CPU of the speed of the one that was measured, which has all rows; nothing of its work is shared.
- Bytes on a device are as compiled for a CPU, and 2 GB of batches. Beyond the counters below nothing can be run, and
  the seconds say what such a segment would take if they were wider.
- Several accelerators were never tried: not one figure here is measured on more than one.
"""


def _notes() -> list[str]:
    rows = [[one.name, f"{one.value:.3g}", one.unit, one.source] for one in (*H200, *NVLINK, *INFINIBAND)]
    return [_NOTES.format(assumed=report.markdown(["assumed", "value", "unit", "source"], rows))]


def main(flags: ScaleModel) -> str:
    """Fit, check and predict; the text of the page."""
    frame = cell_file.read(flags.measured)
    observed = observations(frame)
    host = fitted([one for one in observed if one.job.entities != int(flags.held)])
    text = ["# What a segment costs, and what 10^9 entities would take", ""]
    text += ["By `python -m experiments.scale_model`; its help says how.", ""]
    for section in (
        _rates(host, flags),
        _checked(observed, host, flags),
        _counted(frame),
        _predicted(host, flags),
        _memory(cell_file.read(flags.memory), flags),
        _notes(),
    ):
        text += [*section, ""]
    page = "\n".join(text).rstrip() + "\n"
    flags.measured.with_name("scale_model.md").write_text(page)
    print(page)
    return page


if __name__ == "__main__":
    cli(ScaleModel, main, __doc__)
