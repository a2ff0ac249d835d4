"""A model as a folder that needs no JAX: a manifest, arrays in safetensors, ids in Parquet, a card, and a reader.

`reader` reads it; the format is what that file does. Arrays of `model.safetensors` (n users, m items, known ones):

    values          coordinates of all vectors, one vector after the other: users, items, and the two shared ones;
                    float32, bfloat16 as u16, or u8[groups, b], where byte k of a group has bit k of 8 coordinates
    columns         u8, the column of each value; only where vectors have gaps
    size_values     the K sizes that occur, and those of the two shared vectors
    size_codes      u8[bits, ceil((n + m) / 8)]; plane k has bit k of the number of each vector's size among the K, the
                    first vector's in the lowest place; K = 1 needs no bits
    scales, top     of codes: the limit of a vector is top x 2^((scale - 255) / 16), or 0 where the scale is; a scale
                    for each vector that has coordinates
    vectors         f32[n + m, D] instead of these, for storages in which vectors share parameters
    weights         f32[m, m], of EASE instead of these
    bias            f32[m], added to scores; missing where there is none
    popularity      f32[m], scores for users of whom nothing is known
    seen_offsets, seen_items   what each user has met before the last cut, in compressed rows; also LightGCN's graph
    later_offsets, later_items   what each has met since then and not before, which is left out of recommendations and
                    of which vectors know nothing; missing where it is nothing
"""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from scall_jax.methods.recommender import settled
from scall_jax.run import manifest
from scall_jax.run.folder import named_errors
from scall_jax.run.parquet import as_system_errors, write_durably
from scall_jax.serving.answers import met_since
from scall_jax.serving.data import ModelData
from scall_jax.tables import size_codes
from scall_jax.tables.storage import Exported

FORMAT = 3
"""Version of the format."""

READER = "reader.py"
"""The file that reads the folder; it is a module of this package and a file of the folder, the same text."""

Arrays = dict[str, np.ndarray]

_PURPOSES = {
    "values": "table",
    "columns": "table",
    "scales": "table",
    "top": "table",
    "weights": "table",
    "vectors": "final vectors",
    "size_values": "sizes",
    "size_codes": "sizes",
    "bias": "bias",
    "popularity": "popularity",
    "seen_offsets": "interactions",
    "seen_items": "interactions",
    "later_offsets": "interactions",
    "later_items": "interactions",
}
"""What the bytes of an array are for."""


def write(model: ModelData, path: Path) -> Path:
    """Write a folder; see `Model.export`."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} is there already: choose another folder, or remove it")
    with named_errors(path, "nothing was exported; export again once it can be written, or choose another folder"):
        _write(model, path)
    return path


def _write(model: ModelData, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays, layers = _arrays(model)
    pending = path.with_name(f".{path.name}.pending")
    shutil.rmtree(pending, ignore_errors=True)
    pending.mkdir(parents=True)
    with as_system_errors(pending / "model.safetensors", SafetensorError):
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, pending / "model.safetensors")
    for side, ids in (("users", model.users), ("items", model.items)):
        size = model.table.filter(pl.col("side") == side)["size"].cast(pl.UInt32)
        row = np.arange(len(ids), dtype=np.uint32)
        write_durably(pending / f"{side}.parquet", pl.DataFrame({"id": ids.ids, "row": row, "size": size}))
    about = _about(model, arrays, layers)
    (pending / "README.md").write_text(_card(about, model.users.ids), encoding="utf-8")
    shutil.copy(Path(__file__).with_name(READER), pending / READER)
    # All files are on disk before the folder has its name: what is there then is a whole model, or nothing.
    written = manifest.entries(pending, sorted(file.name for file in pending.iterdir()))
    about["files"] = {name: {"bytes": entry.nbytes, "sha256": entry.sha256} for name, entry in written.items()}
    # The reader works out the same hash from what it has parsed.
    about["sha256"] = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    manifest.write_durably(pending / "manifest.json", json.dumps(about, indent=1) + "\n")
    path.parent.mkdir(parents=True, exist_ok=True)
    os.replace(pending, path)
    manifest.sync_folder(path.parent)


def _arrays(model: ModelData) -> tuple[Arrays, int]:
    """What is written, and how often vectors are propagated."""
    beside: Arrays = {
        "popularity": model.popularity.astype(np.float32),
        "seen_offsets": model.seen.offsets,
        "seen_items": model.seen.items,
        **_later(model),
    }
    # Who ranks by nothing else ranks by the counts as they stand, and not as they were at the cut.
    bias = np.asarray(model.served.bias) if model.personal else beside["popularity"]
    if bias.any():
        beside["bias"] = bias
    if "parameters_ridge" in model.stored:
        return beside | {"weights": model.stored["parameters"]}, 0
    layers = settled(model.config).fit.layers if model.config.recommender != "ials" else 0
    own = _own_arrays(model.stored, len(model.users) + len(model.items) + 2)
    if own is not None and _reads_as_served(model, own | beside, layers):
        return own | beside, layers
    served = model.served
    return beside | {"vectors": np.concatenate([np.asarray(served.users), np.asarray(served.items)])}, 0


def _later(model: ModelData) -> Arrays:
    """What known users have met since the cut and not before, as the graph has it; nothing where that is nothing."""
    places, items = met_since(model, model.users.ids)
    user = np.repeat(np.arange(len(model.users)), np.diff(model.seen.offsets.astype(np.int64)))
    new = ~np.isin(places << 32 | items, user << 32 | model.seen.items.astype(np.int64))
    if not new.any():
        return {}
    offsets = np.searchsorted(places[new], np.arange(len(model.users) + 1)).astype(np.uint32)
    return {"later_offsets": offsets, "later_items": items[new].astype(model.seen.items.dtype)}


def _own_arrays(stored: Exported, vectors: int) -> Arrays | None:
    """What a storage of sized vectors stores, vector after vector; None for other storages."""
    own_bits = "codes" in stored and stored["codes"].ndim == 1
    if own_bits or not {"metadata_sizes", "metadata_values"} & set(stored):
        return None
    sizes = size_codes.read(stored, vectors)
    written = dict(zip(("size_values", "size_codes"), size_codes.in_codes(sizes), strict=True))
    if "codes_positions" in stored:
        return {"values": stored["parameters"], "columns": stored["codes_positions"], **written}
    order = np.argsort(-sizes.astype(np.int64), kind="stable")
    place = _places(sizes.astype(np.int64), order)
    if "codes" not in stored:
        values = stored.get("parameters", np.zeros(0, np.float32))
        return {"values": values[place], **written} if values.ndim == 1 else None
    codes = stored["codes"]
    bits = np.unpackbits(codes, axis=1, bitorder="little").reshape(-1, codes.shape[1], 8).swapaxes(1, 2)
    by_vector = np.zeros_like(bits).reshape(-1, codes.shape[1])
    by_vector[: len(place)] = bits.reshape(by_vector.shape)[place]
    packed = np.packbits(by_vector.reshape(bits.shape).swapaxes(1, 2).reshape(len(codes), -1), 1, "little")
    # There is a scale for each vector that has coordinates, and those come first in the order.
    scales = stored["codes_scales"][np.argsort(order[: len(stored["codes_scales"])])]
    return {"values": packed, **written, "scales": scales, "top": stored["codes_top"]}


def _places(sizes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Places in a packed pool, which has column after column (`tables.Layout`), of coordinates vector after vector."""
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    lengths = np.bincount(sizes, minlength=2)[::-1].cumsum()[::-1]  # vectors of size k or more
    starts = np.concatenate([[0], lengths[1:].cumsum()])
    vector = np.repeat(np.arange(len(sizes)), sizes)
    column = np.arange(len(vector)) - np.repeat(sizes.cumsum() - sizes, sizes)
    return starts[column] + rank[vector]


