"""Is there something for a search over sizes to find on least squares, and does valid see it?

    python -m experiments.action_value --cut.new-entities 1600
    python -m experiments.action_value --data yelp2019_a.parquet --cut.segments 4

On implicit alternating least squares in four bits, where a whole fit takes seconds, so that a probe is one. In each
segment but the first, and for each seed, entities are sized in many ways: --actions Sobol actions of SCALL's shapes, as
many of prices, one size for all, frequency^.5, water-filling and gains. All ways share the seed's random numbers, the
vectors that fits start from, and the half-life and weights that its run with one size for all has chosen so far; the
users' half-life each fit chooses with its own valid part beside those before. Each is measured on valid and on test.

Prints, for shapes, prices and all ways together: the reliability of a fit on valid (the part of its variance, within a
seed, that the way to size explains), the rank correlation of one seed's valid with the mean test Recall@20 of the
others, and the test Recall@20, relative to one size for all, of the way that is best on valid by half of the seeds,
scored by the other half; beside it the same by test instead of valid: what there is to find, less what the choice loses
by the noise of half of the seeds. One size for all is among the ways of each. Then how much the best of n of them, at
random, by one fit each gains. A row of --results is a segment and a seed, as soon as its ways are fitted; those
that are there are not made again, and `--report` fits nothing.
Cost: some 70 fits a row of 1 to 3 seconds each on one core; on online-retail 6 rows a seed and mean size, on Yelp 3.
Expect valid to rank shapes better than prices. At 2 bytes an entity gains, which need no probe, do at least as well as
the best of 32 of either; with more bytes nothing is far ahead of one size for all.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from scipy.stats import qmc

from experiments import cell_file
from experiments.probe_value import best_of, cross_fitted, rank_correlation, reliability
from scall_jax import Budget, Config, make_run, streams
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import method_flags, stream_flags
from scall_jax.cli.cli import cli
from scall_jax.methods.context import segment_context
from scall_jax.methods.gains import WideFits, sizes_from
from scall_jax.methods.phases import Prepared
from scall_jax.methods.recommender import settled
from scall_jax.methods.scall.actions import sizes_by_action
from scall_jax.methods.scall.prices import NUMBERS, rule_of
from scall_jax.methods.state import RunState
from scall_jax.ops.keys import Purpose, derive
from scall_jax.recommenders.buffers import to_buffer
from scall_jax.recommenders.ials.gains import truncated
from scall_jax.streams import Segment

RULES = ("uniform", "frequency", "waterfill", "gain")
"""Methods beside the actions; the first one is what gains are relative to."""


@dataclasses.dataclass(frozen=True)
class ActionValue(run_flags.Main):
    """Flags; of those of `experiments.run` the ones of stream, least squares and sizes apply."""

    mean_sizes: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Budgets, in float32 parameters per entity."""
    actions: int = 32
    """Sobol actions of shapes, and of prices; a power of 2."""
    seeds: tuple[int, ...] = tuple(range(8))
    """Seeds of each way to size; an even number of them."""
    table: str = "packed_int4"
    """Storage."""
    results: Path = Path("experiments/results/action_value.parquet")
    """File of the finished segments."""
    report: bool = False
    """Print what is in the file, and fit nothing."""


class Ways(NamedTuple):
    """Ways to size a segment, by name."""

    shapes: np.ndarray
    """f32[n, 3]."""
    prices: np.ndarray
    """f32[n, 5]."""

    @property
    def names(self) -> list[str]:
        """All of them, in the order of the file's columns."""
        spaces = (("shape", self.shapes), ("price", self.prices))
        return [f"{space}-{number}" for space, actions in spaces for number in range(len(actions))] + [*RULES]


def ways(actions: int) -> Ways:
    """Sobol actions (scrambled, seed 0)."""
    return Ways(*(qmc.Sobol(n, rng=0).random(actions).astype(np.float32) for n in (3, len(NUMBERS))))


class Fitter(NamedTuple):
    """Compiled functions of one budget."""

    config: Config
    init: Callable[[int], RunState]
    """seed -> state before the first segment."""
    choose: Callable[[RunState, Segment], RunState]
    """What the recommender chooses for itself."""
    plans: Callable[[RunState, Segment], Callable[[str, np.ndarray | None], Any]]
    """(state, segment) -> (way, action or None) -> (plan, start)."""
    measure: Callable[..., tuple[RunState, jax.Array]]
    """(state, segment, plan, start) -> the state after it, and f32[3]: fitness and Recall@20 on valid, and on test."""


