"""Implicit alternating least squares in float64, one entity at a time, and the small stream that it is for."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from scall_jax import streams

A0, LAMBDA = 0.3, 0.003


@functools.cache
def small_ials_stream() -> streams.Stream:
    rows = streams.synthetic(jax.random.key(0), users=70, items=50, interactions=1500)
    return streams.cut(rows, segments=3)


@functools.cache
def small_ials_segment():
    return jax.tree.map(jnp.asarray, small_ials_stream().segment(1))


class Reference:
    """The same model in float64, one entity at a time, with dense arrays."""

    def __init__(self, vectors, sizes, bias, fading, counts=False, users_fading=None):
        segment, stream = small_ials_segment(), small_ials_stream()
        self.users, self.items = int(segment.users), int(segment.items)
        self.capacity, self.nodes = small_ials_stream().capacity.users, small_ials_stream().capacity.nodes
        self.vectors, self.sizes = np.asarray(vectors, np.float64), np.asarray(sizes)
        self.indptr, self.neighbours = np.asarray(segment.graph.indptr), np.asarray(segment.graph.indices)
        ages = np.asarray(segment.ages, np.float64) / int(segment.period)
        self.weight, self.bias = 2.0 ** (-ages * fading), np.concatenate([np.zeros(self.capacity), bias])
        self.served = 2.0 ** (-ages * (fading if users_fading is None else users_fading))
        if counts:
            cut = stream.bounds[1].train
            pairs = list(zip(stream.user[:cut].tolist(), stream.item[:cut].tolist(), strict=True))
            owner = np.repeat(np.arange(self.nodes), np.diff(self.indptr))
            for entry, (a, b) in enumerate(zip(owner.tolist(), self.neighbours.tolist(), strict=False)):
                met = pairs.count((min(a, b), max(a, b) - self.capacity))
                self.weight[entry] *= np.log(1 + met) / np.log(2)
                self.served[entry] *= np.log(1 + met) / np.log(2)
        self.known = [np.arange(self.users), self.capacity + np.arange(self.items)]
        others = np.where(np.arange(self.nodes) < self.capacity, self.items, self.users)
        self.regularisation = LAMBDA * (np.diff(self.indptr) + A0 * others)

    def loss(self):
        of_users, of_items = self.vectors[self.known[0]], self.vectors[self.known[1]]
        scores = of_users @ of_items.T + self.bias[self.known[1]]
        total = A0 * (scores**2).sum()
        for u in self.known[0]:
            entries = slice(self.indptr[u], self.indptr[u + 1])
            met = scores[u, self.neighbours[entries] - self.capacity]
            total += (self.weight[entries] * (met - 1) ** 2).sum()
        known = np.concatenate(self.known)
        return total + (self.regularisation[known] * (self.vectors[known] ** 2).sum(1)).sum()

    def system(self, node, size):
        other = self.known[1 if node < self.capacity else 0]
        entries = slice(self.indptr[node], self.indptr[node + 1])
        met, weight = self.neighbours[entries], self.weight[entries]
        vectors, everyone = self.vectors[met, :size], self.vectors[other, :size]
        matrix = A0 * everyone.T @ everyone + (vectors.T * weight) @ vectors
        right = (weight * (1 - self.bias[met] - self.bias[node])) @ vectors
        right -= A0 * (self.bias[other] + self.bias[node]) @ everyone
        return matrix + self.regularisation[node] * np.eye(size), right

    def half_sweep(self, side):
        shared_size = self.sizes[self.nodes + side]
        matrix, right = np.zeros((shared_size, shared_size)), np.zeros(shared_size)
        found = np.zeros_like(self.vectors)
        for node in self.known[side]:
            size = self.sizes[node]
            if size:
                found[node, :size] = np.linalg.solve(*self.system(node, size))
            elif shared_size:
                matrix, right = (a + b for a, b in zip((matrix, right), self.system(node, shared_size), strict=True))
        for node in self.known[side]:
            if self.sizes[node] == 0 and shared_size:
                found[node, :shared_size] = np.linalg.solve(matrix, right)
            self.vectors[node] = found[node]
