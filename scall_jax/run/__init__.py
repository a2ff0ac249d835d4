"""Runs over a stream: one step per segment, as a compiled scan or on the host with a folder that can be resumed."""

from scall_jax.run.loop import run_segments
from scall_jax.run.scan import ScanResult, scan, sweep
from scall_jax.run.step import Record, Run, make_run

__all__ = ["Record", "Run", "ScanResult", "make_run", "run_segments", "scan", "sweep"]
