"""The methods by name. To add one to the command line and the experiments, enter it here."""

import dataclasses
import functools
from collections.abc import Callable

from scall_jax.config import Config
from scall_jax.methods.allocators import ALLOCATORS
from scall_jax.methods.baseline_phases import baseline_method
from scall_jax.methods.embedding_phases import embedding_method
from scall_jax.methods.gain_bits import gain_bits_planner
from scall_jax.methods.gains import gain_planner, waterfill_planner
from scall_jax.methods.phases import Callbacks, Method, MethodPhases
from scall_jax.methods.planner import allocator_planner
from scall_jax.methods.rivals.bet import bet_planner
from scall_jax.methods.rivals.bigear import bigear_planner
from scall_jax.methods.rivals.bit_search import bit_search_planner
from scall_jax.methods.rivals.ciess import ciess_planner
from scall_jax.methods.rivals.ducb import ducb_planner
from scall_jax.methods.rivals.esapn import esapn_planner
from scall_jax.methods.rivals.eviction import RULES, eviction_planner
from scall_jax.methods.rivals.hashed_width import hashed_width_planner
from scall_jax.methods.rivals.lce import lce_planner, without_minimum
from scall_jax.methods.rivals.memo import memo_planner
from scall_jax.methods.rivals.minhash_plan import minhash_planner
from scall_jax.methods.rivals.pep import pep_planner
from scall_jax.methods.rivals.reid import reid_planner
from scall_jax.methods.rivals.s2pnm import s2pnm_planner
from scall_jax.methods.rivals.spectral import spectral_planner
from scall_jax.methods.scall.search import scall_planner
from scall_jax.policies import POLICIES
from scall_jax.recommenders.ease import EASE
from scall_jax.recommenders.popularity import FLOORS

SEARCHED = {"scall": "gp", "dlints": "dlints", "scall-gain": "gp"} | {f"scall-{name}": name for name in POLICIES}
"""Methods that search sizes as SCALL does, and the name of the policy of each. The actions of scall-gain are prices;
those of the others are what `SearchConfig.actions` says."""

_BY_PROBES = {"bet": bet_planner, "ciess": ciess_planner, "ducb": ducb_planner, "esapn": esapn_planner}

PROBED = (*SEARCHED, *_BY_PROBES)
"""Methods that make probes: short trainings before a segment's own."""

_HASHED = ("binary_hash", "binary_hash_skip", "quotient_remainder")


def _searching(name: str) -> Method:
    method = embedding_method(functools.partial(scall_planner, SEARCHED[name]))
    return _configured(method, _by_prices) if name == "scall-gain" else method


def _configured(method: Method, configure: Callable[[Config], Config]) -> Method:
    """A method that changes the config that it is given."""

    def phases(config: Config, callbacks: Callbacks) -> MethodPhases:
        return method.phases(configure(config), callbacks)

    return method._replace(phases=phases, configure=configure)


def _by_prices(config: Config) -> Config:
    return dataclasses.replace(config, search=dataclasses.replace(config.search, actions="prices"))


EMBEDDING_METHODS: dict[str, Method] = {
    **{
        name: embedding_method(allocator_planner(allocator), unlimited=name == "full")
        for name, allocator in ALLOCATORS.items()
    },
    **{name: _searching(name) for name in SEARCHED},
    "gain": embedding_method(gain_planner),
    "waterfill": embedding_method(waterfill_planner),
    "gain-bits": embedding_method(gain_bits_planner, "packed_bits"),
    "spectral": embedding_method(spectral_planner),
    **{name: embedding_method(planner) for name, planner in _BY_PROBES.items()},
    **{name: embedding_method(hashed_width_planner, name) for name in _HASHED},
    "shared_memory": embedding_method(minhash_planner, "shared_memory"),
    "mixed_precision": embedding_method(bit_search_planner, "mixed_precision"),
    "pep": embedding_method(pep_planner, "pruned"),
    **{f"evict_{rule}": embedding_method(eviction_planner(rule), "evicting") for rule in RULES},
    "memo": embedding_method(memo_planner, "expandable"),
    "reid": embedding_method(reid_planner, "clustered"),
    "s2pnm": embedding_method(s2pnm_planner, "sequence"),
    "bigear": embedding_method(bigear_planner, "binary_layers"),
    "lce": _configured(embedding_method(lce_planner), without_minimum),
}
"""Methods with embeddings within the budget. Only `full` is not bound by it: it gives every entity the largest size."""

BASELINES: dict[str, Method] = {name: baseline_method(baseline) for name, baseline in (FLOORS | {"ease": EASE}).items()}
"""Methods outside the budget, which have no embeddings."""

METHODS = (*EMBEDDING_METHODS, *BASELINES)
"""Names of all methods, the baselines included."""


def method_of(name: str) -> Method:
    """The method of a name.

    Args:
      name: one of `METHODS`.

    Returns:
      Method.

    Raises:
      ValueError: unknown name.

    >>> method_of("uniform") is EMBEDDING_METHODS["uniform"]
    True
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}: choose one of {', '.join(METHODS)}")
    return (EMBEDDING_METHODS | BASELINES)[name]
