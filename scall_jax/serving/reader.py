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
    planes = np.unpackbits(arrays["size_codes"], 1, users + len(arrays["popularity"]), "little")
    number = np.zeros(planes.shape[1], int)
    for k, plane in enumerate(planes):  # Plane k has bit k of the number of each size.
        number += plane.astype(int) << k
    sizes = np.append(arrays["size_values"][number], arrays["size_values"][-2:]).astype(int)
    values = (v.astype(np.uint32) << 16).view(np.float32) if (v := arrays["values"]).dtype == np.uint16 else v
    if "scales" in arrays:  # Byte k of 8 coordinates has their bits k; a scale is the logarithm of a vector's limit.
        planes = np.unpackbits(values, axis=1, bitorder="little").reshape(len(values), -1, 8)
        code = np.packbits(planes, 1, "little").ravel()[: sizes.sum()].astype(np.float32)
        limit = np.exp2(np.log2(arrays["top"]) + (arrays["scales"] - 255.0) / 16) * (arrays["scales"] > 0)
        values = ((code + 0.5) * 2 / 2 ** planes.shape[1] - 1) * np.repeat(limit.astype(np.float32), sizes[sizes > 0])
    width, node = 1 + int(arrays.get("columns", sizes - 1).max(initial=0)), np.arange(len(sizes))
    places = np.arange(width) < sizes[:, None]
    if "columns" in arrays:  # Vectors have gaps.
        places = np.repeat(node, sizes), arrays["columns"]
    vectors = np.zeros((len(sizes), width), np.float32)
    vectors[places] = values
    return vectors[np.where(sizes > 0, node, len(sizes) - 2 + (node >= users))[:-2]]


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
        ends, kinds = slice(rows[user], rows[user] + 2), ["seen", "later"] if "later_items" in arrays else ["seen"]
        seen = np.concatenate([arrays[f"{x}_items"][slice(*arrays[f"{x}_offsets"][ends])] for x in kinds])
        scores = vectors[len(rows) :] @ vectors[rows[user]] if weights is None else weights[seen].sum(0)  # EASE's.
        scores = scores + arrays.get("bias", 0)
    scores[seen] = -np.inf
    return [items[int(item)] for item in np.argsort(-scores, kind="stable")[:k] if scores[item] > -np.inf]
