"""Raw files to segments: read, cut, replay; embedded and synthetic streams."""

from scall_jax.streams.cut import cut
from scall_jax.streams.embedded import EMBEDDED, load
from scall_jax.streams.formats import FORMATS
from scall_jax.streams.growing import Growing, advance, growing
from scall_jax.streams.ids import MISSING
from scall_jax.streams.interactions import Interactions, from_arrays
from scall_jax.streams.memory import machine_bytes
from scall_jax.streams.read import read
from scall_jax.streams.rule import Rule
from scall_jax.streams.segments import Capacity, Graph, RaggedItems, Segment, active_mask, sides
from scall_jax.streams.statistics import HALF_LIVES, POPULARITY
from scall_jax.streams.stream import Bounds, Evaluated, Stream
from scall_jax.streams.synthetic import synthetic
from scall_jax.streams.wording import DataWarning

__all__ = [
    "EMBEDDED",
    "FORMATS",
    "HALF_LIVES",
    "MISSING",
    "POPULARITY",
    "Bounds",
    "Capacity",
    "DataWarning",
    "Evaluated",
    "Graph",
    "Growing",
    "Interactions",
    "RaggedItems",
    "Rule",
    "Segment",
    "Stream",
    "active_mask",
    "advance",
    "cut",
    "from_arrays",
    "growing",
    "load",
    "machine_bytes",
    "read",
    "sides",
    "synthetic",
]
