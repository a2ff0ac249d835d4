"""Pictures of finished runs in files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scall_jax.analysis import pictures
from scall_jax.analysis.figures import new_figure, save_png, style

_LINES_BESIDE_A_LEGEND = 5

Lines = list[dict[str, Any]]
"""Lines of `metrics.jsonl` of one run, one per segment."""


def plot_quality(path: Path, runs: Mapping[str, Lines], title: str) -> None:
    """Plot test Recall@20 and NDCG@20 by segment, with a line per run.

    Args:
      path: of the picture.
      runs: lines of metrics by the run's name.
      title: above the picture.
    """
    figure, axes = new_figure(1, 2)
    for axis, metric in zip(axes, ("recall@20", "ndcg@20"), strict=True):
        for number, (name, lines) in enumerate(runs.items()):
            shown = [line for line in lines if line["test_users"] > 0]
            segments, values = [x["segment"] for x in shown], [x[f"test_{metric}"] for x in shown]
            axis.plot(segments, values, label=name, **style(number, len(runs)))
        axis.set(xlabel="segment", ylabel=f"test {metric}", ylim=(0, None))
    axes[0].legend(fontsize=8)
    save_png(figure, path, title)


def plot_budgets(path: Path, curves: Mapping[str, Mapping[float, Sequence[float]]], title: str) -> None:
    """Plot test Recall@20 by bytes for each entity, with a line per method.

    Args:
      path: of the picture.
      curves: by the method's name, values of several seeds by bytes.
      title: above the picture.
    """
    figure, (axis,) = new_figure()
    for name, values in curves.items():
        at = sorted(values)
        means = [float(np.mean(values[x])) for x in at]
        spread = [float(np.std(values[x], ddof=1)) if len(values[x]) > 1 else 0.0 for x in at]
        axis.errorbar(at, means, spread, label=name, marker=".", capsize=2, lw=1)
    axis.set_xscale("log", base=2)
    ticks = sorted({x for values in curves.values() for x in values})
    axis.set_xticks(ticks, [f"{x:g}" for x in ticks])
    axis.set(xlabel="bytes of the table for each user and item", ylabel="test recall@20")
    axis.legend(fontsize=8)
    save_png(figure, path, title)


def plot_memory(path: Path, lines: Lines, title: str) -> None:
    """Plot the budget, the bytes of the table and of serving, and the bytes on disk by segment.

    Args:
      path: of the picture.
      lines: of metrics of a run.
      title: above the picture.
    """
    save_png(pictures.memory(lines), path, title)


def plot_sizes(path: Path, users: np.ndarray, items: np.ndarray, title: str) -> None:
    """Plot the sizes of one segment from the largest to the smallest, for users and items.

    Args:
      path: of the picture.
      users: i32[n_u], sizes of the known users.
      items: i32[n_v], sizes of the known items.
      title: above the picture.
    """
    save_png(pictures.sizes_by_rank(users, items), path, title)


def plot_histories(path: Path, files: Sequence[Path], title: str) -> None:
    """Plot sizes and frequencies by segment of the entities that grew and that shrank the most.

    Args:
      path: of the picture.
      files: the sizes of each segment, as a run writes them (sizes/segment-NNNN.npz), in order.
      title: above the picture.
    """
    save_png(pictures.histories(pictures.read_sizes(files)), path, title)


def plot_lines(
    path: Path,
    series: Mapping[str, tuple[Any, Any, Any]],
    title: str,
    xlabel: str,
    ylabel: str,
    levels: Mapping[str, float] | None = None,
) -> None:
    """Plot means with their spread over a logarithmic axis.

    Args:
      path: of the picture.
      series: by the line's name its x, mean and spread, three sequences of the same length.
      title: above the picture.
      xlabel, ylabel: of the axes.
      levels: by name the y of horizontal lines.
    """
    # With many lines the legend moves outside the axes, where it hides none of them.
    many = len(series) + len(levels or {}) > _LINES_BESIDE_A_LEGEND
    figure, (axis,) = new_figure(width=8.5 if many else 5.5, height=5 if many else 4)
    for number, (name, (x, mean, spread)) in enumerate(series.items()):
        axis.errorbar(x, mean, yerr=spread, capsize=2, label=name, **style(number))
    for number, (name, y) in enumerate((levels or {}).items()):
        axis.axhline(y, color="k", ls=("--", ":", "-.", (0, (1, 4)))[number % 4], lw=1, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    if many:
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axis.legend(fontsize=8)
    save_png(figure, path, title)
