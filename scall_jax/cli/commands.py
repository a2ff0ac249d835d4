"""The jobs behind the commands: a stream in, a recommender within its budget out, several methods side by side."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import scall_jax
from scall_jax import streams
from scall_jax.analysis import about, comparison, comparison_report, events, figures, plots, report, run_report
from scall_jax.cli import head
from scall_jax.cli.cli import cli, command
from scall_jax.cli.compilation_cache import persistent_cache
from scall_jax.cli.flags import Main
from scall_jax.cli.method_flags import by_data, check_auto, check_run, expand, make_config
from scall_jax.cli.progress import Progress
from scall_jax.cli.protocol import PUBLISHED_DIFFERS, by_protocol
from scall_jax.cli.stopping import stop_on_signals
from scall_jax.cli.stream_flags import check_stream, load_stream
from scall_jax.config import Config
from scall_jax.methods.registry import PROBED
from scall_jax.run import auto, choices, manifest, processes, records, removal, run_segments, text_files
from scall_jax.run import folder as run_folder

_MADE_AT_THE_END = (run_folder.SUMMARY, *manifest.DERIVED)
"""Files of a run's folder that follow from what its segments left."""


class Extras(NamedTuple):
    """What a command does beside its runs."""

    settled: Callable[[], object] = lambda: None
    """Called after each compilation (`compilation_cache.persistent_cache`)."""
    html: bool = False
    """Write report.html."""
    tensorboard: bool = False
    """Write event files for TensorBoard."""


Lines = list[dict[str, Any]]
"""Lines of `metrics.jsonl` of one run, one per segment."""

RUN = """
Run methods over a stream of interactions within a memory budget, side by side.

    scall-jax run                                        # online-retail, mean size 8
    scall-jax run --data clicks.csv --columns.user uid --budget.megabytes 4 --out runs/clicks

Writes a folder per method: config.json, metrics.jsonl (a line per segment), summary.json (last: its presence marks a
finished run), sizes/, users/ (each test user's metrics), checkpoints/ and plots; beside them table.md and quality.png.
"""
"""What `scall-jax run` does, as its help shows it."""


_NO_EXTRAS = Extras()


def run_job(flags: Main) -> list[dict[str, Any]]:
    """Run all methods.

    Args:
      flags: of the runs.

    Returns:
      A summary per method, which is also in the method's folder.

    Raises:
      ValueError: flags, a stream or a folder that no run can use; nothing has been run then.
    """
    processes.join(flags.processes)
    if processes.is_first():
        return _run_job(flags)
    # The first of several processes speaks for all.
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        return _run_job(flags)


def _run_job(flags: Main) -> list[dict[str, Any]]:
    flags = by_data(flags)
    for method in expand(flags.method):
        check_auto(flags, method)
    flags = by_protocol(flags)
    methods = expand(flags.method)
    if not methods:
        raise ValueError("--method: name at least one")
    if flags.resume and flags.overwrite:
        raise ValueError("--resume and --overwrite: give one of them")
    if flags.tensorboard:
        events.check()
    configs = {method: make_config(flags, method) for method in methods}
    shared = dataclasses.replace(flags, processes=dataclasses.replace(flags.processes, number=0))
    processes.require_same("their flags or their version", f"{shared} {scall_jax.__version__}")
    processes.told_by_first(lambda: [_check_folder(flags, flags.out / method) for method in methods])
    stream = load_stream(flags, segments="auto")
    check_stream(stream)
    for config in configs.values():
        check_run(config, stream)
    _print_head(flags, stream)
    stopped = "stopped; continue with --resume"
    with (
        persistent_cache(flags.compilation_cache) as settled,
        stop_on_signals(lambda: stopped),
        run_folder.named_errors(flags.out),
    ):
        return _run_methods(flags, configs, stream, Extras(settled, flags.report, flags.tensorboard))


def _run_methods(
    flags: Main, configs: Mapping[str, Config], stream: streams.Stream, extras: Extras
) -> list[dict[str, Any]]:
    """Run checked methods one after the other, and write and print their table."""
    summaries: list[dict[str, Any]] = []
    runs: dict[str, Lines] = {}
    warnings: dict[str, list[str]] = {}
    for method, config in configs.items():
        summary, lines = run_method(flags, config, stream, flags.out / method, method, extras)
        summaries.append(summary)
        runs[method] = lines
        warnings[method] = report.warnings(lines, config)
    processes.told_by_first(lambda: _conclude(flags, configs, stream, summaries, runs, warnings))
    return summaries


