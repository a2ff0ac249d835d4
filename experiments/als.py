"""ALS of the implicit library on the same segments: a baseline from another library, outside the budget.

    pip install "scall_jax[als]"
    python -m experiments.als --widths 8 64                           # online-retail
    python -m experiments.als --cut.new-entities 1600 --seeds 0 1 2 --results experiments/results/arena.parquet

Weighted matrix factorisation by alternating least squares (Hu, Koren, Volinsky, ICDM 2008), fitted afresh in every
segment to all distinct interactions before the cut by the library `implicit` on the host, evaluated as the runs are:
same segments, candidates and metrics. Regularisation and the weight of positives are chosen on valid in each segment.
Takes the flags of `experiments.run` for the stream. Writes a folder per width and seed with config.json, metrics.jsonl,
summary.json and users/, which `experiments.strata` and `scall_jax.analysis.significance` read, and prints a table with
the bytes of the factors, 4 x width for each user and item; no budget limits them. With --results each run is a row of
that file of `experiments.arena`, too. Cost: one fit of `implicit` for each
segment and pair of parameters. Expect a Recall@20 of .087 at width 8 and of .106 at width 64 on online-retail with
--cut.new-entities 1600.
"""

import dataclasses
import hashlib
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from experiments import cell_file
from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import protocol, stream_flags
from scall_jax.cli.cli import cli, command
from scall_jax.evaluation import ranking as evaluation
from scall_jax.evaluation import user_strata as strata
from scall_jax.run import folder as run_folder
from scall_jax.run import records, removal, segment_files, text_files
from scall_jax.streams import RaggedItems, Segment, Stream

Factorise = Callable[..., tuple[np.ndarray, np.ndarray]]
"""(Profiles, width, regularisation, weight, iterations, seed) -> f32[users, width], f32[items, width]."""


@dataclasses.dataclass(frozen=True)
class Als(run_flags.Main):
    """Flags; those of `experiments.run` for the stream apply."""

    widths: tuple[int, ...] = (8, 64)
    """Columns of the factors; a run for each."""
    regularisations: tuple[float, ...] = (0.01, 1.0, 10.0)
    """Regularisations to choose from on valid."""
    weights: tuple[float, ...] = (1.0, 10.0)
    """Weights of a positive, where a missing pair has 1, to choose from on valid."""
    iterations: int = 15
    """Rounds over both sides."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the factors; --seed only cuts the stream."""
    results: Path | None = None
    """File of cells of `experiments.arena` that the runs are added to; None for no file."""
    out: Path = Path("runs/als")
    """Folder of the results."""

    def __post_init__(self):
        if min((*self.widths, self.iterations)) < 1 or min((*self.regularisations, *self.weights)) <= 0:
            raise ValueError("widths and iterations must be at least 1, regularisations and weights greater than 0")


