"""The least squares problem of a segment, and the order in which its vectors are solved for.

With w the weight of a pair that was met, beta an item's bias, and pred = u.v + beta:

    loss = sum_met w (pred - 1)^2 + a0 sum_all pred^2
           + lambda sum_u (|N_u| + a0 |I|)^nu |u|^2 + lambda sum_i (|N_i| + a0 |U|)^nu |v|^2

Without biases and with w = 1 this is the loss of Rendle, Krichene, Zhang, Koren, Revisiting the performance of iALS on
item recommendation benchmarks, RecSys 2022, equations 1 to 3. The weight of a pair halves with every h segments since
it was met last. It may grow with the number n of times that the pair was met, by log2(1 + n): the logarithmic
confidence of Hu, Koren, Volinsky, Collaborative filtering for implicit feedback datasets, ICDM 2008, scaled to leave a
pair that was met once as it is.

What an item has become is in what was met lately, while a user is also who they were: when users are solved for a last
time, given the items, the weights of their pairs may fade with another half-life (`served_problem`).
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from scall_jax.ops.devices import ONE, MeshConfig, places
from scall_jax.ops.indexing import take
from scall_jax.ops.sums import padded_sum
from scall_jax.streams import Segment, active_mask, sides

DUAL_DEGREES = (8, 16, 32)
"""Numbers of interactions up to which entities are solved for in batches of their own, in the space of interactions
(`dual`) or to an approximation (`gradients`, `blocks`): each one, and each width, adds a second to compile time."""


class Weighting(NamedTuple):
    """How the loss weighs interactions and vectors, beside what a run chooses; static."""

    exponent: float = 1.0
    """nu."""
    counts: bool = False
    """Weights grow with the number of times that a pair was met."""


PLAIN = Weighting()
"""The loss of Rendle et al. (2022)."""


class Hyper(NamedTuple):
    """What a run chooses; f32[] each."""

    fading: jax.Array
    """1 / half-life, in segments; 0 for no fading."""
    unobserved: jax.Array
    """a0, the weight of the zero that every pair has as a target."""
    regularisation: jax.Array
    """lambda."""
    users_fading: jax.Array
    """1 / half-life, in segments, when users are solved for a last time."""


class Problem(NamedTuple):
    """A segment as half sweeps read it. E entries of the graph, or this device's part of them, N nodes."""

    indptr: jax.Array
    """i32[N + 1], first entry of each node."""
    neighbours: jax.Array
    """i32[E], nodes."""
    roots: jax.Array
    """f32[E], root of the pair's weight w; 0 in padding."""
    targets: jax.Array
    """f32[E], root x (1 - the neighbour's beta)."""
    bias: jax.Array
    """f32[N], beta of each item; 0 for users."""
    active: jax.Array
    """bool[N], nodes that exist."""
    unobserved: jax.Array
    """f32[], a0."""
    regularisation: jax.Array
    """f32[N], weight of each node's squared vector."""
    constant: jax.Array
    """f32[], the loss where all vectors are 0."""


def make_problem(
    segment: Segment, item_bias: jax.Array, hyper: Hyper, weighting: Weighting, mesh: MeshConfig = ONE
) -> Problem:
    """Set the problem of a segment up.

    Args:
      segment: the data.
      item_bias: f32[V], beta.
      hyper: fading, a0 and lambda.
      weighting: static.
      mesh: devices that have a part of the graph's entries each; static.

    Returns:
      Problem.
    """
    users, items = sides(segment)
    chex.assert_shape(item_bias, (items,))
    chex.assert_equal_shape([segment.ages, segment.graph.indices])
    graph, active, exponent = segment.graph, active_mask(segment), weighting.exponent
    degrees = jnp.diff(graph.indptr)
    is_user = jnp.arange(users + items) < users
    others = jnp.where(is_user, segment.items, segment.users).astype(jnp.float32)
    # A compiler may round a product by itself or together with its sum, and which of these it does depends on the sizes
    # of arrays. The maximum stands between the two, so that the product is always rounded by itself.
    unmet = jnp.maximum(hyper.unobserved * others, 0.0)
    regularisation = hyper.regularisation * (degrees.astype(jnp.float32) + unmet) ** exponent
    bias = jnp.where(active, jnp.concatenate([jnp.zeros(users), item_bias]), 0.0)
    entry = places(mesh, graph.indices.shape[0])
    roots = _roots(segment, hyper.fading, weighting, mesh)
    targets = roots * (1 - take(bias, graph.indices))
    # Each pair has an entry in its user's row, whose neighbour is the item.
    met = padded_sum(jnp.where(entry < graph.indptr[users], targets**2, 0.0), mesh)
    constant = met + hyper.unobserved * segment.users.astype(jnp.float32) * padded_sum(bias[users:] ** 2)
    return Problem(
        indptr=graph.indptr,
        neighbours=graph.indices,
        roots=roots,
        targets=targets,
        bias=bias,
        active=active,
        unobserved=hyper.unobserved,
        regularisation=jnp.where(active, regularisation, 0.0),
        constant=constant,
    )


def served_problem(
    problem: Problem, segment: Segment, hyper: Hyper, weighting: Weighting, mesh: MeshConfig = ONE
) -> Problem:
    """The problem of the last half sweep, in which users' pairs fade by their own half-life.

    Args:
      problem: of `make_problem`.
      segment, hyper, weighting, mesh: what it was made of.

    Returns:
      Problem, whose items' rows are those of `problem`.
    """
    entry = places(mesh, problem.roots.shape[0])
    own = _roots(segment, hyper.users_fading, weighting, mesh)
    roots = jnp.where(entry < problem.indptr[sides(segment)[0]], own, problem.roots)
    return problem._replace(roots=roots, targets=roots * (1 - take(problem.bias, problem.neighbours)))


