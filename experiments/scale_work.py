"""What a segment of `experiments.scale` takes, counted from the algorithm: products, bytes, exchanges, rounds of loops.

Nothing here is measured. Each function says in its comments what is read, written, multiplied and exchanged, for the
streams of `experiments.scale`: three rows for each entity, ten in eleven of which are users, at 2 bytes an entity, that
is 2 coordinates in four bits. Vectors are padded to `WIDTH` columns wherever they are worked on. Bytes are those of
arrays that a step reads or writes, each once for each step, as if no step were compiled into the next.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

WIDTH = 16
"""Columns that systems, blocks of a step and scores are made of: the largest size that there may be."""
COORDINATES = 2
"""Coordinates of an entity in the table."""
_VECTOR = 4 * WIDTH
"""Bytes of a padded vector."""
_BLOCK = 1024
"""Rows that a Gram matrix is added up of at once (`ops.sums.BLOCK`)."""
_CHUNK = 32
"""Neighbours that are added to a matrix at once (`batches.CHUNK`)."""
_FEW = 8
"""Neighbours up to which an entity is solved for in their space (`problem.DUAL_DEGREES`)."""
_TRIED = 44
"""Scales that are tried for a vector in few bits (`few_bits`)."""
_VALID_USERS = 4096
"""Users that a fit is judged on."""
_HELD_OUT = 10_000
"""Rows of valid and of test, each."""
_MET = 7
"""Items that a ranked user has met in the mean."""
_ENTRY = 12
"""Bytes of an entry of the problem: neighbour, root of the weight, target."""


class Work(NamedTuple):
    """Of the busiest device."""

    products: float = 0.0
    """Multiplications and additions of products and solves."""
    moved: float = 0.0
    """Bytes that the device reads and writes."""
    summed: float = 0.0
    """Bytes of sums over the devices (all-reduce), each counted once."""
    gathered: float = 0.0
    """Bytes of what a device is given of all devices' parts (all-gather)."""
    exchanges: float = 0.0
    """How often devices wait for each other."""
    rounds: float = 0.0
    """Rounds of loops that wait for the round before, without an exchange."""
    sorted: float = 0.0
    """Comparisons that the host sorts the segment's rows by; every process has all rows."""

    def plus(self, other: "Work", times: float = 1.0) -> "Work":
        """The sum with so many times another."""
        return Work(*(a + times * b for a, b in zip(self, other, strict=True)))


@dataclasses.dataclass(frozen=True)
class AtOnce:
    """How much a backend works on at once (`batches.batch_numbers`, `batches.batch_size`, `top.at_once`)."""

    numbers: int = 2**18
    """Numbers of a batch's largest array, and of what an exchange sums at once (`ops.devices`)."""
    entities: int = 64
    """Entities of a batch whose numbers of interactions have no common bound."""
    users: int = 1024
    """Users that are ranked."""
    scores: int = 2**20
    """Scores."""
    edges: int = 1024
    """Items that are struck out since a user has met them."""
    columns: int = WIDTH + 1
    """Of a product of scores: on a CPU the bias of an item is one more."""

    @property
    def few(self) -> int:
        """Entities of a batch with few interactions."""
        return self.numbers // 128


CPU = AtOnce()
ACCELERATOR = AtOnce(2**24, 4096, 4096, 2**24, 2**18, WIDTH)