def fitter(config: Config, stream: streams.Stream) -> Fitter:
    """Functions of one budget, compiled once for all segments and seeds."""
    # Runs settle their config, too: with it, all fits start from the vectors that those of a run start from.
    config = settled(config)
    runs = {name: make_run(dataclasses.replace(config, method=name)) for name in RULES}
    run, wide_fits = runs["uniform"], WideFits(config)
    choose = jax.jit(run.choose) if run.choose is not None else lambda state, segment: state

    def init(seed: int) -> RunState:
        return run.init(jax.random.key(seed), stream)

    def usual(context, plan: jax.Array) -> Any:
        return to_buffer(context.storage, context.warm_params(plan, context.keys().table))

    @jax.jit
    def wide(state: RunState, segment: Segment):
        return wide_fits.fit(segment_context(config, state, segment), ())

    @jax.jit
    def by_price(state: RunState, segment: Segment, fit, action: jax.Array) -> tuple[Any, Any]:
        context = segment_context(config, state, segment)
        plan = context.spend(lambda total: sizes_from(context, fit, rule_of(action), total))
        layout = context.storage.layout(plan)
        leading = truncated(context.storage, fit.vectors, layout)
        return plan, jnp.where(action[4] > 0.5, leading, usual(context, plan))

    @jax.jit
    def by_shape(state: RunState, segment: Segment, action: jax.Array) -> tuple[Any, Any]:
        context = segment_context(config, state, segment)
        # Without a concentration an action gives the expected sizes, and nothing is drawn.
        key = derive(state.key, Purpose.PROBE_SIZES)
        plan = context.spend(lambda total: sizes_by_action(config, key, segment, total, action))
        return plan, usual(context, plan)

    prepared = {name: jax.jit(run.prepare) for name, run in runs.items()}
    planners = {name: run.init(jax.random.key(0), stream).planner for name, run in runs.items()}

    def plans(state: RunState, segment: Segment) -> Callable[[str, np.ndarray | None], Any]:
        fit = wide(state, segment)

        def plan_of(way: str, action: np.ndarray | None) -> Any:
            if action is not None:
                space = functools.partial(by_price, fit=fit) if way.startswith("price") else by_shape
                return space(state, segment, action=jnp.asarray(action))
            made = prepared[way](state._replace(planner=planners[way]), segment)
            return made.plan, made.params

        return plan_of

    @jax.jit
    def measure(state: RunState, segment: Segment, plan: Any, start: Any) -> tuple[RunState, jax.Array]:
        first = run.prepare(state, segment)
        context = segment_context(config, state, segment)
        made = Prepared(start, plan, context.storage.sizes(plan), *first[3:])
        after, record = run.evaluate(state, segment, made, run.fit(state, segment, made))
        recall = [part.recall[0, -1] for part in (record.valid, record.test)]
        return after, jnp.stack([record.valid.fitness(), *recall])

    return Fitter(config, init, choose, plans, measure)


def fit_all(flags: ActionValue) -> None:
    """Make the rows that the file lacks."""
    stream = stream_flags.load_stream(flags)
    flags.out.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(flags.out.resolve() / "compiled"))
    found, version = ways(flags.actions), cell_file.commit()
    actions = [*found.shapes, *found.prices, *[None] * len(RULES)]
    bounds = dataclasses.replace(flags.sizes, minimum=0)
    # Seed by seed, so that an unfinished experiment has about as many of each budget.
    made: dict[float, Fitter] = {}
    for seed in flags.seeds:
        for size in flags.mean_sizes:
            config = method_flags.make_config(dataclasses.replace(flags, recommender="ials", sizes=bounds), "uniform")
            config = dataclasses.replace(config, budget=Budget.mean_size(size))
            name = cell_file.identity(config, stream, seed) + f"-{flags.actions}"
            known = cell_file.read(flags.results)
            done = [] if known.is_empty() else known.filter(pl.col("cell") == name)["segment"].to_list()
            if set(range(1, len(stream))) <= set(done):
                continue
            made.setdefault(size, fitter(config, stream))
            shown = {"cell": name, "commit": version, "stream": Path(stream.source).name, "mean size": size}
            shown["setting"] = cell_file.identity(config, stream, 0) + f"-{flags.actions}"
            _fit_seed(flags, made[size], stream, shown | {"seed": seed}, (found.names, actions), done)


