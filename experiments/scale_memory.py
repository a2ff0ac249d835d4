"""Bytes that each device holds while a segment is run, as compiled: what grows with the entities, and what is in parts.

    python -m experiments.scale_memory --devices 1 8 --entities 1e6

The programs of a segment of `experiments.scale` are compiled for one device and for several that a CPU is made to be,
and nothing is run. A row of --results for each recommender, number of devices and phase says what a device has of the
segment, what the phase is given (of the segment, too), what it makes, and what it needs beside these.
`experiments.scale_model` reads off two numbers of devices what is whole on every device. Cost: two minutes on two cores
and 4 GB of memory. Expect a fit to need some 300 bytes an entity beside what it is given on one device, and a third
of that or more on each of eight.
"""

import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import polars as pl

from experiments import cell_file, scale
from scall_jax import make_run
from scall_jax.analysis import report
from scall_jax.cli.cli import cli
from scall_jax.run import placement
from scall_jax.run.phases import CompiledPhases

_BATCH = 1024
"""Triples of a step: few, so that what does not grow with the entities is little."""


@dataclasses.dataclass(frozen=True)
class ScaleMemory:
    """Flags."""

    devices: tuple[int, ...] = (1, 8)
    """Numbers of devices."""
    entities: float = 1e6
    """Entities of the segment."""
    results: Path = Path("experiments/results/scale_memory.parquet")
    """File of what has been compiled; what is there is not compiled again."""
    measure: str = ""
    """One recommender and number of devices, in this process, such as `ials:8`."""


def held(recommender: str, devices: int, entities: int) -> list[dict[str, Any]]:
    """By phase, bytes on each device.

    Args:
      recommender: ials or mf.
      devices: which this process must have.
      entities: of the segment.

    Returns:
      A row for each phase.
    """
    config, stream = scale._config(scale.Scale(batch=_BATCH), recommender, devices), scale._stream_of(entities)
    run = make_run(config)
    state = jax.eval_shape(lambda key: run.init(key, stream), jax.random.key(0))
    segment = placement.segment_shapes(config.mesh, stream.segment(0))
    programs = CompiledPhases(run, state, segment).programs
    resident, rows = _bytes(segment), []
    for name, program in programs.items():
        found = program.memory_analysis()
        assert found is not None
        rows.append(
            {
                "recommender": recommender,
                "devices": devices,
                "entities": entities,
                "phase": name,
                "segment": resident,
                "given": found.argument_size_in_bytes,
                "made": found.output_size_in_bytes - found.alias_size_in_bytes,
                "beside": found.temp_size_in_bytes,
            }
        )
    return rows


def _bytes(tree: Any) -> int:
    """Bytes of arrays on one device, by their shapes and how they lie."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        placed = getattr(leaf, "sharding", None)
        shape = leaf.shape if placed is None else placed.shard_shape(leaf.shape)
        total += math.prod(shape) * leaf.dtype.itemsize
    return total


def _compiled(recommender: str, devices: int, entities: int) -> list[dict[str, Any]]:
    """`held` in a process of its own, whose CPU is so many devices."""
    flag = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}", "NPROC": str(4 * devices)}
    arguments = ["--measure", f"{recommender}:{devices}", "--entities", str(entities)]
    command = [sys.executable, "-m", "experiments.scale_memory", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if found.returncode:
        raise ValueError(f"{recommender} on {devices} devices did not compile: {found.stderr.strip()[-300:]}")
    return json.loads(found.stdout.splitlines()[-1])


def main(flags: ScaleMemory) -> str:
    """Compile what is not in the file yet; the table of all of it, or the line of one process."""
    if flags.measure:
        recommender, devices = flags.measure.split(":")
        line = json.dumps(held(recommender, int(devices), int(flags.entities)))
        print(line)
        return line
    for recommender in ("ials", "mf"):
        for devices in flags.devices:
            wanted = {"recommender": recommender, "devices": devices, "entities": int(flags.entities)}
            if any(row.items() >= wanted.items() for row in cell_file.read(flags.results).to_dicts()):
                continue
            for row in _compiled(recommender, devices, int(flags.entities)):
                cell_file.add(flags.results, row | {"commit": cell_file.commit()})
    text = table(cell_file.read(flags.results))
    print(text)
    return text


def table(frame: pl.DataFrame) -> str:
    """A line for each recommender, number of devices and phase, in bytes an entity."""
    names = ("segment", "given", "made", "beside")
    rows = [
        [row["recommender"], str(row["devices"]), row["phase"], *(f"{row[n] / row['entities']:.0f}" for n in names)]
        for row in frame.to_dicts()
    ]
    return report.markdown(["recommender", "devices", "phase", *(f"{name}, bytes an entity" for name in names)], rows)


if __name__ == "__main__":
    cli(ScaleMemory, main, __doc__)
