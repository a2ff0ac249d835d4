"""How coherent users are, from the graph alone, as a weight of their frequency in the ranking that sizes follow.

arXiv 2410.02453 finds that coherent users, whose items go together, are those whom models serve better the larger they
are. Its measures are described there in words; `evaluation.user_strata` has our reading of them, on the host. Here a
measure is wanted that a compiled run can afford at every segment: the mean lift of a user's pairs of items,

    C(u) = mean over pairs i != j in I_u of p(i, j) / (p(i) p(j)) = |users| mean over pairs of n_ij / (n_i n_j)

with n_i the users who have item i and n_ij those who have both: 1 where items are independent. Summed over pairs, and
with i = j, n_ij / (n_i n_j) is the squared norm of sum_i in I_u x_i / n_i, where x_i is the indicator of the users of
item i; random signs of the users estimate it (Johnson and Lindenstrauss) in a few products with the graph. It stands in
for the paper's measure, and the sketch is this project's own.
"""

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.keys import Purpose, by_side, derive
from scall_jax.ops.sums import padded_sum
from scall_jax.recommenders.graph import propagate, with_chunks
from scall_jax.streams import Segment, sides

SIGNS = 256
"""Random signs of each user: the squared norm is estimated with a relative deviation of sqrt(2 / 256)."""

RESOLUTION = 16
"""Parts of a row of the stream that importance is counted in."""

_AT_ONCE = 32  # columns of a product
_BOUNDS = (0.125, 8.0)


def mean_lift(segment: Segment) -> jax.Array:
    """C(u), estimated.

    Args:
      segment: the data, of which the graph is read.

    Returns:
      f32[U], 1 for users with fewer than two items; it may be negative by chance.
    """
    users, items = sides(segment)
    graph = with_chunks(segment.graph)
    degree = jnp.diff(graph.indptr).astype(jnp.float32)
    root, is_user = jnp.sqrt(degree), jnp.arange(users + items) < users
    # The signs are part of the measure, so that it says the same of the same graph wherever it is asked for.
    key = jax.random.key(0)

    def add(number, total):
        bits = by_side(jax.random.bits, derive(key, Purpose.COHERENCE, number), users, items, (_AT_ONCE,))
        signs = jnp.where(is_user[:, None], jnp.where(bits & 1 == 1, 1.0, -1.0), 0.0)
        # A product divides by the roots of both degrees: in the middle those of the items have the right power.
        found = root[:, None] * propagate(graph, propagate(graph, root[:, None] * signs))
        return total + (found[:users] ** 2).sum(1)

    squares = jax.lax.fori_loop(0, SIGNS // _AT_ONCE, add, jnp.zeros(users)) / SIGNS
    inverse = jnp.where(is_user | (degree == 0), 0.0, 1 / jnp.maximum(root, 1.0))
    same = (root[:, None] * propagate(graph, inverse[:, None]))[:users, 0]
    own = degree[:users]
    pairs = jnp.maximum(own * (own - 1), 1.0)
    return jnp.where(own > 1, segment.users.astype(jnp.float32) * (squares - same) / pairs, 1.0)


def importance(segment: Segment) -> jax.Array:
    """Frequency times coherence of users, and frequency of items, in `RESOLUTION` parts of a row.

    Coherence is the mean lift between 1/8 and 8 times its mean over the segment's rows, which leaves the rows of all
    users together what they are.

    Args:
      segment: the data.

    Returns:
      i32[N]; 0 where the frequency is.
    """
    chex.assert_rank(segment.frequency, 1)
    users = sides(segment)[0]
    frequency = segment.frequency.astype(jnp.float32)
    lift = jnp.maximum(mean_lift(segment), 0.0)
    of_users = frequency[:users]
    mean = padded_sum(of_users * lift) / jnp.maximum(padded_sum(of_users), 1.0)
    weight = jnp.clip(lift / jnp.maximum(mean, 1e-30), *_BOUNDS)
    weights = jnp.concatenate([weight, jnp.ones(frequency.shape[0] - users)])
    # 16 x 8 parts of a row fit into 32 bits for entities of 16 million rows.
    parts = jnp.round(RESOLUTION * frequency * weights).astype(jnp.int32)
    return jnp.where(segment.frequency > 0, jnp.maximum(parts, 1), 0)
