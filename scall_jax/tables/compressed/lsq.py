"""LSQ+, learned steps and offsets (Bhalgat et al., 2020, arXiv 2004.09576), for a bit width of each node.

A side, users or items, has one step for every bit width and one offset for every coordinate.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend
from scall_jax.ops.sums import padded_sum

MOST_BITS = 6
"""Largest bit width; the others are all whole numbers from 0, which stands for the zero vector."""

_LEAST_STEP = 1e-8
_BLOCK = 512
"""Rows of `mixture` that a CPU works on at once: six bit widths of 64 coordinates are 0.8 MB. Blocks are as long for
any number of rows, so that sums over them do not depend on the room that is kept for entities to come."""


def bounds(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least and largest code of a bit width, -2^(b-1) and 2^(b-1) - 1.

    Args:
      bits: i32[...], at least 1.

    Returns:
      (f32[...], f32[...]).

    >>> low, high = bounds(jnp.array([1, 2, 6]))
    >>> low.tolist(), high.tolist()
    ([-1.0, -2.0, -32.0], [0.0, 1.0, 31.0])
    """
    chex.assert_type(bits, int)
    half = (1 << (bits - 1)).astype(jnp.float32)  # exp2 need not be exact on every device
    return -half, half - 1


@jax.custom_vjp
def fake_quantise(w: jax.Array, step: jax.Array, offset: jax.Array, bits: jax.Array, scale: jax.Array) -> jax.Array:
    """LSQ+: clip(round((w - offset) / step), -2^(b-1), 2^(b-1) - 1) x step + offset.

    The gradient passes to `w` where nothing is clipped and to `offset` where something is; that of `step` is the bound
    where clipped, and round(v) - v elsewhere, v = (w - offset) / step.

    Args:
      w: f32[N, width], values.
      step: f32[N], greater than 0.
      offset: f32[N, width].
      bits: i32[N], at least 1.
      scale: f32[N], factor on the gradients of step and offset; has no gradient itself.

    Returns:
      f32[N, width].

    >>> w, step, offset = jnp.array([[0.4, -0.9, 5.0]]), jnp.array([0.5]), jnp.zeros((1, 3))
    >>> fake_quantise(w, step, offset, jnp.array([2]), jnp.ones(1)).tolist()
    [[0.5, -1.0, 0.5]]
    """
    return _fake_quantise_fwd(w, step, offset, bits, scale)[0]


def _fake_quantise_fwd(w, step, offset, bits, scale):
    chex.assert_rank(w, 2)
    chex.assert_equal_shape([w, offset])
    chex.assert_shape([step, bits, scale], (w.shape[0],))
    low, high = (bound[:, None] for bound in bounds(bits))
    v = (w - offset) / step[:, None]
    code = jnp.clip(jnp.round(v), low, high)
    inside = (v >= low) & (v <= high)
    return code * step[:, None] + offset, (code - jnp.where(inside, v, 0.0), inside, scale)


def _fake_quantise_bwd(residuals, g):
    by_step, inside, scale = residuals
    return (
        jnp.where(inside, g, 0.0),
        scale * (g * by_step).sum(1),
        scale[:, None] * jnp.where(inside, 0.0, g),
        None,
        None,
    )


fake_quantise.defvjp(_fake_quantise_fwd, _fake_quantise_bwd)


@jax.custom_vjp
def mixture(w: jax.Array, steps: jax.Array, offset: jax.Array, shares: jax.Array, scales: jax.Array) -> jax.Array:
    """Sum over bit widths b of shares[:, b - 1] x LSQ+ of `w` in b bits, for nodes of one side.

    The gradients are those of `fake_quantise`. The backward pass quantises anew in all widths, on a CPU a block of rows
    after the other, so that what six widths make stays in its cache.

    Args:
      w: f32[n, width], values.
      steps: f32[6], of 1 to 6 bits, greater than 0.
      offset: f32[width].
      shares: f32[n, 6], weight of each bit width.
      scales: f32[6], factor on the gradients of step and offset at each width; has no gradient itself.

    Returns:
      f32[n, width].
    """
    return _mixture_fwd(w, steps, offset, shares, scales)[0]


def _all_codes(w, steps, offset):
    """For each bit width: the codes, the values before rounding and clipping, and where nothing is clipped."""
    for b in range(1, MOST_BITS + 1):
        low, high = -(2.0 ** (b - 1)), 2.0 ** (b - 1) - 1
        v = (w - offset[None, :]) / steps[b - 1]
        yield jnp.clip(jnp.round(v), low, high), v, (v >= low) & (v <= high)