def _conclude(
    flags: Main,
    configs: Mapping[str, Config],
    stream: streams.Stream,
    summaries: list[dict[str, Any]],
    runs: Mapping[str, Lines],
    warnings: Mapping[str, Sequence[str]],
) -> None:
    """Write and print the table of finished methods, and what compares them."""
    if figures.has_matplotlib():
        plots.plot_quality(flags.out / "quality.png", runs, f"{stream.source}, {flags.budget.budget()}")
    text = report.table(summaries)
    note = f"means over segments after the first with at least {records.LEAST_USERS} test users; "
    note += f"by user: over all these users; {report.COLUMNS_NOTE}"
    warned = report.warning_lines(warnings)
    _write_table(flags, stream, f"{text}\n\n{note}", summaries, warned)
    print("\n".join(["", text, note, *([warned] if warned else [])]))
    if flags.report and len(configs) > 1:
        groups = comparison.by_method([comparison.read_run(flags.out / method) for method in configs])
        comparison_report.write(flags.out / run_report.NAME, groups, next(iter(groups)))
    pages = "report.html, " if flags.report else ""
    print(f"{pages}plots, metrics and checkpoints: {flags.out}/")


def _print_head(flags: Main, stream: streams.Stream) -> None:
    print(head.first_line(stream, flags.budget.budget()))
    for note in stream.notes:
        print(note)
    print(head.ruler(stream, flags.budget.budget()))
    if stream.select_on_test:
        print("published protocol: models and rewards are selected on the test part; figures are optimistic")
    if flags.protocol == "published":
        print("\n".join(["it differs from the official code:", *(f"- {text}" for text in PUBLISHED_DIFFERS)]))
    if not figures.has_matplotlib():
        print('matplotlib is not installed, so there will be no plots: pip install "scall_jax[plot]"')


def _write_table(
    flags: Main, stream: streams.Stream, text: str, summaries: Sequence[dict[str, Any]], warned: str
) -> None:
    peak = 1e-6 * max(summary["peak_rss_bytes"] for summary in summaries)
    head = f"# {stream.source}: {len(stream)} segments\n\n`{command()}`"
    foot = f"seed {flags.seed}; peak resident memory {peak:.0f} MB"
    text_files.write_atomically(
        flags.out / "table.md", f"{head}\n\n{text}; {foot}\n" + (f"\n{warned}\n" if warned else "")
    )


def _check_folder(flags: Main, folder: Path) -> None:
    if not (folder / "config.json").exists() or flags.resume:
        return
    if not flags.overwrite:
        state = "a finished" if (folder / run_folder.SUMMARY).exists() else "an unfinished"
        raise ValueError(f"{folder} holds {state} run: --resume it, --overwrite it, or choose another --out")


def run_method(
    flags: Main,
    config: Config,
    stream: streams.Stream,
    folder: Path,
    label: str | None = None,
    extras: Extras = _NO_EXTRAS,
) -> tuple[dict[str, Any], Lines]:
    """Run one method over the stream, with progress, plots and a summary in its folder.

    Ctrl-C ends the process, and says after which segment.

    Args:
      flags: of which seed, method, resume, overwrite and compilation_cache matter.
      config, stream: of the run.
      folder: of the run.
      label: what the method is called in summaries; None for its name.
      extras: what is done beside it.

    Returns:
      The summary, and the lines of metrics.

    Raises:
      ValueError: the folder holds another run, or a loss was not finite.
    """
    of_method = f" in {label or config.method}" if len(expand(flags.method)) > 1 else ""
    with stop_on_signals(lambda: _stopped(flags, folder, of_method)):
        if flags.overwrite and not flags.resume:
            remove = auto.remove if config.method == auto.NAME else removal.remove_run
            processes.told_by_first(lambda: remove(folder))
        lines = _run_segments(flags, config, stream, folder, label or config.method, extras)

        def finish() -> dict[str, Any]:
            summary = finish_run(config, stream, folder, label or config.method, lines)
            if extras.html:
                run_report.write(folder)
            return summary

        return processes.told_by_first(finish), lines