def by_implicit(
    known: strata.Profiles, width: int, regularisation: float, weight: float, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factorise by the library `implicit`, on the CPU.

    Args:
      known: the distinct interactions.
      width: columns of the factors.
      regularisation: weight of the squared factors.
      weight: of a positive.
      iterations: rounds over both sides.
      seed: of the first factors.

    Returns:
      f32[users, width] and f32[items, width].

    Raises:
      ValueError: the library is not installed.
    """
    try:
        from implicit.als import AlternatingLeastSquares  # pyright: ignore[reportMissingImports]
        from scipy.sparse import csr_matrix
    except ImportError:
        raise ValueError('experiments.als needs the library implicit: pip install "scall_jax[als]"') from None
    ones = np.ones(len(known.user), np.float32)
    interactions = csr_matrix((ones, (known.user, known.item)), (known.users, known.items))
    model = AlternatingLeastSquares(
        factors=width,
        regularization=regularisation,
        alpha=weight,
        iterations=iterations,
        random_state=seed,
        use_gpu=False,
    )
    model.fit(interactions, show_progress=False)
    return np.asarray(model.user_factors, np.float32), np.asarray(model.item_factors, np.float32)


def make_rank(stream: Stream) -> Callable[..., evaluation.Metrics]:
    """Compile the ranking by factors.

    Args:
      stream: gives the capacities U of users and V of items.

    Returns:
      rank(user_factors f32[U, width], item_factors f32[V, width], segment, relevant) -> Metrics.
    """
    users, items = stream.capacity.users, stream.capacity.items

    @jax.jit
    def rank(user_factors: jax.Array, item_factors: jax.Array, segment: Segment, relevant: RaggedItems):
        chex.assert_shape([user_factors, item_factors], [(users, None), (items, None)])
        return evaluation.evaluate(
            user_factors[relevant.users],
            item_factors,
            jnp.zeros(items),
            relevant,
            evaluation.KnownGraph(segment.graph, users, segment.items),
            users_before=segment.users_before,
            items_before=segment.items_before,
            candidates="segment" if stream.select_on_test else "all",
        )

    return rank


class _Attempt(NamedTuple):
    """Factors by one pair of parameters."""

    valid: evaluation.Metrics
    padded: list[np.ndarray]
    regularisation: float
    weight: float


def run_width(
    flags: Als, stream: Stream, width: int, seed: int, folder: Path, factorise: Factorise = by_implicit
) -> list[dict[str, Any]]:
    """Run one width and seed over the stream.

    Args:
      flags: parameters to choose from.
      stream: the data.
      width: columns of the factors.
      seed: of the factors.
      folder: of the run; what it holds of an earlier one is replaced.
      factorise: finds the factors.

    Returns:
      The lines of metrics, one per segment.

    Raises:
      ValueError: the library is not installed, or a factor is not finite.
    """
    rank, lines = make_rank(stream), []
    removal.remove_run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_identity(flags, stream, width, seed, folder)
    for t in range(len(stream)):
        segment, known, start = jax.device_put(stream.segment(t)), strata.profiles(stream, t), time.perf_counter()
        pairs = itertools.product(flags.regularisations, flags.weights)
        factors = {pair: factorise(known, width, *pair, flags.iterations, seed) for pair in pairs}
        best = _best(stream, segment, rank, factors)
        test = rank(*best.padded, segment, segment.test)
        line = {"segment": t, "users": known.users, "items": known.items, "width": width}
        line |= {"regularisation": best.regularisation, "weight": best.weight}
        line |= {"seconds_fit": time.perf_counter() - start}
        nbytes = 4 * width * (known.users + known.items)
        line |= dict.fromkeys(("bytes_parameters", "bytes_table", "bytes_at_rest", "bytes_serving"), nbytes)
        line |= {"budget_bytes": 0}
        line |= records.rows_of(segment)
        line |= records.metrics_of("valid", best.valid) | records.metrics_of("test", test)
        count = int(segment.test.count)
        segment_files.store_user_metrics(
            folder, t, np.asarray(segment.test.users)[:count], np.asarray(test.by_user)[:count]
        )
        text_files.append_line(folder / "metrics.jsonl", line)
        lines.append(line)
    summary = {"method": "als", "width": width, "seed": seed} | records.summarise(lines)
    text_files.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    run_folder.finish(folder, "metrics.jsonl", "users", "summary.json")
    return lines


def _write_identity(flags: Als, stream: Stream, width: int, seed: int, folder: Path) -> None:
    chosen_from = {"regularisations": flags.regularisations, "weights": flags.weights, "iterations": flags.iterations}
    config = {"method": "als", "width": width} | chosen_from
    identity = {
        "config": config,
        "stream": {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint},
        "key": seed,
    }
    run_folder.start(folder, identity)


def _best(
    stream: Stream,
    segment: Segment,
    rank: Callable[..., evaluation.Metrics],
    factors: dict[tuple[float, float], tuple[np.ndarray, np.ndarray]],
) -> _Attempt:
    """Of factors by regularisation and weight, those that are best on valid; of equal ones the first."""
    attempts = []
    for (regularisation, weight), found in factors.items():
        padded = [_padded(x, n) for x, n in zip(found, stream.capacity[:2], strict=True)]
        attempts.append(_Attempt(rank(*padded, segment, segment.valid), padded, regularisation, weight))
    return max(attempts, key=lambda attempt: float(attempt.valid.fitness()))


def _padded(factors: np.ndarray, rows: int) -> np.ndarray:
    if not np.isfinite(factors).all():
        raise ValueError("als: a factor is not finite: raise the regularisation")
    return np.pad(factors, ((0, rows - len(factors)), (0, 0)))


def _add(path: Path, flags: Als, stream: Stream, width: int, seed: int) -> None:
    """Add a finished run to the arena's file of cells, as a method outside the budget; once."""
    folder = flags.out / f"width{width}-seed{seed}"
    identity = (folder / "config.json").read_text()
    name, known = hashlib.sha256(identity.encode()).hexdigest()[:16], cell_file.read(path)
    if not known.is_empty() and name in known["cell"]:
        return
    row = {"cell": name, "commit": cell_file.commit(), "stream": Path(stream.source).name, "seed": seed}
    own = cell_file.shared_flags(flags)
    row |= {
        "flags": own,
        "most steps": "-",
        "bias": "-",
        "mean size": "-",
        "MB": "-",
        "method": f"implicit ALS, width {width}",
    }
    summary, lines = json.loads((folder / "summary.json").read_text()), text_files.read_lines(folder / "metrics.jsonl")
    cell_file.add(path, row | cell_file.results(folder, summary, lines))


def main(flags: Als, factorise: Factorise = by_implicit) -> str:
    """Run all widths and seeds; the table."""
    flags = protocol.by_protocol(flags)
    stream = stream_flags.load_stream(flags)
    rows = []
    for width in flags.widths:
        runs = [run_width(flags, stream, width, s, flags.out / f"width{width}-seed{s}", factorise) for s in flags.seeds]
        if flags.results is not None:
            for seed in flags.seeds:
                _add(flags.results, flags, stream, width, seed)
        found = [records.summarise(lines) for lines in runs]
        cells = [
            report.mean_and_spread([summary[f"mean_{part}"] for summary in found])
            for part in ("test_recall@20", "test_ndcg@20", "valid_recall@20")
        ]
        rows.append([f"als, width {width}", f"{1e-6 * runs[0][-1]['bytes_serving']:.4g}", *cells])
    text = report.markdown(["outside the budget", "serving MB", "Recall@20", "NDCG@20", "valid R@20"], rows)
    note = "Mean ± standard deviation over seeds; regularisation and weight are chosen on valid in each segment."
    head = f"# {stream.source}: {len(stream)} segments, ALS of the implicit library\n\n`{command()}`"
    text_files.write_atomically(flags.out / "table.md", f"{head}\n\n{text}\n\n{note}\n")
    print(f"{text}\n\n{note}")
    return text


if __name__ == "__main__":
    cli(Als, main, __doc__)