def _fit_seed(flags, functions: Fitter, stream: streams.Stream, shown: dict, all_ways, done: list[int]) -> None:
    """The segments of one seed, in turn."""
    state = functions.init(shown["seed"])
    for t in range(len(stream)):
        segment = jax.tree.map(jnp.asarray, stream.segment(t))
        state = functions.choose(state, segment)
        plan_of = functions.plans(state, segment)
        after, _ = functions.measure(state, segment, *plan_of("uniform", None))
        if t and t not in done:
            values = [functions.measure(state, segment, *plan_of(*way))[1] for way in zip(*all_ways, strict=True)]
            columns = np.asarray(jnp.stack(values), np.float64).T.tolist()
            measured = dict(zip(("valid fitness", "valid recall@20", "test recall@20"), columns, strict=True))
            cell_file.add(flags.results, shown | {"segment": t, "ways": all_ways[0]} | measured)
        state = after


def _arrays(frame: pl.DataFrame) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names of the ways, and f64[T, W, S] of valid and of test; seeds that lack a segment are left out."""
    segments = frame["segment"].unique().sort().to_list()
    whole = frame.group_by("seed").len().filter(pl.col("len") == len(segments))["seed"].to_list()
    frame = frame.filter(pl.col("seed").is_in(whole)).sort("segment", "seed")
    shape = (len(segments), len(whole), len(frame["ways"][0]) if whole else 0)
    valid, test = (np.array(frame[x].to_list()).reshape(shape) for x in ("valid fitness", "test recall@20"))
    return (frame["ways"][0].to_list() if whole else []), valid.transpose(0, 2, 1), test.transpose(0, 2, 1)


def tables(frame: pl.DataFrame) -> str:
    """Markdown of all settings of the file that have at least two complete seeds."""
    parts, settings = [], ["setting", "stream", "mean size"]
    for (_, stream, size), part in frame.group_by(settings, maintain_order=True):
        names, valid, test = _arrays(part)
        if valid.shape[2] >= 2:
            head = f"## {stream}, mean size {size:g}, {valid.shape[2]} seeds"
            parts.append("\n\n".join([head, _by_space(names, valid, test), _by_rule(names, test)]))
    return "\n\n".join(parts) or "No setting has two complete seeds yet."


def _by_space(names: list[str], valid: np.ndarray, test: np.ndarray) -> str:
    spaces = {space: [i for i, name in enumerate(names) if name.startswith(space)] for space in ("shape", "price")}
    base, rows = names.index("uniform"), []
    counts = [n for n in (1, 2, 4, 8, 16, 32) if n <= len(spaces["shape"])]
    for space, members in {**spaces, "all ways": list(range(len(names)))}.items():
        taken = [base, *(i for i in members if i != base)]
        seen, counted = valid[:, taken], test[:, taken]
        found = [f"{np.mean([reliability(x) for x in seen]):.2f}"]
        found.append(" ".join(f"{rank_correlation(x, y):.2f}" for x, y in zip(seen, counted, strict=True)))
        for chosen_by, static in ((seen, False), (seen, True), (counted, False)):
            gains = 100 * cross_fitted(chosen_by, counted, 0, static)
            found.append(f"{gains.mean():+.1f} ({gains.min():+.1f} to {gains.max():+.1f})")
        found += [f"{100 * best_of(seen, counted, 0, n):+.1f}" for n in counts]
        rows.append([space, *found])
    columns = ["ways", "reliability", "rank correlation by segment", "best on valid %", "one for all segments %"]
    columns += ["best on test %", *(f"best of {n} %" for n in counts)]
    return report.markdown(columns, rows)


def _by_rule(names: list[str], test: np.ndarray) -> str:
    base, rows = names.index("uniform"), []
    for rule in RULES:
        # Over the mean of all seeds, as for the ways that are chosen: a mean of ratios to one noisy run is too large.
        gains = 100 * (test[:, names.index(rule)] / test[:, base].mean(1, keepdims=True) - 1).mean(0)
        recall = test[:, names.index(rule)].mean(0)
        spread = f"{recall.mean():.4f} ± {recall.std(ddof=1):.4f}"
        rows.append([rule, spread, f"{gains.mean():+.1f} ({gains.min():+.1f} to {gains.max():+.1f})"])
    return report.markdown(["rule", "test Recall@20", "over one size for all %, over seeds"], rows)


def main(flags: ActionValue) -> str:
    """Fit what is missing, and report."""
    if not flags.report:
        fit_all(flags)
    frame = cell_file.finished(flags.results)
    commits = ", ".join(frame["commit"].unique(maintain_order=True))
    head = "# What there is to find on least squares in four bits\n\nBy `python -m experiments.action_value`; its help "
    text = f"{head}says what is measured. Commits: {commits}.\n\n{tables(frame)}\n"
    flags.results.with_suffix(".md").write_text(text)
    print(text)
    return text


if __name__ == "__main__":
    cli(ActionValue, main, __doc__)
