"""The methods of a run by name: a way to spend the budget and a way to store embeddings."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from scall_jax.allocators import ALLOCATORS
from scall_jax.chooser import Chooser, by_allocator
from scall_jax.config import Config
from scall_jax.policies import POLICIES
from scall_jax.recommenders.ease import EASE
from scall_jax.recommenders.popularity import FLOORS
from scall_jax.reference import Reference
from scall_jax.rivals import bet, ciess, ducb, esapn, hashed, mixed_precision, pep, shared_memory, spectral
from scall_jax.search import make_search


class Method(NamedTuple):
    """`chooser(config, progress)`, and the storage it plans for: a name of `tables.STORAGES`; None for the config's."""

    chooser: Callable[[Config, Callable | None], Chooser]
    storage: str | None = None


SEARCHED = {"scall": "gp", "dlints": "dlints"} | {f"scall-{name}": name for name in POLICIES}
"""Methods that search sizes by the actions of SCALL, and their policies."""

_BY_PROBES = {"bet": bet.chooser, "ciess": ciess.chooser, "ducb": ducb.chooser, "esapn": esapn.chooser}

PROBED = (*SEARCHED, *_BY_PROBES)
"""Methods that make probes: short trainings before a segment's own."""

EMBEDDING_METHODS: dict[str, Method] = {
    **{name: Method(by_allocator(make)) for name, make in ALLOCATORS.items()},
    **{name: Method(functools.partial(make_search, policy)) for name, policy in SEARCHED.items()},
    "spectral": Method(spectral.chooser),
    **{name: Method(chooser) for name, chooser in _BY_PROBES.items()},
    **{name: Method(hashed.chooser, name) for name in ("binary_hash", "binary_hash_skip", "quotient_remainder")},
    "shared_memory": Method(shared_memory.chooser, "shared_memory"),
    "mixed_precision": Method(mixed_precision.chooser, "mixed_precision"),
    "pep": Method(pep.chooser, "pruned"),
}

REFERENCES: dict[str, Reference] = FLOORS | {"ease": EASE}
"""Methods outside the budget, which have no embeddings."""

METHODS = (*EMBEDDING_METHODS, *REFERENCES)
"""Names of all methods, the references included."""


def method_of(name: str) -> Method | Reference:
    """The method of a name.

    Raises:
      ValueError: unknown name.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return EMBEDDING_METHODS[name] if name in EMBEDDING_METHODS else REFERENCES[name]
