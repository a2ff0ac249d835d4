"""The jobs behind the commands: a stream in, a recommender within its budget out, several methods side by side."""

import json
from pathlib import Path

import jax
import numpy as np

from scall_jax import streams
from scall_jax.analysis import report
from scall_jax.cli.cli import cli
from scall_jax.cli.flags import Main, by_protocol, check_run, check_stream, expand, load_stream, make_config
from scall_jax.cli.progress import Progress
from scall_jax.config import Config
from scall_jax.methods.registry import PROBED
from scall_jax.run import records, run_segments
from scall_jax.run.folder import remove_run, write_atomically


def run_job(flags: Main) -> list[dict]:
    """Run all methods; the summaries, which are also in their folders."""
    flags = by_protocol(flags)
    methods = expand(flags.method)
    if not methods:
        raise ValueError("--method: name at least one")
    if flags.resume and flags.overwrite:
        raise ValueError("--resume and --overwrite: give one of them")
    configs = {method: make_config(flags, method) for method in methods}
    for method in methods:
        _check_folder(flags, flags.out / method)
    stream = load_stream(flags)
    check_stream(stream)
    for config in configs.values():
        check_run(config, stream)
    print(
        f"{stream.source}: {len(stream.user):,} interactions, {len(stream.user_ids):,} users, "
        f"{len(stream.item_ids):,} items, {len(stream)} segments; budget {flags.budget.budget()}"
    )
    if stream.select_on_test:
        print("published protocol: models and rewards are selected on the test part; figures are optimistic")
    summaries, runs = [], {}
    for method, config in configs.items():
        summary, lines = run_method(flags, config, stream, flags.out / method)
        summaries.append(summary)
        runs[method] = lines
    report.plot_quality(flags.out / "quality.png", runs, f"{stream.source}, {flags.budget.budget()}")
    text = report.table(summaries)
    write_atomically(flags.out / "table.md", text + "\n")
    counted = f"segments after the first with at least {records.LEAST_USERS} test users"
    print(f"\n{text}\nmeans over {counted}; by user: over all these users")

    print(f"plots, metrics and checkpoints: {flags.out}/")
    return summaries


def _check_folder(flags: Main, folder: Path) -> None:
    if not (folder / "config.json").exists() or flags.resume:
        return
    if not flags.overwrite:
        state = "a finished" if (folder / "summary.json").exists() else "an unfinished"
        raise ValueError(f"{folder} holds {state} run: --resume it, --overwrite it, or choose another --out")


def run_method(flags: Main, config: Config, stream: streams.Stream, folder: Path) -> tuple[dict, list[dict]]:
    """One method over the stream, in its folder."""
    if flags.overwrite and not flags.resume:
        remove_run(folder)
    key = jax.random.key(flags.seed)
    done = folder / "summary.json"
    probes = config.search.probes if config.method in PROBED else 0
    with Progress(config.method, stream, config.fit.steps, probes) as progress:

        def on_segment(line):
            done.unlink(missing_ok=True)  # of a run that goes on; one that is refused keeps it
            progress.segment(line)

        # nobody asks any more for what tracing left in JAX's caches
        callbacks = progress.callbacks | {"on_compiled": jax.clear_caches, "on_segment": on_segment}
        lines = run_segments(config, stream, key, folder=folder, **callbacks)
    last = np.load(folder / "sizes" / f"segment-{len(lines) - 1:04d}.npz")
    title = f"{stream.source}, {config.method}, {config.budget}"
    report.plot_quality(folder / "quality.png", {config.method: lines}, title)
    if last["users"].any():
        report.plot_sizes(folder / "sizes.png", last["users"], last["items"], title)
        report.plot_memory(folder / "memory.png", lines, title)
        report.plot_histories(folder / "histories.png", sorted((folder / "sizes").glob("*.npz")), title)
    summary = report.describe(config.method, lines) | records.summarise(lines)
    write_atomically(done, json.dumps(summary, indent=2) + "\n")
    return summary, lines


def run_command(arguments: list[str] | None = None, description: str | None = __doc__) -> None:
    """The command line of the main job."""
    cli(Main, run_job, description, arguments)
