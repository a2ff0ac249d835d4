"""report.html of a run folder: what the run did, segment by segment, in one self-contained file."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scall_jax.analysis import about, figures, page, pictures, report
from scall_jax.analysis.comparison import FinishedRun, flat, read_run
from scall_jax.analysis.page import Picture, Section
from scall_jax.methods.registry import SEARCHED
from scall_jax.methods.scall import prices
from scall_jax.run import auto, choices, manifest, race, records, text_files
from scall_jax.run import folder as run_folder

if TYPE_CHECKING:
    from scall_jax.analysis.figures import Figure

NAME = "report.html"
"""Name of the file in a run folder."""

_SHAPES = ("users' share of the budget", "shape of users' sizes", "shape of items' sizes", "concentration")
_ACTIVITY = ((0, 0, "none"), (1, 5, "1 to 5"), (6, 20, "6 to 20"), (21, 100, "21 to 100"), (101, None, "over 100"))
_MOST_NUMBERS = 6
"""Numbers of an action that are drawn side by side; an action of more has no picture."""
_BROAD = ("histories", "actions")
"""Pictures with several axes."""
_NORMAL = 1.96
"""Half the width of a 95% interval, in standard errors."""


def write(folder: Path) -> Path:
    """Write report.html of a finished run and list it in the folder's manifest.

    Args:
      folder: of the run.

    Returns:
      Path of the file.

    Raises:
      ValueError: the run is not finished, or a file is not what the run wrote; the message names it.
    """
    # What was written before may be damaged, and is no reason to refuse.
    with run_folder.making(folder, run_folder.finished_segments(folder), NAME):
        text_files.write_atomically(folder / NAME, build(read_run(folder)))
    return folder / NAME


def build(run: FinishedRun) -> str:
    """The page of a run.

    Args:
      run: as its folder has it.

    Returns:
      HTML. Without matplotlib it has no pictures, and says so.
    """
    known = about.read(run.folder)
    last, stream = run.lines[-1], run.identity["stream"]
    title = f"{run.summary['method']} on {Path(stream['source']).name}"
    rows = f"{known['interactions']:,} interactions, {known['span']}, " if known else ""
    lead = (
        f"{rows}{len(run.lines)} segments; in the last one {last['users']:,} users and {last['items']:,} items. "
        f"A segment's rows are cut by time: {_parts(run.folder)}."
    )
    steps, starts = read_steps(run), known.get("starts", ())
    sections = [
        Section("Result", _result(run)),
        Section("Choices of auto", _auto(run, starts)),
        Section("Quality", _quality(run, starts)),
        Section("Memory", _memory(run, starts)),
        Section("Sizes", _sizes(steps, known)),
        Section("Search", _search(run, starts)),
        Section("Users", _users(run)),
        Section("How it was made", _made(run, known)),
    ]
    return page.page(title, lead, sections)


def _parts(folder: Path) -> str:
    """What the parts of a segment are for, in words, with the sizes that they have in the stream of a run."""
    path = folder / manifest.STREAM[0]
    if not path.exists():
        return "the first part is trained on, models are chosen on the next one (valid), and the last one is the test"
    stream = manifest.read_json(path)
    lengths = np.diff(np.asarray(stream["bounds"], np.int64)).sum(0)
    train, valid, test = (f"{part:.0%}" for part in lengths / lengths.sum())
    if stream["select_on_test"] or not lengths[1]:
        return (
            f"the first {train} are trained on, and models are chosen on the last {test} (test), on which their "
            "quality is measured, too, so that figures are optimistic"
        )
    return (
        f"it is trained on the first {train}, models are chosen on the next {valid} (valid), and its quality is "
        f"measured on the last {test} (test)"
    )


def drawn(found: Sequence[tuple[str, str, str, Callable[[], "Figure"]]], starts: Sequence[str] = ()) -> list[str]:
    """Pictures as a part of a page; a line instead where matplotlib is missing.

    Args:
      found: name of the picture within the page, title, text, and the function that draws it.
      starts: when segments start, for axes by segment; none where nobody knows.
    """
    if not found:
        return []
    if not figures.has_matplotlib():
        return [page.text('No pictures: matplotlib was not installed (pip install "scall_jax[plot]").')]
    made = [
        Picture(title, figures.to_svg(pictures.dated(draw(), starts), name, title), text, name in _BROAD)
        for name, title, text, draw in found
    ]
    return [page.pictures(made)]


def _result(run: FinishedRun) -> list[str]:
    note = (
        f"Means over the {run.summary['averaged_segments']} segments after the first with at least "
        f"{records.LEAST_USERS} test users; {report.COLUMNS_NOTE}."
    )
    cells = report.cells(run.summary)
    return [page.table(list(cells), [list(cells.values())]), page.text(note)]


def _auto(run: FinishedRun, starts: Sequence[str]) -> list[str]:
    """What the method auto chose; nothing for other methods."""
    path = choices.choices_path(run.folder)
    if path is None:
        return []
    content = choices.read_choices(path)
    segments = content["segments"]
    # Those that left, or did not fit into the budget any longer, have no later values.
    standings = race.standings(segments)
    valid = {name: np.array([x["valid"].get(name, np.nan) for x in segments]) for name, _ in standings}
    rows = []
    for name, ran in standings:
        led = sum(x["leader"] == name for x in segments)
        test = np.mean([x["test"][name] for x in (ran[1:] or ran)])
        seconds = f"{content['seconds'][name]:.0f}" if name in content["seconds"] else "-"
        rows.append([name, str(len(ran)), str(led), f"{ran[-1]['valid'][name]:.4f}", f"{test:.4f}", seconds])
    header = ["candidate", "segments run", "segments led", "valid, fading", "test Recall@20", "seconds"]
    text = "Mean of Recall@20 and NDCG@20 on valid, earlier segments fading: the candidate with the most serves."
    shown = [
        ("auto", "Candidates by their quality on valid", text, lambda: pictures.quality(valid, {}, "valid so far"))
    ]
    left_out = [f"{name}: {reason}" for name, reason in content["left_out"].items()]
    said = page.text(
        "Test Recall@20: mean over the segments after the first that the candidate has run; no choice was made by it."
    )
    return [page.table(header, rows), said, *([page.bullets(left_out)] if left_out else []), *drawn(shown, starts)]


def spread(run: FinishedRun, metric: int) -> np.ndarray:
    """Half the width of the 95% interval over test users of each segment's mean.

    Args:
      run: as its folder has it.
      metric: column of `scall_jax.evaluation.BY_USER`.

    Returns:
      f64[T], NaN where a segment has fewer than two test users.
    """
    found = np.full(len(run.lines), np.nan)
    for t, _ in enumerate(run.lines):
        _, metrics = read_users(run, t)
        if len(metrics) > 1:
            found[t] = _NORMAL * metrics[:, metric].std(ddof=1) / np.sqrt(len(metrics))
    return found


def read_steps(run: FinishedRun) -> pictures.Sizes:
    """Sizes and frequencies of every segment."""
    return pictures.read_sizes(manifest.listed(run.folder, "sizes"))


def read_users(run: FinishedRun, segment: int) -> tuple[np.ndarray, np.ndarray]:
    """Test users of a segment i32[Q] and their metrics f32[Q, 6]."""
    with np.load(run.folder / "users" / f"segment-{segment:04d}.npz") as stored:
        return stored["users"], stored["metrics"]


def by_segment(run: FinishedRun, key: str, users: str = "test_users") -> np.ndarray:
    """A metric of each segment f64[T], NaN where it has no such users."""
    return np.array([line[key] if line[users] else np.nan for line in run.lines])


def _with_error(mean: float, error: float) -> str:
    """A mean and half the width of its interval; a dash for what too few users leave open."""
    return "-" if np.isnan(mean) else f"{mean:.4f}" if np.isnan(error) else f"{mean:.4f} ± {error:.4f}"


def _quality(run: FinishedRun, starts: Sequence[str]) -> list[str]:
    recall, ndcg = spread(run, 0), spread(run, 1)
    means = {"Recall@20": by_segment(run, "test_recall@20"), "NDCG@20": by_segment(run, "test_ndcg@20")}
    errors = {"Recall@20": recall, "NDCG@20": ndcg}
    band = "The band is the 95% interval of the mean over the segment's test users."
    shown = [
        (
            "quality",
            "Quality on test by segment",
            band,
            lambda: pictures.quality(means, errors, "mean over test users"),
        ),
        (
            "users",
            "Test users by segment",
            "The users that each mean is over.",
            lambda: pictures.users_by_segment(run.lines),
        ),
    ]
    header = [
        "segment",
        "starts",
        "users",
        "items",
        "new users",
        "new items",
        "test users",
        "Recall@20",
        "NDCG@20",
        "dropped",
    ]
    rows = []
    for line, start, *errors_of in zip(run.lines, starts or ["-"] * len(run.lines), recall, ndcg, strict=True):
        dropped = (line["unknown_test_rows"] + line["seen_test_rows"]) / max(line["test_rows"], 1)
        counts = [f"{line[x]:,}" for x in ("users", "items", "new_users", "new_items", "test_users")]
        metrics = [
            _with_error(line[f"test_{x}@20"] if line["test_users"] else np.nan, error)
            for x, error in zip(("recall", "ndcg"), errors_of, strict=True)
        ]
        rows.append([str(line["segment"]), start.replace("T", " "), *counts, *metrics, f"{dropped:.0%}"])
    return [*drawn(shown, starts), page.folded("Each segment in figures", page.table(header, rows))]


def _memory(run: FinishedRun, starts: Sequence[str]) -> list[str]:
    last = run.lines[-1]
    kinds = {
        "budget": last["budget_bytes"],
        "table: parameters and codes": last["bytes_table"],
        "of these parameters": last["bytes_parameters"],
        "of these codes": last["bytes_codes"],
        "sizes, scales and the items' bias": last["bytes_metadata"],
        "serving": last["bytes_serving"],
        "checkpoint of the table on disk": last["disk_bytes"],
        "held while training": last["bytes_training"],
        "state of the search": last["policy_bytes"],
    }
    rows = [[name, f"{value:,}"] for name, value in kinds.items() if value]
    text = "The table may not exceed the budget in any segment; a method may leave bytes unspent."
    shown = [("memory", "Budget and real bytes by segment", text, lambda: pictures.memory(run.lines))]
    return [*drawn(shown, starts), page.folded("Bytes of the last segment", page.table(["what", "bytes"], rows))]


def _sizes(steps: pictures.Sizes, known: Mapping[str, Any]) -> list[str]:
    last = steps[-1]
    if not (last["users"].any() or last["items"].any()):
        return []
    ids = {side: {int(k): v for k, v in own.items()} for side, own in known.get("ids", {}).items()}
    ranked = "Users and items of the last segment, each from the largest size to the smallest."
    groups = "Entities are ranked by size anew in each segment; equal lines lie on each other."
    since = min(2, len(steps) - 1)
    moved = f"The two users and items that grew most since segment {since}, and the two that shrank most, by their ids."
    shown = [
        ("sizes", "Sizes by rank", ranked, lambda: pictures.sizes_by_rank(last["users"], last["items"])),
        ("users-sizes", "Users' sizes over segments", groups, lambda: pictures.sizes_by_group(steps, "users")),
        ("items-sizes", "Items' sizes over segments", groups, lambda: pictures.sizes_by_group(steps, "items")),
        ("histories", "Who grew and who shrank", moved, lambda: pictures.histories(steps, ids)),
    ]
    return drawn(shown, known.get("starts", ()))


_REFERENCES = {
    "uniform": "a probe with uniform sizes",
    "last_fit": "the fit of the segment before at its first evaluation",
}
"""What rewards are relative to, by `SearchConfig.reference`."""


def _search(run: FinishedRun, starts: Sequence[str]) -> list[str]:
    searched = [line for line in run.lines if line.get("action")]
    if not searched:
        return []
    length = len(searched[0]["action"])
    names = action_names(run.identity["config"], length)
    shown = []
    if any(line.get("probe_rewards") for line in run.lines):
        reference = _REFERENCES[run.identity["config"]["search"].get("reference", "uniform")]
        text = f"A reward of 10 and 0 stand for the ends of the range of fitness, relative to {reference}."
        shown.append(("rewards", "Rewards of the probes", text, lambda: pictures.rewards(run.lines)))
    # Methods that search without actions record zeros.
    if length <= _MOST_NUMBERS and any(any(line["action"]) for line in searched):
        text = "The line is the action that the segment's sizes come from; grey points are the probes'."
        shown.append(("actions", "Actions by segment", text, lambda: pictures.actions(run.lines, names)))
    probes = sum(line.get("probes", 0) for line in run.lines)
    said = f"{probes} probes in all, {run.summary['seconds_search']:.1f} s of search."
    return [page.text(said), *drawn(shown, starts)]


def action_names(config: Mapping[str, Any], length: int) -> list[str]:
    """What the numbers of an action mean.

    Args:
      config: of the run, as config.json has it.
      length: of an action.
    """
    if config["method"] not in SEARCHED:
        return [f"number {number + 1}" for number in range(length)]
    by_prices = config["method"] == "scall-gain" or config["search"].get("actions") == "prices"
    return list((prices.NUMBERS if by_prices else _SHAPES)[:length])


def _users(run: FinishedRun) -> list[str]:
    parts = {"users known before the segment": "warm", "users new in the segment": "new"}
    means = {x: by_segment(run, f"test_{k}_recall@20", f"test_{k}_users") for x, k in parts.items()}
    activity = by_activity(run)
    shown = [
        (
            "cold",
            "New and known users",
            "Test Recall@20 of users whom the segment brought, and of those who were there before.",
            lambda: pictures.quality(means, {}, "test Recall@20"),
        )
    ]
    if activity:
        text = "All segments after the first; lines on the bars are 95% intervals."
        label = "rows of the user in the segment's training"
        shown.append(
            ("activity", "Quality by users' activity", text, lambda: pictures.bars(activity, label, "test Recall@20"))
        )
    return drawn(shown)


def by_activity(run: FinishedRun) -> dict[str, tuple[float, float, int]]:
    """Quality by how often users are in the training part of their segment, the first segment left out.

    Args:
      run: as its folder has it.

    Returns:
      Mean test Recall@20, half the width of its 95% interval and the number of users, by the name of the group.
    """
    steps = read_steps(run)
    recalls, rows = [], []
    for t in range(1, len(steps)):
        users, metrics = read_users(run, t)
        recalls.append(metrics[:, 0])
        rows.append(steps[t]["user_frequency"][users])
    if not recalls:
        return {}
    recall, frequency = np.concatenate(recalls), np.concatenate(rows)
    found = {}
    for low, high, name in _ACTIVITY:
        own = recall[(frequency >= low) & (frequency <= (np.inf if high is None else high))]
        if len(own) > 1:
            found[name] = (float(own.mean()), float(_NORMAL * own.std(ddof=1) / np.sqrt(len(own))), len(own))
    return found


def _made(run: FinishedRun, known: Mapping[str, Any]) -> list[str]:
    versions = known.get("versions", {"jax": run.identity.get("jax", "-")})
    seconds = {x: run.summary[f"seconds_{x}"] for x in ("compile", "search", "fit", "evaluate")}
    facts = {name: str(value) for name, value in versions.items()}
    facts |= {"device": str(run.identity.get("device", "-")), "key": str(run.identity["key"])}
    facts |= {"seconds": ", ".join(f"{name} {value:.1f}" for name, value in seconds.items())}
    facts |= {"peak memory of the process": f"{1e-6 * run.summary['peak_rss_bytes']:,.0f} MB"}
    facts |= {"fingerprint of the stream": str(run.identity["stream"]["fingerprint"])}
    settings = {name: str(value) for name, value in flat(run.identity["config"]).items()}
    if settings["method"] == auto.NAME:
        # Each candidate's folder has its own; those of the run decide nothing.
        settings |= dict.fromkeys(("recommender", "table", "bias"), "of each candidate") | {"charge": "serving"}
    return [
        *([page.code(known["command"])] if known else []),
        *([page.bullets(known["notes"])] if known.get("notes") else []),
        page.pairs(facts),
        page.folded("Configuration", page.pairs(settings)),
    ]
