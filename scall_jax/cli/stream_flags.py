"""The stream that flags name: read, cut, and checked."""

import dataclasses
from typing import Any, Literal

from scall_jax import streams
from scall_jax.cli.flags import Columns, Cut, Main
from scall_jax.run import records
from scall_jax.streams.wording import spelled_as_flags

_MOST = 0.9
"""The part of the test rows that must be left out for one reason before the advice names it."""

FLAGS = {field.name: f"--columns.{field.name.replace('_', '-')}" for field in dataclasses.fields(Columns)}
FLAGS |= {field.name: f"--cut.{field.name.replace('_', '-')}" for field in dataclasses.fields(Cut)}
FLAGS |= {"max_memory": "--max-memory"}
"""Flags by the names that `read` and `cut` have for them."""

NEW_ENTITIES = {"online-retail": 1600, "movietweetings": 3000}
"""New entities at which the embedded streams are cut, unless a flag says otherwise."""


def load_stream(flags: Main, segments: Literal["auto"] | None = None) -> streams.Stream:
    """Read and cut the stream that the flags name.

    Args:
      flags: of which data, columns, cut and seed matter.
      segments: "auto" cuts a file, where no flag says how, so that segments have enough test users (`streams.cut`).

    Returns:
      Stream.

    Raises:
      ValueError: a file that cannot be read, or a stream that cannot be cut like this.
    """
    options: dict[str, Any] = dataclasses.asdict(flags.columns) | {"max_memory": flags.max_memory}
    parts = options.pop("parts")
    embedded = flags.data in streams.EMBEDDED
    if embedded and (parts or options["folder"]):
        raise ValueError(f"--columns.parts and --columns.folder: {flags.data} is an embedded stream, not a file")
    rules = dataclasses.asdict(flags.cut)
    rules["at"] = list(rules["at"]) or None
    if all(rules[name] is None for name in ("new_entities", "segments", "rows", "at")):
        # The published protocol cuts where its paper does.
        chosen = segments is not None and not embedded and not flags.cut.published
        rules |= {"segments": segments} if chosen else {"new_entities": NEW_ENTITIES.get(flags.data)}
    with spelled_as_flags(FLAGS):
        if embedded:
            rows = streams.load(flags.data, **options)
        else:
            rows = streams.read([flags.data, *parts] if parts else flags.data, **options)
        return streams.cut(rows, seed=flags.seed, **rules)


def check_stream(stream: streams.Stream) -> None:
    """Check that some segment counts in means over segments.

    Args:
      stream: of a run.

    Raises:
      ValueError: there is one segment, or no later one has enough test users.
    """
    users, items = len(stream.user_ids), len(stream.item_ids)
    if len(stream) < 2:
        raise ValueError(
            f"{stream.source}: {users:,} users and {items:,} items are one segment, and the first does not count: "
            "give --cut.segments or --cut.new-entities well below their sum, and --cut.max-segments above 1"
        )
    found = [stream.evaluated(t) for t in range(1, len(stream))]
    if not any(part.users >= records.LEAST_USERS for part in found):
        raise ValueError(f"{stream.source}: {_no_test_users(stream, found)}")


def _no_test_users(stream: streams.Stream, found: list[streams.Evaluated]) -> str:
    """Why no segment after the first can be evaluated, and what helps."""
    rows, strangers, unknown, repeats, _ = (sum(column) for column in zip(*found, strict=True))
    most, users = max(part.users for part in found), len(stream.user_ids)
    text = (
        f"no segment after the first has {records.LEAST_USERS} test users (at most {most:,}): of {rows:,} test rows "
        f"there {strangers:,} have users who are not known at the cut, {unknown:,} have items that are not, and "
        f"{repeats:,} repeat pairs that were met before"
    )
    if users < records.LEAST_USERS:
        return f"{text}. There are {users} users in all, too few for any cut"
    if strangers > _MOST * rows:
        return (
            f"{text}. Users who never come back, such as sessions, cannot be evaluated by this protocol, which ranks "
            "items for known users: name a column of lasting users (--columns.user)"
        )
    if repeats > _MOST * rows:
        return f"{text}. Nothing is left to recommend where users only repeat what they did: take other data"
    if unknown > _MOST * rows:
        return f"{text}. Items are gone before a segment ends: cut more, shorter segments (--cut.segments)"
    return f"{text}. Cut fewer, longer segments (--cut.segments, --cut.new-entities)"
