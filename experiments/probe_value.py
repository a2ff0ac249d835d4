"""Is there something for a search over sizes to find, and how much of it do probes of some length see?

    python -m experiments.probe_value --data yelp2019_a.parquet --cut.segments 4 --mean-sizes 4
    python -m experiments.probe_value --data yelp2019_a.parquet --cut.segments 4 --mean-sizes 8 --segments 3
    python -m experiments.probe_value --data yelp2019_a.parquet --cut.segments 4 --segments 3 --start warm

Trains each segment with many ways to size its entities, `--seeds` times each, without early stopping: Sobol actions of
SCALL, frequency^.5, frequency^1 and uniform. Seeds differ in parameters and batches; all ways share those of a seed.
The trainings are measured on valid and on test after `--lengths` steps, so that a short one is a probe of what the
longest comes to. With `--start warm` they start from the table of a run with uniform sizes up to the segment.

Prints, for each length: the reliability of a probe (the part of its variance, within a seed, that the way to size
explains), the rank correlation of one probe with the test Recall@20 of the longest trainings by the other seeds, and
the test Recall@20, relative to uniform, of the way that is best on valid by half of the seeds, scored by the other
half. Beside them the same by test instead of valid (what there is to find), of one way for all segments, and of
frequency^.5; then how much the best of n ways by one probe each gains. Each training is a row of --results as soon as
it is finished; those that are there are not made again, and `--report` trains nothing. Writes the tables beside the
file, too. Cost: on Yelp (4 segments) 152 trainings a segment of 20 to 180 seconds each on one core of a slow Xeon, by
how many columns the largest size has. Expect longer trainings to rank the ways more reliably than probes of 50 steps.
"""

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from scipy.stats import qmc, rankdata

from experiments import cell_file
from scall_jax import Budget, Config, make_run, streams
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, stream_flags
from scall_jax.cli.cli import cli
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.context import segment_context
from scall_jax.methods.scall.actions import sizes_by_action
from scall_jax.methods.state import RunState
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.graph import with_chunks
from scall_jax.recommenders.judge import evaluate_params
from scall_jax.recommenders.lightgcn import LightGcn
from scall_jax.recommenders.make_step import make_step, optimiser
from scall_jax.recommenders.train_step import TrainState, empty_opt_state
from scall_jax.run.text_files import write_atomically

MEASURES = ("valid fitness", "valid recall@20", "test recall@20", "test ndcg@20")
"""What is measured after each length."""


@dataclasses.dataclass(frozen=True)
class ProbeValue(run_flags.Main):
    """Flags; of those of `experiments.run` the ones of stream, training and sizes apply."""

    mean_sizes: tuple[float, ...] = (4.0,)
    """Budgets, in parameters per entity."""
    segments: tuple[int, ...] = ()
    """Segments to train; all but the first by default."""
    start: str = "fresh"
    """Where trainings start: fresh, or warm."""
    actions: int = 16
    """Sobol actions; a power of 2."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of each way to size; an even number of them."""
    lengths: tuple[int, ...] = (50, 200, 1000)
    """Steps after which trainings are measured, ascending."""
    results: Path = Path("experiments/results/probe_value.parquet")
    """File of the finished trainings."""
    report: bool = False
    """Print what is in the file, and train nothing."""


class Way(NamedTuple):
    """A way to size the entities of a segment."""

    name: str
    action: list[float] | None
    """The action, None for an allocator."""
    sizes: Callable[[Any, jax.Array], jax.Array]
    """(segment, coordinates to give out i32[]) -> own sizes i32[N]."""


def ways(config: Config, actions: int) -> list[Way]:
    """Sobol actions (scrambled, seed 0), frequency^.5, frequency^1, uniform."""
    sampled = qmc.Sobol(3, rng=0).random(actions).astype(np.float32)
    found = [Way(f"sobol-{i}", action.tolist(), _by_action(config, action)) for i, action in enumerate(sampled)]
    for power in (0.5, 1.0):
        allocator = ALLOCATORS["frequency"](dataclasses.replace(config.sizes, power=power))
        found.append(Way(f"frequency^{power:g}", None, _by_allocator(allocator)))
    return [*found, Way("uniform", None, _by_allocator(ALLOCATORS["uniform"](config.sizes)))]