def _roots(segment: Segment, fading: jax.Array, weighting: Weighting, mesh: MeshConfig) -> jax.Array:
    """f32[E], root of each pair's weight; 0 in padding."""
    graph = segment.graph
    ages = segment.ages.astype(jnp.float32) * (fading / jnp.maximum(segment.period, 1).astype(jnp.float32))
    roots = jnp.where(places(mesh, graph.indices.shape[0]) < graph.indptr[-1], jnp.exp2(-0.5 * ages), 0.0)
    if weighting.counts:
        roots *= jnp.sqrt(jnp.log2(1.0 + segment.repeats.astype(jnp.float32)))
    return roots


class Order(NamedTuple):
    """The order of solving: nodes of one class after another, by descending number of interactions within a class."""

    nodes: jax.Array
    """i32[N]."""
    starts: jax.Array
    """i32[2 C + 1], where the nodes of each class begin: C classes of users, then of items. What comes after the last
    has no vector of its own."""
    common: jax.Array
    """i32[2, 2], the two sizes that all own vectors of a side have, where they have no more than two; else 0."""


def width_classes(maximum: int, narrowest: int = 16) -> tuple[int, ...]:
    """Widths that systems are padded to, ascending; the last is the largest size.

    Args:
      maximum: the largest size.
      narrowest: the first width; the next ones are twice as wide each. Every width is compiled by itself.

    >>> width_classes(128), width_classes(30), width_classes(6)
    ((16, 32, 64, 128), (16, 30), (6,))
    >>> width_classes(80, narrowest=64)
    (64, 80)
    """
    widths = []
    while narrowest << len(widths) < maximum:
        widths.append(narrowest << len(widths))
    return (*widths, maximum)


def dual_degrees(width: int) -> tuple[int, ...]:
    """Those of `DUAL_DEGREES` that are worth it for systems of a width.

    >>> dual_degrees(62), dual_degrees(8)
    ((8, 16), ())
    """
    return tuple(degree for degree in DUAL_DEGREES if 2 * degree <= width)


def class_number(width: int, common: Any, degree: int) -> Any:
    """Number of a class within a side.

    Args:
      width: place in `width_classes`.
      common: which of the two common sizes, int or i32[]; 0 where the system is not solved in the interactions' space.
      degree: 1 + place in `DUAL_DEGREES`; 0 where interactions have no bound.
    """
    per_width = 1 + 2 * len(DUAL_DEGREES)
    return width * per_width + (0 if degree == 0 else 1 + common * len(DUAL_DEGREES) + degree - 1)


def make_order(
    problem: Problem,
    sizes: jax.Array,
    users: int,
    widths: tuple[int, ...],
    inexact_from: float = math.inf,
    *,
    dual: bool = True,
) -> Order:
    """Sort nodes into classes of equal work.

    Args:
      problem: has the numbers of interactions.
      sizes: i32[N], coordinates of each node's own vector.
      users: capacity of the users' side; static.
      widths: of `width_classes`; static.
      dual: solve in the space of interactions where they are few; static. False: in that of coordinates only.
      inexact_from: width from which systems are solved to an approximation (`gradients`, `blocks`); static.

    Returns:
      Order.
    """
    nodes = sizes.shape[0]
    chex.assert_shape(problem.active, (nodes,))
    degree = jnp.diff(problem.indptr)
    node = jnp.arange(nodes, dtype=jnp.int32)
    side = (node >= users).astype(jnp.int32)
    own = problem.active & (sizes > 0)
    common = jnp.stack([_common_sizes(own & (side == s), sizes) for s in (0, 1)])
    common = common if dual else jnp.zeros_like(common)
    width = _places(widths, sizes)
    bound = _places(DUAL_DEGREES, degree)
    most = jnp.array([len(dual_degrees(w)) for w in widths])[jnp.minimum(width, len(widths) - 1)]
    inexact = jnp.array([w >= inexact_from for w in widths])[jnp.minimum(width, len(widths) - 1)]
    by_degree = jnp.where(inexact, bound < len(DUAL_DEGREES), (common[side, 1] > 0) & (bound < most))
    second = (~inexact & (sizes != common[side, 0])).astype(jnp.int32)
    per_width, count = 1 + 2 * len(DUAL_DEGREES), class_number(len(widths), 0, 0)
    number = side * count + width * per_width + jnp.where(by_degree, 1 + second * len(DUAL_DEGREES) + bound, 0)
    number = jnp.where(own, number, 2 * count).astype(jnp.int32)
    ordered = jax.lax.sort((number, -degree, node), num_keys=3)
    starts = jnp.searchsorted(ordered[0], jnp.arange(2 * count + 1, dtype=jnp.int32)).astype(jnp.int32)
    return Order(ordered[2], starts, common)


def _places(bounds: tuple[int, ...], x: jax.Array) -> jax.Array:
    """Place of the first bound that is not below x; `searchsorted`, which compiles to a loop, of a few bounds."""
    return (x[:, None] > jnp.array(bounds)[None, :]).sum(1, dtype=jnp.int32)


def _common_sizes(own: jax.Array, sizes: jax.Array) -> jax.Array:
    """The least and the largest size i32[2] of some nodes; zeros where they have a third one."""
    least = jnp.where(own, sizes, jnp.iinfo(jnp.int32).max).min()
    largest = jnp.where(own, sizes, 0).max()
    others = (own & (sizes != least) & (sizes != largest)).any()
    return jnp.where(others | (largest == 0), 0, jnp.stack([least, largest]))
