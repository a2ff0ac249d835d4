"""Tables and plots of finished runs."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

_COLUMNS = (
    ("method", "method", "{}"),
    ("mean size", "mean_size", "{:.2f}"),
    ("table MB", "table_mb", "{:.3f}"),
    ("Recall@20", "mean_test_recall@20", "{:.4f}"),
    ("NDCG@20", "mean_test_ndcg@20", "{:.4f}"),
    ("by user R@20", "pooled_test_recall@20", "{:.4f}"),
    ("by user N@20", "pooled_test_ndcg@20", "{:.4f}"),
    ("valid R@20", "mean_valid_recall@20", "{:.4f}"),
    ("fit s", "seconds_fit", "{:.1f}"),
    ("eval s", "seconds_evaluate", "{:.1f}"),
    ("compile s", "seconds_compile", "{:.1f}"),
)


def table(summaries: list[dict]) -> str:
    """Markdown table, a row per run: means over the segments after the first, and over all their test users."""
    header = [title for title, _, _ in _COLUMNS]
    rows = [[_cell(summary.get(key), form) for _, key, form in _COLUMNS] for summary in summaries]
    return markdown(header, rows)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Markdown table, first column to the left, the others to the right."""
    widths = [max(len(row[c]) for row in [header, *rows]) for c in range(len(header))]

    def line(cells):
        first = cells[0].ljust(widths[0])
        return "| " + " | ".join([first, *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]) + " |"

    rule = "|" + "|".join("-" * (w + 1) + (":" if c else "-") for c, w in enumerate(widths)) + "|"
    return "\n".join([line(header), rule, *map(line, rows)])


def mean_and_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation over seeds; a dash where one is None: no segment has enough test users."""
    if any(value is None for value in values):
        return "-"
    return f"{np.mean(values):.4f}" + (f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else "")


def _cell(value, form):
    return "-" if value is None else form.format(value)


def describe(method: str, lines: list[dict]) -> dict:
    """What the table shows of a run beside `records.summarise`."""
    last = lines[-1]
    if last["budget_parameters"] == 0:  # a reference outside the budget shows the bytes it takes, if any
        return {"method": method, "mean_size": None, "table_mb": 1e-6 * last["bytes_at_rest"] or None}
    return {
        "method": method,
        "mean_size": last["allocated_parameters"] / (last["users"] + last["items"]),
        "table_mb": 1e-6 * _stored(last),
    }


def _stored(line):
    """Bytes of parameters and codes, whatever a unit of the storage is."""
    return line["bytes_parameters"] + line["bytes_codes"]


def plot_quality(path: Path, runs: dict[str, list[dict]], title: str) -> None:
    """Recall@20 and NDCG@20 on test by segment, a line per run."""
    figure, axes = _figure(1, 2)
    for axis, metric in zip(axes, ("recall@20", "ndcg@20"), strict=True):
        for name, lines in runs.items():
            shown = [line for line in lines if line["test_users"] > 0]
            style = "--" if name.startswith("popularity") else "-"
            axis.plot(
                [x["segment"] for x in shown],
                [x[f"test_{metric}"] for x in shown],
                style,
                label=name,
                marker=".",
            )
        axis.set(xlabel="segment", ylabel=f"test {metric}", ylim=(0, None))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    _save(figure, path, title)


def plot_memory(path: Path, lines: list[dict], title: str) -> None:
    """Budget, parameters and codes, and bytes on disk by segment."""
    figure, (axis,) = _figure(1, 1)
    segments = [line["segment"] for line in lines]
    axis.plot(segments, [1e-6 * x["budget_bytes"] for x in lines], "k-", lw=3, alpha=0.3, label="budget")
    axis.plot(segments, [1e-6 * _stored(x) for x in lines], ".-", label="parameters and codes")
    axis.plot(segments, [1e-6 * (x["disk_bytes"] or np.nan) for x in lines], "x--", label="on disk, with sizes")
    axis.set(xlabel="segment", ylabel="MB (10^6 bytes)", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path, title)


def plot_sizes(path: Path, users: np.ndarray, items: np.ndarray, title: str) -> None:
    """Sizes from the largest to the smallest, both sides of one segment."""
    figure, (axis,) = _figure(1, 1)
    for name, sizes in (("users", users), ("items", items)):
        axis.step(np.arange(1, len(sizes) + 1), np.sort(sizes)[::-1], where="mid", label=name)
    axis.set(xlabel="rank by frequency", ylabel="embedding size", xscale="log", ylim=(0, None))
    axis.grid(alpha=0.3)
    axis.legend()
    _save(figure, path, title)


def plot_histories(path: Path, files: list[Path], title: str) -> None:
    """Sizes and frequencies by segment of the entities that grew and that shrank the most, of those seen early.

    `files`: the sizes of each segment, as a run writes them.
    """
    steps = [np.load(file) for file in files]
    figure, axes = _figure(2, 2)
    axes = axes.reshape(2, 2)
    for row, side in zip(axes, ("user", "item"), strict=True):
        early = len(steps[min(2, len(steps) - 1)][f"{side}s"])
        for entity in _movers(steps, f"{side}s", early):
            for axis, name in zip(row, (f"{side}s", f"{side}_frequency"), strict=True):
                seen = [(t, step[name][entity]) for t, step in enumerate(steps) if entity < len(step[name])]
                axis.plot(*zip(*seen, strict=True), ".-", label=f"{side} {entity}")
        row[0].set(xlabel="segment", ylabel="embedding size", ylim=(0, None))
        row[1].set(xlabel="segment", ylabel="interactions in the segment", yscale="symlog", ylim=(0, None))
        row[0].legend(fontsize=8)
        for axis in row:
            axis.grid(alpha=0.3)
    _save(figure, path, title)


def _movers(steps, name, early):
    """The two entities among the first `early` whose size fell most from the third segment on, and the two that rose
    most."""
    change = steps[-1][name][:early].astype(np.int64) - steps[min(2, len(steps) - 1)][name]
    order = np.argsort(change, kind="stable")
    return list(dict.fromkeys([*order[:2], *order[::-1][:2]]))


def plot_lines(path: Path, series: dict, title: str, xlabel: str, ylabel: str, levels: dict | None = None) -> None:
    """Means with spread over a logarithmic axis; `series` maps a name to (x, mean, spread), `levels` to y."""
    many = len(series) > _COLOURS  # colours repeat: other strokes, and a legend that covers no line
    figure, (axis,) = _figure(1, 1, width=8.5 if many else 5.5, height=5 if many else 4)
    for number, (name, (x, mean, spread)) in enumerate(series.items()):
        turn = number // _COLOURS % 3
        stroke, marker = ("-", "--", ":")[turn], (".", "s", "^")[turn]
        axis.errorbar(x, mean, yerr=spread, marker=marker, ms=5, ls=stroke, capsize=2, label=name, lw=1.2)
    for number, (name, y) in enumerate((levels or {}).items()):
        axis.axhline(y, color="k", ls=("--", ":", "-.", (0, (1, 4)))[number % 4], lw=1, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xscale="log")
    axis.grid(alpha=0.3)
    if many:
        figure.legend(fontsize=8, loc="outside right upper")
    else:
        axis.legend(fontsize=8)
    _save(figure, path, title)


_COLOURS = 8  # of matplotlib's cycle, the last two left out


def _figure(rows, columns, width=5.5, height=4):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, np.atleast_1d(figure.subplots(rows, columns)).ravel()


def _save(figure, path, title):
    figure.suptitle(title.replace("$", r"\$"))  # no mathematics
    for axis in figure.axes:
        if axis.get_xlabel() == "segment":
            axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=110)