def _reads_as_served(model: ModelData, arrays: Arrays, layers: int) -> bool:
    """Whether the reader makes the vectors that serve of some arrays; it may not know a storage."""
    from scall_jax.serving import reader

    users = len(model.users)
    wanted = np.concatenate([np.asarray(model.served.users), np.asarray(model.served.items)])
    found = reader.propagated(reader.stored(arrays, users), arrays, users, layers)
    width = min(found.shape[1], wanted.shape[1])
    beyond = [values[:, width:] for values in (found, wanted)]
    scale = np.abs(wanted).max(initial=1e-30)
    return (
        len(found) == len(wanted)
        and not any(values.any() for values in beyond)
        and bool(np.abs(found[:, :width] - wanted[:, :width]).max(initial=0) < 1e-4 * scale)
    )


def _about(model: ModelData, arrays: Arrays, layers: int) -> dict[str, Any]:
    budget = model.budget
    listed = {
        name: {
            "dtype": str(array.dtype),
            "shape": list(array.shape),
            "bytes": array.nbytes,
            "for": _PURPOSES[name],
        }
        for name, array in arrays.items()
    }
    bytes_for = {purpose: 0 for purpose in dict.fromkeys(_PURPOSES.values())}
    for entry in listed.values():
        bytes_for[entry["for"]] += entry["bytes"]
    return {
        "format": FORMAT,
        "layers": layers,
        "users": len(model.users),
        "items": len(model.items),
        "budget": {
            "rule": str(budget.rule),
            "charge": budget.charge,
            "allowed_bytes": budget.allowed,
            "table_bytes": budget.table,
            "at_rest_bytes": budget.at_rest,
            "serving_bytes": budget.serving,
            "is_kept_here": bytes_for["table"] > 0 or budget.allowed == 0,
        },
        "bytes": bytes_for,
        "arrays": listed,
        "popularity": model.popularity_name,
        "made": dict(model.origin),
    }


def _card(about: dict[str, Any], users: pl.Series) -> str:
    """The page of an exported folder; the example asks for a user whose id is of the right type."""
    made, budget = about["made"], about["budget"]
    lines = [
        f"# {made['method']}: {about['users']:,} users, {about['items']:,} items",
        "",
        f"Made by scall_jax {made['scall_jax']} from {made['stream']['source']} ({made['stream']['span']}), after "
        f"segment {made['segment']}, {made['rows']:,} rows. Recall@20 on what came next: "
        f"{made['test_recall@20']:.4f}.",
        "",
        f"Budget: {budget['rule']}, {budget['allowed_bytes']:,} bytes (charge {budget['charge']}); the table that was "
        f"trained has {budget['table_bytes']:,}.",
    ]
    if not budget["is_kept_here"]:
        lines += [
            "",
            "In this folder the final vectors are written in float32, because the reader does not know how the method "
            "keeps its own: their bytes are not bound by the budget.",
        ]
    rows = [f"| {purpose} | {nbytes:,} |" for purpose, nbytes in about["bytes"].items() if nbytes]
    user = str(users[0]) if users.dtype.is_integer() and len(users) else '"id of a user"'
    use = ["import reader", "", 'model = reader.load(".")', f"print(reader.recommend(model, {user}, k=10))"]
    return "\n".join(
        [
            *lines,
            "",
            "| bytes for | |",
            "| --- | ---: |",
            *rows,
            "",
            f"`{READER}`, in this folder, needs NumPy, Polars and safetensors:",
            "",
            "```python",
            *use,
            "```",
            "",
        ]
    )
