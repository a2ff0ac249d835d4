"""For whom a method is better: Recall@20 and NDCG@20 of finished runs by strata of users and of items.

    python -m experiments.strata --out runs/compare                   # after python -m experiments.compare
    python -m experiments.strata --data clicks.parquet --cut.segments 8 --out runs/compare --strata.neighbours 200

Takes the flags of `experiments.run` for the stream, which must be those of the runs (data, columns, cut, seed), and in
--out a folder of finished runs: that of `experiments.run` or `compare`. Strata: new and warm users; new and warm items
(metrics that count a user's relevant items that were first met in the segment, and those met before it, over the users
who have such); deciles of user frequency; terciles of two measures of user coherence, our reading of arXiv 2410.02453
(`scall_jax.evaluation.user_strata` has the formulas). All are known at the segment's cut; groups are formed among the
segment's test users. Writes strata.md and strata.parquet (a row per run, segment and stratum) and prints the tables:
means over the users of all segments but the first, ± standard deviation over seeds. Cost: nothing is trained; seconds
to minutes for the co-occurrences of each segment. Expect all methods to find little for incoherent users, and gains of
one over another among the frequent and the coherent.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from scall_jax.analysis import report
from scall_jax.cli import flags as run_flags
from scall_jax.cli import protocol, stream_flags
from scall_jax.cli.cli import cli, command
from scall_jax.evaluation import user_strata as strata
from scall_jax.evaluation.user_strata import StrataConfig
from scall_jax.run import manifest, text_files
from scall_jax.run.config_file import read_identity
from scall_jax.streams import Stream


@dataclasses.dataclass(frozen=True)
class Strata(run_flags.Main):
    """Flags; those of `experiments.run` for the stream apply."""

    strata: StrataConfig = StrataConfig()
    """How coherence is computed."""
    out: Path = Path("runs/compare")
    """Folder with finished runs at any depth."""


def finished(out: Path) -> dict[str, list[Path]]:
    """Find finished runs; runs that differ in nothing but their key are seeds of one cell.

    Args:
      out: folder with run folders at any depth.

    Returns:
      Run folders by the cell's name; of the same run in two folders one counts.

    Raises:
      ValueError: there is none.
    """
    groups: dict[str, dict[str, Path]] = {}
    for path in sorted(out.rglob("summary.json")):
        manifest.check(path.parent)
        identity = read_identity(path.parent / "config.json")
        cell = json.dumps([identity["config"], identity["stream"]["fingerprint"]], sort_keys=True)
        groups.setdefault(cell, {}).setdefault(json.dumps(identity["key"]), path.parent)
    if not groups:
        raise ValueError(f"{out} holds no finished run: make some with experiments.run or compare")
    found = [list(by_key.values()) for by_key in groups.values()]
    names = [name_of(folders[0], out) for folders in found]
    # Folders whose names differ in the seed alone may hold different runs; those get their full names.
    full = [
        str(folders[0].relative_to(out)) if names.count(n) > 1 else n for n, folders in zip(names, found, strict=True)
    ]
    return dict(zip(full, found, strict=True))


def name_of(folder: Path, out: Path) -> str:
    """Name of a cell: its folder relative to `out`, without the seed."""
    return re.sub(r"-seed\d+", "", str(folder.relative_to(out)))


def to_frame(groups: Mapping[str, Sequence[Path]], stream: Stream, config: StrataConfig) -> pl.DataFrame:
    """Metrics of finished runs by stratum.

    Args:
      groups: run folders by the cell's name, as `finished` returns them.
      stream: of all runs.
      config: how coherence is computed.

    Returns:
      A row per run, segment after the first, and stratum.

    Raises:
      ValueError: a run on another stream.
    """
    for folder in itertools.chain.from_iterable(groups.values()):
        segments = read_identity(folder / "config.json")["stream"]["segments"]
        if segments != len(stream):
            raise ValueError(
                f"{folder} has {segments} segments, the stream {len(stream)}: give its --data, --columns, --cut, --seed"
            )
    found = []
    for t in range(1, len(stream)):
        segment = strata.of_segment(stream, t, config)
        for name, folders in groups.items():
            for folder in folders:
                with np.load(folder / "users" / f"segment-{t:04d}.npz") as stored:
                    try:
                        lines = strata.rows(segment, stored["users"], stored["metrics"])
                    except ValueError as error:
                        raise ValueError(f"{folder}: {error}") from None
                found += [{"run": name, "folder": str(folder), "segment": t} | line for line in lines]
    return pl.DataFrame(found, infer_schema_length=None)


def to_markdown(frame: pl.DataFrame) -> str:
    """Markdown tables run x stratum by split and metric.

    Args:
      frame: what `to_frame` returns.

    Returns:
      The tables with their titles.
    """
    parts = []
    for split, names in strata.SPLITS.items():
        here = frame.filter(pl.col("split") == split)
        shown = [name for name in names if name in here["stratum"]]
        for metric in ("recall@20", "ndcg@20"):
            one = here.filter(pl.col("folder") == here["folder"][0])
            lines = [["users", *(str(_of(one, name)["users"].sum()) for name in shown)]]
            for (name,), cell in here.group_by("run", maintain_order=True):
                lines.append([name, *(_over_seeds(_of(cell, stratum), metric) for stratum in shown)])
            parts.append(f"### {metric} by {split}\n\n{report.markdown(['run', *shown], lines)}")
    return "\n\n".join(parts)


def _of(frame: pl.DataFrame, stratum: str) -> pl.DataFrame:
    return frame.filter(pl.col("stratum") == stratum)


def _over_seeds(cell: pl.DataFrame, metric: str) -> str:
    weighted = pl.col(metric).dot(pl.col("users")) / pl.col("users").sum()
    return report.mean_and_spread(cell.group_by("folder", maintain_order=True).agg(weighted)[metric].to_list())


def write(out: Path, groups: Mapping[str, Sequence[Path]], stream: Stream, config: StrataConfig) -> str:
    """Write strata.parquet and strata.md.

    Args:
      out: folder of the two files.
      groups: run folders by the cell's name.
      stream: of all runs.
      config: how coherence is computed.

    Returns:
      The text of strata.md without its title.

    Raises:
      ValueError: a stream of one segment, or a run on another stream.
    """
    if len(stream) < 2:
        raise ValueError("one segment, and the first does not count: cut the stream into more")
    frame = to_frame(groups, stream, config)
    frame.write_parquet(out / "strata.parquet")
    note = (
        f"Means over the users of all segments but the first. {strata.READING[0].upper()}{strata.READING[1:]}: "
        f"formulas in scall_jax/evaluation/user_strata.py, {config.neighbours} neighbours an item, "
        f"smoothing {config.smoothing:g}."
    )
    text = f"{to_markdown(frame)}\n\n{note}"
    head = f"# {stream.source}: by strata, {len(stream)} segments\n\n`{command()}`"
    text_files.write_atomically(out / "strata.md", f"{head}\n\n{text}\n")
    return text


def main(flags: Strata) -> str:
    """Write and print the tables of the finished runs in the folder; the text."""
    flags = protocol.by_protocol(flags)
    groups = finished(flags.out)
    text = write(flags.out, groups, stream_flags.load_stream(flags), flags.strata)
    print(text)
    return text


if __name__ == "__main__":
    cli(Strata, main, __doc__)
