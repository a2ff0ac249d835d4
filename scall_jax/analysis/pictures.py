"""Figures of one run: quality, memory, sizes, and what a search did. Each function draws what its first line says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chex
import numpy as np

from scall_jax.analysis.figures import COLOURS, new_figure, style

if TYPE_CHECKING:
    from scall_jax.analysis.figures import Figure

Lines = list[dict[str, Any]]
"""Lines of `metrics.jsonl` of one run, one per segment."""
Sizes = list[dict[str, np.ndarray]]
"""Arrays of sizes/segment-NNNN.npz by name, one dictionary per segment."""

_LONGEST = 70
"""Characters of a name in a legend."""
_DATES = 6
"""Dates along an axis as wide as a page."""
_INSIDE = 3
"""Lines whose names fit within the axes."""
_GROUPS = ((0.0, 0.01, "top 1%"), (0.01, 0.1, "1 to 10%"), (0.1, 0.5, "10 to 50%"), (0.5, 1.0, "lower half"))


def read_sizes(files: Sequence[Path]) -> Sizes:
    """Read the sizes and frequencies of segments.

    Args:
      files: sizes/segment-NNNN.npz of a run, in order.
    """
    steps: Sizes = []
    for file in files:
        with np.load(file) as stored:
            steps.append(dict(stored))
    return steps


def dated(figure: Figure, starts: Sequence[str]) -> Figure:
    """A figure whose axes by segment say when segments start.

    Args:
      figure: of this file; its axes are changed.
      starts: by segment, as `about.json` has them; none leaves the figure as it is.
    """
    axes = [axis for axis in figure.axes if axis.get_xlabel() == "segment"]
    most = _DATES if len(axes) == 1 else _DATES // 2
    for axis in axes if starts else ():
        places = [int(place) for place in np.unique(np.linspace(0, len(starts) - 1, min(len(starts), most)).round())]
        days = {starts[place][:10] for place in places}
        # Segments of one day are told apart by their hours.
        start, end = (0, 10) if len(days) == len(places) else (5, None)
        labels = [f"{place}\n{starts[place][start:end].replace('T', ' ')}" for place in places]
        axis.set_xticks(places, labels, fontsize=8)
        axis.set_xlabel("segment, and when it starts")
    return figure


def quality(means: Mapping[str, np.ndarray], errors: Mapping[str, np.ndarray], ylabel: str) -> Figure:
    """A metric by segment, a line each, with bands.

    Args:
      means: f64[T] by the line's name, NaN where there is none.
      errors: f64[T] by the line's name, half the width of its band; names without bands are left out.
      ylabel: of the axis.
    """
    figure, axis = _with_room(means)
    for number, (name, values) in enumerate(means.items()):
        segments = np.arange(len(values))
        look = style(number, len(means))
        axis.plot(segments, values, label=name, **look)
        if name in errors:
            low, high = values - errors[name], values + errors[name]
            axis.fill_between(segments, low, high, color=look["color"], alpha=0.15, lw=0)
    axis.set(xlabel="segment", ylabel=ylabel)
    if len(means) <= _INSIDE:  # With more lines the differences between them matter.
        axis.set_ylim(0, None)
    _legend(figure, axis)
    return figure


def users_by_segment(lines: Lines) -> Figure:
    """Test users by segment, new and known ones."""
    figure, (axis,) = new_figure(width=6.4, height=3.6)
    segments = [line["segment"] for line in lines]
    warm, new = ([line[f"test_{name}_users"] for line in lines] for name in ("warm", "new"))
    axis.bar(segments, warm, color=COLOURS[0], label="known before the segment")
    axis.bar(segments, new, bottom=warm, color=COLOURS[4], hatch="//", edgecolor="white", label="new in the segment")
    axis.set(xlabel="segment", ylabel="test users")
    figure.legend(fontsize=8, loc="outside lower center", ncols=2)
    return figure


def memory(lines: Lines) -> Figure:
    """The budget, the bytes of the table and of serving, and the bytes on disk by segment."""
    figure, (axis,) = new_figure(width=6.4, height=3.6)
    segments = [line["segment"] for line in lines]
    if any(line["budget_bytes"] for line in lines):
        budget = [1e-6 * x["budget_bytes"] for x in lines]
        axis.plot(segments, budget, "-", color="0.75", lw=7, label="budget", solid_capstyle="butt")
    shown = {"table, which budgets pay for": "bytes_table", "serving": "bytes_serving", "on disk": "disk_bytes"}
    for number, (name, key) in enumerate(shown.items()):
        axis.plot(segments, [1e-6 * (x[key] or np.nan) for x in lines], label=name, **style(number))
    axis.set(xlabel="segment", ylabel="MB (10^6 bytes)", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def sizes_by_rank(users: np.ndarray, items: np.ndarray) -> Figure:
    """Sizes of one segment from the largest to the smallest, for users and items.

    Args:
      users: i32[n_u], sizes of the known users.
      items: i32[n_v], sizes of the known items.
    """
    chex.assert_rank([users, items], 1)
    figure, (axis,) = new_figure(width=6.4, height=3.6)
    for number, (name, sizes) in enumerate((("users", users), ("items", items))):
        look = style(number, 2) | {"marker": "", "linewidth": 3.5 - 2 * number}
        axis.step(np.arange(1, len(sizes) + 1), np.sort(sizes)[::-1], where="mid", label=name, **look)
    axis.set(xlabel="rank from the largest size", ylabel="embedding size (numbers)", xscale="log", ylim=(0, None))
    axis.legend(fontsize=8)
    return figure


def sizes_by_group(steps: Sizes, side: str) -> Figure:
    """Mean size by segment of groups of entities, by their rank by size in the segment.

    Args:
      steps: of the segments.
      side: users or items.
    """
    figure, (axis,) = new_figure(width=6.4, height=3.2)
    for number, (low, high, name) in enumerate(_GROUPS):
        means = []
        for step in steps:
            ranked = np.sort(step[side])[::-1]
            part = ranked[int(low * len(ranked)) : max(int(high * len(ranked)), int(low * len(ranked)) + 1)]
            means.append(part.mean() if len(part) else np.nan)
        axis.plot(np.arange(len(steps)), means, label=name, **style(number, len(_GROUPS)))
    axis.set(xlabel="segment", ylabel=f"mean size of {side}", ylim=(0, None))
    axis.legend(fontsize=8, title="rank by size", title_fontsize=8)
    return figure


def histories(steps: Sizes, names: Mapping[str, Mapping[int, str]] | None = None) -> Figure:
    """Sizes and frequencies by segment of the entities that grew and that shrank the most.

    Only entities known in the third segment are candidates, because later ones have short histories.

    Args:
      steps: of the segments.
      names: of entities by their number, by user and item; numbers stand for those without.
    """
    figure, axes = new_figure(2, 2, width=4.4, height=3)
    for row, side in zip(axes.reshape(2, 2), ("user", "item"), strict=True):
        moved = movers(steps, side)
        for number, entity in enumerate(moved):
            label = f"{side} {((names or {}).get(side) or {}).get(entity, entity)}".replace("$", r"\$")
            for axis, name in zip(row, (f"{side}s", f"{side}_frequency"), strict=True):
                known = [(t, step[name][entity]) for t, step in enumerate(steps) if entity < len(step[name])]
                axis.plot(*zip(*known, strict=True), label=label, **style(number, 4))
        row[0].set(xlabel="segment", ylabel="embedding size", ylim=(0, None))
        row[1].set(xlabel="segment", ylabel="rows in the segment", yscale="symlog", ylim=(0, None))
        if moved:
            row[0].legend(fontsize=7)
        else:
            row[0].text(0.5, 0.5, f"no {side}'s size has changed", ha="center", transform=row[0].transAxes)
    return figure


def movers(steps: Sizes, side: str) -> list[int]:
    """The entities of the third segment that shrank the most since, two at most, and that grew the most, two at most.

    Args:
      steps: of the segments.
      side: user or item.
    """
    start = steps[min(2, len(steps) - 1)][f"{side}s"]
    change = steps[-1][f"{side}s"][: len(start)].astype(np.int64) - start
    order = np.argsort(change, kind="stable")
    return [x for x in order[:2].tolist() if change[x] < 0] + [x for x in order[::-1][:2].tolist() if change[x] > 0]


def rewards(lines: Lines) -> Figure:
    """The reward of each probe, and the best of each segment."""
    figure, (axis,) = new_figure(width=6.4, height=3.2)
    searched = [line for line in lines if line.get("probe_rewards")]
    for line in searched:
        count = len(line["probe_rewards"])
        at = line["segment"] + np.linspace(-0.3, 0.3, count) if count > 1 else [line["segment"]]
        axis.plot(at, line["probe_rewards"], ".", color=COLOURS[5], markersize=5)
    best = [max(line["probe_rewards"]) for line in searched]
    axis.plot([line["segment"] for line in searched], best, label="best of the segment", **style(0))
    axis.plot([], [], ".", color=COLOURS[5], label="a probe, in the order made")
    axis.set(xlabel="segment", ylabel="reward")
    axis.legend(fontsize=8)
    return figure


def actions(lines: Lines, names: Sequence[str]) -> Figure:
    """The action of each segment, number by number, and those of its probes.

    Args:
      lines: of metrics of a run.
      names: of the action's numbers; as many as there are.
    """
    figure, axes = new_figure(1, len(names), width=9.2 / max(len(names), 2), height=2.8)
    taken = [line for line in lines if any(line.get("action", ()))]
    for number, (axis, name) in enumerate(zip(axes, names, strict=True)):
        for line in taken:
            tried = [action[number] for action in line["probe_actions"]]
            axis.plot([line["segment"]] * len(tried), tried, ".", color="0.7", markersize=4)
        chosen = [line["action"][number] for line in taken]
        axis.plot([line["segment"] for line in taken], chosen, **style(number))
        axis.set(xlabel="segment", ylim=(-0.03, 1.03))
        axis.set_title(name, fontsize=9)
    axes[0].set_ylabel("number of the action")
    return figure


def bars(values: Mapping[str, tuple[float, float, int]], xlabel: str, ylabel: str) -> Figure:
    """Means of groups of users, with their number.

    Args:
      values: mean, half the width of its interval, and users, by the group's name.
      xlabel, ylabel: of the axes.
    """
    figure, (axis,) = new_figure(width=6.4, height=3.2)
    names = [f"{name}\n{users:,} users" for name, (_, _, users) in values.items()]
    means, errors = ([value[i] for value in values.values()] for i in (0, 1))
    axis.bar(names, means, yerr=errors, color=COLOURS[0], capsize=3, width=0.6)
    axis.tick_params(axis="x", labelsize=8)
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    return figure


def bytes_and_quality(points: Mapping[str, tuple[float, float, float]], xlabel: str, ylabel: str) -> Figure:
    """Quality over bytes, a point for each method.

    Args:
      points: megabytes, mean and half the width of its interval, by the method's name.
      xlabel, ylabel: of the axes.
    """
    figure, axis = _with_room(points)
    for number, (name, (x, y, error)) in enumerate(points.items()):
        look = style(number) | {"linestyle": "", "markersize": 7}
        axis.errorbar([x], [y], yerr=[error], capsize=3, label=name, **look)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    _legend(figure, axis)
    return figure


def _with_room(names: Collection[str]) -> tuple[Figure, Any]:
    """A figure whose axes keep their height above the names of its lines."""
    rows = -(-len(names) // _columns(names)) if len(names) > _INSIDE else 0
    figure, (axis,) = new_figure(width=6.4, height=3.6 + 0.17 * rows)
    return figure, axis


def _columns(names: Collection[str]) -> int:
    return 2 if max(map(len, names), default=0) <= _LONGEST // 2 else 1


def _legend(figure: Figure, axis: Any) -> None:
    """Names below the axes where they would cover the lines, and cut where they are long."""
    handles, names = axis.get_legend_handles_labels()
    shown = [name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…" for name in names]
    if len(names) > _INSIDE:
        figure.legend(handles, shown, fontsize=8, loc="outside lower center", ncols=_columns(names))
    elif len(names) > 1:
        axis.legend(handles, shown, fontsize=8)
