"""Read an exported model with NumPy, Polars and safetensors."""

import contextlib
import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file


def load(folder):
    """A model: rows by id of the users, ids of the items, arrays, and vectors of users, then items."""
    about, arrays = checked(folder), load_file(Path(folder, "model.safetensors"))
    users, items = (pl.read_parquet(Path(folder, f"{side}.parquet"))["id"] for side in ("users", "items"))
    rows, own = {user: row for row, user in enumerate(users)}, stored(arrays, len(users))
    return rows, items, arrays, propagated(own, arrays, len(users), about["layers"])


def checked(folder):
    """The manifest, if it and every file that it lists are as they were exported."""
    path, about, listed = Path(folder, "manifest.json"), {}, {}
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):  # A damaged one has another hash.
        about = json.loads(path.read_bytes())
        listed = {path: about.pop("sha256")} | {Path(folder, n): file["sha256"] for n, file in about["files"].items()}
    for file, sha256 in (listed or {path: ""}).items():
        content = json.dumps(about, sort_keys=True).encode() if file == path else file.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"{file} is not what was exported: export the model anew")
    return about


def stored(arrays, users):
    """Vectors of users, then items, as they are stored; those of size 0 have the shared one of their side."""
    if "values" not in arrays:
        return arrays.get("vectors", np.zeros((users, 0), np.float32))
    planes = np.unpackbits(arrays["size_codes"], 1, users + len(arrays["popularity"]), "little").astype(int)
    number = (planes << np.arange(len(planes))[:, None]).sum(0)  # Plane k has bit k of the number of each size.
    sizes = np.append(arrays["size_values"][number], arrays["size_values"][-2:]).astype(int)
    vector = np.repeat(np.arange(len(sizes)), sizes)
    column = arrays.get("columns", np.arange(len(vector)) - (np.cumsum(sizes) - sizes)[vector])
    values = (v.astype(np.uint32) << 16).view(np.float32) if (v := arrays["values"]).dtype == np.uint16 else v
    if "scales" in arrays:  # Byte k of 8 coordinates has their bits k; a scale is the logarithm of a vector's limit.
        planes = np.unpackbits(values, axis=1, bitorder="little").reshape(len(values), -1, 8).astype(int)
        code = (planes << np.arange(planes.shape[1])[:, None]).sum(1).ravel()[: len(vector)]
        limit = np.exp2(np.log2(arrays["top"]) + (arrays["scales"] - 255.0) / 16) * (arrays["scales"] > 0)
        values = ((code + 0.5) * 2 / 2 ** planes.shape[1] - 1) * np.repeat(limit, sizes[sizes > 0])
    vectors, node = np.zeros((len(sizes), 1 + column.max(initial=0)), np.float32), np.arange(len(sizes) - 2)
    vectors[vector, column] = values
    return vectors[np.where(sizes[:-2] > 0, node, len(sizes) - 2 + (node >= users))]


def propagated(x, arrays, users, layers):
    """The mean of x, A x, ..., A^layers x, as LightGCN has it; x itself for 0 layers."""
    user = np.repeat(np.arange(users), np.diff(arrays["seen_offsets"].astype(int)))
    item, total = users + arrays["seen_items"].astype(int), x
    scale = 1 / np.sqrt(np.maximum(np.bincount(np.concatenate([user, item]), minlength=len(x)), 1))
    weight = (scale[user] * scale[item]).astype(np.float32)[:, None]
    for _ in range(layers):
        x, before = np.zeros_like(x), x
        np.add.at(x, user, weight * before[item])
        np.add.at(x, item, weight * before[user])
        total = total + x
    return total / np.float32(layers + 1)


def recommend(model, user, k=10):
    """The best items that a user has not met; an unknown user gets popular ones."""
    rows, items, arrays, vectors = model
    seen, scores, weights = np.zeros(0, int), arrays["popularity"].copy(), arrays.get("weights")
    if user in rows:
        seen = arrays["seen_items"][slice(*arrays["seen_offsets"][rows[user] : rows[user] + 2])]
        scores = vectors[len(rows) :] @ vectors[rows[user]] if weights is None else weights[seen].sum(0)  # EASE's.
        scores = scores + arrays.get("bias", 0)
    scores[seen] = -np.inf
    return [items[int(item)] for item in np.argsort(-scores, kind="stable")[:k] if scores[item] > -np.inf]