# Neither draws anything: without a concentration an action gives the expected sizes.
def _by_action(config: Config, action: np.ndarray):
    return lambda segment, total: sizes_by_action(config, jax.random.key(0), segment, total, jnp.asarray(action))


def _by_allocator(allocator):
    return lambda segment, total: allocator(jax.random.key(0), segment, total)


def trajectory(config: Config, lengths: tuple[int, ...], warm: bool):
    """The function of one training.

    Args:
      config: of the run; `fit.steps` does not matter.
      lengths: steps after which the training is measured, ascending.
      warm: start from the state's table.

    Returns:
      (typed PRNG key, state, segment, own sizes i32[N]) -> f32[lengths, measures].
    """

    def measured(key: jax.Array, state: RunState, segment, own: jax.Array) -> jax.Array:
        context = segment_context(config, state, segment)
        storage, segment = context.storage, segment._replace(graph=with_chunks(segment.graph))
        sizes = jnp.concatenate([own, context.budget()[1]])
        layout, (bias, _) = storage.layout(sizes), context.item_bias()
        start = context.warm_params if warm else context.fresh_params
        params = to_buffer(storage, start(sizes, derive(key, Purpose.TABLE)))
        model, step = LightGcn(storage, config.fit.layers), make_step(storage, config.fit)
        first = empty_opt_state(params) if storage.table is not None else optimiser(config.fit).init(params)
        scratch = () if storage.table is None else jnp.zeros((3 * config.fit.batch, storage.table.width))
        fit_key = derive(key, Purpose.FIT)

        def one(number, carry):
            made = step(derive(fit_key, Purpose.TRAINING_STEP, number), carry[0], layout, segment, bias, carry[1])
            return made.state, made.scratch

        def interval(carry, bounds):
            carry = jax.lax.fori_loop(bounds[0], bounds[1], one, carry)
            parts = segment.valid, segment.test
            valid, test = evaluate_params(model, carry[0].params, layout, segment, parts, bias)
            recall = [part.recall[0, -1] for part in (valid, test)]
            return carry, jnp.stack([valid.fitness(), *recall, test.ndcg[0, -1]])

        bounds = jnp.array(list(itertools.pairwise((0, *lengths))), jnp.int32)
        return jax.lax.scan(interval, (TrainState(params, first), scratch), bounds)[1]

    return measured


def states_before(config: Config, stream: streams.Stream, segments: list[int], warm: bool) -> dict[int, RunState]:
    """States before some segments: of a run with uniform sizes and seed 0, or, fresh, before anything was trained."""
    run = make_run(dataclasses.replace(config, method="uniform"))
    state = run.init(jax.random.key(0), stream)
    if not warm:
        return dict.fromkeys(segments, state)
    step, found = jax.jit(run.step), {}
    for t in range(max(segments) + 1):
        if t in segments:
            found[t] = state
        if t < max(segments):
            state, _ = step(state, stream.segment(t))
    return found


def train(flags: ProbeValue) -> None:
    """Make the trainings that the file lacks."""
    stream = stream_flags.load_stream(flags)
    segments = list(flags.segments) or list(range(1, len(stream)))
    if not set(segments) <= set(range(1, len(stream))):
        raise ValueError(f"--segments {segments}: the stream has the segments 1 to {len(stream) - 1}")
    flags.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    warm, version = flags.start == "warm", cell_file.commit()
    for size in flags.mean_sizes:
        config = method_flags.make_config(flags, "scall")
        config = dataclasses.replace(config, budget=Budget.mean_size(size))
        program = jax.jit(trajectory(config, flags.lengths, warm))
        states = None
        # Seed by seed, so that an unfinished experiment has as many of each way.
        for seed, t, way in itertools.product(flags.seeds, segments, ways(config, flags.actions)):
            name = cell_file.identity(config, stream, seed) + f"-{flags.start}-{t}-{way.name}-{flags.lengths}"
            frame = cell_file.read(flags.results)
            if not frame.is_empty() and name in frame["cell"]:
                continue
            states = states or states_before(config, stream, segments, warm)
            segment = jax.tree.map(jnp.asarray, stream.segment(t))
            total, _ = segment_context(config, states[t], segment).budget()
            own = jax.jit(way.sizes)(segment, total)
            key = derive(derive(jax.random.key(seed), Purpose.SEGMENT, t), Purpose.PROBE)
            values = np.asarray(program(key, states[t], segment, own), np.float64)
            shown = {"cell": name, "commit": version, "stream": Path(stream.source).name, "start": flags.start}
            shown |= {
                "setting": cell_file.identity(config, stream, 0),
                "mean size": size,
                "segment": t,
                "way": way.name,
                "seed": seed,
                "action": way.action,
            }
            columns = {measure: values[:, k].tolist() for k, measure in enumerate(MEASURES)}
            cell_file.add(flags.results, shown | {"steps": list(flags.lengths)} | columns)


