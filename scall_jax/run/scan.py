"""A whole run as one compiled scan over segments, and several runs mapped over keys and budgets."""

import dataclasses
from collections.abc import Callable, Sequence
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
from scall_jax.streams import Stream


class ScanResult(NamedTuple):
    """What a compiled run, or a sweep of them, has come to."""

    frame: pl.DataFrame
    """A row per run and segment: `run`, `segment`, `budget`, then the columns of `metrics.jsonl` by name."""
    state: RunState
    """After the last segment; of a sweep with a leading axis of runs."""
    record: Record
    """The arrays behind the frame, with a leading axis of segments; of a sweep (runs, segments)."""


def scan(config: Config, stream: Stream, key: jax.Array) -> ScanResult:
    """The whole run as one compiled `lax.scan`.

    Args:
      config, stream, key: determine the result.

    Returns:
      ScanResult; its frame has one run, number 0.

    Raises:
      ValueError: a non-finite loss, after the fact.
    """
    program, arguments = scan_program(config, stream, key)
    state, record = program(*arguments)
    records.check(record)
    frame = records.frame(jax.tree.map(lambda x: x[None], record), [config.budget])
    return ScanResult(frame, state, record)


def scan_program(config: Config, stream: Stream, key: jax.Array) -> tuple[Callable, tuple]:
    """The jitted function that `scan` calls, and its arguments: to lower, compile and time it by oneself."""
    run = make_run(config)
    return compilation.jit(lambda s, xs: jax.lax.scan(run.step, s, xs)), (run.init(key, stream), stream.stack())


def sweep(config: Config, stream: Stream, keys: Sequence[jax.Array], budgets: Sequence[Budget]) -> ScanResult:
    """Several runs of one method as one compiled program, mapped over keys and budgets.

    Args:
      config: of all runs; its budget is ignored.
      stream: of all runs.
      keys, budgets: of each run, L of both. Budgets are data: the pool is as large as the largest of them.

    Returns:
      ScanResult; runs are numbered in the order of `keys`.

    Raises:
      ValueError: L differs or is 0; a method whose storage cannot be shared by budgets; a non-finite loss, after the
        fact.
    """
    program, arguments = sweep_program(config, stream, keys, budgets)
    states, record = program(*arguments)
    records.check(record)
    return ScanResult(records.frame(record, budgets), states, record)


def sweep_program(
    config: Config, stream: Stream, keys: Sequence[jax.Array], budgets: Sequence[Budget]
) -> tuple[Callable, tuple]:
    """The jitted function that `sweep` calls, and its arguments: to lower, compile and time it by oneself.

    Raises:
      ValueError: as `sweep`, but for what is found after the fact.
    """
    if len(keys) != len(budgets) or not len(budgets):
        raise ValueError(f"{len(keys)} keys and {len(budgets)} budgets: give as many of both, at least one")
    check_sweep(config)
    run = make_run(config)
    states = [
        make_run(dataclasses.replace(config, budget=budget)).init(key, stream)
        for key, budget in zip(keys, budgets, strict=True)
    ]
    largest = max(states, key=lambda state: state.capacity.budget_units)
    states = [state._replace(params=largest.params, capacity=largest.capacity) for state in states]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    return compilation.jit(jax.vmap(lambda s, xs: jax.lax.scan(run.step, s, xs), (0, None))), (states, stream.stack())


def check_sweep(config: Config) -> None:
    """Raise ValueError where runs of different budgets are different programs."""
    if not method_of(config.method).budget_is_data:
        raise ValueError(f"{config.method}: shapes of its storage follow from the budget: run budgets one by one")
