"""LSQ+, learned steps and offsets (Bhalgat et al., 2020, arXiv 2004.09576), for a bit width of each node.

A side, users or items, has one step for every bit width and one offset for every coordinate.
"""

import jax
import jax.numpy as jnp

from scall_jax.ops.backend import by_backend

MOST_BITS = 6
"""Largest bit width; the others are all whole numbers from 0, which stands for the zero vector."""

_LEAST_STEP = 1e-8
_BLOCK = 512  # rows of `mixture` at once: six bit widths of 64 coordinates are 0.8 MB


def bounds(bits: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least and largest code of a bit width, -2^(b-1) and 2^(b-1) - 1; f32 like `bits` i32, which is at least 1."""
    half = (1 << (bits - 1)).astype(jnp.float32)  # exp2 need not be exact on every device
    return -half, half - 1


@jax.custom_vjp
def quantise(w: jax.Array, step: jax.Array, offset: jax.Array, bits: jax.Array, scale: jax.Array) -> jax.Array:
    """LSQ+: clip(round((w - offset) / step), -2^(b-1), 2^(b-1) - 1) x step + offset, f32[N, width].

    Args:
      w, offset: f32[N, width].
      step, scale: f32[N]; steps greater than 0, `scale` of the gradients of step and offset.
      bits: i32[N], at least 1.

    The gradient passes to `w` where nothing is clipped and to `offset` where something is; that of `step` is the bound
    where clipped, and round(v) - v elsewhere, v = (w - offset) / step.
    """
    return _quantise_fwd(w, step, offset, bits, scale)[0]


def _quantise_fwd(w, step, offset, bits, scale):
    low, high = (bound[:, None] for bound in bounds(bits))
    v = (w - offset) / step[:, None]
    code = jnp.clip(jnp.round(v), low, high)
    inside = (v >= low) & (v <= high)
    return code * step[:, None] + offset, (code - jnp.where(inside, v, 0.0), inside, scale)


def _quantise_bwd(residuals, g):
    by_step, inside, scale = residuals
    return (
        jnp.where(inside, g, 0.0),
        scale * (g * by_step).sum(1),
        scale[:, None] * jnp.where(inside, 0.0, g),
        None,
        None,
    )


quantise.defvjp(_quantise_fwd, _quantise_bwd)


@jax.custom_vjp
def mixture(w: jax.Array, steps: jax.Array, offset: jax.Array, shares: jax.Array, scales: jax.Array) -> jax.Array:
    """Sum over bit widths b of shares[:, b - 1] x LSQ+ of `w` in b bits, of nodes of one side; f32[n, width].

    Args:
      w: f32[n, width].
      steps, scales: f32[6], those of 1 to 6 bits; see `quantise`.
      offset: f32[width].
      shares: f32[n, 6].

    The gradients are those of `quantise`. Going back all widths are quantised anew, on a CPU a block of rows after the
    other, so that what six of them make stays in its cache.
    """
    return _mixture_fwd(w, steps, offset, shares, scales)[0]


def _all_codes(w, steps, offset):
    """Clipped codes, unclipped ones, and where these are the same but for rounding; of each bit width."""
    for b in range(1, MOST_BITS + 1):
        low, high = -(2.0 ** (b - 1)), 2.0 ** (b - 1) - 1
        v = (w - offset[None, :]) / steps[b - 1]
        yield jnp.clip(jnp.round(v), low, high), v, (v >= low) & (v <= high)


def _mixture_fwd(w, steps, offset, shares, scales):
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
            of_steps.append(scales[b] * (shares[:, b] * (by_code - by_value)).sum())
            of_shares.append(by_code * steps[b] + (g * offset[None, :]).sum(1))
        return of_w, jnp.stack(of_steps), of_offset.sum(0), jnp.stack(of_shares, 1)

    of_w, of_steps, of_offset, of_shares = jax.lax.map(block, tuple(_in_blocks(x) for x in (w, shares, g)))
    of_w, of_shares = (x.reshape(-1, x.shape[2])[: len(w)] for x in (of_w, of_shares))
    return of_w, of_steps.sum(0), of_offset.sum(0), of_shares, None


mixture.defvjp(_mixture_fwd, _mixture_bwd)


def _in_blocks(x):
    """Rows by blocks, f32[blocks, rows, C], of zeros after the last one."""
    size = by_backend(min(_BLOCK, len(x)), len(x))
    return jnp.pad(x, ((0, -len(x) % size), (0, 0))).reshape(-1, size, x.shape[1])


def first_quantiser(vectors: jax.Array, num_active: jax.Array, users: int) -> tuple[jax.Array, jax.Array]:
    """Steps f32[2, 6] = 2 mean|w| / sqrt(2^(b-1)) of each side's live vectors, `live` bool[N], and offsets of 0."""
    size = jnp.where(num_active[:, None], jnp.abs(vectors), 0.0).sum(1)
    mean = jnp.stack([size[part].sum() / jnp.maximum(num_active[part].sum(), 1) for part in parts(users)])
    mean = jnp.maximum(mean / vectors.shape[1], 1e-6)
    steps = 2 * mean[:, None] / jnp.sqrt(jnp.exp2(jnp.arange(MOST_BITS, dtype=jnp.float32)))[None, :]
    return steps, jnp.zeros((2, vectors.shape[1]))


def parts(users: int) -> tuple[slice, slice]:
    """Nodes of the users and of the items."""
    return slice(0, users), slice(users, None)


def by_node(of_side: jax.Array, users: int, items: int) -> jax.Array:
    """What belongs to a side, [2, C], for each of its nodes, [N, C]."""
    counts = (users, items)
    return jnp.concatenate([jnp.broadcast_to(of_side[s], (counts[s], of_side.shape[1])) for s in range(2)])


class Quantiser:
    """What quantises N nodes: functions of `vectors` f32[N, width], `steps` f32[2, 6] and `offsets` f32[2, width].

    `bits` i32[N] are the nodes', `live` i32[2] says how many nodes of a side count in the scale of gradients.
    """

    def __init__(self, users: int, items: int, width: int):
        self.users, self.items, self.width = users, items, width

    def of(self, params, bits, num_active):
        """Step f32[N], offset f32[N, width] and scale of gradients f32[N] of bit widths i32[N], at least 1."""
        positive = jnp.maximum(jnp.abs(params["steps"]), _LEAST_STEP)
        step = jnp.concatenate([positive[s][bits[part] - 1] for s, part in enumerate(parts(self.users))])
        entries = by_node(jnp.maximum(num_active, 1)[:, None] * self.width, self.users, self.items)[:, 0]
        scale = 1 / jnp.sqrt(jnp.exp2(bits - 1.0) * entries)
        return step, by_node(params["offsets"], self.users, self.items), scale

    def vectors(self, params, bits, num_active):
        """Quantised to `bits` i32[N]; zero vectors where they are 0."""
        some = jnp.maximum(bits, 1)
        step, offset, scale = self.of(params, some, num_active)
        return jnp.where(bits[:, None] > 0, quantise(params["vectors"], step, offset, some, scale), 0.0)

    def mixed(self, params, shares, num_active):
        """The sum over bit widths b of `shares` f32[N, 7] [:, b] x vectors quantised to b bits; f32[N, width]."""
        widths = jnp.arange(1, MOST_BITS + 1, dtype=jnp.int32)
        found = []
        for s, part in enumerate(parts(self.users)):
            scales = 1 / jnp.sqrt(jnp.exp2(widths - 1.0) * (jnp.maximum(num_active[s], 1) * self.width))
            steps = jnp.maximum(jnp.abs(params["steps"][s]), _LEAST_STEP)
            found.append(mixture(params["vectors"][part], steps, params["offsets"][s], shares[part, 1:], scales))
        return jnp.concatenate(found)

    def codes(self, params, bits, num_active):
        """Integer codes from 0, i32[N, width]."""
        some = jnp.maximum(bits, 1)
        step, offset, _ = self.of(params, some, num_active)
        low, high = (bound[:, None] for bound in bounds(some))
        return (jnp.clip(jnp.round((params["vectors"] - offset) / step[:, None]), low, high) - low).astype(jnp.int32)

    def decoded(self, stored, codes, bits, num_active):
        """The vectors of such codes; f32[N, width]."""
        some = jnp.maximum(bits, 1)
        step, offset, _ = self.of(stored, some, num_active)
        values = (codes.astype(jnp.float32) + bounds(some)[0][:, None]) * step[:, None] + offset
        return jnp.where(bits[:, None] > 0, values, 0.0)