class Trials(NamedTuple):
    """The trainings of one setting, complete ones alone: T segments, W ways, S seeds, L lengths."""

    ways: list[str]
    lengths: list[int]
    valid: np.ndarray
    """f64[T, W, S, L], fitness."""
    test: np.ndarray
    """f64[T, W, S, L], Recall@20."""


def trials(frame: pl.DataFrame) -> Trials:
    """Arrays of the rows of one setting; seeds that lack a training are left out."""
    frame = frame.sort("segment", "way", "seed")
    names, segments = (frame[column].unique(maintain_order=True).to_list() for column in ("way", "segment"))
    count = frame.group_by("seed").len().filter(pl.col("len") == len(names) * len(segments))
    frame = frame.filter(pl.col("seed").is_in(count["seed"].to_list()))
    shape = (len(segments), len(names), count.height, len(frame["steps"][0]) if count.height else 0)
    valid, test = (np.array(frame[x].to_list()).reshape(shape) for x in ("valid fitness", "test recall@20"))
    return Trials(names, frame["steps"][0].to_list() if count.height else [], valid, test)


def reliability(values: np.ndarray) -> float:
    """Part of the variance within a seed that the way to size explains.

    Args:
      values: f64[W, S]. Ways and seeds are random effects without interaction (two-way analysis of variance).

    Returns:
      Variance of the ways by itself plus that of the residual; at least 0.
    """
    count_ways, seeds = values.shape
    residual = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    of_residual = (residual**2).sum() / ((count_ways - 1) * (seeds - 1))
    of_ways = max(values.mean(1).var(ddof=1) - of_residual / seeds, 0.0)
    return of_ways / (of_ways + of_residual) if of_ways + of_residual > 0 else 0.0


def rank_correlation(probe: np.ndarray, full: np.ndarray) -> float:
    """Mean over seeds of Spearman's correlation between one seed's probes and the other seeds' mean of `full`.

    Args:
      probe, full: f64[W, S].
    """
    found = []
    for seed in range(probe.shape[1]):
        others = np.delete(full, seed, axis=1).mean(1)
        found.append(np.corrcoef(rankdata(probe[:, seed]), rankdata(others))[0, 1])
    return float(np.mean(found))


