"""A whole run as one compiled scan over segments, and several runs mapped over keys and budgets."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import polars as pl

from scall_jax.config import Config
from scall_jax.methods.registry import method_of
from scall_jax.methods.state import RunState
from scall_jax.run import compilation, records
from scall_jax.run.step import Record, make_run
from scall_jax.sizes.budget import Budget
from scall_jax.streams import Segment, Stream


class ScanResult(NamedTuple):
    """The result of a compiled run, or of a sweep of runs."""

    frame: pl.DataFrame
    """A row per run and segment: `run`, `segment`, `budget`, then the columns of `metrics.jsonl` by name."""
    state: RunState
    """The state after the last segment; after a sweep each leaf has a leading axis of runs."""
    record: Record
    """The arrays behind the frame; each leaf has a leading axis of segments, after a sweep (runs, segments)."""


class ScanProgram(NamedTuple):
    """A jitted function and its arguments, to be lowered, compiled and timed separately."""

    function: jax.stages.Wrapped
    """(RunState, Segment) -> (RunState, Record)."""
    arguments: tuple[RunState, Segment]
    """The first state and all segments, stacked."""


def scan(config: Config, stream: Stream, key: jax.Array) -> ScanResult:
    """Make a whole run as one compiled `lax.scan` over segments.

    Args:
      config, stream, key: determine the result.

    Returns:
      ScanResult; its frame has one run, number 0.

    Raises:
      ValueError: a loss was not finite; this is noticed after the scan.
    """
    program, arguments = scan_program(config, stream, key)
    state, record = program(*arguments)
    records.check(record)
    frame = records.frame(jax.tree.map(lambda x: x[None], record), [config.budget])
    return ScanResult(frame, state, record)


def scan_program(config: Config, stream: Stream, key: jax.Array) -> ScanProgram:
    """The program that `scan` runs.

    Args:
      config, stream, key: as in `scan`.

    Returns:
      ScanProgram.
    """
    _check_one_device(config)
    run = make_run(config)
    program = compilation.jit(lambda s, xs: jax.lax.scan(run.step, s, xs))
    return ScanProgram(program, (run.init(key, stream), stream.stack()))


def sweep(config: Config, stream: Stream, keys: Sequence[jax.Array], budgets: Sequence[Budget]) -> ScanResult:
    """Make several runs of one method as one compiled program, mapped over keys and budgets.

    Args:
      config: of all runs; its budget is ignored.
      stream: of all runs.
      keys, budgets: of the L runs, L of both. Budgets are data of the program: each run's parameters are stored in a
        buffer for the largest budget, and the fits by which it chooses parameters or sizes are as wide as the largest
        one's, so that with these a run may choose otherwise than by itself.

    Returns:
      ScanResult; runs are numbered in the order of `keys`.

    Raises:
      ValueError: the numbers of keys and budgets differ or are 0; the shapes of the method's storage follow from the
        budget; a loss was not finite, which is noticed after the scan.
    """
    program, arguments = sweep_program(config, stream, keys, budgets)
    states, record = program(*arguments)
    records.check(record)
    return ScanResult(records.frame(record, budgets), states, record)


def sweep_program(config: Config, stream: Stream, keys: Sequence[jax.Array], budgets: Sequence[Budget]) -> ScanProgram:
    """The program that `sweep` runs.

    Args:
      config, stream, keys, budgets: as in `sweep`.

    Returns:
      ScanProgram; its first argument has a leading axis of runs.

    Raises:
      ValueError: as `sweep`, except for a loss that is not finite.
    """
    if len(keys) != len(budgets) or not len(budgets):
        raise ValueError(f"{len(keys)} keys and {len(budgets)} budgets: give as many of both, at least one")
    check_sweep(config)
    _check_one_device(config)
    run = make_run(config)
    states = [
        make_run(dataclasses.replace(config, budget=budget)).init(key, stream)
        for key, budget in zip(keys, budgets, strict=True)
    ]
    # Widths of the runs' own fits are shapes, too.
    largest = max(states, key=lambda state: state.capacity.budget_units)
    states = [state._replace(params=largest.params, capacity=largest.capacity) for state in states]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    program = compilation.jit(jax.vmap(lambda s, xs: jax.lax.scan(run.step, s, xs), (0, None)))
    return ScanProgram(program, (stacked, stream.stack()))


def _check_one_device(config: Config) -> None:
    if config.mesh.devices > 1:
        raise ValueError(
            f"mesh.devices={config.mesh.devices}: a compiled scan runs on one device: use run_segments, or leave it out"
        )


def check_sweep(config: Config) -> None:
    """Check that one program serves all budgets of a method.

    Args:
      config: of the method.

    Raises:
      ValueError: the shapes of the method's storage follow from the budget.
    """
    if not method_of(config.method).budget_is_data:
        raise ValueError(f"{config.method}: shapes of its storage follow from the budget: run budgets one by one")
