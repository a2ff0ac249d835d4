"""Small runs whose records are kept in `golden.json`: integers exact, floats to 1e-5.

python -m tests.golden        # compares and names what differs
python -m tests.golden --write method-gain  # writes these cases anew, after a change that is meant to change them
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax

from scall_jax import METHODS, Budget, Config, FitConfig, PolicyConfig, SearchConfig, SizesConfig, run_segments, streams

PATH = Path(__file__).with_suffix(".json")

_FIT = FitConfig(layers=2, batch=64, steps=8, eval_every=4, valid_users=32)
_POLICY = PolicyConfig(widths=(16, 16), replay=32, updates=2, batch=4, first_batch=4, full_batch_after=2, grid=2)
_SEARCH = SearchConfig(probes=3, probe_steps=4)
_TINY = Budget.megabytes(0.0002)  # 50 parameters: the smallest size does not fit


def _config(method: str, **options) -> Config:
    base = {"fit": _FIT, "sizes": SizesConfig(maximum=16), "search": _SEARCH, "policy": _POLICY}
    return Config(method=method, **(base | options))


CASES: dict[str, Config] = {f"method-{name}": _config(name) for name in METHODS} | {
    "table-packed_int8-fixed": _config("fixed", table="packed_int8"),
    "table-packed_bfloat16-fixed": _config("fixed", table="packed_bfloat16"),
    "table-masked-fixed": _config("fixed", table="masked"),
    "budget-tiny-fixed": _config("fixed", budget=_TINY),
    # At mean size 8 sixteen coordinates of at most 6 bits cannot spend the budget.
    "method-mixed_precision": _config("mixed_precision", budget=Budget.mean_size(3)),
    "method-s2pnm": _config("s2pnm", budget=Budget.megabytes(0.03)),
    "bias-decayed": _config("fixed", bias="decayed"),
    "search-previous-scall": _config("scall", search=dataclasses.replace(_SEARCH, on="previous")),
}
"""Configurations by name."""

QUICK = (
    "method-frequency",
    "method-quotient_remainder",
    "method-popularity-decayed",
    "budget-tiny-fixed",
    "method-scall-random",
)
"""Those that are compared in every test run; the others are marked slow."""

_PARTS = ("users", "recall@20", "ndcg@20", "new_recall@20", "coverage@20")
KEYS = (
    "segment",
    "users",
    "items",
    "budget_parameters",
    "allocated_parameters",
    "entities_without_parameters",
    "largest_size",
    "steps",
    "best_step",
    "loss",
    "popularity",
    "action",
    "probes",
    "probe_fitness",
    "probe_allocated_parameters",
    *(f"{part}_{name}" for part in ("valid", "test") for name in _PARTS),
)
"""Keys of a line of metrics that are kept."""


def stream() -> streams.Stream:
    """The stream of all cases."""
    rows = streams.synthetic(jax.random.key(7), users=90, items=60, interactions=1800)
    return streams.cut(rows, segments=3)


def lines(name: str, data: streams.Stream) -> list[dict]:
    """The lines of a case, `KEYS` alone."""
    made = run_segments(CASES[name], data, jax.random.key(3))
    return [{key: line[key] for key in KEYS if key in line} for line in made]


if __name__ == "__main__":
    data, kept = stream(), json.loads(PATH.read_text())
    if sys.argv[1:2] == ["--write"]:
        if not sys.argv[2:]:
            raise SystemExit("--write: name the cases to write anew")
        kept |= {name: lines(name, data) for name in sys.argv[2:]}
        PATH.write_text(json.dumps({name: kept[name] for name in CASES if name in kept}, indent=1) + "\n")
    else:
        print([name for name in CASES if lines(name, data) != kept[name]])