def _mixture_fwd(w, steps, offset, shares, scales):
    chex.assert_shape([steps, scales], (MOST_BITS,))
    chex.assert_shape([w, shares], [(None, offset.shape[0]), (w.shape[0], MOST_BITS)])
    mixed = jnp.zeros_like(w)
    for b, (code, _, _) in enumerate(_all_codes(w, steps, offset)):
        mixed += shares[:, b, None] * (code * steps[b] + offset[None, :])
    return mixed, (w, steps, offset, shares, scales)


def _mixture_bwd(residuals, g):
    w, steps, offset, shares, scales = residuals

    def block(part):
        w, shares, g = part
        of_w, of_offset, of_steps, of_shares = jnp.zeros_like(w), jnp.zeros_like(w), [], []
        for b, (code, v, inside) in enumerate(_all_codes(w, steps, offset)):
            share = shares[:, b, None]
            of_w += jnp.where(inside, share * g, 0.0)
            of_offset += jnp.where(inside, 0.0, scales[b] * share * g)
            by_code, by_value = (g * code).sum(1), (g * jnp.where(inside, v, 0.0)).sum(1)
            of_steps.append(scales[b] * shares[:, b] * (by_code - by_value))
            of_shares.append(by_code * steps[b] + (g * offset[None, :]).sum(1))
        return of_w, padded_sum(jnp.stack(of_steps, 1)), padded_sum(of_offset), jnp.stack(of_shares, 1)

    of_w, of_steps, of_offset, of_shares = jax.lax.map(block, tuple(_in_blocks(x) for x in (w, shares, g)))
    of_w, of_shares = (x.reshape(-1, x.shape[2])[: len(w)] for x in (of_w, of_shares))
    return of_w, padded_sum(of_steps), padded_sum(of_offset), of_shares, None


mixture.defvjp(_mixture_fwd, _mixture_bwd)


def _in_blocks(x):
    """Rows by blocks, f32[blocks, rows, C]; the last block is filled with zeros."""
    size = by_backend(_BLOCK, len(x))
    return jnp.pad(x, ((0, -len(x) % size), (0, 0))).reshape(-1, size, x.shape[1])


def first_quantiser(vectors: jax.Array, active_mask: jax.Array, users: int) -> tuple[jax.Array, jax.Array]:
    """Steps and offsets that training starts from: 2 mean|w| / sqrt(2^(b-1)) and 0.

    Args:
      vectors: f32[N, width].
      active_mask: bool[N], nodes that exist; the mean is over those of a side.
      users: capacity of the users' side; static.

    Returns:
      (steps f32[2, 6], of users and of items at 1 to 6 bits; offsets f32[2, width]).
    """
    chex.assert_rank(vectors, 2)
    chex.assert_shape(active_mask, (vectors.shape[0],))
    chex.assert_type(active_mask, bool)
    size = jnp.where(active_mask[:, None], jnp.abs(vectors), 0.0).sum(1)
    mean = jnp.stack(
        [
            padded_sum(size[part]) / jnp.maximum(active_mask[part].sum(), 1).astype(jnp.float32)
            for part in side_slices(users)
        ]
    )
    mean = jnp.maximum(mean / vectors.shape[1], 1e-6)
    steps = 2 * mean[:, None] / jnp.sqrt(jnp.exp2(jnp.arange(MOST_BITS, dtype=jnp.float32)))[None, :]
    return steps, jnp.zeros((2, vectors.shape[1]))


def side_slices(users: int) -> tuple[slice, slice]:
    """Nodes of the users and of the items, where `users` is the capacity of the users' side."""
    return slice(0, users), slice(users, None)


def _entries(num_active: jax.Array, width: int) -> jax.Array:
    """Coordinates of so many vectors, at least of one, as f32, which int32 need not hold."""
    return jnp.maximum(num_active, 1).astype(jnp.float32) * width


def by_node(of_side: jax.Array, users: int, items: int) -> jax.Array:
    """Repeat what belongs to a side for each of its nodes.

    Args:
      of_side: [2, C], of users and of items.
      users: capacity of the users' side; static.
      items: capacity of the items' side; static.

    Returns:
      [users + items, C].
    """
    chex.assert_shape(of_side, (2, None))
    return jnp.concatenate([_repeated(of_side[s], count) for s, count in enumerate((users, items))])


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _repeated(row: jax.Array, count: int) -> jax.Array:
    """A row [C] as [count, C]; its gradient does not depend on how many rows without one come last."""
    return jnp.broadcast_to(row, (count, row.shape[0]))