@dataclasses.dataclass(frozen=True)
class Job:
    """A segment to be run."""

    recommender: str
    """ials or mf."""
    entities: int
    devices: int = 1
    sweeps: int = 2
    """Of least squares; one more half sweep follows them."""
    steps: int = 20
    """Of matrix factorisation, with one evaluation."""
    batch: int = 65_536
    """Triples of a step."""
    at_once: AtOnce = CPU

    def __post_init__(self):
        if self.recommender not in ("ials", "mf"):
            raise ValueError(f"recommender={self.recommender!r}: choose ials or mf, of which the work is counted")
        if self.entities < 100 or self.devices < 1:
            raise ValueError(
                f"entities={self.entities}, devices={self.devices}: give at least 100 entities, on at least one device"
            )

    @property
    def users(self) -> int:
        """Ten in eleven entities."""
        return 10 * self.entities // 11

    @property
    def items(self) -> int:
        """The others."""
        return self.entities - self.users

    @property
    def held_out(self) -> int:
        """Rows of valid, and of test."""
        return min(_HELD_OUT, 3 * self.entities // 10)

    @property
    def trained(self) -> int:
        """Rows that are trained on; pairs that come twice, of which there are under 1%, are counted twice."""
        return 3 * self.entities - 2 * self.held_out


class _Side(NamedTuple):
    """Users or items of the stream. The first rows have each once, the others draw by a uniform number to a power."""

    count: int
    drawn: int  # Rows trained on that draw.
    skew: int
    others: int  # Entities of the other side, more than which none can have met.

    def degree(self, rank: np.ndarray) -> np.ndarray:
        """Expected interactions of the entities at ranks."""
        share = ((rank + 1) / self.count) ** (1 / self.skew) - (rank / self.count) ** (1 / self.skew)
        return np.minimum(1 + self.drawn * share, self.others)

    def few(self) -> float:
        """Expected number of entities with at most `_FEW` interactions: what is drawn follows Poisson's law."""
        edges = np.unique(np.r_[0, np.geomspace(1, self.count, 4000).astype(np.int64)])
        counts = np.diff(edges)
        mean = self.drawn * np.diff((edges / self.count) ** (1 / self.skew)) / counts
        terms = [np.exp(n * np.log(mean) - mean - math.lgamma(n + 1)) for n in range(_FEW)]
        return float((counts * np.sum(terms, axis=0)).sum())


def _sides(job: Job) -> tuple[_Side, _Side]:
    users = _Side(job.users, job.trained - job.users, 2, job.items)
    return users, _Side(job.items, job.trained - job.items, 3, job.users)


def ranked_users(job: Job) -> int:
    """Expected distinct users among the rows of valid, or of test, which draw users as the others do.

    >>> ranked_users(Job("ials", 10**5))
    8846
    """
    edges = np.unique(np.r_[0, np.geomspace(1, job.users, 4000).astype(np.int64)])
    counts, share = np.diff(edges), np.diff(np.sqrt(edges / job.users))
    return round(float((counts * -np.expm1(-job.held_out * share / counts)).sum()))


class _Ask(NamedTuple):
    """What a question to all devices is made of (`ops.devices.ask`)."""

    requests: int = 1
    """Arrays that say what is wanted."""
    kinds: int = 1
    """Types of numbers in an answer, each of which is a sum of its own."""


_PLAIN = _Ask()


def _asked(job: Job, asks: float, answer: float, request: float, made_of: _Ask = _PLAIN) -> Work:
    """Questions of this device to all, of so many bytes of answers and requests in all.

    Every device answers all devices' requests: an answer is written, and summed over the devices whoever asked. So what
    a device sums and moves does not fall with the number of devices. Short answers are summed at once, long ones one
    device's after another.
    """
    devices = job.devices
    if devices == 1 or not asks:
        return Work()
    at_once = devices * answer / 4 / asks <= job.at_once.numbers
    return Work(
        moved=2 * devices * answer,
        summed=devices * answer,
        gathered=devices * request,
        exchanges=asks * (made_of.requests + made_of.kinds * (1 if at_once else devices)),
    )


def _half_sweep(job: Job, side: _Side) -> Work:
    """Half a sweep of least squares on one of the devices."""
    d, limits = job.devices, job.at_once
    rows = -(-max(job.users, job.items) // (_BLOCK * d)) * _BLOCK
    few = side.few()
    visits = math.ceil(few / (limits.few * d))
    firsts = np.arange(0, max(side.count - few, 1), limits.entities, dtype=np.float64)
    # All of a batch wait for the one with the most interactions, which comes first.
    chunks, own = float(np.ceil(side.degree(firsts) / _CHUNK).sum()), max(8, -(-limits.entities // d))
    return (
        _laid_out(job, rows)
        .plus(_many_interactions(len(firsts), chunks, own))
        .plus(_few_interactions(visits * limits.few))
        .plus(_read_neighbours(job, chunks, chunks * own * _CHUNK))
        .plus(_read_neighbours(job, visits, visits * limits.few * _FEW))
        .plus(_written(job, len(firsts) + visits, len(firsts) * own + visits * limits.few, len(firsts)))
    )


def _laid_out(job: Job, rows: int) -> Work:
    """The other side's vectors of a half sweep, of which this device lays `rows` out, and their Gram matrix."""
    blocks, d = rows // _BLOCK, job.devices
    # A vector's place and size are read and it is written; it is read for the Gram matrix, and read and written to be
    # turned to its axes. The Gram matrix and the turn are products with 16 columns, the sum one with a single one.
    own = Work(products=2 * rows * WIDTH * (2 * WIDTH + 1), moved=rows * (8 + 4 * _VECTOR), rounds=blocks)
    found = own.plus(_asked(job, blocks, rows * _VECTOR, 8 * rows, _Ask(requests=2)))
    # Blocks of products are gathered, and added up one device after another.
    terms = 4 * d * blocks * (WIDTH + 1) * WIDTH
    return found if d == 1 else found.plus(Work(gathered=terms, moved=terms, exchanges=2 * blocks))


def _many_interactions(batches: int, chunks: float, own: int) -> Work:
    """Systems in the space of coordinates, of batches of which this device has `own` entities each."""
    matrix, neighbours = 4 * WIDTH**2, chunks * own * _CHUNK
    # A neighbour's square and its part of the right side; then the factor, two triangular systems and the check.
    products = neighbours * (2 * WIDTH**2 + 2 * WIDTH) + batches * own * (WIDTH**3 / 3 + 4 * WIDTH**2)
    # A chunk's vectors are written and read, the matrix is read and written for each chunk, and four times beside it.
    return Work(products, neighbours * 2 * _VECTOR + chunks * own * 2 * matrix + batches * own * 4 * matrix)


def _few_interactions(entities: float) -> Work:
    """Systems in the space of at most 8 interactions."""
    # The kernel; vectors times the constant, solutions times vectors; the turn back; the check of the solution.
    products = 2 * _FEW**2 * WIDTH + 4 * _FEW * WIDTH + 2 * WIDTH**2 + 2 * _FEW**2
    # Vectors and kernel are written and read, and each of 8 steps of the elimination reads and writes the system.
    system = 4 * _FEW * (_FEW + 1)
    return Work(entities * products, entities * (2 * _FEW * _VECTOR + 8 * _FEW**2 + 2 * _FEW * system))


def _read_neighbours(job: Job, asks: float, neighbours: float) -> Work:
    """Entries, and vectors of their neighbours: of so many places for a neighbour on this device."""
    read = neighbours * (_ENTRY + _VECTOR)
    # Which entries, then which vectors; nodes, roots with targets, and vectors are three sums.
    rounds = asks if job.devices == 1 else 0
    return Work(moved=read, rounds=rounds).plus(_asked(job, asks, read, 8 * neighbours, _Ask(requests=2, kinds=3)))


def _written(job: Job, batches: float, entities: float, divided: int) -> Work:
    """Solutions into the pool, and what they lower the loss by."""
    own = Work(moved=entities * (8 + _VECTOR) + job.entities * (48 + 32))
    if job.devices == 1:
        return own
    # Everyone is told places, sizes and solutions, and the longest of a divided batch is agreed on.
    told = job.devices * entities * (8 + _VECTOR)
    return Work(
        moved=own.moved + told,
        summed=16 * job.entities,
        gathered=told,
        exchanges=3 * batches + divided,
    )


def _coded(job: Job) -> Work:
    """The table in four bits: scales that are tried, and codes, of this device's part of the vectors."""
    # For each scale that is tried, both coordinates and the error so far are read, and the error is written.
    own = Work(moved=job.entities / job.devices * _TRIED * (4 * COORDINATES + 8))
    if job.devices == 1:
        return own
    # Limits are tried on blocks of all columns that a vector may have, and codes are of those that it has.
    of_limits = math.ceil(job.entities / (2**16 // WIDTH * job.devices))
    asks = of_limits + math.ceil(COORDINATES * job.entities / (2**16 * job.devices))
    return own.plus(_asked(job, asks, 4 * 2**16 * asks, 4 * asks)).plus(Work(gathered=COORDINATES * job.entities))


def _by_least_squares(job: Job) -> Work:
    """A fit of least squares: the problem, its order, half sweeps, and the judgement on users of valid."""
    users, items = _sides(job)
    entries = 2 * job.trained / job.devices
    # Ages become roots and targets, twice, since users have a half-life of their own at the end. Every device sorts the
    # order by three keys, which it reads and writes for each halving.
    total = Work(moved=2 * 28 * entries + 2 * 12 * job.entities * math.log2(job.entities))
    total = total.plus(_half_sweep(job, users), job.sweeps + 1).plus(_half_sweep(job, items), job.sweeps)
    # The pool is laid out by vector at first, back at the end, 2^14 coordinates at once.
    coordinates = COORDINATES * job.entities / job.devices
    asks = math.ceil(coordinates / 2**14)
    moving = Work(moved=24 * coordinates).plus(_asked(job, asks, 4 * coordinates, 4 * coordinates))
    return total.plus(moving, 2).plus(_coded(job), 2).plus(_ranked(job, min(_VALID_USERS, ranked_users(job))))


def _by_steps(job: Job) -> Work:
    """A fit of matrix factorisation: steps on triples, and the judgement on users of valid."""
    nodes, d = job.entities, job.devices
    # Every device passes seven times over a block of 16 columns of all nodes. It reads the block from the pool and
    # writes it, gathers it by node (read and written), makes a gradient of zeros, pulls that to vectors (read and
    # written) and lays it out (read). How often the batch has each vector is four numbers of each.
    every = nodes * (7 * _VECTOR + 16)
    # Adam reads and writes both moments, reads the gradient, then reads both and changes the parameters.
    adam = COORDINATES * nodes / d * 4 * 9
    step = Work(moved=every + adam + 3 * job.batch * 6 * _VECTOR, rounds=20)
    if d > 1:
        # The block is a sum over devices, and so is each halving of the lists, which are in parts, by which a negative
        # is found; the longest list takes the most of them.
        longest = float(_sides(job)[0].degree(np.zeros(1))[0])
        exchanges = 1 + math.ceil(math.log2(longest))
        step = step.plus(Work(summed=nodes * _VECTOR + 40 * job.batch, exchanges=exchanges, moved=nodes * _VECTOR))
    return Work().plus(step, job.steps).plus(_coded(job)).plus(_ranked(job, min(_VALID_USERS, ranked_users(job))))


def _ranked(job: Job, users: int) -> Work:
    """All items ranked for so many users."""
    items = -(-max(job.items, 640) // 32) * 32
    return _ranked_on_one(job, users, items) if job.devices == 1 else _ranked_in_parts(job, users, items)


def _ranked_on_one(job: Job, users: int, items: int) -> Work:
    limits = job.at_once
    at_once = max(1, min(limits.users, users, limits.scores // items))
    blocks = math.ceil(users / at_once)
    scores = float(blocks * at_once * items)
    # Each block of users reads the vectors of all items; a score is written, and read for the largest of its chunk.
    moved = 4.0 * blocks * items * limits.columns + 8 * scores
    return Work(2 * scores * limits.columns, moved, rounds=blocks * (1 + math.ceil(_MET * at_once / limits.edges)))


def _ranked_in_parts(job: Job, users: int, items: int) -> Work:
    """Each device ranks its own users, by a block of items after another."""
    d, limits = job.devices, job.at_once
    own = -(-users // d)
    block = min(items, max(640, limits.scores // 4 // WIDTH // 32 * 32))
    at_once = max(1, min(limits.users, own, limits.scores // block))
    blocks, of_items = -(-own // at_once), -(-items // block)
    scores = float(blocks * at_once * of_items * block)
    moved = 4.0 * blocks * of_items * block * limits.columns + 8 * scores
    # Items' vectors are summed once; users' are asked for.
    found = Work(2 * scores * limits.columns, moved, of_items * block * _VECTOR, 80 * users, exchanges=of_items)
    found = found.plus(_asked(job, blocks, blocks * at_once * _VECTOR, 4 * blocks * at_once))
    # What users have met is asked for so many entries at once, however few are wanted.
    struck = math.ceil(_MET * at_once / limits.edges) * blocks * of_items
    found = found.plus(_asked(job, struck, 4.0 * limits.edges * struck, 4.0 * limits.edges * struck))
    return found.plus(Work(exchanges=struck + blocks * of_items))


def _prepared(job: Job) -> Work:
    """Sizes and new vectors, of all entities on every device."""
    nodes = job.entities
    # A sort for the order, forty passes of bisections, and 16 random numbers of each vector, which are written and
    # read four times between their bits and the pool.
    return Work(moved=nodes * (2 * 12 * math.log2(nodes) + 40 * 8 + 8 * _VECTOR))


def phases(job: Job) -> Mapping[str, Work]:
    """The work of a segment.

    Args:
      job: the segment.

    Returns:
      By phase: `host`, which makes the segment's arrays, `prepare`, `fit` and `evaluate`.
    """
    rows = 3 * job.entities
    # Valid and test are ranked, by the table in four bits.
    evaluate = _coded(job).plus(_ranked(job, ranked_users(job)), 2)
    return {
        "host": Work(sorted=rows * math.log2(rows)),
        "prepare": _prepared(job),
        "fit": _by_least_squares(job) if job.recommender == "ials" else _by_steps(job),
        "evaluate": evaluate,
    }


def of_the_longest_batch(job: Job) -> float:
    """Part of the chunks of an items' half sweep that the batch with the most popular item waits for alone.

    >>> of_the_longest_batch(Job("ials", 10**5)) > 0.5
    True
    """
    items = _sides(job)[1]
    firsts = np.arange(0, max(items.count - items.few(), 1), job.at_once.entities, dtype=np.float64)
    chunks = np.ceil(items.degree(firsts) / _CHUNK)
    return float(chunks[0] / chunks.sum())