def cross_fitted(chosen_by: np.ndarray, scored_by: np.ndarray, base: int, static: bool = False) -> np.ndarray:
    """Relative gain of the way that is best by some seeds, scored by the others, over a base.

    Seeds are split and users are not: where test chooses and scores, the noise of which users are tested stays in, and
    the gain is a bound from above of what there is to find.

    Args:
      chosen_by: f64[T, W, S], what the choice looks at.
      scored_by: f64[T, W, S], what counts.
      base: number of the way that gains are relative to.
      static: choose one way for all segments.

    Returns:
      f64[splits], mean gain over segments for each way to halve the seeds.
    """
    seeds = range(scored_by.shape[2])
    found = []
    for half in itertools.combinations(seeds, len(seeds) // 2):
        others = [seed for seed in seeds if seed not in half]
        seen, counted = chosen_by[:, :, half].mean(2), scored_by[:, :, others].mean(2)
        seen = seen / seen[:, base : base + 1]
        best = np.full(len(seen), seen.mean(0).argmax()) if static else seen.argmax(1)
        at = np.arange(len(seen))
        found.append((counted[at, best] / counted[at, base] - 1).mean())
    return np.array(found)


def best_of(probe: np.ndarray, full: np.ndarray, base: int, count: int, draws: int = 2000) -> float:
    """Mean relative gain of the best of `count` random ways by one probe each.

    Args:
      probe, full: f64[T, W, S], probes and what counts.
      base: number of the way that gains are relative to.
      count: ways that are probed.
      draws: choices to average over.
    """
    rng = np.random.default_rng(0)
    segments, count_ways, seeds = probe.shape
    gains = []
    for _ in range(draws):
        tried = rng.permutation(count_ways)[:count]
        t, seed = rng.integers(segments), rng.integers(seeds)
        best = tried[probe[t, tried, seed].argmax()]
        others = np.delete(full[t], seed, axis=1).mean(1)
        gains.append(others[best] / others[base] - 1)
    return float(np.mean(gains))


def tables(frame: pl.DataFrame) -> str:
    """Markdown of all settings of the file that have at least two complete seeds."""
    parts, settings = [], ["setting", "steps", "stream", "start", "mean size"]
    for (*_, stream, start, size), part in frame.group_by(settings, maintain_order=True):
        made = trials(part)
        if made.valid.shape[2] >= 2:
            head = f"## {stream}, {start} start, mean size {size:g}, {made.valid.shape[2]} seeds"
            parts.append(f"{head}\n\n{_by_length(made)}\n\n{_choices(made)}")
    return "\n\n".join(parts) or "No setting has two complete seeds yet."


def _by_length(made: Trials) -> str:
    full, base = made.test[..., -1], made.ways.index("uniform")
    sobol = [i for i, way in enumerate(made.ways) if way.startswith("sobol")]
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= len(sobol)]
    with_base = [*sobol, base]
    rows = []
    for k, length in enumerate(made.lengths):
        probe = made.valid[..., k]
        by_segment = [
            [f(*args) for args in pairs]
            for f, pairs in (
                (reliability, [(x,) for x in probe]),
                (rank_correlation, list(zip(probe, full, strict=True))),
            )
        ]
        gains = [best_of(probe[:, with_base], full[:, with_base], len(sobol), n) for n in counts]
        cells = [" ".join(f"{x:.2f}" for x in values) for values in by_segment]
        rows.append([str(length), *cells, *(f"{100 * gain:+.1f}" for gain in gains)])
    columns = [f"best of {n} %" for n in counts]
    return report.markdown(["steps", "reliability by segment", "rank correlation by segment", *columns], rows)


def _choices(made: Trials) -> str:
    full, base = made.test[..., -1], made.ways.index("uniform")
    choices = {f"best on valid after {n} steps": (made.valid[..., k], False) for k, n in enumerate(made.lengths)}
    choices |= {"one way for all segments, on valid": (made.valid[..., -1], True)}
    choices |= {"best on test: what there is to find": (full, False)}
    rows = []
    for name, (seen, static) in choices.items():
        gains = 100 * cross_fitted(seen, full, base, static)
        rows.append([name, f"{gains.mean():+.1f}", f"{gains.min():+.1f} to {gains.max():+.1f}"])
    for way in ("frequency^0.5", "frequency^1"):
        # Over the mean of all seeds, as for the choices: a mean of ratios to one noisy run is too large.
        by_seed = 100 * (full[:, made.ways.index(way)] / full[:, base].mean(1, keepdims=True) - 1).mean(0)
        rows.append([way, f"{by_seed.mean():+.1f}", f"{by_seed.min():+.1f} to {by_seed.max():+.1f}"])
    return report.markdown(["choice", "test Recall@20 over uniform %", "over halves of the seeds, or seeds"], rows)


def main(flags: ProbeValue) -> str:
    """Train what is missing, and report."""
    if flags.start not in ("fresh", "warm"):
        raise ValueError(f"--start {flags.start}: choose fresh or warm")
    if list(flags.lengths) != sorted(set(flags.lengths)) or not flags.lengths or flags.lengths[0] < 1:
        raise ValueError(f"--lengths {flags.lengths}: numbers of steps, ascending, from 1")
    if not flags.report:
        train(flags)
    frame = cell_file.finished(flags.results)
    commits = ", ".join(frame["commit"].unique(maintain_order=True))
    head = "# What there is to find on LightGCN\n\nBy `python -m experiments.probe_value`; its help says what is "
    text = f"{head}measured. Commits: {commits}.\n\n{tables(frame)}\n"
    write_atomically(flags.results.with_suffix(".md"), text)
    print(text)
    return text


if __name__ == "__main__":
    cli(ProbeValue, main, __doc__)
