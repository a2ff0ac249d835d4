"""Read an exported model with NumPy, Polars and safetensors."""

import hashlib
import json
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import load_file


def load(folder):
    about, arrays = checked(folder), load_file(Path(folder, "model.safetensors"))
    users, items = (pl.read_parquet(Path(folder, f"{side}.parquet"))["id"] for side in ("users", "items"))
    vectors = propagated(stored(arrays, len(users)), arrays, len(users), about["layers"])
    return {user: row for row, user in enumerate(users)}, items, arrays, vectors


def checked(folder):  # the manifest, if it and every file that it lists are as they were written
    name = "manifest.json"
    try:
        about = json.loads(Path(folder, name).read_bytes())
        right = about.pop("sha256") == hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
        for name, listed in about["files"].items() if right else ():
            right = hashlib.sha256(Path(folder, name).read_bytes()).hexdigest() == listed["sha256"]
            if not right:
                break
    except (ValueError, LookupError, TypeError, AttributeError):  # no JSON, or none that was exported
        right = False
    if not right:
        raise ValueError(f"{Path(folder, name)} is not what was exported: export the model anew")
    return about


def sizes_of(arrays, count):  # as they are, or as numbers in a list of values, plane k of which has their bits k
    number = np.zeros(count, int)
    for k, plane in enumerate(arrays.get("size_codes", ())):
        number |= np.unpackbits(plane, count=count, bitorder="little").astype(int) << k
    return (arrays["sizes"] if "sizes" in arrays else arrays["size_values"][number]).astype(int)


def stored(arrays, users):  # vectors of users, then items; those of size 0 have the shared one of their side
    if "values" not in arrays:
        return arrays.get("vectors", np.zeros((users, 0), np.float32))
    values, sizes = arrays["values"], sizes_of(arrays, users + len(arrays["popularity"]) + 2)
    vector = np.repeat(np.arange(len(sizes)), sizes)
    column = arrays.get("columns", np.arange(len(vector)) - (np.cumsum(sizes) - sizes)[vector])
    if "scales" in arrays:  # byte k of a group of 8 coordinates has their bits k; a vector's limit is the scale's power
        planes = np.unpackbits(values, axis=1, bitorder="little").reshape(len(values), -1, 8).astype(int)
        code = (planes << np.arange(planes.shape[1])[:, None]).sum(1).ravel()[: len(vector)]
        limit = np.exp2(np.log2(arrays["top"]) + (arrays["scales"] - 255.0) / 16) * (arrays["scales"] > 0)
        values = ((code + 0.5) * 2 / 2 ** planes.shape[1] - 1) * np.repeat(limit, sizes[sizes > 0])
    elif values.dtype == np.uint16:  # bfloat16
        values = (values.astype(np.uint32) << 16).view(np.float32)
    vectors, node = np.zeros((len(sizes), 1 + column.max(initial=0)), np.float32), np.arange(len(sizes) - 2)
    vectors[vector, column] = values
    return vectors[np.where(sizes[:-2] > 0, node, len(sizes) - 2 + (node >= users))]


def propagated(x, arrays, users, layers):  # LightGCN: the mean of x, A x, ..., A^layers x
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


def recommend(model, user, k=10):  # Items that a user has met are left out; an unknown user gets popular ones.
    rows, items, arrays, vectors = model
    seen, scores = np.zeros(0, int), arrays["popularity"].copy()
    if user in rows:
        seen = arrays["seen_items"][slice(*arrays["seen_offsets"][rows[user] : rows[user] + 2])]
        scores = vectors[len(rows) :] @ vectors[rows[user]] + arrays.get("bias", 0)
        if "weights" in arrays:  # EASE
            scores = arrays["weights"][seen].sum(0)
    scores[seen] = -np.inf
    best = np.argsort(-scores, kind="stable")[:k]
    return items[best[scores[best] > -np.inf]].to_list()