_repeated.defvjp(lambda row, count: (_repeated(row, count), None), lambda count, _, g: (padded_sum(g),))


@dataclasses.dataclass(frozen=True)
class Quantiser:
    """Quantises the vectors of N nodes; pure functions of a side's steps and offsets.

    Throughout, `params` is a dict of `vectors` f32[N, width], `steps` f32[2, 6] and `offsets` f32[2, width], `bits` is
    i32[N], 0 to `MOST_BITS`, and `num_active` is i32[2], entities of each side, by which gradients are scaled.
    """

    users: int
    """Capacity of the users' side."""
    items: int
    """Capacity of the items' side."""
    width: int
    """Coordinates of a vector."""

    def at_bits(
        self, params: dict[str, jax.Array], bits: jax.Array, num_active: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Step f32[N], offset f32[N, width] and scale of gradients f32[N] of each node at `bits`, at least 1."""
        self._check(params, num_active, bits)
        positive = jnp.maximum(jnp.abs(params["steps"]), _LEAST_STEP)
        step = jnp.concatenate([positive[s][bits[part] - 1] for s, part in enumerate(side_slices(self.users))])
        entries = by_node(_entries(num_active, self.width)[:, None], self.users, self.items)[:, 0]
        scale = 1 / jnp.sqrt(jnp.exp2(bits.astype(jnp.float32) - 1) * entries)
        return step, by_node(params["offsets"], self.users, self.items), scale

    def vectors(self, params: dict[str, jax.Array], bits: jax.Array, num_active: jax.Array) -> jax.Array:
        """Vectors quantised to `bits`, f32[N, width], differentiable in `params`; zero vectors where bits are 0."""
        positive_bits = jnp.maximum(bits, 1)
        step, offset, scale = self.at_bits(params, positive_bits, num_active)
        has_bits = bits[:, None] > 0
        return jnp.where(has_bits, fake_quantise(params["vectors"], step, offset, positive_bits, scale), 0.0)

    def mixed(self, params: dict[str, jax.Array], shares: jax.Array, num_active: jax.Array) -> jax.Array:
        """The sum over bit widths b of shares[:, b] x vectors quantised to b bits, f32[N, width].

        `shares` is f32[N, 7], of 0 to 6 bits; differentiable in it and in `params`.
        """
        self._check(params, num_active)
        chex.assert_shape(shares, (self.users + self.items, MOST_BITS + 1))
        widths = jnp.arange(1, MOST_BITS + 1, dtype=jnp.int32)
        found = []
        for s, part in enumerate(side_slices(self.users)):
            scales = 1 / jnp.sqrt(jnp.exp2(widths.astype(jnp.float32) - 1) * _entries(num_active[s], self.width))
            steps = jnp.maximum(jnp.abs(params["steps"][s]), _LEAST_STEP)
            found.append(mixture(params["vectors"][part], steps, params["offsets"][s], shares[part, 1:], scales))
        return jnp.concatenate(found)

    def codes(self, params: dict[str, jax.Array], bits: jax.Array, num_active: jax.Array) -> jax.Array:
        """Integer codes of the vectors, 0 to 2^bits - 1; i32[N, width]."""
        positive_bits = jnp.maximum(bits, 1)
        step, offset, _ = self.at_bits(params, positive_bits, num_active)
        low, high = (bound[:, None] for bound in bounds(positive_bits))
        return (jnp.clip(jnp.round((params["vectors"] - offset) / step[:, None]), low, high) - low).astype(jnp.int32)

    def decoded(
        self, stored: dict[str, jax.Array], codes: jax.Array, bits: jax.Array, num_active: jax.Array
    ) -> jax.Array:
        """The vectors of codes i32[N, width], f32[N, width]; `stored` has `steps` and `offsets` as `params` do."""
        chex.assert_shape(codes, (self.users + self.items, self.width))
        positive_bits = jnp.maximum(bits, 1)
        step, offset, _ = self.at_bits(stored, positive_bits, num_active)
        values = (codes.astype(jnp.float32) + bounds(positive_bits)[0][:, None]) * step[:, None] + offset
        return jnp.where(bits[:, None] > 0, values, 0.0)

    def _check(self, params, num_active, bits=None):
        chex.assert_shape([params["steps"], params["offsets"]], [(2, MOST_BITS), (2, self.width)])
        chex.assert_shape(num_active, (2,))
        if "vectors" in params:
            chex.assert_shape(params["vectors"], (self.users + self.items, self.width))
        if bits is not None:
            chex.assert_shape(bits, (self.users + self.items,))