def _run_segments(
    flags: Main,
    config: Config,
    stream: streams.Stream,
    folder: Path,
    label: str,
    extras: Extras,
    segments: int | None = None,
) -> Lines:
    if config.method == auto.NAME:
        return _run_auto(flags, config, stream, folder, extras)
    probes = config.search.planned_probes if config.method in PROBED else 0

    def on_compiled() -> None:
        extras.settled()
        # A command traces each program once, so the caches of tracing can be freed after each compilation.
        jax.clear_caches()

    with contextlib.ExitStack() as open_until_the_end:
        callbacks: dict[str, Any] = {"on_compiled": on_compiled}
        if processes.is_first():
            inside = not flags.compilation_cache
            progress = open_until_the_end.enter_context(Progress(label, stream, config.fit.steps, probes, inside))
            callbacks = progress.callbacks | callbacks
        if extras.tensorboard and processes.is_first():
            callbacks = open_until_the_end.enter_context(events.EventLog(folder, config.fit.steps)).callbacks(callbacks)
        if processes.several():
            # Programs that report from inside would not be those of the other processes.
            callbacks.pop("progress", None)
        key = jax.random.key(flags.seed)
        return run_segments(config, stream, key, folder=folder, segments=segments, **callbacks)


def _run_auto(flags: Main, config: Config, stream: streams.Stream, folder: Path, extras: Extras) -> Lines:
    ran: dict[str, tuple[Config, streams.Stream, Path, Lines]] = {}

    def run(name: str, candidate: Config, stream: streams.Stream, part: Path, segments: int) -> Lines:
        # A candidate whose run does not come to its end is not one that can be compared.
        ran.pop(name, None)
        with stop_on_signals(lambda: _stopped(flags, part, f" in auto, {name},")):
            lines = _run_segments(flags, candidate, stream, part, name, extras, segments)
            ran[name] = candidate, stream, part, lines
            return lines

    lines = auto.run_auto(config, stream, jax.random.key(flags.seed), folder, run)
    for name, (candidate, own_stream, part, own) in ran.items():
        # A candidate is a run of its own, which can be compared and reported.
        finish_run(candidate, own_stream, part, name, own)
    print(f"\n{choices.describe(folder)}")
    return lines


def _stopped(flags: Main, folder: Path, of_method: str) -> str:
    """The line that says how far a run came and how it goes on."""
    done = run_folder.finished_segments(folder)
    after = f"after segment {done - 1}" if done else "before the first segment was finished"
    instead = " instead of --overwrite" if flags.overwrite else ""
    return f"stopped{of_method} {after}; continue with --resume{instead}"


def finish_run(config: Config, stream: streams.Stream, folder: Path, label: str, lines: Lines) -> dict[str, Any]:
    """Write plots and the summary of a run.

    Args:
      config, stream: of the run.
      folder: of the run, with all of its segments.
      label: what the method is called.
      lines: of `metrics.jsonl`.

    Returns:
      The summary.

    Raises:
      ValueError: another process has begun to write to the folder since.
    """
    with run_folder.making(folder, len(lines), *_MADE_AT_THE_END):
        if figures.has_matplotlib():
            _plot_run(config, stream, folder, lines)
        summary = report.describe(label, lines) | records.summarise(lines)
        text_files.write_atomically(folder / run_folder.SUMMARY, json.dumps(summary, indent=2) + "\n")
        about.write(folder, stream, command(), scall_jax.__version__)
    return summary


def _plot_run(config: Config, stream: streams.Stream, folder: Path, lines: Lines) -> None:
    title = f"{stream.source}, {config.method}, {config.budget}"
    plots.plot_quality(folder / "quality.png", {config.method: lines}, title)
    with np.load(folder / "sizes" / f"segment-{len(lines) - 1:04d}.npz") as stored:
        users, items = stored["users"], stored["items"]
    if users.any():
        plots.plot_sizes(folder / "sizes.png", users, items, title)
        plots.plot_memory(folder / "memory.png", lines, title)
        plots.plot_histories(folder / "histories.png", manifest.listed(folder, "sizes"), title)


def run_command(
    arguments: Sequence[str] | None = None, description: str | None = RUN, program: str | None = None
) -> None:
    """The command line of the main job: `scall-jax run` and `python -m experiments.run`.

    Args:
      arguments: flags; None for those of the process.
      description: shown by `--help`.
      program: how the process was started, for help; None for `python -m MODULE`.

    Raises:
      SystemExit: with code 2 for bad input, and with code 0 after help.
    """
    cli(Main, run_job, description, arguments, program)
