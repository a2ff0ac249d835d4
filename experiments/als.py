"""ALS of the implicit library on the same segments: a line from another library, outside the budget.

    pip install "scall_jax[als]"
    python -m experiments.als --widths 8 64                           # online-retail
    python -m experiments.als --data clicks.parquet --cut.segments 8 --out runs/arena/als

Weighted matrix factorisation by alternating least squares (Hu, Koren, Volinsky, ICDM 2008), fitted afresh in every
segment to all distinct interactions before the cut by the library `implicit` on the host, evaluated as the runs are:
same segments, candidates and metrics. Regularisation and the weight of positives are chosen on valid in each segment.
Takes the flags of `experiments.run` for the stream. Writes a folder per width and seed with config.json, metrics.jsonl,
summary.json and users/, which `experiments.strata` and `experiments.significance` read, and prints a table with the
bytes of the factors: 4 x width for each user and item. They are not held to a budget. Cost: one fit of `implicit` for
each segment and pair of parameters. Expect it near LightGCN at widths that leave room for all tastes.
"""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli.cli import cli
from scall_jax.evaluation import ranking as evaluation
from scall_jax.evaluation import user_strata as strata
from scall_jax.run import folder as run_folder
from scall_jax.run import records
from scall_jax.streams import Segment, Stream

Factorise = Callable[..., tuple[np.ndarray, np.ndarray]]
"""(Profiles, width, regularisation, weight, iterations, seed) -> f32[users, width], f32[items, width]."""


@dataclasses.dataclass(frozen=True)
class Als(run_flags.Main):
    """Flags; those of `experiments.run` hold for the stream."""

    widths: tuple[int, ...] = (8, 64)
    """Columns of the factors."""
    regularisations: tuple[float, ...] = (0.01, 1.0, 10.0)
    """To choose from on valid."""
    weights: tuple[float, ...] = (1.0, 10.0)
    """Of a positive against a missing pair's 1; to choose from on valid."""
    iterations: int = 15
    """Rounds over both sides."""
    seeds: tuple[int, ...] = (0,)
    """Of the factors; `seed` only cuts the stream."""
    out: Path = Path("runs/als")
    """Folder of the results."""

    def __post_init__(self):
        if min((*self.widths, self.iterations)) < 1 or min((*self.regularisations, *self.weights)) <= 0:
            raise ValueError("widths and iterations must be at least 1, regularisations and weights greater than 0")


def by_implicit(
    known: strata.Profiles, width: int, regularisation: float, weight: float, iterations: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Factors by `implicit` on the CPU.

    Raises:
      ValueError: the library is not installed.
    """
    try:
        from implicit.als import AlternatingLeastSquares
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
    """Compiled rank(user factors, item factors, Segment, Rows) -> Metrics; factors padded to the capacities."""
    users, items = stream.capacity.users, stream.capacity.items

    @jax.jit
    def rank(user_factors, item_factors, segment: Segment, relevant):
        return evaluation.evaluate(
            user_factors[relevant.users],
            item_factors,
            jnp.zeros(items),
            relevant,
            segment.graph,
            users,
            segment.items,
            users_before=segment.users_before,
            items_before=segment.items_before,
            candidates="segment" if stream.select_on_test else "all",
        )

    return rank


def run_width(
    flags: Als, stream: Stream, width: int, seed: int, folder: Path, factorise: Factorise = by_implicit
) -> list[dict]:
    """One width and seed over the stream, in its folder; the lines of metrics."""
    rank, lines = make_rank(stream), []
    (folder / "users").mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").unlink(missing_ok=True)
    chosen_from = {"regularisations": flags.regularisations, "weights": flags.weights, "iterations": flags.iterations}
    config = {"method": "als", "width": width} | chosen_from
    identity = {
        "config": config,
        "stream": {"source": stream.source, "segments": len(stream), "fingerprint": stream.fingerprint},
        "key": seed,
    }
    run_folder.write_atomically(folder / "config.json", json.dumps(identity, indent=2) + "\n")
    for t in range(len(stream)):
        segment, known, start = jax.device_put(stream.segment(t)), strata.profiles(stream, t), time.perf_counter()
        attempts = []
        for regularisation in flags.regularisations:
            for weight in flags.weights:
                factors = factorise(known, width, regularisation, weight, flags.iterations, seed)
                padded = [_padded(x, n) for x, n in zip(factors, stream.capacity[:2], strict=True)]
                attempts.append((rank(*padded, segment, segment.valid), padded, regularisation, weight))
        valid, padded, regularisation, weight = max(attempts, key=lambda attempt: float(attempt[0].fitness()))
        test = rank(*padded, segment, segment.test)
        line = {"segment": t, "users": known.users, "items": known.items, "width": width}
        line |= {"regularisation": regularisation, "weight": weight, "seconds_fit": time.perf_counter() - start}
        nbytes = 4 * width * (known.users + known.items)
        line |= {"bytes_parameters": nbytes, "bytes_at_rest": nbytes, "budget_bytes": 0}
        line |= records.metrics_of("valid", valid) | records.metrics_of("test", test)
        count = int(segment.test.count)
        stored = {"users": np.asarray(segment.test.users)[:count], "metrics": np.asarray(test.by_user)[:count]}
        np.savez_compressed(folder / "users" / f"segment-{t:04d}.npz", **stored)
        run_folder.append_line(folder / "metrics.jsonl", line)
        lines.append(line)
    summary = {"method": "als", "width": width, "seed": seed} | records.summarise(lines)
    run_folder.write_atomically(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    return lines


def _padded(factors, rows):
    if not np.isfinite(factors).all():
        raise ValueError("als: a factor is not finite: raise the regularisation")
    return np.pad(factors, ((0, rows - len(factors)), (0, 0)))


def main(flags: Als, factorise: Factorise = by_implicit) -> str:
    """All widths and seeds; the table."""
    flags = run_flags.by_protocol(flags)
    stream = run_flags.load_stream(flags)
    rows = []
    for width in flags.widths:
        runs = [run_width(flags, stream, width, s, flags.out / f"width{width}-seed{s}", factorise) for s in flags.seeds]
        found = [records.summarise(lines) for lines in runs]
        cells = [
            report.mean_and_spread([summary[f"mean_{part}"] for summary in found])
            for part in ("test_recall@20", "test_ndcg@20", "valid_recall@20")
        ]
        rows.append([f"als, width {width}", f"{1e-6 * runs[0][-1]['bytes_at_rest']:.4g}", *cells])
    text = report.markdown(["outside the budget", "MB", "Recall@20", "NDCG@20", "valid R@20"], rows)
    run_folder.write_atomically(flags.out / "table.md", f"# {stream.source}: {len(stream)} segments\n\n{text}\n")
    print(text)
    return text


if __name__ == "__main__":
    cli(Als, main, __doc__)
